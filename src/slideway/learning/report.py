"""Write what an evaluation found for people: one page with plots, and a table of every unseen slide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slideway.core.opinion import Answer, Kind
from slideway.learning.evaluation import SPECIFICITY, TaskJudgement
from slideway.learning.external import EXTERNAL
from slideway.learning.held_out import ABMIL
from slideway.learning.plots import (
    NOT_READABLE,
    REFERRED,
    RIGHT,
    SET_RIGHT,
    SET_WRONG,
    WRONG,
    draw_answers,
    draw_confusion,
    draw_learning_curve,
    draw_reliability,
    draw_risk,
    draw_roc,
    draw_sets,
)
from slideway.learning.sample import Sample
from slideway.learning.splits import CASE_FOLDS, LEAVE_ONE_CASE_OUT, LEAVE_SITE_OUT, OWN_SPLIT, TILES
from slideway.learning.table import write_table
from slideway.registry.head_records import Bounds, HeadCard, HeadTask
from slideway.reports.evaluation_page import (
    EvaluatedTask,
    EvaluationContent,
    EvaluationPlot,
    EvaluationTable,
    render_evaluation,
)

PAGE = "evaluation.html"
PREDICTIONS = "predictions.csv"

_HEAD = "This head"
_UNKNOWN = "–"
_OPTIMISTIC = (
    "The set names no cases: tiles of one patient may have been learnt from and judged. All figures here are "
    "optimistic, and by how much cannot be known."
)
_SPLITS = {
    LEAVE_ONE_CASE_OUT: "each case judged by networks that had seen all others, but not it",
    CASE_FOLDS: "cases dealt into folds; each judged by networks that had not seen its fold",
    LEAVE_SITE_OUT: "each hospital judged by networks that had not seen any case of it",
    OWN_SPLIT: "the cohort's own split: judged on its test cases only",
    TILES: "tiles of a set that names no cases: optimistic, since tiles of one case may stand on both sides",
    EXTERNAL: "a finished head on a cohort it has not learnt from; no baselines, since nothing was trained",
}
_MEASURES = {"auroc": "AUROC", "accuracy": "Mean accuracy"}
_COLUMNS = {
    "auroc": "AUROC",
    "accuracy": "Mean accuracy",
    "plain_accuracy": "Plain accuracy",
    "weighted_kappa": "Weighted kappa",
    "sensitivity_at_specificity_90": f"Sensitivity at specificity {SPECIFICITY:g}",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ece": "ECE",
    "brier": "Brier",
    "aurc": "AURC",
}
_POLICY = {
    "alpha": "Share of cases of each label whose true label a set may miss",
    "alpha_ood": "Share of ordinary slides that may be referred as strange",
    "max_set": "Labels that a set may hold",
}
_TRAINING = {
    "rank": "Axes that the input layer keeps",
    "hidden": "Width of the hidden layer",
    "attention": "Width of the attention branch",
    "epochs": "Passes over all slides",
    "batch": "Slides a step",
    "tiles": "Tiles of a slide drawn for a step, at most",
    "kept": "Tiles of a slide used at all, at most",
    "rate": "Learning rate",
    "decay": "Weight decay",
    "dropout": "Dropout",
    "seeds": "Seeds (networks averaged)",
    "strength": "Inverse strength of the regression's penalty",
}


def write_evaluation_page(
    folder: Path, *, card: HeadCard, evaluation: Mapping[str, Any], judged: Sequence[TaskJudgement]
) -> Path:
    """Write `evaluation.html`: every figure with its baselines, plots, subgroups, settings and limits.

    It holds counts and figures, labels and names of subgroups, and no name of a slide or case.

    Args:
        folder: Where to; exists.
        card: Card of the head.
        evaluation: All figures, as in evaluation.json.
        judged: What was said of every unseen slide; a task without one has tables and fewer plots.

    Returns:
        The page, below 5 MB.
    """
    path = folder / PAGE
    path.write_text(render_evaluation(compose_page(card, evaluation, judged)), encoding="utf-8", newline="\n")
    return path


def write_predictions(path: Path, sample: Sample, judged: Sequence[TaskJudgement]) -> None:
    """Write what was said of every unseen slide or tile, a row for each and task; it stays in the hospital.

    A label's probability and p-value stand in columns of their own, empty where a task does not have the label.
    Labels that a finding names are parted by `|`.

    Raises:
        OutputError: The folder cannot be written.
    """
    labels = list(dict.fromkeys(label for one in judged for label in one.question.labels))
    columns = [
        *("name", "case", "task", "truth", "answer", "named"),
        *(f"probability of {label}" for label in labels),
        *(f"p-value of {label}" for label in labels),
    ]
    write_table(path, columns, (row for one in judged for row in _predictions_of(sample, one, labels)))


def _predictions_of(sample: Sample, judged: TaskJudgement, labels: Sequence[str]) -> Iterator[list[str]]:
    own = judged.question.labels
    places = [own.index(label) if label in own else None for label in labels]
    own_numbers = judged.probabilities[judged.method]
    for i, row in enumerate(judged.rows):
        yield [
            sample.names[row],
            sample.cases[row],
            judged.question.id,
            own[judged.labels[i]],
            judged.answers[i].value,
            "|".join(judged.answered[i]),
            *("" if at is None else f"{own_numbers[i, at]:.6f}" for at in places),
            *("" if at is None else f"{judged.p_values[i, at]:.6f}" for at in places),
        ]


def compose_page(card: HeadCard, evaluation: Mapping[str, Any], judged: Sequence[TaskJudgement]) -> EvaluationContent:
    """All that the page says, from card, figures and judgements."""
    tasks = [
        _Task(figures, _find_task(card, figures["task"]), _find_judged(judged, figures["task"]), card, evaluation)
        for figures in evaluation["tasks"]
    ]
    return EvaluationContent(
        title=card.title,
        warnings=_warn(evaluation),
        facts=_facts(card, evaluation),
        overview=_compare_tasks(tasks),
        tasks=tuple(_compose_task(task) for task in tasks),
        settings=_list_settings(evaluation),
        limits=card.limits,
        notes=(
            ("For", card.use.intended),
            ("Not for", card.use.not_intended),
            ("Learnt from", card.training.data),
            ("Training", card.training.note),
            ("Licence", f"{card.licence.id}. {card.licence.note}"),
        ),
        command=evaluation["command"],
        fingerprints=(
            ("Head", card.fingerprint),
            ("Weights", card.weights.sha256),
            ("Encoder", card.input.encoder_fingerprint),
        ),
        program=f"Slideway {evaluation.get('slideway', '')}".strip(),
    )


@dataclass(frozen=True)
class _Task:
    """One question, with all that is known of it."""

    figures: Mapping[str, Any]
    of_card: HeadTask | None
    judged: TaskJudgement | None
    card: HeadCard
    evaluation: Mapping[str, Any]

    @property
    def is_binary(self) -> bool:
        return bool(self.figures["kind"] == Kind.BINARY)

    @property
    def measure(self) -> str:
        return str(self.figures["measure"])

    @property
    def own(self) -> Mapping[str, Any]:
        """Figures of the head itself."""
        own: Mapping[str, Any] = self.figures["methods"][_method_of(self.figures)]
        return own

    @property
    def best_baseline(self) -> str:
        """As on the card; empty where none was trained."""
        others = {name: own for name, own in self.figures["methods"].items() if name != _method_of(self.figures)}
        return max(others, key=lambda name: (others[name][self.measure]["value"], name), default="")

    @property
    def unit(self) -> str:
        """What was judged: slide or tile."""
        return _unit_of(self.evaluation)


def _find_task(card: HeadCard, task_id: str) -> HeadTask | None:
    return next((task for task in card.tasks if task.question.id == task_id), None)


def _find_judged(judged: Sequence[TaskJudgement], task_id: str) -> TaskJudgement | None:
    return next((one for one in judged if one.question.id == task_id), None)


def _warn(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    places = _count(evaluation["sites"], "hospital") if evaluation["sites"] else "an unknown number of hospitals"
    unit = _unit_of(evaluation)
    return (
        f"Research starter, not a diagnosis: judged on {_count(evaluation['cases'], 'case')} of {places}, and not "
        f"validated clinically. Figures hold for {unit}s like these; elsewhere they may be far worse.",
        *((_OPTIMISTIC,) if evaluation["split"] == TILES else ()),
        f"Names of {unit}s and cases are not on this page. The table of single predictions (predictions.csv), if one "
        "was written, names them and stays in the hospital.",
    )


def _facts(card: HeadCard, evaluation: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    split, unit = evaluation["split"], _unit_of(evaluation)
    judged = evaluation[f"{unit}s"]
    return (
        ("Split", split, f"{_count(evaluation['folds'], 'fold')}: {_SPLITS.get(split, split)}"),
        ("Cases", str(evaluation["cases"]), f"{_count(judged, unit)}, {card.input.stain}"),
        ("Hospitals", str(evaluation["sites"] or "unknown"), "" if evaluation["sites"] else "the cohort names none"),
        ("Encoder", card.input.encoder_id, f"{card.input.width} numbers a tile"),
        ("Head", card.id, f"version {card.version}, {card.state}, {card.weights.parameters:,} parameters"),
    )


def _compare_tasks(tasks: Sequence[_Task]) -> EvaluationTable:
    """The head and its better baseline, task by task."""
    rows = []
    for task in tasks:
        best = task.best_baseline
        rows.append(
            (
                task.figures["title"],
                _MEASURES[task.measure],
                _say(task.own[task.measure]),
                _say(task.figures["methods"][best][task.measure]) if best else _UNKNOWN,
                best or "none trained",
                str(task.figures["cases"]),
                _say(task.own["ece"]),
                _share(task.figures["answered"]),
            )
        )
    return EvaluationTable(
        "The head against the better baseline",
        ("Question", "Measure", _HEAD, "Better baseline", "Which", "Cases", "ECE", "Answer or set"),
        tuple(rows),
        "On unseen cases, 95 % intervals in brackets.",
    )


def _compose_task(task: _Task) -> EvaluatedTask:
    figures = task.figures
    counts = ", ".join(
        f"{label} {count}" for label, count in zip(figures["labels"], figures["slides_by_label"], strict=True)
    )
    facts = [f"{_count(figures['slides'], task.unit)} of {_count(figures['cases'], 'case')}, by true label: {counts}."]
    parent = task.of_card.question.parent if task.of_card is not None else ""
    if parent:
        above = _find_task(task.card, parent)
        facts.append(f"Asked below “{above.question.title if above else parent}”: its answer must be yes first.")
    tables = (
        _compare_methods(figures, "Head and baselines on the same folds" if task.best_baseline else "The head"),
        _tabulate_sets(figures, task.unit),
        *_tabulate_subgroups(figures, task.unit),
        *_tabulate_sites(task),
    )
    return EvaluatedTask(
        title=figures["title"],
        is_in_force=task.of_card is not None and task.card.is_in_force(task.of_card),
        state=_say_state(task),
        facts=tuple(facts),
        tables=tables,
        plots=tuple(_draw_plots(task)),
        missed=_say_missed(task) if "missed" in figures else (),
    )


def _say_state(task: _Task) -> str:
    if task.of_card is None:
        return "The card does not hold this question."
    if not task.of_card.in_force:
        return task.of_card.off_because or "Switched off."
    evidence = task.of_card.evidence
    beats = "The lower 95 % bound of its figure is above the better baseline's."
    reason = beats if evidence is not None and evidence.beats_baseline else "Switched on by a person."
    if task.card.is_in_force(task.of_card):
        return reason
    return f"{reason} It is answered by default only once the head is active; it is a {task.card.state} now."


def _compare_methods(figures: Mapping[str, Any], caption: str, note: str = "") -> EvaluationTable:
    methods = figures["methods"]
    keys = [key for key in _COLUMNS if any(key in own for own in methods.values())]
    return EvaluationTable(
        caption,
        ("Method", *(_COLUMNS[key] for key in keys)),
        tuple(
            (_name_method(name, _method_of(figures)), *(_say(own.get(key)) for key in keys))
            for name, own in methods.items()
        ),
        note,
        strong_row=list(methods).index(_method_of(figures)),
    )


def _tabulate_sets(figures: Mapping[str, Any], unit: str) -> EvaluationTable:
    sets = figures["sets"]
    rows = [
        (
            label,
            str(count),
            _say(sets["coverage_by_label"][label]) if count else _UNKNOWN,
            _say(sets["size_by_label"][label], digits=2),
        )
        for label, count in zip(figures["labels"], figures["slides_by_label"], strict=True)
    ]
    rows.append(("All", str(figures["slides"]), _say(sets["coverage"]), _say(sets["mean_size"], digits=2)))
    return EvaluationTable(
        f"Conformal sets: promised {sets['promised']:.1%} of each label",
        ("True label", f"{unit.capitalize()}s", "Set holds it", "Mean size of set"),
        tuple(rows),
        f"Sets of one label: {_share(sets['single'])}; empty: {_share(sets['empty'])}.",
    )


def _tabulate_subgroups(figures: Mapping[str, Any], unit: str) -> Iterator[EvaluationTable]:
    rows = figures.get("subgroups") or []
    if rows:
        measure = figures["measure"]
        yield EvaluationTable(
            "The head in subgroups",
            ("Subgroup", f"{unit.capitalize()}s", "Referred or not readable", _MEASURES[measure]),
            tuple(
                (
                    f"{row['by'].replace('_', ' ')}: {row['group']}",
                    str(row["slides"]),
                    _share(row["referred"]),
                    _say(row[measure]) if measure in row else f"too few {unit}s",
                )
                for row in rows
            ),
            "Many small groups: expect some to be low by chance.",
        )


def _tabulate_sites(task: _Task) -> Iterator[EvaluationTable]:
    """The same figures when each hospital is left out in turn."""
    for figures in task.evaluation.get("leave_site_out") or ():
        if figures["task"] == task.figures["task"]:
            yield _compare_methods(
                figures,
                "Each hospital left out in turn",
                "Networks that had seen no case of the hospital they judge: nearer to how it does elsewhere.",
            )


def _draw_plots(task: _Task) -> Iterator[EvaluationPlot]:
    figures, judged, unit = task.figures, task.judged, task.unit
    if judged is not None and len(judged.rows):
        yield draw_answers(_count_answers(judged), unit=unit)
        yield from _draw_order(task, judged)
        yield draw_reliability(judged.probabilities[judged.method], judged.labels, unit=unit)
        named = _named(judged.probabilities, judged.method)
        yield draw_risk(named, judged.labels, rule=_place_rule(judged), unit=unit)
    curve = [row for row in task.evaluation.get("learning_curve") or () if row["task"] == figures["task"]]
    if curve:
        chance = 0.5 if task.is_binary else 1 / sum(count > 0 for count in figures["slides_by_label"])
        rows = [{**row, "methods": _named(row["methods"], _method_of(figures))} for row in curve]
        yield draw_learning_curve(rows, chance=chance)
    # An external cohort's sets are calibrated on the cases that were learnt from, whose number is not told here.
    is_apart = task.evaluation["split"] == EXTERNAL
    yield draw_sets(figures["sets"], figures["slides_by_label"], is_calibrated_here=not is_apart, unit=unit)


def _draw_order(task: _Task, judged: TaskJudgement) -> Iterator[EvaluationPlot]:
    """How well labels are told apart: a ROC curve of two, a matrix of more."""
    own = judged.probabilities[judged.method]
    if not task.is_binary:
        yield draw_confusion(own.argmax(axis=1), judged.labels, judged.question.labels, unit=task.unit)
    elif len(np.unique(judged.labels)) > 1:
        yield draw_roc(
            {name: each[:, 1] for name, each in _named(judged.probabilities, judged.method).items()},
            judged.labels == 1,
            yes=judged.question.labels[1],
            point=(Bounds(**task.own["sensitivity"]), Bounds(**task.own["specificity"])),
            unit=task.unit,
        )


def _count_answers(judged: TaskJudgement) -> dict[str, int]:
    """Slides by how far the finding goes, and whether it holds the truth."""
    truth = [judged.question.labels[label] for label in judged.labels]
    said = list(zip(judged.answers, judged.answered, truth, strict=True))

    def count(answer: Answer, is_true: bool) -> int:
        return sum(a is answer and (t in labels) == is_true for a, labels, t in said)

    counts = {RIGHT: count(Answer.ANSWER, True), WRONG: count(Answer.ANSWER, False)}
    if judged.question.kind is not Kind.BINARY:  # yes and no together are all there is, and so never a set
        counts |= {SET_RIGHT: count(Answer.SET, True), SET_WRONG: count(Answer.SET, False)}
    counts[REFERRED] = sum(a is Answer.REFER for a, *_ in said)
    counts[NOT_READABLE] = sum(a is Answer.NOT_READABLE for a, *_ in said)
    return counts


def _place_rule(judged: TaskJudgement) -> tuple[float, float] | None:
    """Share answered with one label, and errors among those; None where the rule answers nothing."""
    counts = _count_answers(judged)
    right, wrong = counts[RIGHT], counts[WRONG]
    return ((right + wrong) / len(judged.rows), wrong / (right + wrong)) if right + wrong else None


def _say_missed(task: _Task) -> tuple[str, ...]:
    """What got through: not referred, and not called yes."""
    figures, missed = task.figures, task.figures["missed"]
    answers, total, count = figures["answers"], figures["slides"], int(missed["missed"])
    left = answers["answer"] + answers["set"]
    yes = figures["labels"][1]
    referred = f"The rule refers {total - left} of {_count(total, task.unit)}: {_say_percent(missed['referred'])}."
    if not left:
        return (
            referred,
            f"It answers none, so nothing is known of how many “{yes}” {task.unit}s its answers would miss.",
        )
    return (
        referred,
        f"Among the {_count(left, task.unit)} it answers, {count} {'is' if count == 1 else 'are'} truly “{yes}” and "
        f"not called so: {_say_percent(missed['of_unreferred'])}; with 95 % confidence below "
        f"{missed['of_unreferred_below']:.1%}.",
        f"Of the “{yes}” {task.unit}s among them, it misses {_say_percent(missed['of_positive'])}; with 95 % "
        f"confidence below {missed['of_positive_below']:.1%}. Bounds are Clopper–Pearson's, each {task.unit} counted.",
    )


def _list_settings(evaluation: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = []
    for words, part in ((_POLICY, "policy"), (_TRAINING, "training")):
        for key, value in evaluation.get(part, {}).items():
            shown = ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else f"{value}"
            rows.append((words.get(key, key), shown))
    return tuple(rows)


def _method_of(figures: Mapping[str, Any]) -> str:
    """The method that is the head itself."""
    return str(figures.get("method", ABMIL))


def _unit_of(evaluation: Mapping[str, Any]) -> str:
    """What was judged: slide or tile."""
    return "tile" if evaluation.get("of") == "tiles" else "slide"


def _named(methods: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Methods under the names that the page shows, the head first."""
    ordered = sorted(methods, key=lambda name: name != own)
    return {_name_method(name, own): methods[name] for name in ordered}


def _name_method(name: str, own: str) -> str:
    return _HEAD if name == own else name


def _say(figure: Any, *, digits: int = 3) -> str:
    """A figure as the page shows it: with its interval where it has one.

    Example:
        >>> _say({"value": 0.6254, "low": 0.4552, "high": 0.7958}), _say(0.2664), _say(None)
        ('0.625 (0.455–0.796)', '0.266', '–')
    """
    if figure is None:
        return _UNKNOWN
    if isinstance(figure, Mapping):
        return f"{figure['value']:.{digits}f} ({figure['low']:.{digits}f}–{figure['high']:.{digits}f})"
    return f"{figure:.{digits}f}"


def _say_percent(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.1%} ({figure['low']:.1%}–{figure['high']:.1%})"


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1%}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
