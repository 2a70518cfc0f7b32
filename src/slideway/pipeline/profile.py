"""How much of a slide is read: every tile, more than every tile, or those that a coarse look chooses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from slideway.core.bag import Sampling
from slideway.heads import Selection
from slideway.pipeline.survey import Survey

STANDARD = "standard"
THRIFTY = "thrifty"
THOROUGH = "thorough"
PROFILES = (THRIFTY, STANDARD, THOROUGH)

# Share of a tile that must be tissue. Standard: docs/quality.md says why. Thorough: an eighth of that, so that rims and
# single strands of cells are read too, at the price of tiles that are nearly all glass.
LEAST_TISSUE = {THRIFTY: 0.15, STANDARD: 0.15, THOROUGH: 0.02}


@dataclass(frozen=True)
class ReadingPlan:
    """Which tiles of a slide are read, and why.

    Attributes:
        profile: Name of the profile.
        survey: Its grid holds the tiles to read.
        candidate_tiles: Tiles worth reading, before any choice among them.
        screened_tiles: Wide tiles that were looked at to choose; 0 when no choice was made.
        sampling: Reason and weight of each tile to read; None when all candidates are read.
    """

    profile: str
    survey: Survey
    candidate_tiles: int
    screened_tiles: int = 0
    sampling: Sampling | None = None

    @property
    def keeps_blurred(self) -> bool:
        """Whether tiles out of focus are encoded too, marked by their focus."""
        return self.profile == THOROUGH

    @property
    def saved_percent(self) -> float:
        """Candidates that are not read, in percent."""
        read = len(self.survey.grid)
        return 100 * (1 - read / self.candidate_tiles) if self.candidate_tiles else 0.0


def plan_all(profile: str, survey: Survey) -> ReadingPlan:
    """Read every tile of the survey's grid."""
    return ReadingPlan(profile, survey, len(survey.grid))


def plan_selection(profile: str, survey: Survey, selection: Selection, wide_tiles: int) -> ReadingPlan:
    """Read the tiles that were chosen."""
    chosen = dataclasses.replace(survey, grid=survey.grid.select(selection.tiles))
    return ReadingPlan(profile, chosen, len(survey.grid), wide_tiles, selection.sampling)


def describe_plan(plan: ReadingPlan, *, blurred_kept: int) -> dict[str, Any]:
    """The `profile` object of result.json."""
    return {
        "name": plan.profile,
        "candidate_tiles": plan.candidate_tiles,
        "screened_tiles": plan.screened_tiles,
        "read_tiles": len(plan.survey.grid),
        "saved_tiles_percent": round(plan.saved_percent, 2),
        "reasons": {} if plan.sampling is None else plan.sampling.counts,
        "blurred_kept": blurred_kept,
    }


def say_plan(profile: dict[str, Any]) -> tuple[str, ...]:
    """What a reader of the report must know of the profile, in sentences; none for a standard reading."""
    if profile["name"] == THOROUGH:
        kept = profile["blurred_kept"]
        return (
            "Thorough profile: tiles with hardly any tissue were read too"
            + (f", and {kept:,} tiles that are out of focus; the map of focus shows them" if kept else "")
            + ". Shares of groups and of novel tiles are not comparable with those of a standard reading.",
        )
    if not profile["reasons"]:
        return ()
    reasons, read, all_tiles = profile["reasons"], profile["read_tiles"], profile["candidate_tiles"]
    return (
        f"Thrifty profile: not every tile was looked at. Of {all_tiles:,} tiles on tissue {read:,} "
        f"({100 - profile['saved_tiles_percent']:.0f} %) were read, chosen on a coarse look at the whole tissue: "
        f"{reasons['novelty']:,} unlike the rest of the slide, {reasons['cellularity']:,} with most nuclei, "
        f"{reasons['diversity']:,} so that each kind of tissue is there, and {reasons['random']:,} drawn at random "
        "from the others. What lies in a tile that was not read is not in this report; shares are estimates. "
        "Read again with --profile standard to look at all of it.",
    )
