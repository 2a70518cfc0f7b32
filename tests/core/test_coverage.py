"""The coverage meter: it never flatters."""

import json
import math
from dataclasses import replace

import pytest

from slideway.core.catalogue import load_catalogue
from slideway.core.coverage import (
    CASE_LEVEL_SPLITS,
    MIN_CASES,
    Coverage,
    SiteCoverage,
    TrainedTask,
    describe_coverage,
    measure_coverage,
)

CATALOGUE = load_catalogue()
BAR = CATALOGUE.find_site("lung").find_task("malignant").topic.bar
GOOD = TrainedTask(
    head_id="lung-1",
    task="malignant",
    sites=("lung",),
    in_force=True,
    cases=MIN_CASES,
    split="leave-one-case-out",
    sensitivity_low=BAR.sensitivity + 0.001,
    specificity_low=BAR.specificity + 0.001,
)


def measure(*trained: TrainedTask) -> Coverage:
    return measure_coverage(CATALOGUE, trained)


def at(coverage: Coverage, site_id: str) -> SiteCoverage:
    return next(covered for covered in coverage.sites if covered.site.id == site_id)


def totals(coverage: Coverage) -> tuple[float, float, float]:
    return coverage.catalogued_percent, coverage.trained_percent, coverage.validated_percent


def test_without_any_head_nothing_is_trained_or_validated() -> None:
    assert totals(measure()) == (91.40, 0.0, 0.0)


def test_catalogued_leaves_out_what_is_not_read_on_slides() -> None:
    coverage = measure()
    assert coverage.listed_percent == 93.10
    assert round(coverage.listed_percent - coverage.catalogued_percent, 2) == 1.70
    assert at(coverage, "leukaemia").stage == "listed"


def test_a_head_that_just_meets_every_rule_validates_its_site_and_no_other() -> None:
    coverage = measure(GOOD)
    assert totals(coverage) == (91.40, 21.98, 21.98)
    assert at(coverage, "lung").validated_by == ("lung-1",)
    assert at(coverage, "lung").why_not_validated == ()
    assert {covered.stage for covered in coverage.sites if covered.site.id != "lung"} == {"catalogued", "listed"}


@pytest.mark.parametrize("split", CASE_LEVEL_SPLITS)
def test_splits_by_case_are_good_enough(split: str) -> None:
    assert measure(replace(GOOD, split=split)).validated_percent == 21.98


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"cases": MIN_CASES - 1}, "59 cases, at least 60"),
        ({"cases": 0}, "0 cases"),
        ({"in_force": False}, "not in force"),
        ({"split": "tiles"}, "split tiles does not keep cases apart"),
        ({"split": "own-split"}, "split own-split"),
        ({"split": ""}, "split unknown"),
        ({"sensitivity_low": BAR.sensitivity}, "sensitivity 0.900, must be above 0.90"),
        ({"specificity_low": BAR.specificity}, "specificity 0.800, must be above 0.80"),
        ({"sensitivity_low": None}, "no sensitivity"),
        ({"specificity_low": None}, "no specificity"),
        ({"sensitivity_low": math.nan}, "no sensitivity"),
        ({"sensitivity_low": 95.0}, "no sensitivity"),
        ({"specificity_low": -1.0}, "no specificity"),
        ({"sites": ("lung", "breast")}, "pooled over 2 sites"),
    ],
)
def test_one_fault_alone_keeps_a_site_from_being_validated(fault: dict, why: str) -> None:
    coverage = measure(replace(GOOD, **fault))
    assert coverage.validated_percent == 0
    assert at(coverage, "lung").stage == "trained"
    (said,) = at(coverage, "lung").why_not_validated
    assert said.startswith("lung-1: ")
    assert why in said
    assert ";" not in said.replace("sites; each", "")  # nothing but this fault is named


def test_all_faults_of_a_head_are_named_together() -> None:
    coverage = measure(replace(GOOD, in_force=False, cases=3, split="tiles", sensitivity_low=None))
    (said,) = at(coverage, "lung").why_not_validated
    assert said.count(";") == 3


def test_a_head_tied_to_no_site_makes_no_site_trained() -> None:
    assert totals(measure(replace(GOOD, sites=()))) == (91.40, 0.0, 0.0)


def test_a_head_of_another_question_makes_no_site_trained() -> None:
    for task in ("organ", "lung.subtype", "quality", "breast.malignant", "not-malignant"):
        assert measure(replace(GOOD, task=task)).trained_percent == 0, task


def test_neoplastic_trains_a_site_but_never_validates_it() -> None:
    coverage = measure(replace(GOOD, task="neoplastic"))
    assert totals(coverage) == (91.40, 21.98, 0.0)
    assert at(coverage, "lung").why_not_validated == ("lung-1: does not answer whether there is malignancy",)


def test_a_question_with_its_site_in_front_counts_for_that_site() -> None:
    assert measure(replace(GOOD, task="lung.malignant")).validated_percent == 21.98


def test_a_pan_cancer_head_is_validated_only_by_figures_of_each_site() -> None:
    pooled = replace(GOOD, sites=tuple(site.id for site in CATALOGUE.sites), cases=5_000, sensitivity_low=0.99)
    assert totals(measure(pooled)) == (91.40, 91.40, 0.0)
    own = replace(GOOD, head_id="pan", task="breast.malignant", sites=("breast",))
    assert measure(pooled, own).validated_percent == 7.40


def test_a_site_that_asks_nothing_is_never_trained() -> None:
    coverage = measure(replace(GOOD, sites=("leukaemia",)))
    assert coverage.trained_percent == 0
    assert "not on tissue slides" in at(coverage, "leukaemia").why_not_validated[0]


def test_a_head_of_an_unknown_site_counts_nowhere() -> None:
    assert totals(measure(replace(GOOD, sites=("Lung",)))) == (91.40, 0.0, 0.0)


def test_several_heads_of_one_site_count_it_once_and_one_good_head_is_enough() -> None:
    weak = replace(GOOD, head_id="weak", cases=5)
    coverage = measure(weak, GOOD, GOOD)
    assert totals(coverage) == (91.40, 21.98, 21.98)
    assert (at(coverage, "lung").trained_by, at(coverage, "lung").validated_by) == (("weak", "lung-1"), ("lung-1",))


def test_totals_never_exceed_one_another_whatever_heads_there_are() -> None:
    heads = [replace(GOOD, head_id=site.id, sites=(site.id,)) for site in CATALOGUE.sites]
    for count in range(len(heads) + 1):
        catalogued, trained, validated = totals(measure(*heads[:count]))
        assert validated <= trained <= catalogued == 91.40
    assert validated == 91.40


def test_json_holds_totals_and_the_same_for_each_site() -> None:
    found = json.loads(json.dumps(describe_coverage(measure(GOOD, replace(GOOD, sites=("breast",), cases=9)))))
    assert found["total"] == {"catalogued": 91.40, "trained": 29.38, "validated": 21.98}
    sites = {site["id"]: site for site in found["sites"]}
    assert len(sites) == 21
    for stage, total in found["total"].items():
        assert round(sum(site[stage] for site in sites.values()), 2) == total
    assert sites["lung"]["validated_by"] == ["lung-1"]
    assert (sites["breast"]["catalogued"], sites["breast"]["trained"], sites["breast"]["validated"]) == (7.4, 7.4, 0)
    assert sites["breast"]["why_not_validated"] == ["lung-1: 9 cases, at least 60 are needed"]
    assert sites["bladder"]["checked"] == "no: figure from memory"
