"""A slide as its file describes it: identity, levels, resolution, side pictures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from slideway.core.errors import UnknownResolutionError


class ResolutionSource(StrEnum):
    """Where a slide's microns per pixel came from; shown in every output."""

    METADATA = "metadata"
    GIVEN = "given"
    SCANNER_PROFILE = "scanner-profile"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Resolution:
    """Microns per pixel at level 0, and how we know.

    Attributes:
        mpp: Mean of both axes, µm/px at level 0; None when nothing states it.
        source: How it is known.
        detail: The field, profile or method it was taken from, in words.
    """

    mpp: float | None
    source: ResolutionSource
    detail: str = ""

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.02 <= self.mpp <= 200:
            raise ValueError(f"mpp {self.mpp} is outside 0.02–200 µm/px: no scanner makes that")


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid.

    Attributes:
        width_px: Width in pixels of this level.
        height_px: Height in pixels of this level.
        downsample: Level-0 pixels per pixel of this level (1.0 for level 0), mean of both axes.
    """

    width_px: int
    height_px: int
    downsample: float


@dataclass(frozen=True)
class Slide:
    """One glass slide's scan, as its file describes it.

    Attributes:
        name: File or folder name, for a person to recognise; never an identity and never sent.
        vendor: Scanner family in OpenSlide's words (`aperio`, `hamamatsu`, `generic-tiff`, `dicom` …).
        reader: Name of the reader that opened it.
        levels: Finest first; never empty.
        resolution: Level-0 microns per pixel and how they are known.
        scanner: Make and model as the file states them; matched by scanner profiles.
        objective_power: Nominal objective, shown only; nothing is computed from it.
        side_images: Which of `label`, `macro`, `thumbnail` the file holds.
        identifiers: Names (never values) of metadata fields that may identify a patient or a person.
        has_icc_profile: An ICC profile is present; applied to what a person sees, never to what an encoder reads.
    """

    name: str
    vendor: str
    reader: str
    levels: tuple[Level, ...]
    resolution: Resolution
    scanner: str = ""
    objective_power: float | None = None
    side_images: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    has_icc_profile: bool = False

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError(f"{self.name}: a slide has at least one level")

    @property
    def width_px(self) -> int:
        """Width of level 0 in pixels."""
        return self.levels[0].width_px

    @property
    def height_px(self) -> int:
        """Height of level 0 in pixels."""
        return self.levels[0].height_px

    @property
    def mpp(self) -> float:
        """Level-0 microns per pixel.

        Raises:
            UnknownResolutionError: Nothing states it.
        """
        if self.resolution.mpp is None:
            raise UnknownResolutionError(
                f"{self.name}: the scanner wrote no microns per pixel, and a guess would silently change every result. "
                "Say it with --mpp 0.25 (Python: mpp=0.25), set default_mpp in a scanner profile "
                "(docs/resolution.md shows how), or accept an estimate from the nuclei with --estimate-mpp."
            )
        return self.resolution.mpp

    def level_for(self, mpp: float) -> int:
        """Index of the coarsest level that still is at least as fine as `mpp` (2 % slack), else 0.

        Example:
            >>> from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
            >>> levels = (Level(4000, 4000, 1.0), Level(1000, 1000, 4.0))
            >>> s = Slide("a", "v", "r", levels, Resolution(0.25, ResolutionSource.GIVEN))
            >>> s.level_for(0.5), s.level_for(1.0), s.level_for(8.0)
            (0, 1, 1)
        """
        return self.level_for_downsample(mpp / self.mpp)

    def level_for_downsample(self, downsample: float) -> int:
        """Index of the coarsest level whose downsample is at most `downsample` (2 % slack), else 0."""
        fine_enough = [i for i, level in enumerate(self.levels) if level.downsample <= downsample * 1.02]
        return max(fine_enough, key=lambda i: self.levels[i].downsample, default=0)


@dataclass(frozen=True)
class Region:
    """A rectangle in level-0 pixels; may reach over the slide's edge.

    Attributes:
        x_level0_px: Left edge.
        y_level0_px: Top edge.
        width_level0_px: Width.
        height_level0_px: Height.
    """

    x_level0_px: int
    y_level0_px: int
    width_level0_px: int
    height_level0_px: int
