"""The cohort file: which slides there are, whose they are, and what is known of them."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PureWindowsPath

from slideway.bundles import read_bag
from slideway.core.bag import EmbeddingBag
from slideway.core.errors import CohortError, FingerprintMismatchError, LeakageError, UnreadableBagError
from slideway.learning.table import Table, is_there, name_lines, name_some, read_table

BAG = "bag.safetensors"
FACTS = ("site", "scanner", "stain", "age_group", "laboratory")
COLUMNS = ("slide", "case", *FACTS, "mpp", "fold")  # every other column is a task
TRAIN, VALIDATION, TEST = "train", "validation", "test"
FOLD_WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev", "tuning"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
UNKNOWN_WORDS = frozenset({"na", "n/a", "nan", "null", "unknown", "?"})
TASK_NAME = re.compile(r"[a-z][a-z0-9.-]*")
TILE_IMAGE = re.compile(r"\d+-\d+\.(jpe?g|png)", re.IGNORECASE)
_EDGE_BYTES = 1 << 20  # of a slide file's start and end, to recognise a copy without reading gigabytes


class SlideKind(StrEnum):
    """What a line of the cohort file points to."""

    READ = "read"  # output folder of `slideway read`
    BAG = "bag"  # a bag file
    SLIDE = "slide"  # a slide file, or a folder of DICOM instances
    TILES = "tiles"  # a .tar or folder of tile images named x-y.jpg


@dataclass(frozen=True)
class CohortRow:
    """One slide of a cohort.

    Attributes:
        line: Its line in the file.
        name: Its path as the file writes it.
        path: Where it is.
        kind: What that is.
        case: Pseudonym of its case; everything is split by it.
        site: Hospital or laboratory it comes from (not the anatomical site); empty when unknown, as are the next four.
        scanner: Scanner.
        stain: Stain.
        age_group: Age group of the patient.
        laboratory: Laboratory that stained it.
        mpp: Microns per pixel of tile images; None when the slide states it.
        fold: `train`, `validation` or `test` of a public cohort's own split; empty for none.
        labels: Label of each task as the file writes it; a task whose label is unknown is not in there.
    """

    line: int
    name: str
    path: Path
    kind: SlideKind
    case: str
    site: str
    scanner: str
    stain: str
    age_group: str
    laboratory: str
    mpp: float | None
    fold: str
    labels: Mapping[str, str]

    @property
    def bag_path(self) -> Path | None:
        """Its bag; None when the slide is still to be read."""
        return {SlideKind.READ: self.path / BAG, SlideKind.BAG: self.path}.get(self.kind)


@dataclass(frozen=True)
class Cohort:
    """A cohort file that passed its checks.

    Attributes:
        path: The file.
        rows: One for each slide, in the order of the file.
        tasks: Names of its label columns.
        sha256: Hash of the file.
        notes: What its maker should know, in sentences.
    """

    path: Path
    rows: tuple[CohortRow, ...]
    tasks: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that say something about at least one slide."""
        return tuple(name for name in COLUMNS if any(getattr(row, _FIELD.get(name, name)) for row in self.rows))

    @property
    def lines(self) -> tuple[int, ...]:
        """Line of each slide in the file."""
        return tuple(row.line for row in self.rows)

    @property
    def cases(self) -> tuple[str, ...]:
        """Case of each slide."""
        return tuple(row.case for row in self.rows)

    def values(self, column: str) -> tuple[str, ...]:
        """What a column (`site`, `scanner`, …) says of each slide; empty where unknown."""
        return tuple(str(getattr(row, column)) for row in self.rows)

    def raw_labels(self, task: str) -> tuple[str, ...]:
        """Label of each slide as the file writes it; empty where unknown."""
        return tuple(row.labels.get(task, "") for row in self.rows)


_FIELD = {"slide": "name"}


def read_cohort(path: Path) -> Cohort:
    """Read a cohort file and refuse, line by line, what would spoil a training.

    Raises:
        CohortError: Columns, cells or files are wrong; the message names the lines.
        LeakageError: A case stands on two sides of the file's own split, or the same slide in two cases.
        FingerprintMismatchError: Its bags were made by different encoders.
        UnreadableBagError: A bag is damaged.
    """
    table = read_table(path, required=("slide", "case"))
    tasks = _name_tasks(table)
    _require_cases(table)
    _require_whole(table, "site", "leave-site-out would count the others as one more hospital")
    _require_whole(table, "fold", "a split must say of every slide where it belongs")
    labels, unknown = _read_labels(table, tasks)
    paths = _find_slides(table)
    _refuse_repeated(table, paths, labels)
    rows = tuple(_read_row(table, index, paths[index], labels[index]) for index in range(len(table)))
    _refuse_split_cases(path, rows)
    notes = (*table.notes, *unknown, *_note_facts(rows), *check_content(path, rows))
    return Cohort(path, rows, tasks, table.sha256, notes)


def _name_tasks(table: Table) -> tuple[str, ...]:
    tasks = tuple(name for name in table.columns if name not in COLUMNS)
    for name in tasks:
        if not TASK_NAME.fullmatch(name):
            better = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.0123456789") or "a word"
            raise CohortError(
                f"{table.path.name}: column {name!r} cannot be a task; its name is a lower-case letter, then letters, "
                f"digits, '.' or '-', e.g. {better!r}"
            )
    return tasks


def _require_cases(table: Table) -> None:
    empty = [line for case, line in zip(table.column("case"), table.lines, strict=True) if not case]
    if empty:
        raise CohortError(
            f"{table.path.name}, {name_lines(empty)}: no case; give each slide the pseudonym of its patient, for "
            "slides of one patient must never be trained on and tested on at once"
        )


def _require_whole(table: Table, column: str, why: str) -> None:
    values = table.column(column)
    empty = [line for value, line in zip(values, table.lines, strict=True) if not value]
    if empty and len(empty) < len(values):
        raise CohortError(
            f"{table.path.name}, {name_lines(empty)}: no {column}, though other lines have one; {why}. "
            f"Fill it in, or delete the column"
        )


def _read_labels(table: Table, tasks: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    labels: list[dict[str, str]] = [{} for _ in table.lines]
    notes = []
    for task in tasks:
        masked = 0
        for row, value in zip(labels, table.column(task), strict=True):
            if value.lower() in UNKNOWN_WORDS:
                masked += 1
            elif value:
                row[task] = value
        if masked:
            notes.append(f"{task}: {masked} labels such as 'unknown' or 'NA' are taken for not known")
        _refuse_spellings(table, task, labels)
    return labels, notes


def _refuse_spellings(table: Table, task: str, labels: Sequence[Mapping[str, str]]) -> None:
    """Refuse one label in two spellings: it would be learnt as two."""
    spelt: dict[str, tuple[str, int]] = {}
    for row, line in zip(labels, table.lines, strict=True):
        label = row.get(task, "")
        first, first_line = spelt.setdefault(" ".join(label.lower().split()), (label, line))
        if first != label:
            raise CohortError(
                f"{table.path.name}, lines {first_line} and {line}: {task} is {first!r} and {label!r}; write it one way"
            )


def _find_slides(table: Table) -> list[Path]:
    folder = table.path.parent
    empty = [line for name, line in zip(table.column("slide"), table.lines, strict=True) if not name]
    if empty:
        raise CohortError(f"{table.path.name}, {name_lines(empty)}: no slide; give its path, or delete the line")
    paths = [_find_slide(folder, name) for name in table.column("slide")]
    missing = [(line, name) for path, line, name in zip(paths, table.lines, table.column("slide"), strict=True)
               if not is_there(path)]  # fmt: skip
    if missing:
        listed = name_some(f"line {line}: {name}" for line, name in missing)
        raise CohortError(
            f"{table.path.name}: {len(missing)} of {len(paths)} slides are not there: {listed}. Paths are relative to "
            f"the file's own folder, {folder}; mend them, or delete the lines"
        )
    return paths


def _find_slide(folder: Path, name: str) -> Path:
    path = folder / name
    if not is_there(path) and "\\" in name:  # a table made on Windows, read elsewhere
        path = folder / Path(PureWindowsPath(name).as_posix())
    return path


def _refuse_repeated(table: Table, paths: Sequence[Path], labels: Sequence[Mapping[str, str]]) -> None:
    seen: dict[str, int] = {}
    for index, path in enumerate(paths):
        target = path / BAG if (path / BAG).is_file() else path
        key = os.path.normcase(target.resolve())
        first = seen.setdefault(key, index)
        if first != index:
            lines = f"lines {table.lines[first]} and {table.lines[index]}"
            differ = [task for task in labels[first] if labels[index].get(task, labels[first][task]) !=
                      labels[first][task]]  # fmt: skip
            said = f" and calls its {differ[0]} {labels[first][differ[0]]!r} and {labels[index][differ[0]]!r}" if (
                differ) else ""  # fmt: skip
            raise CohortError(
                f"{table.path.name}, {lines}: the same slide twice ({table.column('slide')[index]}){said}; keep one "
                "line"
            )


def _read_row(table: Table, index: int, path: Path, labels: Mapping[str, str]) -> CohortRow:
    where = f"{table.path.name}, line {table.lines[index]}"
    kind = _recognise(path, where)
    mpp = _read_mpp(table.column("mpp")[index], where)
    if kind is SlideKind.TILES and mpp is None:
        raise CohortError(f"{where}: tile images state no microns per pixel; give it in a column mpp")
    facts = {name: table.column(name)[index] for name in FACTS}
    return CohortRow(
        line=table.lines[index],
        name=table.column("slide")[index],
        path=path,
        kind=kind,
        case=table.column("case")[index],
        mpp=mpp,
        fold=read_fold(table.column("fold")[index], where),
        labels=labels,
        **facts,
    )


def _recognise(path: Path, where: str) -> SlideKind:
    if path.is_dir():
        return _recognise_folder(path, where)
    if path.suffix.lower() == ".safetensors":
        return SlideKind.BAG
    if path.suffix.lower() == ".tar":
        return _recognise_tar(path, where)
    return SlideKind.SLIDE


def _recognise_folder(path: Path, where: str) -> SlideKind:
    if (path / BAG).is_file():
        return SlideKind.READ
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    if any(name.lower().endswith(".dcm") for name in names):
        return SlideKind.SLIDE
    if any(TILE_IMAGE.fullmatch(name) for name in names):
        return SlideKind.TILES
    raise CohortError(
        f"{where}: the folder {path.name} is neither an output folder of `slideway read` (no {BAG}), nor DICOM, nor "
        "tile images named x-y.jpg"
    )


def _recognise_tar(path: Path, where: str) -> SlideKind:
    try:
        with tarfile.open(path) as archive:
            if any(TILE_IMAGE.fullmatch(member.name.rpartition("/")[2]) for member in archive):
                return SlideKind.TILES
    except (tarfile.TarError, OSError) as error:
        raise CohortError(f"{where}: {path.name} cannot be read as a tar ({error}); pack it again") from error
    raise CohortError(f"{where}: {path.name} holds no tile image named x-y.jpg (x, y: its corner in level-0 pixels)")


def _read_mpp(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text.replace(",", "."))
    except ValueError:
        mpp = 0.0
    if not 0.05 <= mpp <= 20:
        raise CohortError(f"{where}: mpp is {text!r}; give microns per pixel, from 0.05 to 20, e.g. 0.5")
    return mpp


def read_fold(text: str, where: str) -> str:
    """`train`, `validation` or `test` from the words that public cohorts use; empty stays empty.

    Raises:
        CohortError: It is another word.
    """
    if text and text.lower() not in FOLD_WORDS:
        raise CohortError(f"{where}: fold is {text!r}; it is train, validation or test")
    return FOLD_WORDS.get(text.lower(), "")


def _refuse_split_cases(path: Path, rows: Sequence[CohortRow]) -> None:
    """Refuse a split by slide: it would judge a head on patients that it has learnt."""
    folds: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        folds[row.case].setdefault(row.fold, row.line)
    torn = [f"{case} ({', '.join(f'{fold}: line {line}' for fold, line in where.items())})"
            for case, where in folds.items() if len(where) > 1]  # fmt: skip
    if torn:
        raise LeakageError(
            f"{path.name}: {len(torn)} cases stand in two folds: {name_some(torn)}. A split is by case, never by "
            "slide; put all slides of a case into one fold, or delete the column fold"
        )


def _note_facts(rows: Sequence[CohortRow]) -> Iterable[str]:
    for name in FACTS:
        unknown = sum(not getattr(row, name) for row in rows)
        if 0 < unknown < len(rows):
            yield f"{name}: unknown for {unknown} of {len(rows)} slides; tables by {name} show them as 'unknown'"
    sites = defaultdict(set)
    for row in rows:
        sites[row.case].add(row.site)
    torn = [case for case, where in sites.items() if len(where) > 1]
    if torn:
        yield f"site: {len(torn)} cases come from two sites ({name_some(torn)}); leave-site-out will refuse them"


def check_content(path: Path, rows: Sequence[CohortRow]) -> tuple[str, ...]:
    """Refuse slides that are there twice under two names, and bags of different encoders.

    Slide files count as copies when size, first and last megabyte are the same.

    Raises:
        CohortError: One slide twice in a case.
        LeakageError: One slide in two cases.
        FingerprintMismatchError: Bags of different encoders.
    """
    bags = [(row, _read_bag(row)) for row in rows if row.bag_path is not None]
    encoders: dict[tuple[str, str], list[CohortRow]] = defaultdict(list)
    for row, bag in bags:
        encoders[bag.encoder_id, bag.fingerprint].append(row)
    if len(encoders) > 1:
        listed = "; ".join(
            f"{len(made)} by {name} ({fingerprint[:12]}), e.g. line {made[0].line}"
            for (name, fingerprint), made in encoders.items()
        )
        raise FingerprintMismatchError(
            f"{path.name}: its bags were made by different encoders: {listed}. Read those slides again with one encoder"
        )
    _refuse_copies(path, [(row, bag.slide_sha256) for row, bag in bags])
    _refuse_copies(path, _sign_files([row for row in rows if row.bag_path is None and row.path.is_file()]))
    empty = [row.line for row, bag in bags if not len(bag)]
    return (f"{name_lines(empty)}: no tissue was found; nothing is learnt from them",) if empty else ()


def _read_bag(row: CohortRow) -> EmbeddingBag:
    assert row.bag_path is not None
    try:
        return read_bag(row.bag_path)
    except UnreadableBagError as error:
        raise UnreadableBagError(f"line {row.line}, {row.name}: {error}") from error


def _sign_files(rows: Sequence[CohortRow]) -> list[tuple[CohortRow, str]]:
    """Size and a hash of both ends of those files whose size another file has too."""
    sizes = [row.path.stat().st_size for row in rows]
    common = Counter(sizes)
    return [(row, f"{size} {_hash_ends(row.path, size)}") for row, size in zip(rows, sizes, strict=True)
            if common[size] > 1]  # fmt: skip


def _hash_ends(path: Path, size: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_EDGE_BYTES))
        file.seek(max(0, size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()


def _refuse_copies(path: Path, signed: Sequence[tuple[CohortRow, str]]) -> None:
    seen: dict[str, CohortRow] = {}
    for row, signature in signed:
        first = seen.setdefault(signature, row)
        if first is row:
            continue
        both = f"{path.name}, lines {first.line} and {row.line}: {first.name} and {row.name} are the same slide"
        if first.case != row.case:
            raise LeakageError(f"{both}, in cases {first.case} and {row.case}; find out whose it is and keep one line")
        raise CohortError(f"{both}; keep one line")
