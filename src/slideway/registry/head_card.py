"""The card beside a head's weights: read strictly, written all at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from slideway.core.errors import UntrustedHeadError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.registry.card_file import (
    CardTable,
    load_card_file,
    require_known_schema,
    without_empty,
    write_card_file,
)
from slideway.registry.head_records import (
    Bounds,
    HeadCard,
    HeadInput,
    HeadTask,
    HeadWeights,
    TaskEvidence,
)
from slideway.registry.records import CARD_FILE, STATES, CardLicence, CardTraining, CardUse

SCHEMA = "1.0"
SCHEMA_MAJOR = 1
KIND = "head"
HEAD_ID = r"[a-z0-9][a-z0-9._-]{0,63}"


def read_head_card(folder: Path) -> HeadCard:
    """Read the card in a head's folder.

    Raises:
        UntrustedHeadError: No head's card is there, it is of a newer major version, or an entry is missing or
            impossible.
    """
    content = load_card_file(folder, UntrustedHeadError)
    require_known_schema(folder, content, SCHEMA_MAJOR, UntrustedHeadError)
    if content.get("kind") != KIND:
        raise UntrustedHeadError(f'{folder.name}: {CARD_FILE} is not a head\'s card (kind = "{KIND}" is missing)')
    return _build_card(folder, content)


def is_head_folder(folder: Path) -> bool:
    """Whether the card in a folder says that it is a head's."""
    try:
        return load_card_file(folder, UntrustedHeadError).get("kind") == KIND
    except UntrustedHeadError:
        return False


def write_head_card(card: HeadCard) -> None:
    """Write `card.folder/card.toml`, all or nothing; `read_head_card` gives the same card back.

    Raises:
        ValueError: The card holds something that a card file cannot.
        OSError: The folder cannot be written.
    """
    write_card_file(card.folder / CARD_FILE, require_writable(card))


def require_writable(card: HeadCard) -> str:
    """The text of a card's file, if it would be read back as it is.

    Raises:
        ValueError: The card holds something that a card file cannot.
    """
    try:
        text = tomli_w.dumps(_as_toml(card))
        is_kept = _build_card(card.folder, tomllib.loads(text.encode().decode())) == card
    except (TypeError, ValueError, UntrustedHeadError) as error:
        raise ValueError(f"{card.id}: this card cannot be written ({error})") from error
    if not is_kept:
        raise ValueError(f"{card.id}: this card would not be read back as it is (tuples or numbers in its metrics?)")
    return text


def _as_toml(card: HeadCard) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": SCHEMA, "kind": KIND}
    content |= {key: getattr(card, key) for key in ("id", "title", "version", "state")}
    for section in ("input", "weights", "licence", "use", "training"):
        content[section] = without_empty(asdict(getattr(card, section)))
    content["tasks"] = [_task_as_toml(task) for task in card.tasks]
    content["limits"] = {"plain": list(card.limits)}
    content["metrics"] = dict(card.metrics)
    return content


def _task_as_toml(task: HeadTask) -> dict[str, Any]:
    question = without_empty({**asdict(task.question), "kind": task.question.kind.value})
    rest = without_empty({"in_force": task.in_force, "off_because": task.off_because})
    evidence = {} if task.evidence is None else {"evidence": without_empty(asdict(task.evidence))}
    return {**question, **rest, **evidence}


def _build_card(folder: Path, content: Mapping[str, Any]) -> HeadCard:
    top, given = _table(folder, "", content), _table(folder, "input", content.get("input"))
    weights, licence = (
        _table(folder, "weights", content.get("weights")),
        _table(folder, "licence", content.get("licence")),
    )
    use, training = _table(folder, "use", content.get("use")), _table(folder, "training", content.get("training"))
    return HeadCard(
        folder=folder,
        id=top.text("id", pattern=HEAD_ID),
        title=top.text("title"),
        version=top.text("version"),
        state=top.text("state", pattern="|".join(STATES)),
        input=HeadInput(
            encoder_id=given.text("encoder_id", pattern=HEAD_ID),
            encoder_fingerprint=given.text("encoder_fingerprint", pattern="[0-9a-f]{64}"),
            width=given.count("width"),
            stain=given.text("stain"),
            min_tiles=given.count("min_tiles"),
        ),
        tasks=_build_tasks(folder, content.get("tasks")),
        weights=HeadWeights(
            sha256=weights.text("sha256", pattern="[0-9a-f]{64}"),
            bytes=weights.count("bytes"),
            parameters=weights.count("parameters"),
            form=weights.text("form", pattern="abmil|instance"),
        ),
        licence=CardLicence(
            licence.text("id"), licence.file_name("file"), licence.text("note"), licence.permissions("permits")
        ),
        use=CardUse(use.text("intended"), use.text("not_intended")),
        training=CardTraining(training.text("data"), training.text("note")),
        limits=_table(folder, "limits", content.get("limits")).sentences("plain"),
        metrics=_table(folder, "metrics", content.get("metrics")).entries,
    )


def _build_tasks(folder: Path, rows: object) -> tuple[HeadTask, ...]:
    if not isinstance(rows, list) or not rows:
        raise UntrustedHeadError(f"{folder.name}: {CARD_FILE} has no [[tasks]]: a head answers at least one question")
    tasks = tuple(_build_task(_table(folder, "tasks", row)) for row in rows)
    seen: set[str] = set()
    for task in tasks:
        question = task.question
        if question.id in seen or (question.parent and question.parent not in seen):
            raise UntrustedHeadError(
                f"{folder.name}: {CARD_FILE}: task {question.id} stands twice, or before its parent {question.parent!r}"
            )
        seen.add(question.id)
    return tasks


def _build_task(row: CardTable) -> HeadTask:
    try:
        question = TaskQuestion(
            id=row.text("id", pattern=r"[a-z][a-z0-9.-]{0,63}"),
            title=row.text("title"),
            kind=Kind(row.text("kind", pattern="|".join(Kind))),
            labels=row.sentences("labels", "a list of labels"),
            parent=row.optional_text("parent"),
            sites=row.sentences("sites", "a list of sites") if "sites" in row.entries else (),
        )
    except ValueError as error:
        raise UntrustedHeadError(f"{row.folder.name}: {CARD_FILE}: {error}") from error
    evidence = row.entries.get("evidence")
    return HeadTask(
        question,
        row.truth("in_force"),
        row.optional_text("off_because"),
        None if evidence is None else _build_evidence(_table(row.folder, "tasks.evidence", evidence)),
    )


def _build_evidence(table: CardTable) -> TaskEvidence:
    return TaskEvidence(
        split=table.text("split", pattern="leave-one-case-out|case-folds|leave-site-out|own-split|tiles"),
        cases=table.count("cases"),
        positives=_count_or_none(table, "positives"),
        measure=table.text("measure", pattern="auroc|accuracy"),
        value=_build_bounds(table, "value"),
        baseline=table.text("baseline"),
        baseline_value=_build_bounds(table, "baseline_value"),
        sensitivity=_build_bounds(table, "sensitivity") if "sensitivity" in table.entries else None,
        specificity=_build_bounds(table, "specificity") if "specificity" in table.entries else None,
        ece=table.measured("ece"),
        answered=table.measured("answered"),
        sites=_count_or_none(table, "sites"),
    )


def _count_or_none(table: CardTable, key: str) -> int:
    """A whole number from 0: what a card leaves out is 0."""
    value = table.entries.get(key, 0)
    return 0 if type(value) is int and value == 0 else table.count(key)


def _build_bounds(table: CardTable, key: str) -> Bounds:
    bounds = CardTable(table.folder, f"{table.section}.{key}", table.entries.get(key), UntrustedHeadError)
    value, low, high = (bounds.measured(name) for name in ("value", "low", "high"))
    if not 0 <= low <= value <= high:
        raise bounds.refuse("value", "from 0 to 1 and within its own low and high")
    return Bounds(value, low, high)


def _table(folder: Path, section: str, entries: object) -> CardTable:
    return CardTable(folder, section, entries, UntrustedHeadError)
