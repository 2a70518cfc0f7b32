"""Which questions a cohort can teach: their kind, labels and parents, and whether something but tissue tells them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import CohortError, LeakageError
from slideway.core.opinion import NEGATIVE, POSITIVE, Kind, TaskQuestion
from slideway.learning.table import name_lines, name_some

MIN_CASES = 2  # of a class: one to learn from, one to be judged
UNKNOWN = -1
YES_WORDS = ("yes", "1", "true", "positive", "tumor", "tumour")
NO_WORDS = ("no", "0", "false", "negative", "normal")
CONFOUNDERS = ("site", "laboratory", "scanner", "stain")
PARENTS = {"subtype": ("malignant", "neoplastic"), "grade": ("malignant", "neoplastic"), "malignant": ("neoplastic",)}
TITLES = {
    "neoplastic": "Neoplastic?",
    "malignant": "Malignant?",
    "organ": "Organ or tissue",
    "subtype": "Subtype",
    "grade": "Grade",
}
_PLAIN = {"yes", "no", "true", "false"}
_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5}
_NEARLY = 0.9  # share of slides whose label is guessed right from a column, from which a note is made


class Labelled(Protocol):
    """What questions are asked of: a cohort of slides, or a table of tiles."""

    @property
    def path(self) -> Path:
        """The file, for messages."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its label columns."""

    @property
    def lines(self) -> tuple[int, ...]:
        """Line of each row in the file."""

    @property
    def cases(self) -> tuple[str, ...]:
        """Case of each row."""

    def raw_labels(self, task: str) -> tuple[str, ...]:
        """Label of each row as the file writes it; empty where unknown."""

    def values(self, column: str) -> tuple[str, ...]:
        """What another column says of each row; empty where unknown."""


@dataclass(frozen=True)
class Confounding:
    """How far a label can be told from something that is not tissue.

    Attributes:
        task: The label column.
        column: `site`, `laboratory`, `scanner` or `stain`.
        guessed: Share of slides whose label is right when the column's commonest label is said, in [0, 1].
        base: The same when the commonest label of all is said.
        example: Two values of the column and their labels, in words.
    """

    task: str
    column: str
    guessed: float
    base: float
    example: str

    @property
    def is_perfect(self) -> bool:
        """Whether the column tells the label of every slide."""
        return self.guessed >= 1.0


def select_tasks(cohort: Labelled, specs: Sequence[str], *, allow_confounded: bool = False) -> tuple[TaskQuestion, ...]:
    """Questions that a cohort can teach, parents before children.

    Args:
        cohort: The cohort.
        specs: `name` (yes or no when its labels are, else classes), `name:binary`, `name:classes`, `name:ordinal`
            (integers, or labels that end in a number or a Roman numeral), or `name:a<b<c` (that order).
        allow_confounded: Accept a label that site, laboratory, scanner or stain tells perfectly.

    Raises:
        CohortError: No such column, labels that do not fit the kind, or fewer than two classes with two cases each.
        LeakageError: The label can be read off site, laboratory, scanner or stain.
    """
    names = [spec.partition(":")[0] for spec in specs]
    if len(set(names)) < len(names) or not names:
        raise CohortError("name each task once, and at least one")
    questions = [_make_question(cohort, spec, names) for spec in specs]
    for question in questions:
        _refuse_contradiction(cohort, question)
        for found in find_confounding(cohort, question.id):
            if found.is_perfect and not allow_confounded:
                raise LeakageError(
                    f"{cohort.path.name}: {_describe(found)} for every slide ({found.example}); a head would learn the "
                    f"{found.column}, and its evaluation would mean nothing. Add cases that break the tie, or accept "
                    "it with --allow-confounded: it will stand on the card"
                )
    return tuple(_parents_first(questions))


def note_tasks(cohort: Labelled, questions: Sequence[TaskQuestion]) -> tuple[str, ...]:
    """What was decided about labels, and what else tells them, in sentences."""
    notes: list[str] = []
    for question in questions:
        raw = cohort.raw_labels(question.id)
        notes += _note_words(question, raw)
        notes += _note_dropped(cohort, question, raw)
        notes += [
            f"{_describe(found)} for {100 * found.guessed:.0f} % of slides ({found.example}); always saying "
            f"the commonest is right for {100 * found.base:.0f} %"
            for found in find_confounding(cohort, question.id)
        ]
    return tuple(notes)


def index_labels(cohort: Labelled, question: TaskQuestion) -> NDArray[np.int64]:
    """(n_rows,) position of each row's label in the question's labels; -1 where unknown, dropped, or not asked.

    Where the parent's answer is no, a yes-or-no question is answered no and any other is not asked: the grade of a
    benign slide teaches nothing.
    """
    place = {label: i for i, label in enumerate(question.labels)}
    labels = _list_labels(cohort, question.id, question.kind, question.parent)
    return np.array([place.get(label, UNKNOWN) for label in labels], np.int64)


def find_confounding(cohort: Labelled, task: str) -> tuple[Confounding, ...]:
    """Columns that tell a label (nearly) without tissue.

    A column counts only when it has at most half as many values as there are cases: with a value for each case it
    would tell anything.
    """
    found = []
    for column in CONFOUNDERS:
        every = zip(cohort.values(column), cohort.raw_labels(task), cohort.cases, strict=True)
        known = [(value, label, case) for value, label, case in every if value and label]
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for value, label, _ in known:
            counts[value][label] += 1
        labels = Counter(label for _, label, _ in known)
        cases = len({case for _, _, case in known})
        if len(labels) < 2 or len(counts) < 2 or 2 * len(counts) > cases:
            continue
        guessed = sum(max(count.values()) for count in counts.values()) / len(known)
        base = max(labels.values()) / len(known)
        if guessed >= 1 or (guessed >= _NEARLY and guessed - base >= 0.2):
            found.append(Confounding(task, column, guessed, base, _exemplify(counts)))
    return tuple(found)


def _exemplify(counts: dict[str, Counter[str]]) -> str:
    shown: dict[str, str] = {}
    for value, count in counts.items():
        label = count.most_common(1)[0][0]
        if label not in shown.values():
            shown[value] = label
    return ", ".join(f"{value} → {label}" for value, label in list(shown.items())[:2])


def _describe(found: Confounding) -> str:
    return f"{found.task} can be read off {found.column}"


def _make_question(cohort: Labelled, spec: str, asked: Sequence[str]) -> TaskQuestion:
    name, _, form = spec.partition(":")
    if name not in cohort.tasks:
        has = name_some(cohort.tasks) if cohort.tasks else "none"
        raise CohortError(f"{cohort.path.name}: no column {name!r}; its tasks are {has}")
    if not any(cohort.raw_labels(name)):
        raise CohortError(f"{cohort.path.name}: {name} has no label at all; fill in the column")
    kind, parent = _find_kind(cohort, name, form), _find_parent(name, asked)
    given = _list_labels(cohort, name, kind, parent)
    labels = _order_labels(cohort, name, form, kind, set(given) - {""})
    title = TITLES.get(name.rpartition(".")[2], name.replace("-", " ").replace(".", ": ").capitalize())
    return TaskQuestion(name, title, kind, _keep_taught(cohort, name, labels, given), parent=parent)


def _list_labels(cohort: Labelled, name: str, kind: Kind, parent: str) -> tuple[str, ...]:
    """Label of each row in the question's own words; empty where unknown.

    Where the parent's answer is no, a yes-or-no question is answered no, and any other is not asked.
    """
    raw, parents = cohort.raw_labels(name), cohort.raw_labels(parent)
    is_off = [label.lower() in NO_WORDS for label in parents]
    if kind is Kind.BINARY:
        given = tuple(_normalise(kind, label) for label in raw)
        return tuple(label or (NEGATIVE if off else "") for label, off in zip(given, is_off, strict=True))
    if all(off for label, off in zip(raw, is_off, strict=True) if label):
        raise CohortError(f"{cohort.path.name}: {name} is given only where {parent} is no; there it is not asked")
    return tuple("" if off else label for label, off in zip(raw, is_off, strict=True))


def _find_kind(cohort: Labelled, name: str, form: str) -> Kind:
    words = {label.lower() for label in cohort.raw_labels(name) if label}
    is_binary = words <= {*YES_WORDS, *NO_WORDS}
    if form in ("", "binary"):
        if is_binary:
            return Kind.BINARY
        strange = _find_lines(cohort, name, lambda label: label.lower() not in {*YES_WORDS, *NO_WORDS})
        if form == "binary" or words & _PLAIN:
            raise CohortError(
                f"{cohort.path.name}, {name_lines(strange)}: {name} is neither yes nor no; mend it, leave it empty for "
                f"unknown, or ask for {name}:classes"
            )
        return Kind.CLASSES
    if form == "classes":
        return Kind.CLASSES
    if form == "ordinal" or "<" in form:
        return Kind.ORDINAL
    raise CohortError(f"{name}:{form} is no kind of task; write binary, classes, ordinal, or the order as a<b<c")


def _find_lines(cohort: Labelled, name: str, is_wanted: Callable[[str], bool]) -> list[int]:
    """Lines whose label is known and of a certain sort."""
    both = zip(cohort.lines, cohort.raw_labels(name), strict=True)
    return [line for line, label in both if label and is_wanted(label)]


def _normalise(kind: Kind, label: str) -> str:
    if kind is not Kind.BINARY or not label:
        return label
    return POSITIVE if label.lower() in YES_WORDS else NEGATIVE


def _order_labels(cohort: Labelled, name: str, form: str, kind: Kind, labels: set[str]) -> tuple[str, ...]:
    if kind is Kind.BINARY:
        return (NEGATIVE, POSITIVE)
    if kind is Kind.CLASSES:
        return tuple(sorted(labels))
    if "<" in form:
        order = tuple(part.strip() for part in form.split("<"))
        strange = _find_lines(cohort, name, lambda label: label not in order)
        if strange:
            raise CohortError(
                f"{cohort.path.name}, {name_lines(strange)}: {name} has a label that {form} does not name; add it there"
            )
        return order
    ranks = {label: _rank(label) for label in labels}
    if None in ranks.values() or len(set(ranks.values())) < len(ranks):
        raise CohortError(
            f"{cohort.path.name}: the order of {name} cannot be told from {name_some(sorted(labels))}; write it, e.g. "
            f"{name}:{'<'.join(sorted(labels))}"
        )
    return tuple(sorted(labels, key=lambda label: ranks[label] or 0.0))


def _rank(label: str) -> float | None:
    """3 of `3`, `G3`, `grade 3` and `III`; None for a label without a number at its end."""
    number = re.search(r"(-?\d+(?:\.\d+)?)$", label)
    if number:
        return float(number[1])
    roman = re.search(r"(?:^|\s)(i{1,3}|iv|v)$", label.lower())
    return float(_ROMAN[roman[1]]) if roman else None


def _keep_taught(cohort: Labelled, name: str, labels: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Labels with enough cases to learn from and be judged on."""
    cases = _count_cases(cohort, given)
    present = [label for label in labels if label in cases]
    if len(present) < 2:
        raise CohortError(
            f"{cohort.path.name}: {name} has one class only ({present[0]}, {cases[present[0]]} cases); add cases of "
            "another"
        )
    kept = tuple(label for label in labels if cases.get(label, 0) >= MIN_CASES)
    if len(kept) < 2:
        counted = ", ".join(f"{label}: {cases[label]}" for label in present)
        raise CohortError(
            f"{cohort.path.name}: {name} needs two classes of at least {MIN_CASES} cases each ({counted}); add cases"
        )
    return kept


def _count_cases(cohort: Labelled, labels: Sequence[str]) -> dict[str, int]:
    cases: dict[str, set[str]] = defaultdict(set)
    for case, label in zip(cohort.cases, labels, strict=True):
        if label:
            cases[label].add(case)
    return {label: len(those) for label, those in cases.items()}


def _find_parent(name: str, asked: Sequence[str]) -> str:
    site, dot, last = name.rpartition(".")
    for parent in PARENTS.get(last, ()):
        for candidate in (f"{site}{dot}{parent}", parent):
            if candidate in asked:
                return candidate
    return ""


def _refuse_contradiction(cohort: Labelled, question: TaskQuestion) -> None:
    """Refuse a slide that is malignant but not neoplastic."""
    if question.kind is not Kind.BINARY or not question.parent:
        return
    both = zip(cohort.lines, cohort.raw_labels(question.id), cohort.raw_labels(question.parent), strict=True)
    wrong = [line for line, own, parents in both
             if own.lower() in YES_WORDS and parents.lower() in NO_WORDS]  # fmt: skip
    if wrong:
        raise CohortError(
            f"{cohort.path.name}, {name_lines(wrong)}: {question.id} is yes though {question.parent} is no; the labels "
            "of one slide contradict each other: mend one of them"
        )


def _parents_first(questions: Sequence[TaskQuestion]) -> Iterable[TaskQuestion]:
    asked = {question.id: question for question in questions}

    def depth(question: TaskQuestion) -> int:
        return 1 + depth(asked[question.parent]) if question.parent else 0

    return sorted(questions, key=depth)


def _note_words(question: TaskQuestion, raw: Sequence[str]) -> list[str]:
    if question.kind is not Kind.BINARY:
        return []
    others = sorted({label.lower() for label in raw if label} - {POSITIVE, NEGATIVE})
    mapped = ", ".join(f"{word} → {_normalise(Kind.BINARY, word)}" for word in others)
    return [f"{question.id}: {mapped}"] if mapped else []


def _note_dropped(cohort: Labelled, question: TaskQuestion, raw: Sequence[str]) -> list[str]:
    given = _list_labels(cohort, question.id, question.kind, question.parent)
    dropped = sorted(set(given) - {"", *question.labels})
    notes = [f"{question.id}: left out, for a class needs {MIN_CASES} cases: {name_some(dropped)}"] if dropped else []
    masked = sum(bool(own) and not used for own, used in zip(raw, given, strict=True))
    if masked:
        notes.append(f"{question.id}: not learnt from {masked} slides whose {question.parent} is no")
    return notes
