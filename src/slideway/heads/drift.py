"""Notice when the slides that arrive no longer look like those a head was accepted on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
DRAWS = 2_000
MIN_WINDOW = 5
# A window drawn from the reference is compared with what is left of it. With less than as much again left, thresholds
# become so wide that little is noticed (docs/certainty.md); 30 cases show nothing of a distribution's tails anyway.
_REFERENCE_WINDOWS = 2
_REFERENCE_LEAST = 30
_REFERENCE_CASES = 1_000  # the kernel of more takes seconds and changes no figure
_AXES = 16  # on 64 axes 13 % or more of ordinary windows raised an alarm at 1 %: how far faint ones spread is unknown
_AXIS_CASES = 5  # reference cases for each axis at least
# Added to the variance of every axis, as a share of their mean: faint axes carry little and would decide alone.
_SHRINKAGE = 0.1


@dataclass(frozen=True)
class DriftPoint:
    """What the window that ends with a case says.

    Attributes:
        case: Position of that case in time, from 0.
        cases: Cases in the window.
        t_squared: Hotelling's statistic of the window's mean; not a number when it could not be judged.
        mmd: Squared maximum mean discrepancy between window and reference; not a number when it could not be judged.
        alarms: Which statistics are above their threshold: `mean` (T²), `distribution` (MMD).
        words: What that means, in a sentence; why it was not judged, where it was not.
    """

    case: int
    cases: int
    t_squared: float
    mmd: float
    alarms: tuple[str, ...]
    words: str

    @property
    def is_alarm(self) -> bool:
        """Whether any statistic is above its threshold."""
        return bool(self.alarms)


@dataclass(frozen=True)
class DriftMonitor:
    """A reference of slides, and how far a window of ordinary slides strays from it.

    Attributes:
        mean: (r,) centre of the reference.
        axes: (r, a) turns a vector minus `mean` onto whitened main axes.
        points: (n, a) reference cases on these axes.
        kernel_width: Median distance of two reference cases there.
        window: Cases in a window.
        false_alarms: Share of windows of ordinary slides that may raise an alarm.
        limits: Thresholds of T² and MMD; both infinite when the reference is too small.
        lack: Why no window can be judged; empty when it can.
    """

    mean: Floats
    axes: Floats
    points: Floats
    kernel_width: float
    window: int
    false_alarms: float
    limits: tuple[float, float]
    lack: str = ""


def fit_monitor(reference: Array, *, window: int, false_alarms: float = 0.01, seed: int = 0) -> DriftMonitor:
    """Learn how far windows of ordinary slides stray.

    Windows are drawn from the reference and compared with what is left of it, as new ones are compared with all of it.
    Each of the two statistics gets half of the false alarms.

    Args:
        reference: (n, r) one vector a case (the mean of its projected tiles), of cases the head was accepted on.
        window: Cases in a window; a small one is quick, a large one notices smaller shifts.
        false_alarms: Share of windows of ordinary slides that may raise an alarm, in (0, 0.5).
        seed: Decides the draws.
    """
    points = np.asarray(reference, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(f"a reference is (n, r) and finite; this one is {points.shape}")
    if window < MIN_WINDOW or not 0 < false_alarms < 0.5:
        raise ValueError(f"a window holds at least {MIN_WINDOW} cases, and false alarms lie between 0 and 0.5")
    random = np.random.default_rng(seed)
    if len(points) > _REFERENCE_CASES:
        points = points[np.sort(random.permutation(len(points))[:_REFERENCE_CASES])]
    needed = max(_REFERENCE_WINDOWS * window, _REFERENCE_LEAST)
    if len(points) < needed:
        lack = f"The reference holds {len(points)} cases; a window of {window} needs {needed}."
        nothing = np.zeros((points.shape[1], 0))
        return DriftMonitor(
            np.zeros(points.shape[1]), nothing, nothing.T, 1.0, window, false_alarms, (math.inf, math.inf), lack
        )
    mean, axes = _find_axes(points)
    laid = (points - mean) @ axes
    width = _median_distance(laid)
    kernel = _kernel(laid, laid, width)
    drawn = np.array([_draw_window(laid, kernel, random.permutation(len(laid)), window) for _ in range(DRAWS)])
    limits = np.quantile(drawn, 1 - false_alarms / 2, axis=0, method="higher")
    return DriftMonitor(mean, axes, laid, width, window, false_alarms, (float(limits[0]), float(limits[1])))


def watch(monitor: DriftMonitor, vectors: Array) -> tuple[DriftPoint, ...]:
    """Judge the window that ends with each case, in the order of time.

    Args:
        monitor: Of the reference.
        vectors: (n, r) one vector a case, oldest first; a case whose vector is not finite is refused.

    Returns:
        One point for each case; the first few, before a window is full, say so.
    """
    cases = np.asarray(vectors, np.float64)
    if cases.ndim != 2 or cases.shape[1] != len(monitor.mean) or not np.isfinite(cases).all():
        raise ValueError(f"vectors are (n, {len(monitor.mean)}) and finite; not {cases.shape}")
    if monitor.lack:
        return tuple(_not_judged(i, min(i + 1, monitor.window), monitor.lack) for i in range(len(cases)))
    laid = (cases - monitor.mean) @ monitor.axes
    to_reference = _kernel(laid, monitor.points, monitor.kernel_width).mean(axis=1)
    among = _kernel(laid, laid, monitor.kernel_width)
    of_reference = _mean_of_pairs(
        _kernel(monitor.points, monitor.points, monitor.kernel_width).sum(), len(monitor.points)
    )
    return tuple(_judge(monitor, i, laid, to_reference, among, of_reference) for i in range(len(cases)))


def _judge(
    monitor: DriftMonitor, case: int, laid: Floats, to_reference: Floats, among: Floats, of_reference: float
) -> DriftPoint:
    if case + 1 < monitor.window:
        return _not_judged(case, case + 1, f"{case + 1} of the {monitor.window} cases of a window have arrived.")
    of = slice(case + 1 - monitor.window, case + 1)
    t_squared = monitor.window * float((laid[of].mean(axis=0) ** 2).sum())
    mmd = float(among[of, of].mean() - 2 * to_reference[of].mean() + of_reference)
    found = zip(("mean", "distribution"), (t_squared, mmd), monitor.limits, strict=True)
    alarms = tuple(name for name, value, limit in found if value > limit)
    return DriftPoint(case, monitor.window, t_squared, mmd, alarms, _say(monitor, alarms))


def _say(monitor: DriftMonitor, alarms: tuple[str, ...]) -> str:
    if not alarms:
        return f"The last {monitor.window} cases look like the reference."
    what = {"mean": "their mean has moved", "distribution": "their distribution has changed"}
    return (
        f"The last {monitor.window} cases do not look like the reference: {' and '.join(what[one] for one in alarms)}, "
        f"farther than in {1 - monitor.false_alarms:.0%} of windows of ordinary cases."
    )


def _not_judged(case: int, cases: int, words: str) -> DriftPoint:
    return DriftPoint(case, cases, math.nan, math.nan, (), f"Not judged: {words}")


def _find_axes(points: Floats) -> tuple[Floats, Floats]:
    """Mean, and main axes whitened with a shrunk variance."""
    mean = points.mean(axis=0)
    _, spread, turn = np.linalg.svd(points - mean, full_matrices=False)
    count = min(_AXES, len(points) // _AXIS_CASES)
    variance = spread[:count] ** 2 / (len(points) - 1)
    shrunk = variance + _SHRINKAGE * variance.mean() + 1e-12
    return mean, turn[:count].T / np.sqrt(shrunk)


def _draw_window(laid: Floats, kernel: Floats, order: Array, window: int) -> tuple[float, float]:
    """T² and MMD of a window of the reference against the rest of it."""
    inside, rest = order[:window], order[window:]
    moved = laid[inside].mean(axis=0) - laid[rest].mean(axis=0)
    among, between = kernel[np.ix_(inside, inside)], kernel[np.ix_(inside, rest)]
    of_rest = _mean_of_pairs(kernel.sum() - among.sum() - 2 * between.sum(), len(rest))
    return window * float(moved @ moved), float(among.mean() - 2 * between.mean() + of_rest)


def _mean_of_pairs(total: float, count: int) -> float:
    """Mean kernel of two different cases, so that it does not depend on how many there are."""
    return float((total - count) / (count * (count - 1)))


def _median_distance(points: Floats) -> float:
    squares = _squared_distances(points, points)
    return math.sqrt(float(np.median(squares[np.triu_indices(len(points), 1)]))) or 1.0


def _kernel(first: Floats, second: Floats, width: float) -> Floats:
    return np.asarray(np.exp(-_squared_distances(first, second) / (2 * width**2)))


def _squared_distances(first: Floats, second: Floats) -> Floats:
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.asarray(np.maximum(squares, 0))
