"""The catalogue: whole, well formed, found by every name, and told alike by data and page."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from slideway.core.catalogue import (
    FEATURE,
    GRADE,
    LEVELS,
    MALIGNANT,
    NEOPLASTIC,
    ORGAN,
    QUALITY,
    SUBTYPE,
    Bar,
    Catalogue,
    Entity,
    Site,
    load_catalogue,
)
from slideway.core.errors import WrongUseError
from slideway.core.opinion import Kind
from slideway.core.tissue import Verdict

PAGE = Path(__file__).parents[2] / "docs" / "catalogue.md"
# The sites and their figures, once more: a slip of the pen in a data file must not pass.
FIGURES = {
    "lung": (106.06, 21.98, True),
    "colorectum": (51.71, 10.72, True),
    "thyroid": (46.61, 9.66, True),
    "liver": (36.77, 7.62, True),
    "stomach": (35.87, 7.43, True),
    "breast": (35.72, 7.40, True),
    "oesophagus": (22.40, 4.64, True),
    "cervix-uteri": (15.07, 3.12, True),
    "prostate": (13.42, 2.78, True),
    "pancreas": (11.87, 2.46, True),
    "bladder": (9.29, 1.93, False),
    "brain-cns": (8.75, 1.81, False),
    "lymphoma": (8.52, 1.77, False),
    "leukaemia": (8.19, 1.70, False),
    "corpus-uteri": (7.77, 1.61, True),
    "kidney": (7.37, 1.53, False),
    "lip-oral-pharynx": (6.51, 1.35, False),
    "ovary": (6.11, 1.27, True),
    "nasopharynx": (5.10, 1.06, False),
    "gallbladder-bile-ducts": (3.14, 0.65, False),
    "larynx": (2.95, 0.61, False),
}
CATALOGUE = load_catalogue()
READ_ON_SLIDES = [site for site in CATALOGUE.sites if site.id != "leukaemia"]


def site_table(catalogue: Catalogue) -> str:
    """The table of `docs/catalogue.md`, from the data."""
    rows = ["| site | title | ICD-10 | ICD-O-3 | cases × 10⁴ | share % | entities | tasks | figure |"]
    rows.append("|---|---|---|---|---:|---:|---:|---:|---|")
    for site in catalogue.sites:
        incidence = site.incidence
        figure = "compared" if incidence.is_checked else incidence.checked.removeprefix("no: ")
        rows.append(
            f"| `{site.id}` | {site.title} | {', '.join(site.icd10)} | {_short(site.topography)} "
            f"| {incidence.new_cases_x10000:.2f} | {incidence.share_percent:.2f} | {len(site.entities)} "
            f"| {len(site.tasks)} | {figure} |"
        )
    return "\n".join(rows)


def _short(codes: tuple[str, ...]) -> str:
    return ", ".join(codes) if len(codes) < 6 else f"{len(codes)} of {codes[0]}–{codes[-1]}"


def test_the_sites_and_figures_are_those_of_the_statistics_most_frequent_first() -> None:
    found = {
        site.id: (site.incidence.new_cases_x10000, site.incidence.share_percent, site.incidence.is_checked)
        for site in CATALOGUE.sites
    }
    assert found == FIGURES
    shares = [site.incidence.share_percent for site in CATALOGUE.sites]
    assert shares == sorted(shares, reverse=True)


def test_shares_and_cases_of_all_sites_speak_of_one_whole() -> None:
    wholes = [site.incidence.new_cases_x10000 / site.incidence.share_percent for site in CATALOGUE.sites]
    assert max(wholes) - min(wholes) < 0.08  # what rounding to two places leaves
    assert sum(site.incidence.share_percent for site in CATALOGUE.sites) < 100


def test_a_figure_from_memory_says_so() -> None:
    unchecked = [site.incidence.checked for site in CATALOGUE.sites if not site.incidence.is_checked]
    assert len(unchecked) == 9
    assert all(words.startswith("no: figure from memory") for words in unchecked)
    assert all("doi:10.1016/j.jncc.2024.01.006" in site.incidence.source for site in CATALOGUE.sites)


@pytest.mark.parametrize("site", READ_ON_SLIDES, ids=lambda site: site.id)
def test_every_site_read_on_slides_asks_what_a_pathologist_expects(site: Site) -> None:
    topics = [task.topic.id for task in site.tasks]
    assert [topics.count(topic) for topic in (ORGAN, QUALITY, NEOPLASTIC, MALIGNANT)] == [1, 1, 1, 1]
    for topic in (SUBTYPE, GRADE, FEATURE):
        assert (topic in topics) != (topic in site.not_asked), topic
    assert site.is_catalogued


@pytest.mark.parametrize("site", READ_ON_SLIDES, ids=lambda site: site.id)
def test_every_site_has_eight_to_25_entities_malignant_and_not(site: Site) -> None:
    assert 8 <= len(site.entities) <= 25
    behaviours = {entity.behaviour for entity in site.entities}
    assert "malignant" in behaviours
    assert len(behaviours) > 1


def test_every_grade_on_an_ordered_scale_names_its_system() -> None:
    graded = [task for site in CATALOGUE.sites for task in site.tasks if task.topic.id == GRADE]
    assert len(graded) >= 19
    assert [task.question.id for task in graded if not task.system] == []
    assert {task.question.kind for task in graded} <= {Kind.ORDINAL, Kind.BINARY}


@pytest.mark.parametrize(
    ("task_id", "system"),
    [
        ("prostate.grade", "ISUP"),
        ("breast.grade", "Nottingham"),
        ("corpus-uteri.grade", "FIGO"),
        ("kidney.grade", "WHO/ISUP"),
        ("lung.grade", "IASLC"),
    ],
)
def test_grading_systems_are_those_in_use(task_id: str, system: str) -> None:
    assert system in CATALOGUE.find_site(task_id.partition(".")[0]).find_task(task_id).system


def test_leukaemia_is_listed_but_asks_nothing() -> None:
    site = CATALOGUE.find_site("leukaemia")
    assert (site.tasks, site.is_catalogued) == ((), False)
    assert "not on tissue slides" in site.note


def test_tasks_asked_everywhere_are_the_same_objects() -> None:
    shared = {id(site.find_task(task)) for site in READ_ON_SLIDES for task in ("organ", "neoplastic", "malignant")}
    assert len(shared) == 3


def test_a_task_of_one_site_bears_its_name_and_is_tied_to_it() -> None:
    for site in CATALOGUE.sites:
        for task in site.tasks:
            assert task.question.sites in ((), (site.id,))
            assert task.question.id.startswith(f"{site.id}.") == bool(task.question.sites)


def test_parents_are_asked_at_the_same_site_before_their_children() -> None:
    for site in CATALOGUE.sites:
        asked: set[str] = set()
        for task in site.tasks:
            assert task.question.parent in asked | {""}, task.question.id
            asked.add(task.question.id)


def test_labels_of_shared_tasks_are_the_products_own() -> None:
    lung = CATALOGUE.find_site("lung")
    assert lung.find_task("organ").question.labels == (*(site.id for site in READ_ON_SLIDES), "other")
    assert set(lung.find_task("quality").question.labels) == {verdict.value for verdict in Verdict}


def test_levels_are_defined_and_every_topic_demands_one() -> None:
    assert tuple(CATALOGUE.levels) == LEVELS
    assert all(CATALOGUE.levels.values())
    assert {topic.level for topic in CATALOGUE.topics.values()} <= set(LEVELS)


def test_every_code_belongs_to_one_site() -> None:
    for site in CATALOGUE.sites:
        for code in site.topography:
            assert CATALOGUE.site_of_topography(code) is site


def test_topography_lies_in_the_icd_10_range_of_solid_tumours() -> None:
    for site in CATALOGUE.sites:
        if site.id in ("lymphoma", "leukaemia"):
            continue  # ICD-10 files them by disease, ICD-O by place
        named = {number for text in site.icd10 for number in _numbers(text)}
        assert named == {int(code[1:3]) for code in site.topography}, site.id


def _numbers(text: str) -> range:
    first, last = (re.findall(r"\d\d", text) * 2)[:2]
    return range(int(first), int(last) + 1)


@pytest.mark.parametrize(
    ("code", "site_id"),
    [
        ("C50.1", "breast"),
        ("C54", "corpus-uteri"),
        ("C77.9", "lymphoma"),
        ("C42.1", "leukaemia"),
        ("C42.2", "lymphoma"),
    ],
)
def test_site_is_found_by_topography(code: str, site_id: str) -> None:
    site = CATALOGUE.site_of_topography(code)
    assert site is not None
    assert site.id == site_id


@pytest.mark.parametrize("code", ["C17.0", "C44.9", "C75.1", "C42.3", "C55.9"])
def test_topography_outside_the_catalogue_is_of_no_site(code: str) -> None:
    assert CATALOGUE.site_of_topography(code) is None


@pytest.mark.parametrize("code", ["c50", "C5", "C50.11", "50.1", "breast", "C50-C51", ""])
def test_what_is_no_topography_is_refused(code: str) -> None:
    with pytest.raises(WrongUseError, match="topography"):
        CATALOGUE.site_of_topography(code)


@pytest.mark.parametrize(
    ("organ", "site_id"),
    [
        ("Endometrium", "corpus-uteri"),
        ("Pancreas", "pancreas"),
        ("colon ", "colorectum"),
        ("MENINGES", "brain-cns"),
        ("Salivary gland", "lip-oral-pharynx"),
        ("Esophagus", "oesophagus"),
    ],
)
def test_site_is_found_by_an_organs_name(organ: str, site_id: str) -> None:
    site = CATALOGUE.find_site_of_organ(organ)
    assert site is not None
    assert site.id == site_id


@pytest.mark.parametrize("organ", ["Duodenum", "Small intestine", "Lymph node", "Skin"])
def test_organ_that_is_no_site_is_known_as_such(organ: str) -> None:
    assert organ in CATALOGUE.other_organs
    assert CATALOGUE.find_site_of_organ(organ) is None


def test_unknown_site_or_task_is_wrong_use_and_names_what_there_is() -> None:
    with pytest.raises(WrongUseError, match=r"lungs is no site.*cervix-uteri"):
        CATALOGUE.find_site("lungs")
    with pytest.raises(WrongUseError, match="not asked at lung; asked are organ"):
        CATALOGUE.find_site("lung").find_task("breast.grade")
    with pytest.raises(WrongUseError, match="not read on slides"):
        CATALOGUE.find_site("leukaemia").find_task("malignant")


@pytest.mark.parametrize("code", ["8140", "8140/9", "8140/6", "814/3", "7140/3", "M8140/3", "8140/3 ", ""])
def test_malformed_morphology_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="no ICD-O-3 morphology"):
        Entity(code, "carcinoma")


@pytest.mark.parametrize(
    ("morphology", "behaviour"),
    [("8140/0", "benign"), ("8442/1", "uncertain"), ("8500/2", "in situ"), ("8500/3", "malignant")],
)
def test_the_last_digit_is_the_behaviour(morphology: str, behaviour: str) -> None:
    assert Entity(morphology, "tumour").behaviour == behaviour


def test_what_is_given_twice_is_refused() -> None:
    site = CATALOGUE.find_site("lung")
    with pytest.raises(ValueError, match=r"morphology given twice: 8140/3"):
        replace(site, entities=(*site.entities, Entity("8140/3", "again")))
    with pytest.raises(ValueError, match="task given twice: malignant"):
        replace(site, tasks=(*site.tasks, site.find_task("malignant")))
    with pytest.raises(ValueError, match="site given twice: lung"):
        replace(CATALOGUE, sites=(*CATALOGUE.sites, site))
    with pytest.raises(ValueError, match="topography given twice: C50"):
        replace(CATALOGUE, sites=(CATALOGUE.find_site("breast"), replace(site, topography=("C50",))))
    with pytest.raises(ValueError, match="organ given twice: lung"):
        replace(CATALOGUE, other_organs=("lung",))


@pytest.mark.parametrize("change", [{"topography": ("C5",)}, {"icd10": ("C33–C34",)}, {"id": "Lung"}])
def test_a_site_with_a_malformed_code_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"is no|is small"):
        replace(CATALOGUE.find_site("lung"), **change)


def test_a_bar_that_nothing_can_exceed_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing could ever exceed"):
        Bar(1.0, 0.8)


def test_what_was_not_compared_is_marked_and_says_why() -> None:
    unchecked = [entity for site in CATALOGUE.sites for entity in site.entities if not entity.checked]
    assert {entity.morphology for entity in unchecked} == {"8483/3", "8810/0", "8500/3"}
    assert all(entity.note for entity in unchecked)


def test_the_page_shows_the_table_of_the_data() -> None:
    assert site_table(CATALOGUE) in PAGE.read_text(encoding="utf-8"), site_table(CATALOGUE)


def test_the_page_names_every_topic_with_its_bar_and_every_level() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for topic in CATALOGUE.topics.values():
        row = f"| `{topic.id}` | {topic.level} | {topic.bar.sensitivity:.2f} | {topic.bar.specificity:.2f} |"
        assert row in page, row
    for level, words in CATALOGUE.levels.items():
        assert f"| `{level}` | {words} |" in page, level


def test_the_page_counts_what_is_in_the_data() -> None:
    page = PAGE.read_text(encoding="utf-8")
    entities = [entity for site in CATALOGUE.sites for entity in site.entities]
    unchecked = sum(not entity.checked for entity in entities)
    assert f"{len(entities)} entries, {len(entities) - unchecked} of them compared" in page


@pytest.mark.parametrize(("bar", "fewest"), [(0.9, 36), (0.8, 17), (0.7, 11)])
def test_the_page_is_right_about_the_fewest_cases_that_can_exceed_a_bar(bar: float, fewest: int) -> None:
    # Clopper-Pearson, two-sided 95 %, with n of n right: the lower bound is 0.025 ** (1 / n).
    assert 0.025 ** (1 / fewest) > bar >= 0.025 ** (1 / (fewest - 1))
    assert f"{bar:.2f} from {fewest}" in PAGE.read_text(encoding="utf-8").replace("\n", " ")
