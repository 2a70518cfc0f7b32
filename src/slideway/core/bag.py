"""Embeddings of a slide's tiles, and the fingerprint that says which encoder made them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import FingerprintMismatchError
from slideway.core.tissue import TileGrid


@dataclass(frozen=True)
class EmbeddingBag:
    """All embeddings of one slide.

    Attributes:
        vectors: (n_tiles, width) float16, in the order of `grid`.
        grid: The tiles, row-major.
        focus: (n_tiles,) float32, sharpness of each tile as `slideway.tissue.focus` measures it.
        encoder_id: Id on the encoder's card.
        fingerprint: Fingerprint of the encoder; bags of different fingerprints never meet.
        slide_sha256: Identity of the slide's content.
    """

    vectors: NDArray[np.float16]
    grid: TileGrid
    focus: NDArray[np.float32]
    encoder_id: str
    fingerprint: str
    slide_sha256: str

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.grid) or len(self.focus) != len(self.grid):
            raise ValueError("a bag holds exactly one vector and one focus value for each tile of its grid")

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Length of one embedding."""
        return int(self.vectors.shape[1])


def require_same_encoder(*fingerprints: str) -> None:
    """Refuse to bring embeddings of different encoders together (invariant I7).

    Raises:
        FingerprintMismatchError: The fingerprints are not all the same.
    """
    if len(set(fingerprints)) > 1:
        short = ", ".join(sorted({f[:12] for f in fingerprints}))
        raise FingerprintMismatchError(
            f"embeddings of different encoders cannot be compared (fingerprints {short}); "
            "read the slides again with one encoder"
        )
