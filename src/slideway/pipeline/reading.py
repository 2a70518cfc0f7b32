"""What `read_slide` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slideway.core.bag import EmbeddingBag
from slideway.core.findings import Novelty, TissueGroups
from slideway.core.opinion import Opinion
from slideway.core.slide import Slide
from slideway.core.tissue import QualityGrade, TileGrid, TissueMask
from slideway.registry.card import ModelCard


@dataclass(frozen=True)
class SlideReading:
    """All that is known of a slide after reading it.

    Attributes:
        slide: As its file describes it, with the resolution that was used.
        slide_sha256: Identity of its content.
        quality: Verdict with reasons.
        mask: Tissue on the thumbnail.
        bag: One embedding for each tile that was encoded; the vectors stay in the file.
        blurred: Tiles on tissue that were left out as out of focus.
        groups: Tiles grouped by likeness.
        novelty: How unlike the reference set each tile is; None when the encoder has no reference set.
        card: Card of the encoder.
        folder: Where result.json, overlay.png, report.html and bag.safetensors are.
        result: Contents of result.json.
        opinions: What heads say of it; research opinions, never a diagnosis.
        heads_off: A sentence for each question that an installed head could answer and does not.
    """

    slide: Slide
    slide_sha256: str
    quality: QualityGrade
    mask: TissueMask
    bag: EmbeddingBag
    blurred: TileGrid
    groups: TissueGroups
    novelty: Novelty | None
    card: ModelCard
    folder: Path
    result: dict[str, Any] = field(repr=False)
    opinions: tuple[Opinion, ...] = ()
    heads_off: tuple[str, ...] = ()
