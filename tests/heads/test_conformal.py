"""Prediction sets keep their promise for every class, and equal those of an independent package."""

from __future__ import annotations

import numpy as np
import pytest

from slideway.heads.conformal import (
    ConformalCalibration,
    calibrate,
    calibrate_marginal,
    count_needed,
    p_values,
    prediction_sets,
)
from slideway.heads.metrics import measure_sets

SHARES = (0.60, 0.20, 0.10, 0.07, 0.03)


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five overlapping classes, the rarest three in a hundred."""
    random = np.random.default_rng(seed)
    labels = random.choice(5, n, p=SHARES)
    logits = 1.2 * (np.eye(5)[labels] + random.normal(0, 0.9, (n, 5))) + np.log(SHARES)
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("decimals", [12, 1])
def test_p_values_and_sets_equal_those_of_crepes_also_with_ties(decimals):
    crepes = pytest.importorskip("crepes")
    probabilities, labels = draw(400, 1)
    test, _ = draw(150, 2)
    probabilities, test = probabilities.round(decimals), test.round(decimals)
    found = p_values(calibrate(probabilities, labels), test)
    own = (1 - probabilities)[np.arange(400), labels]
    peer = crepes.ConformalClassifier()
    for one in range(5):  # class-conditional: each class is a category of its own
        peer.fit(own, bins=labels)
        theirs = peer.predict_p(1 - test, bins=np.full(150, one), smoothing=False)[:, one]
        assert np.array_equal(found[:, one], theirs)
    peer.fit(own)
    marginal = p_values(calibrate_marginal(probabilities, labels), test)
    assert np.array_equal(marginal, peer.predict_p(1 - test, smoothing=False))
    theirs = peer.predict_set(1 - test, confidence=0.883, smoothing=False)
    assert np.array_equal(prediction_sets(marginal, 0.117), np.asarray(theirs, bool))


def test_class_conditional_classifier_of_crepes_gives_the_same_sets():
    crepes = pytest.importorskip("crepes")
    probabilities, labels = draw(500, 3)
    test, _ = draw(100, 4)

    class Learner:
        classes_ = np.arange(5)

        def predict_proba(self, rows):
            return rows

    peer = crepes.WrapClassifier(Learner())
    peer.calibrate(probabilities, labels, class_cond=True)
    theirs = peer.predict_set(test, confidence=0.871, smoothing=False)
    found = prediction_sets(p_values(calibrate(probabilities, labels), test), 0.129)
    assert [np.flatnonzero(row).tolist() for row in found] == [sorted(labels) for labels in theirs]


def test_every_class_is_covered_as_promised_where_marginal_sets_miss_the_rare_one():
    covered = {"mondrian": np.zeros(5), "marginal": np.zeros(5)}
    count = np.zeros(5)
    for seed in range(40):
        probabilities, labels = draw(600, 2 * seed)
        test, truth = draw(600, 2 * seed + 1)
        count += np.bincount(truth, minlength=5)
        for name, calibration in (
            ("mondrian", calibrate(probabilities, labels)),
            ("marginal", calibrate_marginal(probabilities, labels)),
        ):
            sets = prediction_sets(p_values(calibration, test), 0.1)
            covered[name] += np.bincount(truth, sets[np.arange(600), truth], minlength=5)
    assert (covered["mondrian"] / count > 0.885).all()
    assert (covered["marginal"] / count)[4] < 0.5
    assert covered["marginal"].sum() / count.sum() > 0.885


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.2, 4), (1 / 3, 2), (0.3, 3), (0.01, 99)])
def test_class_with_too_few_cases_is_in_every_set_and_says_so(alpha, needed):
    assert count_needed(alpha) == needed
    for count, is_enough in ((needed, True), (needed - 1, False)):
        labels = np.r_[np.zeros(200, int), np.ones(count, int)]
        probabilities = np.tile([0.5, 0.5], (200 + count, 1))
        calibration = calibrate(probabilities, labels)
        assert calibration.is_certifiable(alpha).tolist() == [True, is_enough]
        assert prediction_sets(p_values(calibration, np.array([[1.0, 0.0]])), alpha)[0, 1] == (not is_enough)


def test_class_never_seen_is_in_every_set():
    calibration = calibrate(np.tile([0.9, 0.05, 0.05], (50, 1)), np.zeros(50, int))
    assert calibration.cases == (50, 0, 0)
    assert p_values(calibration, np.array([[1.0, 0, 0]]))[0].tolist() == [1, 1, 1]


def test_unknown_labels_are_left_out_and_sites_are_counted():
    probabilities, labels = draw(300, 5)
    sites = np.array(["a", "b", "c"])[np.arange(300) % 3]
    masked = np.where(sites == "c", -1, labels)
    found = calibrate(probabilities, masked, sites.tolist())
    alone = calibrate(probabilities[sites != "c"], labels[sites != "c"])
    assert all(np.array_equal(a, b) for a, b in zip(found.scores, alone.scores, strict=True))
    assert found.sites[0] == 2
    assert alone.sites == (0,) * 5


def test_order_of_calibration_cases_and_their_sites_change_nothing():
    probabilities, labels = draw(200, 6)
    order = np.random.default_rng(1).permutation(200)
    first = calibrate(probabilities, labels, np.arange(200) % 4)
    second = calibrate(probabilities[order], labels[order], ["one"] * 200)
    assert all(np.array_equal(a, b) for a, b in zip(first.scores, second.scores, strict=True))


def test_stored_and_read_again_it_says_the_same():
    probabilities, labels = draw(100, 7)
    calibration = calibrate(probabilities, labels, ["one"] * 100)
    again = ConformalCalibration.from_arrays(calibration.to_arrays())
    assert np.array_equal(p_values(calibration, probabilities), p_values(again, probabilities))
    assert again.sites == calibration.sites
    assert again.cases == calibration.cases


def test_arrays_that_do_not_belong_together_are_refused():
    arrays = calibrate(*draw(50, 8)).to_arrays()
    with pytest.raises(ValueError, match="cannot be shared out"):
        ConformalCalibration.from_arrays({**arrays, "scores": arrays["scores"][1:]})


def test_surer_promise_gives_larger_sets():
    probabilities, labels = draw(500, 9)
    values = p_values(calibrate(probabilities, labels), probabilities)
    sizes = [measure_sets(prediction_sets(values, alpha), labels).mean_size for alpha in (0.3, 0.1, 0.03)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (np.array([[0.5, np.nan]]), [0], "finite and within"),
        (np.array([[1.5, -0.5]]), [0], "finite and within"),
        (np.array([[0.5, 0.5]]), [2], "a position among the classes"),
        (np.array([[0.5, 0.5]]), [0, 1], "each case has one label"),
    ],
)
def test_numbers_that_are_no_probabilities_are_refused(probabilities, labels, words):
    with pytest.raises(ValueError, match=words):
        calibrate(probabilities, np.array(labels))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_error_rate_that_promises_nothing_or_all_is_refused(alpha):
    with pytest.raises(ValueError, match="error rate"):
        prediction_sets(np.ones((1, 2)), alpha)
