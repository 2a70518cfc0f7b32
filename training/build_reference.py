"""Build the reference set that novelty is measured against, from the tiles of the atlas set.

python training/build_reference.py ATLAS_FOLDER [--encoder mobilenetv2-imagenet] [--out src/slideway/heads/references]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from atlas import CREDIT, AtlasSlide, read_atlas
from numpy.typing import NDArray

from slideway.encoders import load_encoder
from slideway.heads.novelty import build_reference, dump_reference
from slideway.registry.card import ModelCard
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

PACKAGED = Path(__file__).parents[1] / "src/slideway/heads/references"


def encode_slides(card: ModelCard, slides: list[AtlasSlide]) -> NDArray[np.float16]:
    """Vectors of all tiles, rounded to what a bag stores."""
    encoder = load_encoder(card)
    tiles = np.concatenate([slide.tiles for slide in slides])
    return np.concatenate([encoder.encode(tiles[i : i + 4]).astype(np.float16) for i in range(0, len(tiles), 4)])


def repeat(slides: list[AtlasSlide], attribute: str) -> NDArray[Any]:
    """An attribute of each slide, once for every tile."""
    return np.repeat([getattr(slide, attribute) for slide in slides], [len(slide.tiles) for slide in slides])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path, help="folder with slides.csv and tiles/")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    options = parser.parse_args()
    card = find_encoder(options.encoder)
    slides = list(read_atlas(options.atlas, tile_px=card.input.tile_px, mpp=card.input.mpp))
    case = repeat(slides, "case")
    reference = build_reference(
        encode_slides(card, slides),
        case,
        name=f"histopathology-atlas-{len(set(case))}-cases",
        encoder_id=card.id,
        fingerprint=card.fingerprint,
    )
    organs = len({slide.organ for slide in slides})
    notes = {"tissue": f"{len(case)} H&E tiles of {len(set(case))} cases, {organs} organs", "credit": CREDIT}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{card.id}.safetensors").write_bytes(dump_reference(reference, notes=notes))


if __name__ == "__main__":
    main()
