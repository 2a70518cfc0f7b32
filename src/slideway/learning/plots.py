"""Draw the figures of an evaluation as SVG: nothing is smoothed, every line has a style of its own and its name."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from slideway.heads.conformal import count_needed
from slideway.heads.metrics import ECE_BINS, auroc, exact_interval, trace_risk
from slideway.registry.head_records import Bounds
from slideway.reports.evaluation_page import EvaluationPlot
from slideway.reports.palette import ATTENTION_BANDS, GROUP_COLOURS, hex_of

Array = NDArray[Any]
Floats = NDArray[np.float64]

_PX_PER_INCH = 100  # of the page, at which letters of 9 points have the size of its captions
_WIDTH = 5.2  # inches of an ordinary plot: two stand side by side
_HEIGHT = 3.9
_LETTER = 0.075  # inches of a letter of 9 points, on average
_LONGEST_LABEL = 28
_INK, _QUIET, _FAINT = "#1b1f24", "#545d68", "#d9dee3"
_GROUND = "#ffffff"


@dataclass(frozen=True)
class Stroke:
    """How a method is drawn: told apart by dashes and marks as well as by colour.

    Attributes:
        colour: As HTML writes it.
        dashes: Line style.
        mark: Mark of a point.
        width: Of the line, in points.
    """

    colour: str
    dashes: Any
    mark: str
    width: float


# Violet is the colour of what a model says; the head comes first.
STROKES: tuple[Stroke, ...] = (
    Stroke(hex_of(ATTENTION_BANDS[-1].colour), "-", "o", 2.2),
    Stroke(hex_of(GROUP_COLOURS[1]), (0, (6, 2)), "s", 1.5),
    Stroke(hex_of(GROUP_COLOURS[6]), (0, (1.2, 1.4)), "^", 1.8),
    Stroke(hex_of(GROUP_COLOURS[2]), (0, (6, 2, 1.2, 2)), "D", 1.5),
)
# What the rule says, from most to least: fill, hatch and ink of its number; what is wrong is crossed.
RIGHT, WRONG, SET_RIGHT, SET_WRONG = "answer, right", "answer, wrong", "set with the truth", "set without"
REFERRED, NOT_READABLE = "refer", "not readable"
_ANSWER_TONES: Mapping[str, tuple[str, str, str]] = {
    RIGHT: (hex_of(ATTENTION_BANDS[-1].colour), "", _GROUND),
    WRONG: (hex_of(GROUP_COLOURS[1]), "xxx", _INK),
    SET_RIGHT: (hex_of(ATTENTION_BANDS[2].colour), "", _INK),
    SET_WRONG: (hex_of(GROUP_COLOURS[5]), "xxx", _INK),
    REFERRED: (hex_of(ATTENTION_BANDS[0].colour), "///", _INK),
    NOT_READABLE: ("#e4e8ec", "...", _INK),
}


def draw_roc(
    scores: Mapping[str, Array],
    positive: Array,
    *,
    yes: str = "yes",
    point: tuple[Bounds, Bounds] | None = None,
    unit: str = "slide",
) -> EvaluationPlot:
    """Sensitivity against false alarms at every threshold, a step for each slide; ties are slanted lines.

    Args:
        scores: For each method, the head first, (n,) higher for yes.
        positive: (n,) bool, at least one of each.
        yes: The label that is looked for.
        point: Sensitivity and specificity where the head operates; None to mark none.
        unit: What was judged, in one word.
    """
    positive = np.asarray(positive, bool)
    with _drawing(_WIDTH, 4.4) as figure:
        axes = _lay_axes(figure, left=0.62, bottom=0.55, right=0.2, top=0.15)
        axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1)
        values = {}
        for (name, own), stroke in zip(scores.items(), _strokes(scores), strict=True):
            values[name] = auroc(own, positive)
            false_alarms, found = trace_roc(own, positive)
            _draw_line(axes, stroke, false_alarms, found, label=f"{_clean(name)}: {values[name]:.3f}", mark="")
        if point is not None:
            axes.plot([1 - point[1].value], [point[0].value], "o", color=_GROUND, markeredgecolor=_INK, markersize=7)
        _frame(axes, f"false alarms: share of other {unit}s called “{_tidy(yes)}”", "sensitivity")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.legend(title="area under the curve", loc="lower right", handlelength=3.2, **_LEGEND)
        svg = _as_svg(figure)
    counts = f"{int(positive.sum())} {unit}s with “{yes}” and {int((~positive).sum())} without"
    areas = "; ".join(f"{name} {value:.3f}" for name, value in values.items())
    said = "" if point is None else " The ring is where the head operates (probability 0.5)."
    return EvaluationPlot(
        "ROC curve",
        svg,
        *_size(_WIDTH, 4.4),
        alt=f"ROC curves on {counts}. Area under the curve: {areas}.",
        caption=f"{counts}: each step is one {unit}. Grey: chance.{said}",
    )


def trace_roc(scores: Array, positive: Array) -> tuple[Floats, Floats]:
    """Shares of negative and of positive slides at or above every threshold, from none to all.

    Example:
        >>> trace_roc(np.array([0.9, 0.4, 0.4]), np.array([True, True, False]))
        (array([0., 0., 1.]), array([0. , 0.5, 1. ]))
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each group of equal scores
    found, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, found / found[-1])


def draw_confusion(predicted: Array, labels: Array, names: Sequence[str], *, unit: str = "slide") -> EvaluationPlot:
    """How many slides of each true label got which label; shaded by the share of the row.

    Args:
        predicted: (n,) position of the head's leading label.
        labels: (n,) position of the true label.
        names: All labels.
        unit: What was judged, in one word.
    """
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, (np.asarray(labels), np.asarray(predicted)), 1)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    room, below = _room_for(names), _room_for(names, extra=1)
    width, height = max(_WIDTH, 0.6 + room + 0.31 * len(names)), max(3.2, 0.55 + below + 0.28 * len(names))
    with _drawing(width, height) as figure:
        axes = _lay_axes(figure, left=0.4 + room, bottom=0.4 + below, right=0.2, top=0.15)
        violet = mpl.colors.LinearSegmentedColormap.from_list("violet", [_GROUND, STROKES[0].colour])
        axes.imshow(share, cmap=violet, vmin=0, vmax=1, aspect="auto", interpolation="none")
        for row, column in np.argwhere(table > 0):
            ink = _GROUND if share[row, column] > 0.45 else _INK
            weight = "bold" if row == column else "normal"
            axes.text(column, row, str(table[row, column]), ha="center", va="center", color=ink, fontweight=weight)
        ticks, shown = np.arange(len(names)), [_tidy(name) for name in names]
        axes.set_xticks(ticks, shown, rotation=90)
        axes.set_yticks(ticks, [f"{name} ({count})" for name, count in zip(shown, table.sum(axis=1), strict=True)])
        axes.set_xticks(ticks[1:] - 0.5, minor=True)
        axes.set_yticks(ticks[1:] - 0.5, minor=True)
        axes.grid(which="minor", color=_FAINT, linewidth=0.6)
        axes.grid(which="major", visible=False)
        axes.tick_params(which="both", length=0)
        _frame(axes, "most probable label", f"true label ({unit}s)")
        svg = _as_svg(figure)
    right = int(np.trace(table))
    rows = "; ".join(
        f"{name}: " + ", ".join(f"{count} as {other}" for count, other in zip(row, names, strict=True) if count)
        for name, row in zip(names, table, strict=True)
        if row.any()
    )
    return EvaluationPlot(
        "Confusions",
        svg,
        *_size(width, height),
        alt=f"Confusion matrix of {len(labels)} {unit}s, {right} right. {rows}.",
        caption=f"{unit.capitalize()}s by true label (row) and the head's most probable label (column), whether or not "
        "the rule would have answered. The darker, the larger the share of the row; bold is right.",
    )


@dataclass(frozen=True)
class ConfidenceBin:
    """Slides of about the same stated probability.

    Attributes:
        slides: How many.
        stated: Mean probability of their leading labels.
        right: Share of them whose leading label is true, with its exact interval.
    """

    slides: int
    stated: float
    right: Bounds


def bin_confidence(probabilities: Array, labels: Array) -> tuple[ConfidenceBin, ...]:
    """The bins that the expected calibration error is made of: of equally many slides, least certain first.

    Args:
        probabilities: (n, n_labels), summing to 1.
        labels: (n,) position of the true label.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    parts = np.array_split(np.argsort(confidence, kind="stable"), ECE_BINS)
    return tuple(
        ConfidenceBin(len(part), float(confidence[part].mean()), exact_interval(int(is_right[part].sum()), len(part)))
        for part in parts
        if len(part)
    )


def draw_reliability(probabilities: Array, labels: Array, *, unit: str = "slide") -> EvaluationPlot:
    """How often the leading label is true, against the probability that was stated for it.

    Args:
        probabilities: (n, n_labels) of the head.
        labels: (n,) position of the true label.
        unit: What was judged, in one word.
    """
    bins = bin_confidence(probabilities, labels)
    stated, right = np.array([one.stated for one in bins]), np.array([one.right.value for one in bins])
    errors = np.array([[one.right.value - one.right.low, one.right.high - one.right.value] for one in bins])
    least, most = min(one.slides for one in bins), max(one.slides for one in bins)
    each = f"{least} {unit}s" if least == most else f"{least} or {most} {unit}s"
    with _drawing(_WIDTH, 4.4) as figure:
        axes = _lay_axes(figure, left=0.62, bottom=1.45, right=0.2, top=0.15)
        beneath = _lay_axes(figure, left=0.62, bottom=0.55, right=0.2, top=3.2)
        axes.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.03, 0.09, "as stated", color=_QUIET, rotation=32, va="bottom")
        axes.text(0.99, 0.03, f"{len(bins)} bins of {each}", ha="right", transform=axes.transAxes)
        _draw_bars(axes, STROKES[0], stated, right, errors.T)
        axes.plot(stated, right, STROKES[0].mark, color=STROKES[0].colour, markersize=6)
        _draw_counts(beneath, np.asarray(probabilities).max(axis=1))
        _frame(axes, "", "how often it is true")
        _frame(beneath, "stated probability of the leading label", f"{unit}s")
        axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
        axes.set_xticks(np.linspace(0, 1, 6), [])
        svg = _as_svg(figure)
    said = "; ".join(f"stated {one.stated:.2f}, true {one.right.value:.2f} of {one.slides}" for one in bins)
    return EvaluationPlot(
        "Reliability",
        svg,
        *_size(_WIDTH, 4.4),
        alt=f"Reliability diagram of the head in {len(bins)} bins of {each}: {said}.",
        caption=f"Each dot is a bin of {each}, its bar the exact 95 % interval. On the dashed line the head is as "
        f"often right as it says; below it, it is too sure of itself. Beneath: how many {unit}s got which probability.",
    )


def draw_risk(
    probabilities: Mapping[str, Array],
    labels: Array,
    *,
    rule: tuple[float, float] | None = None,
    unit: str = "slide",
) -> EvaluationPlot:
    """Share of errors when only the most certain slides are answered, for every share answered.

    Args:
        probabilities: For each method, the head first, (n, n_labels).
        labels: (n,) position of the true label.
        rule: Share that the referral rule answers with one label, and the share of errors among them; None for none.
        unit: What was judged, in one word.
    """
    labels = np.asarray(labels)
    with _drawing(_WIDTH, _HEIGHT) as figure:
        axes = _lay_axes(figure, left=0.62, bottom=0.55, right=0.2, top=0.15)
        ends = {}
        for (name, own), stroke in zip(probabilities.items(), _strokes(probabilities), strict=True):
            answered, wrong = trace_risk(own.max(axis=1), own.argmax(axis=1) != labels)
            axes.step(answered, wrong, where="post", **_style(stroke), label=f"{_clean(name)}: {wrong[-1]:.3f}")
            ends[name] = (float(wrong.mean()), float(wrong[-1]))
        if rule is not None:
            axes.plot([rule[0]], [rule[1]], "o", color=_GROUND, markeredgecolor=_INK, markersize=7)
        _frame(axes, "share answered, the most certain first", "share of errors among them")
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
        axes.legend(title="errors when all are answered", loc="upper right", handlelength=3.2, **_LEGEND)
        svg = _as_svg(figure)
    said = "; ".join(f"{name} area {area:.3f}, all answered {last:.3f}" for name, (area, last) in ends.items())
    marked = "" if rule is None else f" The ring is the referral rule: {rule[0]:.0%} answered with one label."
    return EvaluationPlot(
        "Risk and coverage",
        svg,
        *_size(_WIDTH, _HEIGHT),
        alt=f"Risk-coverage curves on {len(labels)} {unit}s: {said}.",
        caption=f"Steps as they are: at the left they rest on one {unit}, on two, and so on.{marked}",
    )


def draw_learning_curve(rows: Sequence[Mapping[str, Any]], *, chance: float) -> EvaluationPlot:
    """The figure of every method by the number of cases learnt from, with 95 % intervals.

    Args:
        rows: As in evaluation.json, of one task.
        chance: The figure of guessing.
    """
    rows = sorted(rows, key=lambda row: row["cases"])
    measure = "AUROC" if rows[0]["measure"] == "auroc" else "mean accuracy"
    names = list(rows[0]["methods"])
    cases = np.array([row["cases"] for row in rows], np.float64)
    span = max(float(np.ptp(cases)), 0.2 * float(cases.max()))
    with _drawing(_WIDTH, _HEIGHT) as figure:
        axes = _lay_axes(figure, left=0.62, bottom=0.55, right=0.2, top=0.15)
        axes.plot([cases.min() - 0.05 * span, cases.max()], [chance, chance], color=_FAINT, linewidth=1)
        ends = []
        for place, (name, stroke) in enumerate(zip(names, _strokes(names), strict=True)):
            at = cases + (place - (len(names) - 1) / 2) * 0.018 * span  # side by side, or bars would hide each other
            bounds = [Bounds(**row["methods"][name]) for row in rows]
            values = np.array([one.value for one in bounds])
            bars = np.array([[one.value - one.low, one.high - one.value] for one in bounds]).T
            _draw_bars(axes, stroke, at, values, np.maximum(bars, 0))
            _draw_line(axes, stroke, at, values, mark=stroke.mark)
            ends.append((float(at[-1]), float(values[-1]), name, stroke))
        _frame(axes, "cases learnt from", measure)
        axes.set(xlim=(cases.min() - 0.05 * span, cases.max() + 0.62 * span), ylim=(-0.02, 1.02))
        axes.set_xticks(cases, [f"{count:.0f}" for count in cases])
        _name_ends(axes, [*ends, (float(cases[-1]), chance, "chance", Stroke(_QUIET, "-", "", 1))])
        svg = _as_svg(figure)
    said = "; ".join(
        f"{row['cases']} cases: " + ", ".join(f"{name} {row['methods'][name]['value']:.3f}" for name in names)
        for row in rows
    )
    return EvaluationPlot(
        "Learning curve",
        svg,
        *_size(_WIDTH, _HEIGHT),
        alt=f"Learning curve, {measure}. {said}.",
        caption="Five case folds, one network at each point. Bars are 95 % intervals over cases; marks stand a little "
        "apart so that no bar hides another.",
    )


def draw_sets(
    sets: Mapping[str, Any], counts: Sequence[int], *, is_calibrated_here: bool = True, unit: str = "slide"
) -> EvaluationPlot:
    """How often the conformal set of each label's slides holds it, against the promise, and how large the sets are.

    Args:
        sets: As in evaluation.json, of one task.
        counts: Slides of each label, in the same order.
        is_calibrated_here: They were calibrated on the other of these very slides, so that rare labels are marked.
        unit: What was judged, in one word.
    """
    names = list(sets["coverage_by_label"])
    coverage = [Bounds(**bounds) if count else None for bounds, count in zip(_each(sets), counts, strict=True)]
    sizes = [sets["size_by_label"][name] for name in names]
    needed = count_needed(1 - sets["promised"]) if is_calibrated_here else 0
    shown = [f"{_tidy(name)} ({count})" for name, count in zip(names, counts, strict=True)]
    room = min(3.0, _room_for(shown, extra=6))
    width, height = (_WIDTH, max(2.2, 1.1 + 0.3 * len(names)))
    with _drawing(width, height) as figure:
        share = (width - room - 0.8) / 2
        axes = _lay_axes(figure, left=room + 0.15, bottom=0.55, right=0.65 + share, top=0.45)
        beside = _lay_axes(figure, left=width - share - 0.25, bottom=0.55, right=0.25, top=0.45)
        axes.axvline(sets["promised"], color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        for row, (bounds, count) in enumerate(zip(coverage, counts, strict=True)):
            if bounds is None:
                axes.text(0.5, row, f"no {unit}", color=_QUIET, ha="center", va="center")
                continue
            axes.plot([bounds.low, bounds.high], [row, row], color=STROKES[0].colour, linewidth=1.4)
            face = STROKES[0].colour if count > needed else _GROUND
            axes.plot([bounds.value], [row], "o", color=face, markeredgecolor=STROKES[0].colour, markersize=6)
        for row, size in enumerate(sizes):
            if size is not None:
                beside.barh(row, size, height=0.55, color=hex_of(ATTENTION_BANDS[1].colour), edgecolor=_INK, lw=0.6)
                beside.annotate(f"{size:.1f}", (size, row), (3, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), shown)
        beside.set_yticks([])
        for one in (axes, beside):
            one.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(f"set holds the label\npromised {sets['promised']:.0%}", fontsize=9)
        beside.set_title(f"labels in a set\nof {len(names)}", fontsize=9)
        _frame(axes, f"share of {unit}s", "")
        _frame(beside, "mean size", "")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1])
        beside.set_xlim(0, 1.2 * len(names))
        svg = _as_svg(figure)
    said = "; ".join(
        f"{name}: no {unit}" if bounds is None else f"{name}: {bounds.value:.2f} of {count}, mean size {size:.1f}"
        for name, bounds, count, size in zip(names, coverage, counts, sizes, strict=True)
    )
    rings = f"Ring: {needed} {unit}s or fewer, too few for their own sets ever to leave the label out. "
    rings = rings if min(counts) <= needed else ""
    return EvaluationPlot(
        "Sets: promise and size",
        svg,
        *_size(width, height),
        alt=f"Conformal sets, promised coverage {sets['promised']:.2f}. {said}.",
        caption=f"Left: how often the sets of a label's {unit}s hold that label, with exact 95 % interval; dashed, the "
        f"promise. {rings}Right: a set of all labels says nothing.",
    )


def draw_answers(counts: Mapping[str, int], *, unit: str = "slide") -> EvaluationPlot:
    """How far the findings go, as one bar.

    Args:
        counts: Slides by what was said: `RIGHT`, `WRONG`, `SET_RIGHT`, `SET_WRONG`, `REFERRED` or `NOT_READABLE`.
        unit: What was judged, in one word.
    """
    total = sum(counts.values())
    width, height = 10.8, 0.95
    with _drawing(width, height) as figure:
        axes = _lay_axes(figure, left=0.15, bottom=0.4, right=0.15, top=0.1)
        start = 0
        for name, count in counts.items():
            fill, hatch, ink = _ANSWER_TONES[name]
            axes.barh(0, count, left=start, color=fill, hatch=hatch, edgecolor=_GROUND if not hatch else _INK, lw=0.6)
            if count >= 0.03 * total:
                plate = {"boxstyle": "round,pad=0.2", "facecolor": _GROUND if hatch else fill, "edgecolor": "none"}
                axes.text(start + count / 2, 0, str(count), color=ink, ha="center", va="center", bbox=plate)
            start += count
        axes.set(xlim=(0, total), ylim=(-0.4, 0.4))
        axes.axis("off")
        handles = [
            mpl.patches.Patch(facecolor=fill, hatch=hatch, edgecolor=_INK, linewidth=0.6)
            for fill, hatch, _ in (_ANSWER_TONES[name] for name in counts)
        ]
        names = [f"{name} {count}" for name, count in counts.items()]
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(0, -0.08), ncols=len(names), **_LEGEND)
        svg = _as_svg(figure)
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    return EvaluationPlot(
        "What the referral rule says",
        svg,
        *_size(width, height),
        alt=f"Of {total} {unit}s: {said}.",
        caption=f"{total} {unit}s as they would be answered if pixels, stain and scale are in order.",
    )


_LEGEND: Mapping[str, Any] = {
    "fontsize": 9,
    "title_fontsize": 9,
    "borderaxespad": 0.2,
    "facecolor": _GROUND,
    "edgecolor": "none",
    "framealpha": 0.85,
}
_SETTINGS: Any = {
    "font.family": "sans-serif",
    # Verdana has the widths of DejaVu Sans, which the drawing is laid out with, and is where that is not.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC"],
    "font.size": 9,
    "text.parse_math": False,  # a label may hold a dollar
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _QUIET,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",  # letters stay letters: small, and every script that the reader's machine has
    "svg.hashsalt": "slideway",  # names inside the drawing are the same each time
}


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, away from pyplot and from settings of the user's own."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        # The reader's machine draws the letters: what this one's font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), facecolor=_GROUND)
        FigureCanvasAgg(figure)
        yield figure


def _as_svg(figure: Figure) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _size(width: float, height: float) -> tuple[int, int]:
    return round(width * _PX_PER_INCH), round(height * _PX_PER_INCH)


def _lay_axes(figure: Figure, *, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with margins in inches: room for letters does not grow with the drawing."""
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _style(stroke: Stroke) -> dict[str, Any]:
    return {"color": stroke.colour, "linestyle": stroke.dashes, "linewidth": stroke.width}


def _draw_line(axes: Axes, stroke: Stroke, x: Array, y: Array, *, label: str = "", mark: str = "") -> None:
    axes.plot(x, y, **_style(stroke), marker=mark, markersize=5, label=label)


def _draw_bars(axes: Axes, stroke: Stroke, x: Array, y: Array, errors: Array) -> None:
    axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=stroke.colour, elinewidth=1, capsize=2.5)


def _draw_counts(axes: Axes, confidence: Array) -> None:
    """How many got which probability, in steps of a twentieth."""
    counts, edges = np.histogram(confidence, bins=20, range=(0.0, 1.0))
    axes.bar(edges[:-1], counts, width=0.05, align="edge", color=hex_of(ATTENTION_BANDS[1].colour), ec=_INK, lw=0.6)
    for left, count in zip(edges[:-1], counts, strict=True):
        if count:
            axes.annotate(str(count), (left + 0.025, count), (0, 1), textcoords="offset points", ha="center", size=8)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.45 * counts.max()))
    axes.set_yticks([])
    axes.set_xticks(np.linspace(0, 1, 6))


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Stroke]]) -> None:
    """Write each line's name beside its end, apart from each other."""
    right = max(x for x, *_ in ends)
    places = spread_out([y for _, y, *_ in ends], 0.075)
    for place, (x, y, name, stroke) in zip(places, ends, strict=True):
        # A name may have two lines: "mean-pool + logistic regression" is longer than its room.
        words = _clean(name).replace(" + ", " +\n") if len(name) > 22 else _clean(name)
        axes.annotate(
            words,
            (x, y),
            (right + 0.06 * float(np.ptp(axes.get_xlim())), place),
            color=stroke.colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": stroke.colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
        )


def spread_out(places: Sequence[float], apart: float) -> list[float]:
    """Places moved as little as one pass allows, so that each is `apart` from the next, in the same order.

    Example:
        >>> spread_out([0.5, 0.5, 0.9], 0.1)
        [0.45, 0.55, 0.9]
    """
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # of each block of touching names: sum of places, how many
    for place in (places[i] for i in order):
        blocks.append([place, 1])
        while (
            len(blocks) > 1 and _centre(blocks[-1]) - _centre(blocks[-2]) < apart * (blocks[-1][1] + blocks[-2][1]) / 2
        ):
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    moved = [_centre(block) + apart * (i - (block[1] - 1) / 2) for block in blocks for i in range(int(block[1]))]
    found = [0.0] * len(places)
    for at, place in zip(order, moved, strict=True):
        found[int(at)] = round(place, 9)
    return found


def _centre(block: Sequence[float]) -> float:
    return block[0] / block[1]


def _strokes(names: Mapping[str, Any] | Sequence[str]) -> list[Stroke]:
    return [STROKES[i % len(STROKES)] for i in range(len(names))]


def _each(sets: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return list(sets["coverage_by_label"].values())


def _room_for(names: Sequence[str], *, extra: int = 5) -> float:
    """Inches that the longest name takes, and a count behind it."""
    return _LETTER * (max(_count_letters(_tidy(name)) for name in names) + extra)


def _count_letters(text: str) -> int:
    """Letters, those of East Asian scripts as two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def _clean(text: str) -> str:
    """A name on one line, without what XML cannot hold."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", text).strip()


def _tidy(text: str) -> str:
    """A label on one line, shortened."""
    line = _clean(text)
    return line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…"
