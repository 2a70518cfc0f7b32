"""Embeddings of a slide's tiles, and the fingerprint that says which encoder made them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import FingerprintMismatchError
from slideway.core.tissue import TileGrid

REASONS = ("novelty", "cellularity", "diversity", "random", "attention")


@dataclass(frozen=True)
class Sampling:
    """Why each tile of a bag was read, and how many tiles it stands for, when not every tile of the tissue was read.

    Attributes:
        reason: (n_tiles,) uint8, position in `REASONS`.
        weight: (n_tiles,) float32: 1 for a tile that was chosen, n for one drawn at random from n times as many. Sums
            and means over tiles with these weights are unbiased estimates for all tiles.
    """

    reason: NDArray[np.uint8]
    weight: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.reason.shape != self.weight.shape or self.reason.ndim != 1:
            raise ValueError("a sampling holds exactly one reason and one weight for each tile")
        if len(self.reason) and (int(self.reason.max()) >= len(REASONS) or not float(self.weight.min()) >= 1):
            raise ValueError(f"a reason is below {len(REASONS)}, a weight is at least 1")

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> Sampling:
        """The same of only the tiles that `keep` (mask or indices) names."""
        return Sampling(self.reason[keep], self.weight[keep])

    @property
    def counts(self) -> dict[str, int]:
        """Number of tiles by reason, of those that occur."""
        found = np.bincount(self.reason, minlength=len(REASONS))
        return {name: int(n) for name, n in zip(REASONS, found, strict=True) if n}


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
        sampling: Why each tile was read and what it stands for; None when every tile of the tissue was read.
    """

    vectors: NDArray[np.float16]
    grid: TileGrid
    focus: NDArray[np.float32]
    encoder_id: str
    fingerprint: str
    slide_sha256: str
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.grid) or len(self.focus) != len(self.grid):
            raise ValueError("a bag holds exactly one vector and one focus value for each tile of its grid")
        if self.sampling is not None and len(self.sampling.reason) != len(self.grid):
            raise ValueError("a sampling holds exactly one reason for each tile of the bag's grid")

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Length of one embedding."""
        return int(self.vectors.shape[1])

    @property
    def weights(self) -> NDArray[np.float32]:
        """(n_tiles,) how many tiles of the tissue each tile stands for; 1 each when all were read."""
        return np.ones(len(self), np.float32) if self.sampling is None else self.sampling.weight


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
