import re
import subprocess
import sys
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

mpl = pytest.importorskip("matplotlib")

from slideway.heads.metrics import auroc, calibration_error, trace_risk  # noqa: E402
from slideway.learning.plots import (  # noqa: E402
    NOT_READABLE,
    REFERRED,
    RIGHT,
    STROKES,
    WRONG,
    bin_confidence,
    draw_answers,
    draw_confusion,
    draw_learning_curve,
    draw_reliability,
    draw_risk,
    draw_roc,
    draw_sets,
    spread_out,
    trace_roc,
)
from slideway.registry.head_records import Bounds  # noqa: E402

HOSTILE = "<script>$\\frac{$</text>\x00肝脏\n& more"
SVG = "{http://www.w3.org/2000/svg}"
SCORES = np.array([0.95, 0.9, 0.7, 0.6, 0.4, 0.3, 0.2])
POSITIVE = np.array([True, True, False, True, False, True, False])


def two_columns(scores):
    return np.stack([1 - scores, scores], axis=1)


def lines_of(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """Corners of every open line of a colour."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        style = path.get("style", "")
        if f"stroke: {colour}" in style and "fill: none" in style and path.get("clip-path"):
            numbers = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d", ""))
            found.append([(float(x), float(y)) for x, y in numbers])
    return found


def words_of(svg: str) -> str:
    return " ".join("".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def bounds(value, low, high):
    return {"value": value, "low": low, "high": high}


def curve_rows(*cases, methods=("This head", "mean-pool + logistic regression", "nearest cases")):
    return [
        {"cases": n, "measure": "auroc", "methods": {m: bounds(0.5 + n / 1000, 0.4, 0.7) for m in methods}}
        for n in cases
    ]


def some_sets(names=("no", "yes")):
    return {
        "promised": 0.9,
        "coverage_by_label": {name: bounds(0.93, 0.8, 0.99) for name in names},
        "size_by_label": dict.fromkeys(names, 1.4),
    }


def all_plots():
    probabilities = {"This head": two_columns(SCORES), "other": two_columns(SCORES[::-1])}
    labels = POSITIVE.astype(int)
    return [
        draw_roc({name: own[:, 1] for name, own in probabilities.items()}, POSITIVE),
        draw_confusion(labels, labels, ("no", "yes")),
        draw_reliability(probabilities["This head"], labels),
        draw_risk(probabilities, labels, rule=(0.5, 0.25)),
        draw_learning_curve(curve_rows(10, 20), chance=0.5),
        draw_sets(some_sets(), (12, 5)),
        draw_answers({RIGHT: 3, WRONG: 1, REFERRED: 3, NOT_READABLE: 0}),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_area_under_the_drawn_roc_is_the_auroc_also_with_ties(seed):
    random = np.random.default_rng(seed)
    positive = np.append(random.random(30) < 0.4, [True, False])
    scores = np.round(random.random(32), 1)
    alarms, found = trace_roc(scores, positive)
    area = float(np.sum(np.diff(alarms) * (found[1:] + found[:-1]) / 2))
    assert area == pytest.approx(auroc(scores, positive))
    assert (alarms[0], found[0], alarms[-1], found[-1]) == (0, 0, 1, 1)


def test_roc_of_few_slides_goes_up_and_right_only():
    plot = draw_roc({"This head": SCORES}, POSITIVE)
    line = max(lines_of(plot.svg, STROKES[0].colour), key=len)
    assert len(line) >= 6
    assert all(a[0] == pytest.approx(b[0]) or a[1] == pytest.approx(b[1]) for a, b in pairwise(line))


def test_risk_is_drawn_as_steps_at_every_slide():
    plot = draw_risk({"This head": two_columns(SCORES)}, POSITIVE.astype(int))
    line = max(lines_of(plot.svg, STROKES[0].colour), key=len)
    assert all(a[0] == pytest.approx(b[0]) or a[1] == pytest.approx(b[1]) for a, b in pairwise(line))
    _, wrong = trace_risk(two_columns(SCORES).max(axis=1), two_columns(SCORES).argmax(axis=1) != POSITIVE)
    assert len({round(y, 3) for _, y in line}) == len(set(np.round(wrong, 9)))


def test_step_of_the_risk_begins_at_its_slide_and_lasts_to_the_next():
    confidence = np.array([0.95, 0.9, 0.85, 0.8])
    is_right = np.array([0, 1, 0, 1])  # the share of errors changes with every slide: 1, 1/2, 2/3, 1/2
    line = max(lines_of(draw_risk({"This head": two_columns(confidence)}, is_right).svg, STROKES[0].colour), key=len)
    places = sorted({round(x, 2) for x, _ in line})
    assert len(places) == 4
    assert np.diff(places) == pytest.approx(places[1] - places[0], abs=0.02)
    assert line[1] == (pytest.approx(places[1], abs=0.02), pytest.approx(line[0][1], abs=0.02))
    assert line[2][1] > line[0][1]  # y grows downwards: the second slide is right


def test_roc_says_the_area_and_the_counts_in_words():
    plot = draw_roc({"This head": SCORES, "other": SCORES[::-1]}, POSITIVE, yes="tumour", unit="tile")
    value = auroc(SCORES, POSITIVE)
    assert f"This head {value:.3f}" in plot.alt
    assert "4 tiles with “tumour” and 3 without" in plot.alt
    assert f"This head: {value:.3f}" in words_of(plot.svg)


def test_ring_of_the_roc_stands_where_the_head_operates():
    plot = draw_roc({"This head": SCORES}, POSITIVE, point=(Bounds(0.5, 0.1, 0.9), Bounds(1.0, 0.5, 1.0)))
    assert "ring" in plot.caption
    assert "ring" not in draw_roc({"This head": SCORES}, POSITIVE).caption


@pytest.mark.parametrize("count", [3, 10, 53])
def test_bins_of_the_reliability_diagram_are_those_of_the_calibration_error(count):
    random = np.random.default_rng(count)
    probabilities = random.dirichlet((1, 1, 1), count)
    labels = random.integers(0, 3, count)
    bins = bin_confidence(probabilities, labels)
    gaps = sum(one.slides * abs(one.stated - one.right.value) for one in bins) / count
    assert gaps == pytest.approx(calibration_error(probabilities, labels))
    assert sum(one.slides for one in bins) == count


def test_reliability_shows_how_many_slides_got_which_probability():
    probabilities = two_columns(np.array([0.93] * 17 + [0.62] * 6))
    plot = draw_reliability(probabilities, np.ones(23, int))
    shown = words_of(plot.svg).split()
    assert "17" in shown
    assert "6" in shown
    assert "10 bins of 2 or 3 slides" in plot.alt


def test_confusions_are_counted_by_true_and_given_label():
    plot = draw_confusion(np.array([0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 2, 2, 1]), ("gut", "liver", "lung"))
    assert "6 slides, 4 right" in plot.alt
    assert "gut: 1 as gut, 1 as liver; liver: 1 as liver, 1 as lung; lung: 2 as lung" in plot.alt
    assert "lung (2)" in words_of(plot.svg)


def test_learning_curve_of_one_point_is_drawn():
    plot = draw_learning_curve(curve_rows(20), chance=0.5)
    assert "20 cases: This head 0.520" in plot.alt
    for name in ("This head", "nearest cases", "chance"):
        assert name in words_of(plot.svg)


def test_learning_curve_stands_in_the_order_of_cases():
    plot = draw_learning_curve(curve_rows(40, 10, 30), chance=0.5)
    assert plot.alt.index("10 cases") < plot.alt.index("30 cases") < plot.alt.index("40 cases")


def test_sets_say_the_promise_and_mark_labels_that_are_too_rare_to_be_left_out():
    rare = draw_sets(some_sets(), (12, 9))
    assert "Ring: 9 slides or fewer" in rare.caption
    assert "Ring" not in draw_sets(some_sets(), (12, 10)).caption
    assert "Ring" not in draw_sets(some_sets(), (12, 3), is_calibrated_here=False).caption
    assert "promised coverage 0.90" in rare.alt
    assert "no: 0.93 of 12, mean size 1.4" in rare.alt


def test_label_without_a_slide_is_said_to_have_none():
    sets = some_sets()
    sets["size_by_label"]["yes"] = None
    plot = draw_sets(sets, (12, 0))
    assert "yes: no slide" in plot.alt
    assert "no slide" in words_of(plot.svg)


def test_answers_are_drawn_with_their_counts():
    plot = draw_answers({RIGHT: 3, WRONG: 1, REFERRED: 16, NOT_READABLE: 0})
    assert plot.alt == "Of 20 slides: answer, right 3, answer, wrong 1, refer 16, not readable 0."
    assert "refer 16" in words_of(plot.svg)


def test_every_method_has_colour_dashes_and_mark_of_its_own():
    for part in ("colour", "dashes", "mark"):
        assert len({str(getattr(stroke, part)) for stroke in STROKES}) == len(STROKES)


def test_same_figures_give_the_same_drawing():
    assert [plot.svg for plot in all_plots()] == [plot.svg for plot in all_plots()]


def test_every_drawing_is_whole_and_said_in_words():
    for plot in all_plots():
        root = ElementTree.fromstring(plot.svg)
        assert root.tag == f"{SVG}svg"
        assert plot.alt
        assert plot.caption
        shape = [float(number) for number in root.get("viewBox").split()]
        assert shape[2] / shape[3] == pytest.approx(plot.width_px / plot.height_px, rel=0.01)


def test_hostile_names_are_text_and_nothing_else():
    names = (HOSTILE, "a" * 80, "_hidden")
    plots = [
        draw_confusion(np.array([0, 1, 2]), np.array([0, 1, 2]), names),
        draw_sets(some_sets(names), (3, 3, 3)),
        draw_roc({"This head": SCORES}, POSITIVE, yes=HOSTILE),
        draw_learning_curve(curve_rows(5, 9, methods=("This head", HOSTILE)), chance=0.5),
    ]
    for plot in plots:
        root = ElementTree.fromstring(plot.svg)
        assert not [tag for tag in root.iter() if tag.tag.lower().endswith("script")]
    assert "肝脏" in words_of(plots[0].svg)
    assert "$" in words_of(plots[0].svg)


def test_settings_of_the_user_neither_reach_the_drawing_nor_are_changed():
    expected = all_plots()[0].svg
    with mpl.rc_context({"font.size": 31, "axes.facecolor": "yellow"}):
        assert all_plots()[0].svg == expected
        assert mpl.rcParams["font.size"] == 31


def test_drawing_leaves_pyplot_alone():
    code = "import sys, slideway.learning.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_many_slides_do_not_make_the_drawing_heavy():
    random = np.random.default_rng(0)
    positive = random.random(50_000) < 0.5
    scores = random.normal(positive, 1)
    assert len(draw_roc({"This head": scores}, positive).svg) < 400_000


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5], [0.9, 0.1, 0.5], [0.2, 0.21, 0.24, 0.9], [0.3]])
def test_names_keep_their_order_and_their_distance(places):
    moved = spread_out(places, 0.1)
    order = np.argsort(places, kind="stable")
    assert all(b - a >= 0.1 - 1e-6 for a, b in pairwise(np.array(moved)[order]))
    assert np.mean(moved) == pytest.approx(np.mean(places), abs=1e-6)
