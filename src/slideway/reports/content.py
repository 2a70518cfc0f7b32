"""Everything an overlay or a report shows, as one frozen record each; the pipeline fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from slideway.core.findings import Novelty, TissueGroups
from slideway.core.opinion import AttentionMap, Finding, Opinion
from slideway.core.slide import Resolution, ResolutionSource, Slide
from slideway.core.tissue import QualityGrade, TileGrid, TissueMask


@dataclass(frozen=True)
class SlideMaps:
    """What is drawn on a slide's thumbnail, all in one frame: the thumbnail shows the whole of level 0.

    Attributes:
        thumbnail: (height, width, 3) uint8 RGB; any size, the mask's size is the usual one.
        thumbnail_mpp: Exact microns per thumbnail pixel.
        mask: Tissue, pen and fold; may be of another pixel size than the thumbnail.
        grid: Tiles that were read.
        groups: Group of each tile of `grid`.
        novelty: Novelty of each tile of `grid`; None when the encoder has no reference set.
        excluded: Tiles on tissue that were left out as blurred; None means that none were.
        resolution: The slide's level-0 resolution; its source decides whether lengths are marked as estimated.
        attention: Where one head looked, a weight for each tile of `grid`; None when no head spoke.
        attention_title: Which head or question that is, e.g. `Neoplastic?`; stands in the map's heading.
    """

    thumbnail: NDArray[np.uint8]
    thumbnail_mpp: float
    mask: TissueMask
    grid: TileGrid
    groups: TissueGroups
    novelty: Novelty | None
    excluded: TileGrid | None
    resolution: Resolution
    attention: AttentionMap | None = None
    attention_title: str = ""

    def __post_init__(self) -> None:
        if self.thumbnail.ndim != 3 or self.thumbnail.shape[2] != 3 or 0 in self.thumbnail.shape:
            raise ValueError(f"a thumbnail is (height, width, 3) RGB and not empty, not {self.thumbnail.shape}")
        if self.thumbnail_mpp <= 0:
            raise ValueError(f"thumbnail_mpp must be above 0, not {self.thumbnail_mpp}")
        if len(self.groups.group) != len(self.grid):
            raise ValueError("groups must name exactly one group for each tile of the grid")
        if self.novelty is not None and len(self.novelty.percentile) != len(self.grid):
            raise ValueError("novelty must hold exactly one percentile for each tile of the grid")
        if self.attention is not None and len(self.attention.weight) != len(self.grid):
            raise ValueError("attention must hold exactly one weight for each tile of the grid")

    @property
    def is_estimated(self) -> bool:
        """Whether every length and area rests on an estimated resolution."""
        return self.resolution.source is ResolutionSource.ESTIMATED


@dataclass(frozen=True)
class ShownTile:
    """One tile's pixels, as a person sees them.

    Attributes:
        pixels: (height, width, 3) uint8 RGB; shown at 224 px at most.
        index: Position in `grid`, so that the tile is found again in the bag.
        x_level0_px: Left edge.
        y_level0_px: Top edge.
        novelty_percentile: Of this tile; None without a reference set.
    """

    pixels: NDArray[np.uint8]
    index: int
    x_level0_px: int
    y_level0_px: int
    novelty_percentile: float | None = None


@dataclass(frozen=True)
class ShownFinding:
    """One finding with the pixels that speak for and against it.

    Attributes:
        finding: What the head says.
        for_tiles: Tiles that speak most for its leading label, most telling first.
        against_tiles: Tiles that speak most against it.
    """

    finding: Finding
    for_tiles: tuple[ShownTile, ...] = ()
    against_tiles: tuple[ShownTile, ...] = ()


@dataclass(frozen=True)
class ShownOpinion:
    """What one head says of the slide, with the findings that are shown of it.

    Attributes:
        opinion: All that the head says.
        findings: Those of its findings that are shown, in the order to show, parents before children.
    """

    opinion: Opinion
    findings: tuple[ShownFinding, ...]

    def __post_init__(self) -> None:
        asked = {finding.task.id for finding in self.opinion.findings}
        foreign = [shown.finding.task.id for shown in self.findings if shown.finding.task.id not in asked]
        if foreign:
            raise ValueError(f"{self.opinion.head_id} was not asked {', '.join(foreign)}")


@dataclass(frozen=True)
class FocusSummary:
    """Sharpness of tiles, and the line below which a tile counts as blurred.

    Attributes:
        grid: Tiles measured; those that were left out may be among them.
        sharpness: (n,) float32, as `slideway.tissue.focus` measures it, in the order of `grid`; NaN where a tile holds
            too little contrast to tell.
        blurred_below: Tiles below this sharpness are blurred; above 0.
    """

    grid: TileGrid
    sharpness: NDArray[np.float32]
    blurred_below: float

    def __post_init__(self) -> None:
        if len(self.sharpness) != len(self.grid):
            raise ValueError("focus must hold exactly one value for each tile of its grid")
        if self.blurred_below <= 0:
            raise ValueError(f"blurred_below must be above 0, not {self.blurred_below}")


@dataclass(frozen=True)
class EncoderSummary:
    """What a reader must know of the encoder, from its card.

    Attributes:
        encoder_id: Id on the card.
        title: Its name in words.
        fingerprint: Of weights, transform, pixel size, pooling and engine.
        licence: SPDX id or words.
        trained_on: What it learnt from, in a sentence.
        limits: What it cannot do or was not tested for, one plain sentence each.
        width: Length of one embedding.
        engine: What ran it, e.g. `onnxruntime 1.19, CPU`.
    """

    encoder_id: str
    title: str
    fingerprint: str
    licence: str
    trained_on: str
    limits: tuple[str, ...]
    width: int
    engine: str


@dataclass(frozen=True)
class ReportContent:
    """All that a slide's report shows.

    Attributes:
        slide: As its file describes it.
        slide_sha256: Identity of the slide's content, 64 hexadecimal digits.
        slide_bytes: Size of the slide's file or folder.
        quality: Verdict on the pixels, with reasons.
        maps: What is drawn on the thumbnail.
        encoder: The encoder that read the tiles; None when no tile was read.
        focus: Sharpness of the tiles; None when none was measured.
        group_tiles: For each group, tiles that show it best, best first; may be shorter than the number of groups.
        novel_tiles: The most novel tiles, most novel first.
        seconds_by_step: Wall-clock seconds of each step, in the order of the journey.
        bytes_by_output: Size of each thing that was written or would travel, in the order to show.
        notes: Further sentences that a reader must see, e.g. a scanner profile's warning.
        made_at: When the slide was read; None leaves the time out.
        slideway_version: Version that read it.
        opinions: What heads say of the slide, in the order to show; research opinions, never a diagnosis.
        heads_off: One sentence for each head or question that is installed for this encoder and was not asked, with the
            reason, e.g. `Neoplastic? (slideway-atlas): off, not better than its baseline`.
    """

    slide: Slide
    slide_sha256: str
    slide_bytes: int
    quality: QualityGrade
    maps: SlideMaps
    encoder: EncoderSummary | None
    focus: FocusSummary | None = None
    group_tiles: tuple[tuple[ShownTile, ...], ...] = ()
    novel_tiles: tuple[ShownTile, ...] = ()
    seconds_by_step: Mapping[str, float] = field(default_factory=dict)
    bytes_by_output: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    made_at: datetime | None = None
    slideway_version: str = ""
    opinions: tuple[ShownOpinion, ...] = ()
    heads_off: tuple[str, ...] = ()
