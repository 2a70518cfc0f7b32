"""What a layout gives: rows to be written as a cohort file or tile table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slideway.core.errors import CohortError
from slideway.learning.cohort import FOLD_WORDS, TRAIN
from slideway.learning.table import name_some


@dataclass(frozen=True)
class FoundRow:
    """One slide or tile.

    Attributes:
        path: Its file.
        inside: What follows the file's path when it lies within one, e.g. `::x::17`; else empty.
        cells: Its cells, in the order of the cohort's columns.
    """

    path: Path
    inside: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class FoundCohort:
    """A public cohort as it lies in a folder.

    Attributes:
        columns: Columns after the first (`slide` or `tile`).
        rows: One for each slide or tile that is there and has a label.
        notes: What a user must know of this cohort, in sentences.
        tasks: Tasks to train, as `slideway train` takes them; the first is the one to begin with.
        is_tiles: The rows are single tiles.
    """

    columns: tuple[str, ...]
    rows: tuple[FoundRow, ...]
    notes: tuple[str, ...]
    tasks: tuple[str, ...]
    is_tiles: bool = False


def find_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files below a folder with one of some suffixes (lower case), sorted; none that is hidden."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def require_some(rows: Sequence[FoundRow], folder: Path, expected: str) -> None:
    """Refuse a folder in which nothing of a layout was found.

    Raises:
        CohortError: There are no rows.
    """
    if not rows:
        raise CohortError(f"{folder} is not laid out as expected: {expected}")


def find_fold(path: Path, folder: Path) -> str:
    """The fold that a part of a path below the folder, or the folder's own name, names; empty for none."""
    parts = (folder.name, *path.relative_to(folder).parts[:-1])
    return next((FOLD_WORDS[part.lower()] for part in reversed(parts) if part.lower() in FOLD_WORDS), "")


def settle_folds(cases: Sequence[str], folds: Sequence[str]) -> tuple[list[str], list[str]]:
    """Folds in which no case is torn: a case that a cohort put on two sides goes to train. And a note of it."""
    where: dict[str, set[str]] = defaultdict(set)
    for case, fold in zip(cases, folds, strict=True):
        where[case].add(fold)
    torn = sorted(case for case, those in where.items() if len(those) > 1)
    settled = [TRAIN if case in torn else fold for case, fold in zip(cases, folds, strict=True)]
    moved = sum(before != after for before, after in zip(folds, settled, strict=True))
    note = f"{len(torn)} cases stood on two sides of the cohort's own split ({name_some(torn)}); {moved} slides of "
    return settled, [note + "theirs were moved to train"] if torn else []


def say_left_out(names: Iterable[str], why: str) -> list[str]:
    """A note of what was left out; none when nothing was."""
    every = list(names)
    return [f"{len(every)} left out, {why}: {name_some(every)}"] if every else []
