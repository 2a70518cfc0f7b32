"""An encoder ready to run: verified card, verified weights, golden tiles reproduced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from slideway.core.errors import UntrustedEncoderError
from slideway.encoders.engines import ENGINES, Engine, choose_engine, engine_fence
from slideway.registry.card import ModelCard, verify_files

# Measured on one core, CPU ms a tile at 1, 2, 4, 8 tiles a pass: shipped encoder 8.9, 8.9, 9.5, 10.4; ViT-S 119, 119,
# 126, 137. The activations of two tiles still fit into a core's cache.
TILES_PER_PASS = 2


@dataclass(frozen=True)
class Encoder:
    """Tile → vector, on one engine.

    Attributes:
        card: The model card, its files verified.
        engine: What computes.
        engine_name: `onnxruntime` or `openvino`.
    """

    card: ModelCard
    engine: Engine
    engine_name: str

    @property
    def width(self) -> int:
        """Length of one embedding."""
        return self.card.output.width

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn (b, tile_px, tile_px, 3) uint8 RGB tiles into (b, width) float32 vectors."""
        if len(tiles) <= TILES_PER_PASS:
            return self.engine.run(tiles)
        passes = [self.engine.run(tiles[i : i + TILES_PER_PASS]) for i in range(0, len(tiles), TILES_PER_PASS)]
        return np.concatenate(passes)


def load_encoder(card: ModelCard, *, engine: str | None = None, threads: int = 1) -> Encoder:
    """Load an encoder and prove that it computes here what its card promises.

    Args:
        card: Card of the encoder.
        engine: `onnxruntime` or `openvino`; None takes the one measured fastest on this machine.
        threads: Threads that will call `encode` at once.

    Raises:
        UntrustedEncoderError: A file does not match its hash, or the golden tiles give other vectors.
    """
    verify_files(card)
    name = choose_engine(card.fingerprint, engine)
    encoder = Encoder(card, ENGINES[name](card.weights_path, threads, bool(card.weights.data_sha256)), name)
    check_golden_tiles(encoder)
    return encoder


def check_golden_tiles(encoder: Encoder) -> None:
    """Encode the card's golden tiles and refuse the encoder when the vectors are not those on the card."""
    card = encoder.card
    golden = load_file(card.golden_path)
    with engine_fence(f"{card.id}: the weights do not accept the card's tiles"):
        got = encoder.encode(golden["tiles"])
    expected = golden["vectors"]
    if got.shape != expected.shape or got.shape[1] != card.output.width:
        raise UntrustedEncoderError(
            f"{card.id}: golden tiles give vectors of shape {got.shape}, the card promises "
            f"{(len(expected), card.output.width)}; card and weights do not belong together"
        )
    cosine = np.sum(got * expected, axis=1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1) + 1e-12)
    difference = float(np.abs(got - expected).max())
    if not (cosine.min() >= card.golden.min_cosine and difference <= card.golden.max_abs_difference):
        raise UntrustedEncoderError(
            f"{card.id}: golden tiles do not reproduce on {encoder.engine.words} (lowest cosine {cosine.min():.5f}, "
            f"largest difference {difference:.2g}); this engine or processor computes other features, so its "
            "embeddings could not be compared: try --engine onnxruntime, or install the encoder again"
        )
