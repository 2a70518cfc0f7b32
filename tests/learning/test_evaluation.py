"""Figures on the card: calibrated without the judged case, over cases instead of slides, and never flattering."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from slideway.core.opinion import Answer, Kind, TaskQuestion
from slideway.heads.metrics import exact_interval
from slideway.heads.referral import ReferralPolicy
from slideway.learning import evaluation
from slideway.learning.crossval import METHODS, HeldOut
from slideway.learning.evaluation import draw_evidence, judge_tasks, measure_task
from slideway.learning.sample import Sample
from slideway.testing.heads import TOY_QUESTIONS

LESION = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
ORGAN = TOY_QUESTIONS[3]
GRADE = replace(TOY_QUESTIONS[2], parent="")
POLICY = ReferralPolicy()


def make_sample(labels, *, cases=None, questions=(LESION,), **facts):
    count = len(next(iter(labels.values())))
    cases = tuple(cases if cases is not None else [f"c{i}" for i in range(count)])
    own = {task: np.asarray(values) for task, values in labels.items()}
    return Sample((Path(),) * count, cases, questions, own, facts, ("",) * count, tuple(map(str, range(count))))


def make_held(**logits):
    """The same numbers by every method; no slide is strange."""
    own = {task: np.asarray(values, float).reshape(len(values), -1) for task, values in logits.items()}
    count = len(next(iter(own.values())))
    judged = ~np.isnan(next(iter(own.values()))).any(axis=1)
    return HeldOut(judged, dict.fromkeys(METHODS, own), np.full(count, 0.5), np.full(count, 0.5))


def draw_scores(labels, strength, seed=0):
    return strength * (np.asarray(labels) - 0.5) + np.random.default_rng(seed).normal(size=len(labels))


@pytest.fixture(scope="module")
def good():
    labels = np.arange(60) % 2
    sample = make_sample({"malignant": labels}, site=tuple("abc"[i % 3] for i in range(60)))
    held = make_held(malignant=draw_scores(labels, 6))
    return sample, held, judge_tasks(sample, held, POLICY)[0]


def test_figures_have_what_page_and_card_are_made_of_and_are_plain_json(good):
    sample, _, judged = good
    figures = measure_task(sample, judged, POLICY)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert set(figures) == {
        "task", "title", "kind", "labels", "slides", "cases", "cases_by_label", "slides_by_label", "measure", "method",
        "methods", "sets", "answers", "answered", "missed", "subgroups",
    }  # fmt: skip
    assert set(figures["methods"]) == set(METHODS)
    assert set(figures["methods"]["abmil"]) == {
        "auroc", "sensitivity_at_specificity_90", "sensitivity", "specificity", "ece", "brier", "aurc",
    }  # fmt: skip
    assert set(figures["sets"]) == {
        "promised", "coverage", "coverage_by_label", "size_by_label", "mean_size", "single", "empty",
    }  # fmt: skip
    assert set(figures["missed"]) >= {"missed", "of_unreferred", "of_positive", "of_unreferred_below", "referred"}
    assert sum(figures["answers"].values()) == figures["slides"] == 60
    assert figures["slides_by_label"] == figures["cases_by_label"] == [30, 30]
    assert figures["methods"]["abmil"]["auroc"]["value"] > 0.99


def test_classes_and_grades_have_figures_of_their_own():
    labels = np.arange(45) % 3
    random = np.random.default_rng(0)
    organ = 4 * np.eye(3)[labels] + random.normal(size=(45, 3))
    grade = np.stack([4 * (labels > j) - 2 for j in range(2)], axis=1) + random.normal(size=(45, 1))
    sample = make_sample({"organ": labels, "grade": labels}, questions=(ORGAN, GRADE))
    told = [
        measure_task(sample, one, POLICY) for one in judge_tasks(sample, make_held(organ=organ, grade=grade), POLICY)
    ]
    assert [figures["measure"] for figures in told] == ["accuracy", "accuracy"]
    assert "weighted_kappa" not in told[0]["methods"]["abmil"]
    assert told[1]["methods"]["abmil"]["weighted_kappa"] > 0.8
    assert told[0]["methods"]["abmil"]["accuracy"]["value"] > 0.9
    assert all("missed" not in figures for figures in told)
    json.dumps(told, allow_nan=False)


def test_probabilities_of_every_slide_sum_to_one_and_calibration_helps_an_overconfident_head(good):
    sample, _, _ = good
    labels = sample.labels["malignant"]
    held = make_held(malignant=12 * draw_scores(labels, 1.2, seed=1))
    judged = judge_tasks(sample, held, POLICY)[0]
    own = judged.probabilities["abmil"]
    np.testing.assert_allclose(own.sum(axis=1), 1)
    raw = 1 / (1 + np.exp(-held.logits["abmil"]["malignant"][:, 0]))
    assert np.mean((own[:, 1] - labels) ** 2) < np.mean((raw - labels) ** 2)


def test_answer_about_a_slide_does_not_know_its_own_label(good):
    """The label of one case turned: what is said of that very case stays the same."""
    sample, held, judged = good
    labels = sample.labels["malignant"].copy()
    labels[7] = 1 - labels[7]
    turned = judge_tasks(replace(sample, labels={"malignant": labels}), held, POLICY)[0]
    for method in METHODS:
        assert np.array_equal(judged.probabilities[method][7], turned.probabilities[method][7])
    other = next(i for i in range(60) if i % 5 != 7 % 5)
    assert not np.array_equal(judged.probabilities["abmil"][other], turned.probabilities["abmil"][other])


def test_both_slides_of_a_case_are_judged_without_either(monkeypatch):
    labels, cases = np.repeat(np.arange(20) % 2, 2), [f"c{i // 2}" for i in range(40)]
    sample = make_sample({"malignant": labels}, cases=cases)
    counted = []
    original = evaluation.calibrate
    monkeypatch.setattr(evaluation, "calibrate", lambda own, known: counted.append(len(own)) or original(own, known))
    judge_tasks(sample, make_held(malignant=draw_scores(labels, 4)), POLICY)
    assert counted == [38] * 40


def test_slides_of_unknown_label_and_those_not_judged_are_not_counted():
    labels = np.array([0, 1, -1, 0, 1, 0] * 5)
    scores = draw_scores(np.maximum(labels, 0), 5)
    scores[:6] = np.nan
    sample = make_sample({"malignant": labels})
    judged = judge_tasks(sample, make_held(malignant=scores), POLICY)[0]
    assert judged.rows.tolist() == [i for i in range(6, 30) if labels[i] >= 0]
    assert measure_task(sample, judged, POLICY)["slides"] == 20


def test_interval_of_slides_of_few_cases_is_as_wide_as_that_of_the_cases():
    labels = np.arange(24) % 2
    scores = draw_scores(labels, 4)
    single = make_sample({"malignant": labels})
    repeated = make_sample({"malignant": np.repeat(labels, 5)}, cases=np.repeat([f"c{i}" for i in range(24)], 5))
    few = measure_task(single, judge_tasks(single, make_held(malignant=scores), POLICY)[0], POLICY)
    many = measure_task(repeated, judge_tasks(repeated, make_held(malignant=np.repeat(scores, 5)), POLICY)[0], POLICY)
    assert (many["slides"], many["cases"], many["cases_by_label"]) == (120, 24, [12, 12])
    for figure in ("sensitivity", "specificity", "auroc"):
        narrow, wide = (told["methods"]["abmil"][figure] for told in (many, few))
        assert narrow["high"] - narrow["low"] >= 0.9 * (wide["high"] - wide["low"]), figure
    exact = exact_interval(12 * many["methods"]["abmil"]["sensitivity"]["value"], 12)
    assert many["methods"]["abmil"]["sensitivity"]["low"] == pytest.approx(exact.low, abs=1e-3)
    assert draw_evidence(many, split="case-folds", sites=0).positives == 12


def test_child_of_the_head_is_never_more_likely_than_its_parent_and_baselines_are_asked_directly():
    random = np.random.default_rng(0)
    neoplastic = np.arange(60) % 2
    malignant = np.where(neoplastic == 1, np.arange(60) // 2 % 2, 0)
    sample = make_sample({"neoplastic": neoplastic, "malignant": malignant}, questions=TOY_QUESTIONS[:2])
    held = make_held(neoplastic=random.normal(size=60), malignant=random.normal(size=60))
    parent, child = judge_tasks(sample, held, POLICY)
    assert (child.probabilities["abmil"][:, 1] <= parent.probabilities["abmil"][:, 1]).all()
    baseline = METHODS[1]
    assert (child.probabilities[baseline][:, 1] > parent.probabilities[baseline][:, 1]).any()


def test_promised_coverage_is_kept_for_the_rare_label_too():
    labels = (np.arange(240) % 10 == 0).astype(int)
    sample = make_sample({"malignant": labels})
    judged = judge_tasks(sample, make_held(malignant=draw_scores(labels, 2, seed=3)), POLICY)[0]
    covered = measure_task(sample, judged, POLICY)["sets"]["coverage_by_label"]
    assert covered["yes"]["high"] >= 0.9
    assert covered["yes"]["value"] > 0.75
    assert 0.85 < covered["no"]["value"] < 0.95


def test_strange_slides_are_referred_and_count_as_unanswered(good):
    sample, held, _ = good
    strange = replace(held, p_value=np.where(np.arange(60) < 12, 0.01, 0.5), strangeness=np.full(60, 0.99))
    figures = measure_task(sample, judge_tasks(sample, strange, POLICY)[0], POLICY)
    assert figures["answers"][Answer.REFER.value] >= 12
    assert figures["missed"]["referred"]["value"] >= 0.2
    assert figures["answered"] <= 0.8


def test_missed_cases_are_those_called_no_without_a_referral(good):
    sample, held, _ = good
    logits = {"malignant": held.logits["abmil"]["malignant"].copy()}
    logits["malignant"][1] = -8  # a malignant case that looks as benign as can be
    told = replace(held, logits=dict.fromkeys(METHODS, logits))
    figures = measure_task(sample, judge_tasks(sample, told, POLICY)[0], POLICY)
    assert figures["missed"]["missed"] == 1
    assert 0 < figures["missed"]["of_positive"]["value"] < 0.1
    assert figures["missed"]["of_positive_below"] > figures["missed"]["of_positive"]["value"]


def test_subgroups_are_told_with_their_size_and_those_too_small_without_a_figure():
    labels = np.arange(40) % 2
    sites = ("north",) * 20 + ("south",) * 17 + ("",) * 3
    sample = make_sample({"malignant": labels}, site=sites, scanner=("AT2",) * 40)
    figures = measure_task(sample, judge_tasks(sample, make_held(malignant=draw_scores(labels, 5)), POLICY)[0], POLICY)
    rows = {row["group"]: row for row in figures["subgroups"]}
    assert set(rows) == {"north", "south", "unknown"}, "one scanner alone is no subgroup"
    assert [rows[name]["slides"] for name in ("north", "south", "unknown")] == [20, 17, 3]
    assert "auroc" in rows["north"]
    assert "auroc" not in rows["unknown"]


def test_evidence_names_the_best_baseline_and_its_own_figure(good):
    sample, _, judged = good
    figures = measure_task(sample, judged, POLICY)
    worse = json.loads(json.dumps(figures))
    worse["methods"][METHODS[2]]["auroc"] = {"value": 0.6, "low": 0.5, "high": 0.7}
    worse["methods"][METHODS[1]]["auroc"] = {"value": 0.4, "low": 0.3, "high": 0.5}
    evidence = draw_evidence(worse, split="leave-one-case-out", sites=3)
    assert (evidence.baseline, evidence.baseline_value.value) == (METHODS[2], 0.6)
    assert (evidence.cases, evidence.positives, evidence.sites) == (60, 30, 3)
    assert evidence.beats_baseline
    assert not draw_evidence(figures, split="leave-one-case-out", sites=3).beats_baseline, "equal is not better"
