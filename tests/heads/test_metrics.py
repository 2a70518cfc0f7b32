"""Figures agree with their textbook peers, and their intervals never flatter a handful of cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slideway.heads import metrics


def draw_scores(n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    positive = np.arange(n) % 3 == 0
    return random.normal(0, 1, n) + shift * positive, positive


def draw_probabilities(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    logits = random.normal(0, 1, (n, classes)) + 1.5 * np.eye(classes)[labels]
    weight = np.exp(logits)
    return weight / weight.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize(
    ("x", "a", "b"), [(0.01, 0.5, 0.5), (0.3, 2, 7), (0.9, 40, 3), (0.5, 300, 310), (1e-6, 1, 200), (0.2, 1e4, 4e4)]
)
def test_incomplete_beta_equals_scipys(x, a, b):
    special = pytest.importorskip("scipy.special")
    assert metrics.incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-14)
    probability = special.betainc(a, b, x)
    assert metrics.beta_quantile(probability, a, b) == pytest.approx(special.betaincinv(a, b, probability), rel=1e-9)


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 30), (1, 30), (15, 30), (29, 30), (30, 30), (3, 5000)])
def test_intervals_of_a_share_equal_scipys(hits, total):
    stats = pytest.importorskip("scipy.stats")
    peer = stats.binomtest(hits, total)
    for mine, method in ((metrics.exact_interval, "exact"), (metrics.wilson_interval, "wilson")):
        theirs = peer.proportion_ci(0.95, method)
        found = mine(hits, total)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert found.value == hits / total
    one_sided = stats.binomtest(hits, total, alternative="less").proportion_ci(0.95, "exact")
    assert metrics.bound_share(hits, total) == pytest.approx(one_sided.high, abs=1e-9)


def test_no_missed_case_among_thirty_still_allows_nearly_a_tenth():
    assert metrics.bound_share(0, 30) == pytest.approx(1 - 0.05 ** (1 / 30))


@pytest.mark.parametrize("interval", [metrics.exact_interval, metrics.wilson_interval])
def test_share_of_nothing_may_be_anything(interval):
    assert (interval(0, 0).low, interval(0, 0).high) == (0, 1)


def test_auroc_equals_sklearns_also_with_ties():
    peer = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        scores, positive = draw_scores(80, 0.7, seed)
        for chosen in (scores, np.round(scores)):
            assert metrics.auroc(chosen, positive) == pytest.approx(peer.roc_auc_score(positive, chosen), abs=1e-12)


def test_auroc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="one positive and one negative"):
        metrics.auroc(np.arange(4), np.ones(4, bool))


def test_score_that_is_not_finite_is_refused_not_ranked():
    with pytest.raises(ValueError, match="1 scores are not finite"):
        metrics.auroc(np.array([0.0, 1.0, np.nan]), np.array([True, False, True]))


def test_auroc_of_five_and_five_without_an_error_is_not_certain():
    found = metrics.measure_auroc(np.arange(10), np.arange(10) > 4)
    assert found.value == found.high == 1
    assert 0.5 < found.low < 0.85


def test_interval_of_auroc_covers_the_truth_in_small_samples():
    truth = 0.5 * math.erfc(-1.5 / 2)  # of two normal distributions 1.5 apart
    hits = 0
    for seed in range(150):
        found = metrics.measure_auroc(*draw_scores(36, 1.5, seed), draws=100)
        hits += found.low <= truth <= found.high
    assert hits >= 138  # 92 %: 95 % less two standard errors


def test_slides_of_one_case_are_drawn_together():
    scores, positive = draw_scores(20, 1.0, 3)
    cases = np.repeat(np.arange(20), 10)
    alone = metrics.measure_auroc(scores, positive)
    copied = metrics.measure_auroc(np.repeat(scores, 10), np.repeat(positive, 10), cases=cases)
    pretended = metrics.measure_auroc(np.repeat(scores, 10), np.repeat(positive, 10))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert pretended.high - pretended.low < 0.6 * (copied.high - copied.low)


def test_sensitivity_stands_where_the_specificity_is_reached():
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    for seed in range(5):
        scores, positive = draw_scores(90, 1.2, seed)
        found = metrics.measure_sensitivity(scores, positive, specificity=0.9, draws=200)
        false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
        assert found.sensitivity.value == pytest.approx(true_rate[false_rate <= 0.1 + 1e-12].max())
        assert found.specificity.value >= 0.9
        assert found.sensitivity.low < found.sensitivity.value < found.sensitivity.high
        assert ((scores >= found.threshold) & ~positive).sum() <= 6


def test_sensitivity_with_many_equal_scores_never_misses_the_specificity():
    scores, positive = np.array([0.0, 1, 1, 1, 1, 1]), np.array([False, False, False, True, True, True])
    found = metrics.measure_sensitivity(scores, positive, specificity=0.5, draws=20)
    assert (found.sensitivity.value, found.specificity.value) == (0, 1)


def test_calibration_error_equals_the_one_from_sklearns_curve():
    calibration = pytest.importorskip("sklearn.calibration")
    probabilities, labels = draw_probabilities(500, 4, 2)
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    right, said = calibration.calibration_curve(is_right, confidence, n_bins=10)
    count = np.histogram(confidence, 10, (0, 1))[0]
    expected = (np.abs(right - said) * count[count > 0]).sum() / 500
    assert metrics.calibration_error(probabilities, labels, equal_width=True) == pytest.approx(expected)
    right, said = calibration.calibration_curve(is_right, confidence, n_bins=10, strategy="quantile")
    assert metrics.calibration_error(probabilities, labels) == pytest.approx(np.abs(right - said).mean(), abs=0.005)


def test_calibration_error_of_a_head_that_is_always_sure_and_half_right_is_a_half():
    probabilities = np.tile([1.0, 0.0], (40, 1))
    labels = np.arange(40) % 2
    assert metrics.calibration_error(probabilities, labels, equal_width=True) == 0.5
    assert metrics.calibration_error(probabilities, labels) == 0.5


@pytest.mark.parametrize("classes", [2, 4])
def test_brier_score_and_likelihood_equal_sklearns(classes):
    peer = pytest.importorskip("sklearn.metrics")
    probabilities, labels = draw_probabilities(120, classes, 4)
    if classes == 2:
        assert metrics.brier_score(probabilities, labels) == pytest.approx(
            peer.brier_score_loss(labels, probabilities[:, 1])
        )
    else:
        expected = ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1).mean()
        assert metrics.brier_score(probabilities, labels) == pytest.approx(expected)
    assert metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(peer.log_loss(labels, probabilities))


def test_sets_are_counted_by_class():
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    found = metrics.measure_sets(sets, np.array([0, 0, 1, 1]))
    assert [bounds.value for bounds in found.coverage] == [1.0, 0.5, 0.0]
    assert found.coverage[2].high == 1
    assert found.size[:2] == pytest.approx([1.5, 0.5])
    assert math.isnan(found.size[2])
    assert (found.overall_coverage.value, found.mean_size, found.empty, found.single) == (0.75, 1.0, 0.25, 0.5)


def test_risk_curve_area_is_the_mean_of_running_error_rates():
    is_wrong = np.array([False, True, False, True, True])
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert metrics.measure_aurc(confidence, is_wrong) == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 2 / 4, 3 / 5]))


def test_risk_curve_does_not_depend_on_the_order_of_equally_certain_cases():
    is_wrong = np.array([True, False, False, True, False])
    areas = [metrics.measure_aurc(np.ones(5), np.roll(is_wrong, shift)) for shift in range(5)]
    assert areas == pytest.approx([0.4] * 5)


def test_referred_and_called_malignancies_are_not_missed():
    positive = np.array([True, True, True, False, False])
    referred = np.array([True, False, False, False, True])
    called = np.array([False, True, False, True, False])
    found = metrics.measure_missed(positive, referred, called)
    assert (found.missed, found.of_unreferred.value, found.of_positive.value) == (1, 1 / 3, 1 / 2)
    assert found.referred.value == 2 / 5
    assert found.of_positive_below == metrics.bound_share(1, 2)


def test_when_all_malignancies_are_referred_nothing_is_proven():
    found = metrics.measure_missed(np.ones(3, bool), np.ones(3, bool), np.zeros(3, bool))
    assert (found.missed, found.of_positive_below, found.of_unreferred_below) == (0, 1.0, 1.0)


def test_macro_accuracy_equals_sklearns_balanced_accuracy():
    peer = pytest.importorskip("sklearn.metrics")
    probabilities, labels = draw_probabilities(150, 4, 6)
    predicted = probabilities.argmax(axis=1)
    found = metrics.measure_macro_accuracy(predicted, labels, draws=200)
    assert found.value == pytest.approx(peer.balanced_accuracy_score(labels, predicted))
    assert found.low < found.value < found.high


def test_macro_accuracy_of_few_cases_without_an_error_is_not_certain():
    labels = np.repeat([0, 1, 2], 4)
    found = metrics.measure_macro_accuracy(labels, labels, draws=50)
    assert found.value == found.high == 1
    assert 0.6 < found.low < 0.85


def test_interval_of_macro_accuracy_covers_the_truth_in_small_samples():
    labels = np.repeat([0, 1, 2], [20, 8, 5])
    hits = 0
    for seed in range(150):
        is_right = np.random.default_rng(seed).random(len(labels)) < np.array([0.9, 0.8, 0.7])[labels]
        found = metrics.measure_macro_accuracy(np.where(is_right, labels, 9), labels, draws=60)
        hits += found.low <= 0.8 <= found.high
    assert hits >= 138


def test_weighted_kappa_equals_sklearns():
    peer = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(9)
    labels = random.integers(0, 5, 200)
    predicted = np.clip(labels + random.integers(-2, 3, 200), 0, 4)
    expected = peer.cohen_kappa_score(labels, predicted, weights="quadratic")
    assert metrics.weighted_kappa(predicted, labels, classes=5) == pytest.approx(expected)
    assert metrics.weighted_kappa(labels, labels, classes=5) == 1
    assert metrics.weighted_kappa(np.zeros(4, int), np.zeros(4, int), classes=5) == 0


def test_same_seed_gives_the_same_interval():
    scores, positive = draw_scores(40, 0.5, 1)
    assert metrics.measure_auroc(scores, positive, draws=50) == metrics.measure_auroc(scores, positive, draws=50)
    assert metrics.measure_auroc(scores, positive, draws=50, seed=1) != metrics.measure_auroc(
        scores, positive, draws=50, seed=2
    )
