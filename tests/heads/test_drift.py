"""A change of what arrives is noticed, ordinary slides rarely raise an alarm, and too few cases never do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slideway.heads import drift
from slideway.heads.drift import DriftMonitor, fit_monitor, watch

WIDTH = 24
SPREAD = np.linspace(1.0, 0.1, WIDTH)


def draw(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH)) * SPREAD


@pytest.fixture(scope="module")
def monitor() -> DriftMonitor:
    return fit_monitor(draw(200, 1), window=20)


def test_ordinary_windows_raise_no_more_alarms_than_asked_for(monkeypatch):
    monkeypatch.setattr(drift, "DRAWS", 400)
    alarms = []
    for seed in range(8):  # over several references: of one, the rate itself scatters
        monitor = fit_monitor(draw(120, 100 + seed), window=20, false_alarms=0.05)
        alarms += [watch(monitor, draw(20, 1000 * seed + i))[-1].is_alarm for i in range(60)]
    assert 0.01 < np.mean(alarms) < 0.10


def test_half_a_deviation_on_every_axis_raises_an_alarm(monitor):
    point = watch(monitor, draw(20, 2) + 0.5 * SPREAD)[-1]
    assert "mean" in point.alarms
    assert "their mean has moved" in point.words


def test_greater_spread_around_the_same_mean_is_a_change_of_distribution(monitor):
    wide = draw(20, 3)
    wide = (wide - wide.mean(axis=0)) * 2.5
    point = watch(monitor, wide)[-1]
    assert point.alarms == ("distribution",)
    assert point.t_squared < monitor.limits[0] / 5


def test_alarm_comes_when_the_change_fills_enough_of_the_window(monitor):
    vectors = np.vstack([draw(60, 4), draw(30, 5) + SPREAD])
    points = watch(monitor, vectors)
    assert [point.case for point in points] == list(range(90))
    first = next(point.case for point in points if point.is_alarm)
    assert 61 <= first <= 75
    assert all(point.is_alarm for point in points[80:])


def test_first_cases_say_that_the_window_is_not_full(monitor):
    points = watch(monitor, draw(25, 6) + 100)
    assert not any(point.is_alarm for point in points[:19])
    assert "19 of the 20 cases" in points[18].words
    assert math.isnan(points[18].t_squared)
    assert points[19].is_alarm


@pytest.mark.parametrize(("cases", "window", "needed"), [(39, 20, 40), (29, 10, 30)])
def test_small_reference_says_so_and_never_raises_an_alarm(cases, window, needed):
    monitor = fit_monitor(draw(cases, 7), window=window)
    points = watch(monitor, draw(30, 8) + 100)
    assert not any(point.is_alarm for point in points)
    assert all(f"needs {needed}" in point.words for point in points)
    assert fit_monitor(draw(needed, 7), window=window).lack == ""


def test_no_case_is_no_point(monitor):
    assert watch(monitor, np.empty((0, WIDTH))) == ()


def test_statistics_of_a_window_do_not_depend_on_what_came_before(monitor):
    late = draw(20, 9)
    alone, after = watch(monitor, late)[-1], watch(monitor, np.vstack([draw(50, 10) + 5, late]))[-1]
    assert (alone.t_squared, alone.mmd) == pytest.approx((after.t_squared, after.mmd), abs=1e-12)


def test_mmd_is_the_textbooks(monitor):
    window = draw(20, 11)
    laid = (window - monitor.mean) @ monitor.axes

    def kernel(a, b):
        distances = np.linalg.norm(a[:, None] - b[None], axis=2)
        return np.exp(-(distances**2) / (2 * monitor.kernel_width**2))

    pairs = kernel(monitor.points, monitor.points)[np.triu_indices(len(monitor.points), 1)].mean()
    expected = kernel(laid, laid).mean() - 2 * kernel(laid, monitor.points).mean() + pairs
    assert watch(monitor, window)[-1].mmd == pytest.approx(expected, abs=1e-12)


def test_same_seed_gives_the_same_thresholds():
    first, second, other = (fit_monitor(draw(60, 12), window=10, seed=seed).limits for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_fewer_false_alarms_ask_for_higher_thresholds():
    strict, loose = (fit_monitor(draw(100, 13), window=20, false_alarms=rate).limits for rate in (0.01, 0.2))
    assert strict[0] > loose[0]
    assert strict[1] > loose[1]


def test_reference_of_equal_cases_neither_breaks_nor_hides_a_change():
    monitor = fit_monitor(np.ones((40, 3)), window=10)
    assert not watch(monitor, np.ones((10, 3)))[-1].is_alarm
    assert watch(monitor, np.ones((10, 3)) * 2)[-1].is_alarm


@pytest.mark.parametrize("change", [{"window": 4}, {"window": 10, "false_alarms": 0.0}])
def test_settings_that_say_nothing_are_refused(change):
    with pytest.raises(ValueError, match="at least 5 cases"):
        fit_monitor(draw(50, 14), **change)


def test_vectors_that_are_not_finite_or_of_another_width_are_refused(monitor):
    with pytest.raises(ValueError, match="finite"):
        watch(monitor, np.full((1, WIDTH), np.nan))
    with pytest.raises(ValueError, match="not \\(1, 3\\)"):
        watch(monitor, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="finite"):
        fit_monitor(np.full((50, 2), np.inf), window=10)
