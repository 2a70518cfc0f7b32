"""Probabilities mean what they say, and few cases of a site never make them worse."""

from __future__ import annotations

import numpy as np
import pytest

from slideway.heads.calibration import (
    COLDEST,
    HOTTEST,
    Scaling,
    apply_scaling,
    apply_temperature,
    fit_scaling,
    fit_temperature,
    recalibrate,
)
from slideway.heads.metrics import calibration_error, negative_log_likelihood


def draw(
    n: int, *, classes: int = 3, temperature: float = 1.0, seed: int = 0, bias=0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right once divided by `temperature` and moved by `bias`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes))
    said = apply_temperature(logits + np.asarray(bias), 1.0)
    labels = (random.random((n, 1)) > said.cumsum(axis=1)).sum(axis=1).clip(0, classes - 1)
    return logits * temperature, labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_that_was_put_in_is_found_again(classes, temperature):
    logits, labels = draw(4000, classes=classes, temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


@pytest.mark.parametrize("seed", range(4))
def test_temperature_is_the_one_of_scipys_minimiser(seed):
    optimize = pytest.importorskip("scipy.optimize")
    logits, labels = draw(60, temperature=2.0, seed=seed)
    peer = optimize.minimize_scalar(
        lambda log: negative_log_likelihood(apply_temperature(logits, np.exp(log)), labels),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert fit_temperature(logits, labels, smooth_targets=False) == pytest.approx(np.exp(peer.x), rel=1e-4)


def test_calibrated_probabilities_are_wrong_as_often_as_they_say():
    logits, labels = draw(6000, temperature=4.0, seed=1)
    held_out, truth = draw(6000, temperature=4.0, seed=2)
    before = calibration_error(apply_temperature(held_out, 1.0), truth)
    after = calibration_error(apply_temperature(held_out, fit_temperature(logits, labels)), truth)
    assert before > 0.15
    assert after < 0.03


def test_temperature_never_changes_which_label_leads():
    logits, _ = draw(200)
    leading = logits.argmax(axis=1)
    assert all((apply_temperature(logits, t).argmax(axis=1) == leading).all() for t in (0.1, 1, 15))


def test_few_cases_without_an_error_do_not_make_the_head_sure_of_everything():
    logits = np.array([[2.0, 0.0]] * 10 + [[0.0, 2.0]] * 10)
    labels = np.repeat([0, 1], 10)
    assert fit_temperature(logits, labels, smooth_targets=False) < 0.06
    said = apply_temperature(logits, fit_temperature(logits, labels))
    assert said.max() == pytest.approx(11 / 12, abs=0.001)


def test_logits_that_say_nothing_or_the_opposite_end_at_the_bound():
    logits, labels = draw(500, classes=2)
    assert fit_temperature(-logits, labels) == HOTTEST
    assert np.isfinite(fit_temperature(np.zeros((6, 2)), np.array([0, 1, 0, 1, 0, 1])))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_extreme_logits_give_finite_probabilities(scale):
    logits, labels = draw(100)
    temperature = fit_temperature(logits * scale, labels)
    assert COLDEST <= temperature <= HOTTEST
    assert np.isfinite(apply_temperature(logits * scale, temperature)).all()


def test_one_logit_of_a_binary_task_is_that_of_yes():
    logits = np.array([-3.0, 0.0, 3.0])
    assert apply_temperature(logits, 1.0)[:, 1] == pytest.approx(1 / (1 + np.exp(-logits)))
    labels = np.array([0, 1, 1])
    both = np.stack([np.zeros(3), logits], axis=1)
    assert fit_temperature(logits, labels) == fit_temperature(both, labels)


def test_unknown_labels_are_left_out():
    logits, labels = draw(300, temperature=2.0)
    masked = np.where(np.arange(300) < 200, labels, -1)
    assert fit_temperature(logits, masked) == fit_temperature(logits[:200], labels[:200])


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.array([[0.0, np.nan], [1, 2]]), [0, 1], "1 of 2 cases are not finite"),
        (np.zeros((2, 2)), [-1, -1], "no case has a known label"),
        (np.zeros((2, 2)), [0, 2], "a position among the classes"),
        (np.zeros((2, 1)), [0, 0], "logits are"),
    ],
)
def test_numbers_that_cannot_be_fitted_are_refused(logits, labels, words):
    with pytest.raises(ValueError, match=words):
        fit_temperature(logits, np.array(labels))


@pytest.mark.parametrize("temperature", [0.0, 0.01, 50.0, float("nan"), float("inf")])
def test_temperature_out_of_bounds_is_refused(temperature):
    with pytest.raises(ValueError, match="a temperature is within"):
        Scaling(temperature)


def test_scaling_stored_as_json_is_the_same():
    scaling = Scaling(1.7, (0.2, -0.1, -0.1))
    assert Scaling.from_json(scaling.to_json()) == scaling


def test_nineteen_cases_are_too_few_for_a_site():
    logits, labels = draw(19, classes=2)
    found = recalibrate(logits, labels, base=Scaling(1.5))
    assert (found.scaling, found.is_changed) == (Scaling(1.5), False)
    assert "19 cases" in found.reason
    assert "20 are needed" in found.reason


def test_four_cases_of_a_label_are_too_few_for_a_site():
    logits, _ = draw(40, classes=2)
    labels = np.r_[np.zeros(36, int), np.ones(4, int)]
    found = recalibrate(logits, labels, base=Scaling(1.5), names=("no", "yes"))
    assert not found.is_changed
    assert "4 cases of yes" in found.reason
    unseen = recalibrate(logits, np.zeros(40, int), base=Scaling(1.5), names=("no", "yes"))
    assert "0 cases of yes" in unseen.reason


def test_site_whose_head_is_too_sure_and_biased_gets_better_probabilities():
    bias = np.array([1.0, -0.5, -0.5])
    logits, labels = draw(300, temperature=3.0, seed=3, bias=bias)
    held_out, truth = draw(4000, temperature=3.0, seed=4, bias=bias)
    base = Scaling(1.0)
    found = recalibrate(logits, labels, base=base)
    assert found.is_changed
    assert found.gain > 0.1
    assert "300 cases" in found.reason
    before, after = (negative_log_likelihood(apply_scaling(held_out, s), truth) for s in (base, found.scaling))
    best = negative_log_likelihood(apply_scaling(held_out, Scaling(3.0, tuple(bias))), truth)
    assert after < before - 0.7 * (before - best)
    assert sum(found.scaling.bias) == pytest.approx(0, abs=1e-12)


def test_few_cases_of_a_site_move_the_base_less_than_many():
    few, many = (recalibrate(*draw(n, temperature=3.0, seed=5), base=Scaling(1.0)) for n in (40, 1000))
    assert few.is_changed
    assert many.is_changed
    assert 1 < few.scaling.temperature < 2.3 < many.scaling.temperature < 3.2


def test_base_that_fits_the_site_is_kept_or_hardly_harmed():
    kept, harm = 0, []
    held_out, truth = draw(4000, temperature=2.0, seed=999)
    base = Scaling(2.0)
    for seed in range(40):
        found = recalibrate(*draw(30, classes=3, temperature=2.0, seed=seed), base=base)
        kept += not found.is_changed
        harm.append(
            negative_log_likelihood(apply_scaling(held_out, found.scaling), truth)
            - negative_log_likelihood(apply_scaling(held_out, base), truth)
        )
        assert found.is_changed == (found.gain > 0)
    assert kept >= 20
    assert max(harm) < 0.06


def test_site_told_apart_without_an_error_ends_at_finite_probabilities():
    logits = np.array([[3.0, 0.0]] * 15 + [[0.0, 3.0]] * 15)
    found = recalibrate(logits, np.repeat([0, 1], 15), base=Scaling(1.0))
    said = apply_scaling(logits, found.scaling)
    assert np.isfinite(said).all()
    assert said.max() < 0.99


def test_same_seed_gives_the_same_recalibration():
    logits, labels = draw(60, temperature=2.0)
    assert recalibrate(logits, labels, base=Scaling()) == recalibrate(logits, labels, base=Scaling())


def test_a_bias_mends_what_no_temperature_can():
    random = np.random.default_rng(3)
    logit = random.normal(-2.0, 1.0, 400)
    labels = (random.random(400) < 1 / (1 + np.exp(-(logit + 2.5)))).astype(int)
    table = np.stack([np.zeros(400), logit], axis=1)
    scaling = fit_scaling(table, labels)
    assert scaling.bias[1] - scaling.bias[0] == pytest.approx(2.5, abs=0.5)
    said = apply_scaling(table, scaling)[:, 1]
    assert said.mean() == pytest.approx(labels.mean(), abs=0.02)
    warm = apply_scaling(table, Scaling(fit_temperature(table, labels)))[:, 1]
    assert abs(warm.mean() - labels.mean()) > 0.1


def test_several_classes_get_a_temperature_and_no_bias():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    assert fit_scaling(random.normal(size=(60, 3)) + np.eye(3)[labels], labels).bias == ()
