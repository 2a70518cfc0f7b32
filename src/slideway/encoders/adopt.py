"""Take an ONNX file that somebody else exported, when its inputs and outputs are those of an encoder here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import UntrustedEncoderError
from slideway.encoders.build import (
    GOLDEN_FILE,
    LICENCE_FILE,
    WEIGHTS_FILE,
    Difference,
    describe_encoder,
    describe_weights,
    encode_in_pairs,
    golden_tiles,
    write_golden,
)
from slideway.encoders.engines import OnnxRuntimeEngine, engine_fence
from slideway.encoders.slots import Slot
from slideway.registry.card import CardOrigin, ModelCard, read_card, write_card
from slideway.registry.onnx_file import list_external_files
from slideway.registry.staging import Staging

_LIMITS = (
    "The weights came from the user as a finished ONNX file: Slideway ships none and vouches for none.",
    "Its golden vectors are its own, computed on this computer: they show that nothing changed since and that engines "
    "agree, not that it is the model its card names, nor that normalisation in it is the one on the card.",
    "Nothing was measured on pathology with this encoder here.",
)


def adopt_onnx(
    slot: Slot,
    weights: Path,
    out: Path,
    *,
    id: str,  # noqa: A002  it is the card's word
    source: str,
    revision: str = "",
) -> ModelCard:
    """Make a model folder around a finished ONNX file; nothing stays when it does not fit.

    Args:
        slot: Which published model the file is.
        weights: Input `tiles` (n, tile_px, tile_px, 3) uint8, normalised inside; output `vectors` (n, width) float32.
        out: The model folder to make.
        id: Id of the new encoder.
        source: Hub id or file name, for the card.
        revision: Its revision at the hub.

    Raises:
        UntrustedEncoderError: It is no ONNX file, takes tensors from other files, or has other inputs or outputs.
        OutputError: The folder cannot be written.
    """
    _require_one_file(weights)
    with Staging(out.parent, out.name) as staging:
        shutil.copyfile(weights, staging.path / WEIGHTS_FILE)
        tiles = golden_tiles(slot.tile_px)
        vectors = _encode(slot, weights, tiles)
        card = describe_encoder(
            slot,
            staging.path,
            id,
            CardOrigin(slot.id, source, revision),
            weights=describe_weights(staging.path, "fp32", slot.network.count_parameters()),
            difference=Difference(1.0, 0.0, float(vectors.std())),
            training_note="Exported to ONNX by whoever made the file.",
            limits=_LIMITS,
            metrics={"golden": f"{GOLDEN_FILE}: the file's own vectors", "golden_command": "slideway models add"},
        )
        card = write_golden(card, tiles, vectors)
        note = f"{slot.title}\nWeights: {source}\nLicence: {slot.licence.id}\n\n{slot.licence.note}\n"
        (staging.path / LICENCE_FILE).write_text(note, encoding="utf-8")
        write_card(card)
        folder = staging.commit()
    return read_card(folder)


def _require_one_file(weights: Path) -> None:
    try:
        others = list_external_files(weights)
    except ValueError as error:
        raise UntrustedEncoderError(f"{weights.name}: no ONNX file ({error}); download or export it again") from error
    if others:
        raise UntrustedEncoderError(
            f"{weights.name}: takes tensors from other files; export it as one file, or make a model folder with a "
            "card that states their hash (docs/models.md)"
        )


def _encode(slot: Slot, weights: Path, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    wanted = (
        f"input `tiles` (n, {slot.tile_px}, {slot.tile_px}, 3) uint8 with normalisation inside, output `vectors` "
        f"(n, {slot.width}) float32"
    )
    engine = OnnxRuntimeEngine(weights, 1)
    with engine_fence(f"{weights.name}: does not fit slot {slot.id}, which needs {wanted}; export it so"):
        vectors = encode_in_pairs(engine, tiles)
    if vectors.shape != (len(tiles), slot.width) or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
        raise UntrustedEncoderError(
            f"{weights.name}: gives {vectors.dtype} of shape {vectors.shape} for {len(tiles)} tiles, which does not "
            f"fit slot {slot.id}: it needs {wanted}"
        )
    if not vectors.std(axis=0).max() > 0:
        raise UntrustedEncoderError(f"{weights.name}: gives the same numbers for every tile; its weights are empty")
    return vectors
