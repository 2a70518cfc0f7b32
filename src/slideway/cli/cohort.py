"""`slideway cohort`: make a cohort file from a public cohort's folder, and check any cohort file before training."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slideway.core.errors import CohortError, WrongUseError

if TYPE_CHECKING:
    from slideway.learning.cohort import Cohort
    from slideway.learning.tile_table import TileTable

CHECK = "check"
KINDS = ("camelyon16", "camelyon17", "panda", "tcga", "bracs", "bracs-roi", "pcam", "nct-crc")
TALLIED = ("site", "scanner", "stain", "fold")
SHOWN = 12  # values of a column that are listed


@click.command("cohort")
@click.argument("kind", type=click.Choice((CHECK, *KINDS)), metavar="KIND")
@click.argument("source", type=click.Path(path_type=Path, exists=True), metavar="FOLDER|FILE")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write.  [default: cohort.csv or tiles.csv in FOLDER]")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace the file if it is there.")
@click.option("--task", "specs", multiple=True, metavar="TASK",
              help="Task that must pass: a column's name, NAME:ordinal, or NAME:a<b<c. May be repeated.")  # fmt: skip
@click.option("--allow-confounded", is_flag=True,
              help="Accept a label that site, laboratory, scanner or stain tells.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    kind: str,
    source: Path,
    *,
    out: Path | None,
    replace: bool,
    specs: tuple[str, ...],
    allow_confounded: bool,
    as_json: bool,
) -> int:
    """Make a cohort file from a public cohort's FOLDER, or check a cohort FILE.

    KIND is the layout of the folder: camelyon16, camelyon17, panda, tcga, bracs, bracs-roi, pcam or nct-crc; or
    `check`, for a cohort file or tile table. Nothing is trained: what would spoil a training is said line by line, and
    otherwise the counts, and the command to train with. docs/cohorts.md describes the file and every check.

    \b
    Examples:
      slideway cohort camelyon17 /data/CAMELYON17 --out cohort.csv
      slideway cohort tcga /data/tcga-brca
      slideway cohort check cohort.csv
      slideway cohort check cohort.csv --task malignant --task grade:ordinal
    """
    if kind == CHECK:
        if out is not None or replace:
            raise WrongUseError("--out and --replace go with a layout; check writes nothing")
        said = _check(source, specs, allow_confounded=allow_confounded)
    else:
        said = _make(kind, source, out, specs, replace=replace, allow_confounded=allow_confounded)
    click.echo(json.dumps(said, ensure_ascii=False, indent=2) if as_json else _in_words(said))
    return 0


def _make(
    kind: str, folder: Path, out: Path | None, specs: Sequence[str], *, replace: bool, allow_confounded: bool
) -> dict[str, Any]:
    from slideway.learning.layouts import build_cohort, write_cohort

    found = build_cohort(kind, folder)
    path = out or folder / ("tiles.csv" if found.is_tiles else "cohort.csv")
    if path.exists() and not replace:
        raise WrongUseError(f"{path} is there already; --replace replaces it, --out FILE writes another")
    write_cohort(found, path)
    said = _check(path, specs, wished=found.tasks, allow_confounded=allow_confounded)
    return {**said, "notes": [*found.notes, *said["notes"]]}


def _check(
    path: Path, specs: Sequence[str], *, wished: Sequence[str] = (), allow_confounded: bool = False
) -> dict[str, Any]:
    """All that is known of a cohort file; refuses it, or says which of its tasks can be trained.

    A public cohort of which nothing can be trained as it is (`wished` names its tasks) is no error: some have labels
    that the user must add.
    """
    from slideway.learning.questions import note_tasks, select_tasks

    cohort = _read(path)
    notes = [*cohort.notes, *_compare_bags(cohort)]
    usable: list[str] = []
    refused: dict[str, str] = {}
    if specs:
        notes += note_tasks(cohort, select_tasks(cohort, specs, allow_confounded=allow_confounded))
        usable = list(specs)
    for spec in () if specs else (wished or cohort.tasks):
        try:
            notes += note_tasks(cohort, select_tasks(cohort, [spec], allow_confounded=allow_confounded))
            usable.append(spec)
        except CohortError as error:
            refused[spec] = str(error)
    if not usable and not wished:
        raise CohortError("; ".join(refused.values()) or f"{path.name} has no label column; add one a task")
    return {
        **_tally(cohort),
        "trainable": usable,
        "refused": refused,
        "notes": notes,
        "next": _say_next(cohort, usable),
    }


def _read(path: Path) -> Cohort | TileTable:
    """A cohort file, or a tile table if its header has a column `tile`."""
    from slideway.learning.cohort import read_cohort
    from slideway.learning.table import read_table
    from slideway.learning.tile_table import read_tile_table

    if not path.is_file():
        raise WrongUseError(f"{path} is a folder; give the cohort file, or say which layout it has")
    return read_tile_table(path) if "tile" in read_table(path, required=()).columns else read_cohort(path)


def _compare_bags(cohort: Cohort | TileTable) -> list[str]:
    """Look for the same tissue in two cases, where all slides are read; a note where they are not."""
    from slideway.bundles import read_bag
    from slideway.learning.cohort import Cohort
    from slideway.learning.leakage import find_leaks, require_no_leaks

    if not isinstance(cohort, Cohort):
        return []
    bags = [read_bag(row.bag_path) for row in cohort.rows if row.bag_path is not None]
    if len(bags) < len(cohort.rows):
        unread = len(cohort.rows) - len(bags)
        return [
            f"{unread} slides are not read yet: near-duplicates in two cases are looked for in training, once they are"
        ]
    require_no_leaks(find_leaks(bags, cohort.cases), [row.name for row in cohort.rows], cohort.cases)
    return []


def _tally(cohort: Cohort | TileTable) -> dict[str, Any]:
    from slideway.learning.cohort import Cohort

    is_slides = isinstance(cohort, Cohort)
    has_cases = isinstance(cohort, Cohort) or not cohort.is_optimistic
    counts = {name: _count(cohort.values(name)) for name in TALLIED}
    return {
        "file": str(cohort.path),
        "of": "slides" if is_slides else "tiles",
        "rows": len(cohort.cases),
        "cases": len(set(cohort.cases)) if has_cases else 0,
        "labels": {task: _count(cohort.raw_labels(task)) for task in cohort.tasks},
        **{name: count for name, count in counts.items() if set(count) != {""}},
    }


def _count(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _say_next(cohort: Cohort | TileTable, usable: Sequence[str]) -> str:
    from slideway.learning.cohort import Cohort

    if not usable:
        return f"add a column of labels to {cohort.path}, then: slideway cohort check {shlex.quote(str(cohort.path))}"
    option = "--cohort" if isinstance(cohort, Cohort) else "--tiles"
    return f"slideway train {shlex.quote(usable[0])} {option} {shlex.quote(str(cohort.path))}"


def _in_words(said: dict[str, Any]) -> str:
    cases = f"of {said['cases']:,} cases" if said["cases"] else "of unnamed cases"
    lines = [f"{said['file']}: {said['rows']:,} {said['of']} {cases}"]
    lines += [f"  {task:<12} {_list(counts)}" for task, counts in said["labels"].items()]
    lines += [f"  {name:<12} {_list(said[name])}" for name in TALLIED if name in said]
    lines += [f"  ! cannot be trained: {why}" for why in said["refused"].values()]
    lines += [f"  - {note}" for note in said["notes"]]
    return "\n".join([*lines, f"  next: {said['next']}"])


def _list(counts: dict[str, int]) -> str:
    shown = [f"{value or 'unknown'} {count:,}" for value, count in list(counts.items())[:SHOWN]]
    return ", ".join(shown) + (f" … ({len(counts)} in all)" if len(counts) > SHOWN else "")
