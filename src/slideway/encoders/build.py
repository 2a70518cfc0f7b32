"""Make a complete model folder from a published checkpoint: weights as ONNX, golden tiles, card, licence note."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from slideway.core.errors import UntrustedEncoderError
from slideway.encoders.checkpoint import open_checkpoint
from slideway.encoders.encoder import Encoder, check_golden_tiles
from slideway.encoders.engines import OnnxRuntimeEngine
from slideway.encoders.extras import require_library, require_torch
from slideway.encoders.graph import write_graph
from slideway.encoders.reference import encode_with_torch
from slideway.encoders.slots import Slot
from slideway.encoders.weights import read_weights
from slideway.registry.blobs import hash_file
from slideway.registry.card import (
    CardGolden,
    CardInput,
    CardLicence,
    CardOrigin,
    CardOutput,
    CardTraining,
    CardUse,
    CardWeights,
    ModelCard,
    read_card,
    write_card,
)
from slideway.registry.staging import Staging
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

WEIGHTS_FILE, GOLDEN_FILE, LICENCE_FILE = "weights.onnx", "golden.safetensors", "LICENSE"
# Measured with random weights, ONNX Runtime against torch: largest difference 3e-6 to 1.2e-5 of the vectors' spread,
# lowest cosine 1 - 1.2e-7. Trained networks have larger activations; a wrong gain, transform or token order is off by
# more than a tenth of the spread.
MIN_COSINE = 0.99999
MAX_DIFFERENCE_OF_SPREAD = 0.002
# What another engine or processor may be off by. bfloat16, which some engines choose by themselves, rounds a number
# of three times the spread by 0.012 of it.
GOLDEN_MIN_COSINE = 0.9999
_GOLDEN_SLACK = 4.0
_GOLDEN_LEAST_OF_SPREAD = 0.004

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """How far the graph is from the reference on the golden tiles.

    Attributes:
        cosine: Lowest cosine of a tile's two vectors.
        largest: Largest difference of any number.
        spread: Standard deviation of the reference's numbers: the measure for `largest`.
    """

    cosine: float
    largest: float
    spread: float

    @property
    def words(self) -> str:
        """Both figures, for card and errors."""
        return (
            f"lowest cosine {self.cosine:.7f}, largest difference {self.largest:.2g} at a spread of {self.spread:.3g}"
        )


def build_encoder(
    slot: Slot,
    checkpoint: Path,
    out: Path,
    *,
    id: str,  # noqa: A002  it is the card's word
    source: str,
    revision: str = "",
    progress: Progress | None = None,
) -> ModelCard:
    """Build an encoder from a checkpoint; nothing stays of a build that fails.

    The checkpoint is opened without running anything in it, its tensors are held against the slot one by one, and the
    graph must give the vectors that torch computes from the same tensors.

    Args:
        slot: What the checkpoint is.
        checkpoint: `.safetensors`, or a pickled `.pth`, `.pt`, `.bin`, `.ckpt`.
        out: The model folder to make; an older one of that name is replaced.
        id: Id of the new encoder.
        source: Hub id or file name of the checkpoint, for the card.
        revision: Its revision at the hub.
        progress: Told each step in words.

    Returns:
        Its card; `load_encoder` takes it.

    Raises:
        UnreadableCheckpointError: Dangerous, damaged, or not of the slot's form.
        UntrustedEncoderError: The graph does not compute what torch computes.
        WrongUseError: torch or onnx is not installed.
        OutputError: The folder cannot be written.
    """
    require_torch()
    require_library("onnx", "building an encoder from a checkpoint")
    tell = progress or tell_nobody
    with Staging(out.parent, out.name) as staging:
        tiles = golden_tiles(slot.tile_px)
        expected = _write_weights(slot, checkpoint, staging.path / WEIGHTS_FILE, tiles, tell)
        tell("comparing with torch")
        weights = describe_weights(staging.path, "fp32", slot.network.count_parameters())
        engine = OnnxRuntimeEngine(staging.path / WEIGHTS_FILE, 1, bool(weights.data_sha256))
        difference = measure_difference(encode_in_pairs(engine, tiles), expected)
        _require_same(id, difference)
        (staging.path / LICENCE_FILE).write_text(_licence_text(slot, source), encoding="utf-8")
        card = describe_encoder(
            slot,
            staging.path,
            id,
            CardOrigin(slot.id, source, revision),
            weights=weights,
            difference=difference,
            training_note="Trained by its publisher. Here: laid as an ONNX graph, normalisation and pooling inside.",
            limits=(
                "The weights came from the user: Slideway ships none and vouches for none.",
                slot.unverified,
                "Nothing was measured on pathology with this encoder here.",
            ),
            metrics={
                "golden": f"ONNX Runtime against torch, 8 tiles: {difference.words}",
                "golden_command": "models add",
            },
        )
        card = write_golden(card, tiles, expected)
        write_card(card)
        check_golden_tiles(Encoder(read_card(staging.path), engine, "onnxruntime"))
        del engine  # Windows cannot rename a folder while one of its files is mapped
        final = staging.commit()
    return read_card(final)


def tell_nobody(step: str) -> None:
    """Nobody watches."""
    del step


def _write_weights(
    slot: Slot, checkpoint: Path, target: Path, tiles: NDArray[np.uint8], tell: Progress
) -> NDArray[np.float32]:
    """Write the graph and return the vectors that torch computes; the tensors are gone from memory afterwards."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        tell("opening the checkpoint" if checkpoint.suffix == ".safetensors" else "converting in a sandbox")
        opened = open_checkpoint(checkpoint, Path(scratch))
        tell("holding its tensors against the slot")
        weights = read_weights(slot, opened.path)
        tell("writing the graph")
        write_graph(slot, weights, target)
        tell("computing the golden vectors with torch")
        expected = encode_with_torch(slot, weights, tiles)
        del weights
    return expected


def golden_tiles(tile_px: int) -> NDArray[np.uint8]:
    """Tissue of five organs, blank, black and noise, (n, tile_px, tile_px, 3): those of the encoder that ships."""
    tiles: NDArray[np.uint8] = load_file(find_encoder(DEFAULT_ENCODER).golden_path)["tiles"]
    if tiles.shape[1] == tile_px:
        return tiles
    return np.stack([cv2.resize(tile, (tile_px, tile_px), interpolation=cv2.INTER_CUBIC) for tile in tiles])


def describe_weights(folder: Path, precision: str, parameters: int) -> CardWeights:
    """Hash and size of the weights in a folder."""
    path = folder / WEIGHTS_FILE
    second = path.with_name(f"{WEIGHTS_FILE}.data")
    files = [path, second] if second.exists() else [path]
    hashes = [hash_file(file) for file in files]
    n_bytes = sum(file.stat().st_size for file in files)
    return CardWeights(WEIGHTS_FILE, hashes[0], n_bytes, precision, parameters, "".join(hashes[1:]))


def measure_difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> Difference:
    """Compare two sets of vectors of the same tiles."""
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = np.sum(got * expected, axis=1, dtype=np.float64) / (norms + 1e-12)
    return Difference(float(cosine.min()), float(np.abs(got - expected).max()), float(expected.std()))


def write_golden(card: ModelCard, tiles: NDArray[np.uint8], vectors: NDArray[np.float32]) -> ModelCard:
    """Write golden tiles that carry the card's fingerprint; returns the card with their hash."""
    content = save({"tiles": tiles, "vectors": vectors}, metadata={"fingerprint": card.fingerprint})
    card.golden_path.write_bytes(content)
    return replace(card, golden=replace(card.golden, sha256=hashlib.sha256(content).hexdigest()))


def golden_tolerance(difference: Difference) -> CardGolden:
    """How near is near enough, from what was measured; the hash is filled in by `write_golden`."""
    largest = max(_GOLDEN_SLACK * difference.largest, _GOLDEN_LEAST_OF_SPREAD * difference.spread)
    return CardGolden(GOLDEN_FILE, "0" * 64, GOLDEN_MIN_COSINE, float(f"{largest:.3g}"))


def encode_in_pairs(engine: OnnxRuntimeEngine, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Vectors of tiles, two a pass as when slides are read."""
    return np.concatenate([engine.run(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])


def _require_same(encoder_id: str, difference: Difference) -> None:
    is_near = difference.largest <= MAX_DIFFERENCE_OF_SPREAD * difference.spread
    if not (is_near and difference.cosine >= MIN_COSINE):
        raise UntrustedEncoderError(
            f"{encoder_id}: the graph does not give the vectors that torch computes from the same tensors "
            f"({difference.words}); nothing was installed: please report it with the slot's name"
        )


def describe_encoder(
    slot: Slot,
    folder: Path,
    encoder_id: str,
    origin: CardOrigin,
    *,
    weights: CardWeights,
    difference: Difference,
    training_note: str,
    limits: tuple[str, ...],
    metrics: dict[str, str],
) -> ModelCard:
    """The card of an encoder made from a slot; its golden tiles are still to be written."""
    return ModelCard(
        folder=folder,
        id=encoder_id,
        title=slot.title,
        version="1.0.0",
        state="candidate",
        input=CardInput(slot.tile_px, slot.mpp, "RGB as stored, no ICC", slot.mean, slot.std, "area"),
        output=CardOutput(slot.width, slot.pooling_words, "float32"),
        weights=weights,
        golden=golden_tolerance(difference),
        licence=CardLicence(slot.licence.id, LICENCE_FILE, slot.licence.note, slot.licence.permits),
        use=CardUse(
            "Embeddings of tiles for grouping, retrieval and heads, within what the licence permits.",
            "Any diagnosis, grading or exclusion of disease by itself; tiles of another size or pixel size.",
        ),
        training=CardTraining(slot.trained_on, training_note),
        limits=limits,
        metrics=metrics,
        origin=origin,
    )


def _licence_text(slot: Slot, source: str) -> str:
    permits = ", ".join(slot.licence.permits) or "not known"
    return (
        f"{slot.title}\nWeights: {source}\nLicence: {slot.licence.id}\nPermits: {permits}\n\n{slot.licence.note}\n\n"
        "These weights were brought by the user, under the terms that the user accepted from their publisher.\n"
        "Slideway neither ships nor licenses them; where this note and those terms differ, the terms hold.\n"
    )
