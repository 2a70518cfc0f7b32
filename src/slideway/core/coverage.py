"""Of all new cancers, what share is catalogued, has a trained head, has a validated head: the coverage meter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slideway.core.catalogue import MALIGNANT, NEOPLASTIC, Bar, Catalogue, Site

MIN_CASES = 60
# `own-split` and `tiles` are not here: neither keeps the cases of a patient on one side by construction.
CASE_LEVEL_SPLITS = ("leave-one-case-out", "case-folds", "leave-site-out")


@dataclass(frozen=True)
class TrainedTask:
    """One question of a head, as far as the meter needs it.

    Attributes:
        head_id: Id on the head's card.
        task: Id of the question: `malignant`, or with its site in front, `lung.malignant`.
        sites: Ids of the catalogue's sites it was trained on; empty when it is not tied to any.
        in_force: The head is active and the task switched on.
        cases: Independent cases judged; 0 when it was not evaluated.
        split: How unseen cases were kept apart; empty when it was not evaluated.
        sensitivity_low: Lower 95 % bound in [0, 1]; None when there is none.
        specificity_low: Lower 95 % bound in [0, 1]; None when there is none.
    """

    head_id: str
    task: str
    sites: tuple[str, ...]
    in_force: bool
    cases: int
    split: str
    sensitivity_low: float | None
    specificity_low: float | None


@dataclass(frozen=True)
class SiteCoverage:
    """How far one site is covered.

    Attributes:
        site: The site.
        trained_by: Heads trained for it.
        validated_by: Heads validated for it; all of them are in `trained_by` too.
        why_not_validated: Reasons in words, by head where there is one; empty when it is validated.
    """

    site: Site
    trained_by: tuple[str, ...]
    validated_by: tuple[str, ...]
    why_not_validated: tuple[str, ...]

    @property
    def is_catalogued(self) -> bool:
        """Whether the catalogue says what grows there and what is asked."""
        return self.site.is_catalogued

    @property
    def is_trained(self) -> bool:
        """Whether a head was trained for this very site."""
        return bool(self.trained_by)

    @property
    def is_validated(self) -> bool:
        """Whether a head in force was shown to exceed the bar at this very site."""
        return bool(self.validated_by)

    @property
    def stage(self) -> str:
        """The furthest it got: `validated`, `trained`, `catalogued` or `listed`."""
        if self.is_validated:
            return "validated"
        return "trained" if self.is_trained else "catalogued" if self.is_catalogued else "listed"


@dataclass(frozen=True)
class Coverage:
    """How far all sites are covered; every share is of all new cancer cases, never of those in the catalogue.

    Attributes:
        catalogue: What it was measured against.
        sites: One for each site of the catalogue, in its order.
    """

    catalogue: Catalogue
    sites: tuple[SiteCoverage, ...]

    @property
    def listed_percent(self) -> float:
        """Share of the catalogue's sites, read on slides or not."""
        return self._add(lambda site: site.site.incidence.share_percent > 0)

    @property
    def catalogued_percent(self) -> float:
        """Share that is catalogued."""
        return self._add(lambda site: site.is_catalogued)

    @property
    def trained_percent(self) -> float:
        """Share that a head was trained for."""
        return self._add(lambda site: site.is_trained)

    @property
    def validated_percent(self) -> float:
        """Share that a validated head is in force for."""
        return self._add(lambda site: site.is_validated)

    def _add(self, counts: Callable[[SiteCoverage], bool]) -> float:
        return round(math.fsum(site.site.incidence.share_percent for site in self.sites if counts(site)), 2)


def measure_coverage(catalogue: Catalogue, trained: Sequence[TrainedTask]) -> Coverage:
    """Measure what share of new cancers is catalogued, trained and validated.

    - *catalogued*: the site has entities and tasks.
    - *trained*: it is catalogued, and a head answers `malignant` or `neoplastic` and is tied to the site by name. A
      head tied to no site makes no site trained, though it may read any slide.
    - *validated*: it is trained, and a head in force answers `malignant` for this site alone, on at least 60
      independent cases kept apart by case, with lower 95 % bounds of sensitivity and specificity above the
      catalogue's bar. A head of several sites states one figure for all of them, which may hide a bad site: it
      validates none.

    Source:
        docs/catalogue.md, rules of the meter.

    Example:
        >>> from slideway.core.catalogue import load_catalogue
        >>> measure_coverage(load_catalogue(), []).validated_percent
        0.0
    """
    return Coverage(catalogue, tuple(_cover(site, trained) for site in catalogue.sites))


def describe_coverage(coverage: Coverage) -> dict[str, Any]:
    """The measurement for JSON: `total` and `sites`, all in percent of all new cancer cases."""
    return {
        "population": coverage.catalogue.population,
        "total": {
            "catalogued": coverage.catalogued_percent,
            "trained": coverage.trained_percent,
            "validated": coverage.validated_percent,
        },
        "sites": [_describe(site) for site in coverage.sites],
    }


def _describe(covered: SiteCoverage) -> dict[str, Any]:
    incidence = covered.site.incidence
    return {
        "id": covered.site.id,
        "title": covered.site.title,
        "share_percent": incidence.share_percent,
        "new_cases_x10000": incidence.new_cases_x10000,
        "source": incidence.source,
        "checked": incidence.checked,
        "catalogued": incidence.share_percent if covered.is_catalogued else 0.0,
        "trained": incidence.share_percent if covered.is_trained else 0.0,
        "validated": incidence.share_percent if covered.is_validated else 0.0,
        "trained_by": list(covered.trained_by),
        "validated_by": list(covered.validated_by),
        "why_not_validated": list(covered.why_not_validated),
    }


def _cover(site: Site, trained: Sequence[TrainedTask]) -> SiteCoverage:
    if not site.is_catalogued:
        return SiteCoverage(site, (), (), (site.note or "the catalogue says nothing of it that a head could be asked",))
    heads = [task for task in trained if site.id in task.sites and _topic(task, site) in (NEOPLASTIC, MALIGNANT)]
    trained_by = tuple(dict.fromkeys(task.head_id for task in heads))
    if not heads:
        return SiteCoverage(site, (), (), ("no head is trained for it",))
    bar = site.find_task(MALIGNANT).topic.bar
    malignant = [task for task in heads if _topic(task, site) == MALIGNANT]
    faults = [(task.head_id, _find_faults(task, bar)) for task in malignant]
    validated_by = tuple(dict.fromkeys(head_id for head_id, reasons in faults if not reasons))
    if validated_by:
        return SiteCoverage(site, trained_by, validated_by, ())
    silent = [head_id for head_id in trained_by if head_id not in {task.head_id for task in malignant}]
    why = [f"{head_id}: {'; '.join(reasons)}" for head_id, reasons in faults]
    why += [f"{head_id}: does not answer whether there is malignancy" for head_id in silent]
    return SiteCoverage(site, trained_by, (), tuple(why))


def _topic(task: TrainedTask, site: Site) -> str:
    return task.task.removeprefix(f"{site.id}.")


def _find_faults(task: TrainedTask, bar: Bar) -> list[str]:
    faults = []
    if not task.in_force:
        faults.append("not in force")
    if (count := len(set(task.sites))) > 1:
        faults.append(f"its figures are pooled over {count} sites; each site needs figures of its own")
    if task.cases < MIN_CASES:
        faults.append(f"{task.cases} cases, at least {MIN_CASES} are needed")
    if task.split not in CASE_LEVEL_SPLITS:
        faults.append(f"split {task.split or 'unknown'} does not keep cases apart")
    return [
        *faults,
        *_find_low("sensitivity", task.sensitivity_low, bar.sensitivity),
        *_find_low("specificity", task.specificity_low, bar.specificity),
    ]


def _find_low(name: str, low: float | None, bar: float) -> list[str]:
    if low is None or not 0 <= low <= 1:
        return [f"no {name} with its interval on its card"]
    return [] if low > bar else [f"lower bound of {name} {low:.3f}, must be above {bar:.2f}"]
