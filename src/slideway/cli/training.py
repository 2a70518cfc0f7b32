"""What the training commands share: the head's id and plan, and its figures in words."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slideway.core.catalogue import load_catalogue
from slideway.core.errors import WrongUseError
from slideway.core.opinion import TaskQuestion
from slideway.registry.head_card import HEAD_ID, is_head_folder

if TYPE_CHECKING:
    from slideway.learning.train import Plan


def make_id(file: Path, tasks: list[str]) -> str:
    """An id from the name of the cohort file and the tasks."""
    words = "-".join([file.stem, *tasks]).lower()
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in words).strip("-_")
    return kept[:60] or "head"


def bind_to_sites(questions: tuple[TaskQuestion, ...], settings: dict[str, Any]) -> tuple[TaskQuestion, ...]:
    """The questions as asked of some of the catalogue's sites only; as they are when none is named.

    Raises:
        WrongUseError: The catalogue has no such site.
    """
    sites = tuple(load_catalogue().find_site(site).id for site in settings["sites"])
    return tuple(replace(question, sites=sites) for question in questions)


def require_free_folder(out: Path, name: str, *, beside: Iterable[Path] = ()) -> None:
    """Refuse, before any work, a name under which something else than a head lies: it would be replaced.

    Args:
        out: Parent of the head's folder.
        name: The head's id.
        beside: Bags and slides that the folder must not hold.

    Raises:
        WrongUseError: The id is none, or something else has the place.
    """
    if not re.fullmatch(HEAD_ID, name):
        raise WrongUseError(f"{name!r} cannot be an id: small letters, digits, dots, - and _, at most 64; choose --id")
    folder = out / name
    if folder.exists() and not is_head_folder(folder):
        raise WrongUseError(f"{folder} is there already and is no head; choose another --id or --out")
    place = folder.resolve()
    if any(place in (other.resolve(), *other.resolve().parents) for other in beside):
        raise WrongUseError(f"{folder} would take the place of what the head is made of; choose another --id or --out")


def name_command() -> str:
    """The command of this run for a card that travels: of paths only the last part, for folders name patients."""
    return shlex.join(["slideway", *(_shorten(word) for word in sys.argv[1:])])


def _shorten(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def make_plan(head_id: str, settings: dict[str, Any], slides: int) -> Plan:
    """How the head is made, from the command's options."""
    from slideway.heads.fit import Training
    from slideway.learning.train import Plan
    from slideway.pipeline.machine import count_cores

    training = Training(seeds=tuple(range(settings["seeds"])))
    if settings["epochs"] is not None:
        training = replace(training, epochs=settings["epochs"], more_steps=())
    limits = ("The cohort was accepted although something else than tissue tells a label.",)
    return Plan(
        head_id=head_id,
        title=settings["title"] or head_id,
        split=settings["split"] or "",
        training=training,
        stain=settings["stain"],
        curve=not settings["no_curve"],
        processes=min(count_cores(), slides),
        command=name_command(),
        limits=limits if settings["allow_confounded"] else (),
    )


def say_evaluation(evaluation: dict[str, Any], folder: Path) -> str:
    """The figures that decide, as a table, and what to do next."""
    head, of = evaluation["head"], evaluation["of"]
    lines = [f"{head}: {evaluation[of]} {of} of {evaluation['cases']} cases, {evaluation['split']}"]
    for figures in evaluation["tasks"]:
        measure = figures["measure"]
        lines.append(f"  {figures['title']} ({figures['cases']} cases), {measure} with 95 % interval")
        for name, own in figures["methods"].items():
            value = own[measure]
            lines.append(f"    {name:34} {value['value']:.3f}  ({value['low']:.3f} to {value['high']:.3f})")
        answers = ", ".join(f"{kind} {count}" for kind, count in figures["answers"].items() if count)
        lines.append(f"    answers: {answers}; ECE {figures['methods'][figures['method']]['ece']:.3f}")
        if "off_because" in figures:
            off = figures["off_because"]
            lines.append(f"    off: {off}" if off else "    in force once the head is active")
    if evaluation["split"] == "external":
        return "\n".join([*lines, f"  look at   {folder / 'evaluation.html'}"])
    lines += [
        f"  look at   {folder / 'evaluation.html'}",
        f"  install   slideway models add {folder}",
        f"  try       slideway read SLIDE --head {head}",
    ]
    return "\n".join(lines)
