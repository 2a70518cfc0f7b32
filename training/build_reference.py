"""Build the reference set that novelty is measured against, from the tiles of the atlas set.

python training/build_reference.py ATLAS_FOLDER [--encoder slideway-small] [--out src/slideway/heads/references]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from atlas import CREDIT, SMEARS, AtlasSlide, read_atlas
from numpy.typing import NDArray

from slideway.encoders import load_encoder
from slideway.heads.novelty import build_reference, dump_reference
from slideway.registry.card import ModelCard
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

PACKAGED = Path(__file__).parents[1] / "src/slideway/heads/references"


def encode_slides(card: ModelCard, slides: list[AtlasSlide]) -> NDArray[np.float16]:
    """Vectors of all tiles, rounded to what a bag stores."""
    return encode_tiles(card, np.concatenate([slide.tiles for slide in slides]))


def encode_tiles(card: ModelCard, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Vectors of tiles, rounded to what a bag stores."""
    encoder = load_encoder(card)
    return np.concatenate([encoder.encode(tiles[i : i + 4]).astype(np.float16) for i in range(0, len(tiles), 4)])


def lay_at_edge(tile: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Cover 10 to 85 % of a tile with glass behind a wavy edge, as at the border of a section.

    The atlas's tiles were chosen full of tissue; a grid over a real slide has tiles at the border too, and without
    these they would all be called novel.
    """
    edge_px = tile.shape[0]
    y, x = np.mgrid[:edge_px, :edge_px].astype(np.float32) / edge_px - 0.5
    angle = random.uniform(0, 2 * np.pi)
    waves = cv2.resize(random.normal(0, 0.12, (6, 6)), (edge_px, edge_px), interpolation=cv2.INTER_CUBIC)
    depth = np.cos(angle) * x + np.sin(angle) * y + waves
    glass = np.clip((depth - np.quantile(depth, random.uniform(0.15, 0.9))) * edge_px / 3 + 0.5, 0, 1)[..., None]
    colour = random.uniform(236, 248) + random.normal(0, 1.5, 3) + random.normal(0, 1.2, tile.shape)
    return np.clip(np.rint(tile * (1 - glass) + colour * glass), 0, 255).astype(np.uint8)


def read_sections(atlas: Path, card: ModelCard) -> list[AtlasSlide]:
    """All slides but smears, at the scale of an encoder."""
    slides = read_atlas(atlas, tile_px=card.input.tile_px, mpp=card.input.mpp)
    return [slide for slide in slides if slide.name not in SMEARS]


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
    slides = read_sections(options.atlas, card)
    case = repeat(slides, "case")
    random = np.random.default_rng(0)
    at_edges = np.stack([lay_at_edge(tile, random) for slide in slides for tile in slide.tiles])
    reference = build_reference(
        np.concatenate([encode_slides(card, slides), encode_tiles(card, at_edges)]),
        np.concatenate([case, case]),
        name=f"histopathology-atlas-{len(set(case))}-cases",
        encoder_id=card.id,
        fingerprint=card.fingerprint,
    )
    organs = len({slide.organ for slide in slides})
    tissue = f"{len(case)} H&E tiles of {len(set(case))} cases, {organs} organs, each also laid at an edge of glass"
    notes = {"tissue": tissue, "credit": CREDIT}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{card.id}.safetensors").write_bytes(dump_reference(reference, notes=notes))


if __name__ == "__main__":
    main()
