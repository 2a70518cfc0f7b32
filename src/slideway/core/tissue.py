"""What of a slide is worth reading: tissue mask, tile grid, quality grade."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Verdict(StrEnum):
    """What a slide's pixels allow; each is an answer, none is an error."""

    READABLE = "readable"
    LIMITED = "limited"
    RESCAN = "rescan"
    NO_TISSUE = "no-tissue"


@dataclass(frozen=True)
class Reason:
    """One reason of a verdict.

    Attributes:
        code: Stable word, listed in `docs/quality.md`.
        text: A sentence for a person, with the measured figure.
    """

    code: str
    text: str


@dataclass(frozen=True)
class QualityGrade:
    """The verdict on a slide's pixels, with its reasons and the figures behind them.

    Attributes:
        verdict: What the pixels allow.
        reasons: Why; empty only when the verdict is `readable`.
        measures: Figures in [0, 1] or with the unit in the name, e.g. `pen_share`, `blurred_share`, `folded_share`.
    """

    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TissueMask:
    """Where tissue is, on a thumbnail's pixels.

    Attributes:
        pixels: (height, width) bool, True = tissue.
        mpp: Microns per mask pixel; exact, so that `x_level0_px = x_mask_px * mpp / slide_mpp`.
        pen: (height, width) bool, True = marker ink.
        fold: (height, width) bool, True = fold inside tissue.
        scanned: (height, width) bool, False = padding beside the scanned area; None when all of it was scanned.
    """

    pixels: NDArray[np.bool_]
    mpp: float
    pen: NDArray[np.bool_]
    fold: NDArray[np.bool_]
    scanned: NDArray[np.bool_] | None = None

    @property
    def area_mm2(self) -> float:
        """Tissue area in mm²."""
        return float(self.pixels.sum()) * (self.mpp / 1000) ** 2

    @property
    def fraction(self) -> float:
        """Share of the scanned area that is tissue, in [0, 1]."""
        scanned_px = self.pixels.size if self.scanned is None else int(self.scanned.sum())
        return float(self.pixels.sum() / scanned_px) if scanned_px else 0.0


@dataclass(frozen=True)
class TileGrid:
    """The squares of a slide that an encoder reads, in row-major order.

    Positions are exact multiples of the tile's edge, rounded last, so the grid does not drift across a slide.

    Attributes:
        column_row: (n, 2) int32, position in the grid over the whole slide.
        tile_px: Edge of a tile as the encoder sees it.
        tile_mpp: Microns per pixel of a tile as the encoder sees it.
        slide_mpp: Microns per pixel of the slide's level 0.
    """

    column_row: NDArray[np.int32]
    tile_px: int
    tile_mpp: float
    slide_mpp: float

    def __len__(self) -> int:
        """Number of tiles; 0 is an answer."""
        return len(self.column_row)

    @property
    def tile_level0_px(self) -> float:
        """Exact edge of a tile in level-0 pixels."""
        return self.tile_px * self.tile_mpp / self.slide_mpp

    @property
    def xy_level0_px(self) -> NDArray[np.int32]:
        """(n, 2) int32, top-left corner of each tile in level-0 pixels."""
        return np.rint(self.column_row.astype(np.float64) * self.tile_level0_px).astype(np.int32)

    @property
    def tile_um(self) -> float:
        """Edge of a tile in micrometres."""
        return self.tile_px * self.tile_mpp

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> TileGrid:
        """The same grid with only the tiles that `keep` (mask or indices) names."""
        return TileGrid(self.column_row[keep], self.tile_px, self.tile_mpp, self.slide_mpp)
