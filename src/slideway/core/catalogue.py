"""Cancer sites, what grows there, and what a pathologist asks of a slide: the catalogue, read from `core/sites`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slideway.core.errors import WrongUseError
from slideway.core.opinion import NEGATIVE, POSITIVE, Kind, TaskQuestion

ORGAN, QUALITY, NEOPLASTIC, MALIGNANT = "organ", "quality", "neoplastic", "malignant"
SUBTYPE, GRADE, FEATURE, MARKER = "subtype", "grade", "feature", "marker"
LEVELS = ("starter", "internal", "multi-site", "prospective")  # of evidence, weakest first
_FOLDER = Path(__file__).parent / "sites"
_COMMON = "common.toml"
_STAIN = "H&E"
_BEHAVIOURS = {"0": "benign", "1": "uncertain", "2": "in situ", "3": "malignant"}
_MORPHOLOGY = re.compile(r"[89]\d{3}/[0-3]")
_TOPOGRAPHY = re.compile(r"C\d\d(\.\d)?")
_ICD10 = re.compile(r"C\d\d(-C\d\d)?")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Bar:
    """What the lower 95 % bounds of a head must exceed; ours, not a regulator's.

    Attributes:
        sensitivity: In [0, 1); of a task with several classes, for each class against all others.
        specificity: In [0, 1), likewise.
    """

    sensitivity: float
    specificity: float

    def __post_init__(self) -> None:
        if not (0 <= self.sensitivity < 1 and 0 <= self.specificity < 1):
            raise ValueError("a bar lies in [0, 1): nothing could ever exceed it otherwise")


@dataclass(frozen=True)
class Topic:
    """What a task is about, with what is demanded of it.

    Attributes:
        id: One of `organ`, `quality`, `neoplastic`, `malignant`, `subtype`, `grade`, `feature`, `marker`.
        title: The same in words.
        level: Least evidence at which such a task may be switched on, one of `LEVELS`.
        bar: What a head's lower bounds must exceed.
    """

    id: str
    title: str
    level: str
    bar: Bar

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"{self.id}: the level of evidence is one of {', '.join(LEVELS)}, not {self.level}")


@dataclass(frozen=True)
class Entity:
    """A neoplasm that grows at a site.

    Attributes:
        morphology: ICD-O-3 code with behaviour, e.g. `8140/3`.
        title: Its name.
        checked: Code and term were compared with the table of ICD-O-3.2.
        note: What else to know; says why it is not checked.
    """

    morphology: str
    title: str
    checked: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        if not _MORPHOLOGY.fullmatch(self.morphology):
            raise ValueError(f"{self.title}: {self.morphology} is no ICD-O-3 morphology with a behaviour from /0 to /3")

    @property
    def behaviour(self) -> str:
        """`benign`, `uncertain`, `in situ` or `malignant`: the code's last digit."""
        return _BEHAVIOURS[self.morphology[-1]]


@dataclass(frozen=True)
class SiteTask:
    """One question that a pathologist expects an answer to.

    Attributes:
        question: The question; tied to its site, or to none when it is asked alike at every site.
        topic: What it is about, with the evidence and the bar that are demanded.
        stain: Stain it is asked on.
        system: Grading or classification system that its labels come from; empty for none.
        note: What else to know.
    """

    question: TaskQuestion
    topic: Topic
    stain: str = _STAIN
    system: str = ""
    note: str = ""


@dataclass(frozen=True)
class Incidence:
    """How often cancer of a site is found.

    Attributes:
        new_cases_x10000: New cases in the population, in ten thousands.
        share_percent: Share of all new cancer cases there.
        source: Publication.
        checked: `yes`, or `no` and why; shown wherever the figure is.
    """

    new_cases_x10000: float
    share_percent: float
    source: str
    checked: str

    @property
    def is_checked(self) -> bool:
        """Whether the figure was compared with its source."""
        return self.checked == "yes"


@dataclass(frozen=True)
class Site:
    """A cancer site of the statistics of incidence.

    Attributes:
        id: Stable ASCII word, e.g. `corpus-uteri`.
        title: Its name.
        icd10: ICD-10 categories or ranges.
        topography: ICD-O-3 topography, e.g. `C50` for all of the breast, or `C42.2`.
        organs: Names under which other data sets know it.
        incidence: How often it is found.
        entities: What grows there, malignant first.
        tasks: What is asked, parents before children; empty when it is not read on slides.
        not_asked: Topic that would be expected, and why nothing is asked.
        note: What else to know.
    """

    id: str
    title: str
    icd10: tuple[str, ...]
    topography: tuple[str, ...]
    organs: tuple[str, ...]
    incidence: Incidence
    entities: tuple[Entity, ...]
    tasks: tuple[SiteTask, ...]
    not_asked: Mapping[str, str]
    note: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id}: a site's id is small ASCII letters and hyphens")
        for code in self.topography:
            if not _TOPOGRAPHY.fullmatch(code):
                raise ValueError(f"{self.id}: {code} is no ICD-O-3 topography, such as C50 or C50.1")
        for code in self.icd10:
            if not _ICD10.fullmatch(code):
                raise ValueError(f"{self.id}: {code} is no ICD-10 category or range, such as C50 or C18-C21")
        _require_once(self.id, "morphology", (entity.morphology for entity in self.entities))
        _require_once(self.id, "task", (task.question.id for task in self.tasks))

    @property
    def is_catalogued(self) -> bool:
        """Whether the catalogue says both what grows there and what is asked."""
        return bool(self.entities) and bool(self.tasks)

    def find_task(self, task_id: str) -> SiteTask:
        """The task of that id, e.g. `malignant` or `lung.subtype`.

        Raises:
            WrongUseError: Nothing of that id is asked here.
        """
        for task in self.tasks:
            if task.question.id == task_id:
                return task
        asked = ", ".join(task.question.id for task in self.tasks) or "nothing, since it is not read on slides"
        raise WrongUseError(f"{task_id} is not asked at {self.id}; asked are {asked}")


@dataclass(frozen=True)
class Catalogue:
    """All sites.

    Attributes:
        population: Whose cancers are counted.
        population_source: Where their numbers come from.
        morphology_source: Table that the codes of morphology were compared with.
        levels: Level of evidence, and what it means, weakest first.
        topics: Topic by its id.
        sites: Most frequent first.
        other_organs: Names of organs that belong to no site of the catalogue.
    """

    population: str
    population_source: str
    morphology_source: str
    levels: Mapping[str, str]
    topics: Mapping[str, Topic]
    sites: tuple[Site, ...]
    other_organs: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_once("catalogue", "site", (site.id for site in self.sites))
        _require_once("catalogue", "topography", (code for site in self.sites for code in site.topography))
        names = [*self.other_organs, *(organ for site in self.sites for organ in site.organs)]
        _require_once("catalogue", "organ", (name.casefold() for name in names))

    def find_site(self, site_id: str) -> Site:
        """The site of that id.

        Raises:
            WrongUseError: There is none.

        Example:
            >>> load_catalogue().find_site("lung").icd10
            ('C33-C34',)
        """
        for site in self.sites:
            if site.id == site_id:
                return site
        known = ", ".join(site.id for site in self.sites)
        raise WrongUseError(f"{site_id} is no site of the catalogue; take one of {known}")

    def site_of_topography(self, code: str) -> Site | None:
        """The site that an ICD-O-3 topography belongs to; None for one outside the catalogue, such as skin.

        Raises:
            WrongUseError: It is no such code.

        Example:
            >>> load_catalogue().site_of_topography("C50.1").id
            'breast'
        """
        if not _TOPOGRAPHY.fullmatch(code):
            raise WrongUseError(f"{code} is no ICD-O-3 topography; write it like C50.1 or C50")
        owners = {topography: site for site in self.sites for topography in site.topography}
        return owners.get(code) or owners.get(code[:3])

    def find_site_of_organ(self, name: str) -> Site | None:
        """The site that an organ's name belongs to, whatever its capitals; None for one outside the catalogue.

        Example:
            >>> load_catalogue().find_site_of_organ("Endometrium").id
            'corpus-uteri'
        """
        wanted = name.strip().casefold()
        for site in self.sites:
            if wanted in (organ.casefold() for organ in site.organs):
                return site
        return None


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """The catalogue that comes with Slideway."""
    common = _read(_FOLDER / _COMMON)
    topics = {name: _build_topic(name, content) for name, content in common["topics"].items()}
    shared = tuple(_build_task(content, topics) for content in common["tasks"])
    features = {content["id"]: content for content in common["features"]}
    paths = [path for path in sorted(_FOLDER.glob("*.toml")) if path.name != _COMMON]
    sites = [_build_site(_read(path), topics, shared, features) for path in paths]
    return Catalogue(
        population=common["population"],
        population_source=common["population_source"],
        morphology_source=common["morphology_source"],
        levels=MappingProxyType({level: common["levels"][level] for level in LEVELS}),
        topics=MappingProxyType(topics),
        sites=tuple(sorted(sites, key=lambda site: -site.incidence.share_percent)),
        other_organs=tuple(common["other_organs"]),
    )


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _build_topic(name: str, content: Mapping[str, Any]) -> Topic:
    bar = Bar(content["sensitivity"], content["specificity"])
    return Topic(name, content["title"], content["level"], bar)


def _build_task(content: Mapping[str, Any], topics: Mapping[str, Topic], site_id: str = "") -> SiteTask:
    kind = Kind(content["kind"])
    question = TaskQuestion(
        id=f"{site_id}.{content['id']}" if site_id else content["id"],
        title=content["title"],
        kind=kind,
        labels=(NEGATIVE, POSITIVE) if kind is Kind.BINARY else tuple(content["labels"]),
        parent=content["parent"],
        sites=(site_id,) if site_id else (),
    )
    words = {key: content[key] for key in ("stain", "system", "note") if key in content}
    return replace(SiteTask(question, topics[content["topic"]]), **words)


def _build_site(
    content: Mapping[str, Any],
    topics: Mapping[str, Topic],
    shared: tuple[SiteTask, ...],
    features: Mapping[str, Mapping[str, Any]],
) -> Site:
    own = [*content.get("tasks", []), *(features[name] for name in content["features"])]
    tasks = (*shared, *(_build_task(task, topics, content["id"]) for task in own))
    return Site(
        id=content["id"],
        title=content["title"],
        icd10=tuple(content["icd10"]),
        topography=tuple(content["topography"]),
        organs=tuple(content["organs"]),
        incidence=Incidence(**content["incidence"]),
        entities=tuple(Entity(**entity) for entity in content["entities"]),
        tasks=tasks if content["read_on_slides"] else (),
        not_asked=MappingProxyType(content.get("not_asked", {})),
        note=content.get("note", ""),
    )


def _require_once(owner: str, what: str, values: Iterable[str]) -> None:
    listed = list(values)
    twice = sorted({value for value in listed if listed.count(value) > 1})
    if twice:
        raise ValueError(f"{owner}: {what} given twice: {', '.join(twice)}")
