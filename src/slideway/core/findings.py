"""What label-free heads say of a bag: groups of like tiles, novelty, and per-tile maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TissueGroups:
    """Tiles grouped by likeness alone: groups have numbers and no names, since nobody labelled them.

    Attributes:
        group: (n_tiles,) int16, group of each tile, 0 … count-1, group 0 the largest.
        representatives: For each group, indices of the tiles that show it best, best first.
        weight: (n_tiles,) float32, how many tiles of the tissue each stands for; None when every tile was read.
    """

    group: NDArray[np.int16]
    representatives: tuple[tuple[int, ...], ...]
    weight: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """Number of groups; 0 for an empty bag."""
        return len(self.representatives)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the tissue's tiles in each group, in [0, 1]; an estimate when not every tile was read."""
        if self.weight is None:
            return tuple(float((self.group == g).mean()) for g in range(self.count))
        total = float(self.weight.sum())
        return tuple(float(self.weight[self.group == g].sum()) / total for g in range(self.count))


@dataclass(frozen=True)
class Novelty:
    """How unlike the reference set each tile is.

    Attributes:
        percentile: (n_tiles,) float32 in [0, 100]: share of reference tiles, each compared with other cases only,
            that lie nearer to the reference than this tile does.
        reference: Name of the reference set.
        novel_share: Share of the tissue's tiles above the 99th percentile; about 0.01 for tissue like the reference's.
            An estimate when not every tile was read.
    """

    percentile: NDArray[np.float32]
    reference: str
    novel_share: float
