"""The tile table: single labelled tile images, whose they are as far as known, and how to read them."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import h5py
import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import CohortError, LeakageError
from slideway.learning.cohort import TASK_NAME, UNKNOWN_WORDS, read_fold
from slideway.learning.table import Table, is_there, name_lines, name_some, read_table

COLUMNS = ("tile", "case", "mpp", "fold")
SEPARATOR = "::"  # between an archive and what is in it


@dataclass(frozen=True)
class TileTable:
    """A tile table that passed its checks.

    Attributes:
        path: The file; tiles are relative to its folder.
        tiles: An image's path, `archive.tar::member`, or `file.h5::dataset::index`.
        given_cases: Case of each tile; empty strings when the set names none.
        mpp: (n,) float64, microns per pixel of each tile.
        folds: `train`, `validation`, `test`, or empty for none.
        labels: Of each task, the label of each tile; empty where unknown.
        lines: Line of each tile in the file.
        sha256: Hash of the file.
        notes: What its maker should know.
    """

    path: Path
    tiles: tuple[str, ...]
    given_cases: tuple[str, ...]
    mpp: NDArray[np.float64]
    folds: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    sha256: str
    notes: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of its label columns."""
        return tuple(self.labels)

    @property
    def is_optimistic(self) -> bool:
        """Whether no cases are named: tiles of one patient then stand on both sides of any split but the set's own."""
        return not self.given_cases[0]

    @property
    def cases(self) -> tuple[str, ...]:
        """Case of each tile; where none are named each tile is its own."""
        return tuple(str(line) for line in self.lines) if self.is_optimistic else self.given_cases

    def raw_labels(self, task: str) -> tuple[str, ...]:
        """Label of each tile as the file writes it; empty where unknown."""
        return self.labels.get(task, ("",) * len(self.tiles))

    def values(self, column: str) -> tuple[str, ...]:
        """Fold or label of each tile; a tile table says nothing of sites, scanners or stains."""
        known = {"fold": self.folds, **self.labels}
        return known.get(column, ("",) * len(self.tiles))


def read_tile_table(path: Path) -> TileTable:
    """Read a tile table and refuse what would spoil a training.

    Raises:
        CohortError: Columns, cells or tiles are wrong; the message names the lines.
        LeakageError: A case stands on two sides of the set's own split.
    """
    table = read_table(path, required=("tile", "mpp"))
    tasks = [name for name in table.columns if name not in COLUMNS]
    if not tasks or not all(TASK_NAME.fullmatch(name) for name in tasks):
        raise CohortError(f"{path.name}: name one column a task, in lower-case letters, digits, '.' or '-'; "
                          f"it has {name_some(table.columns)}")  # fmt: skip
    for column in ("case", "fold"):
        _require_all_or_none(table, column)
    _refuse_repeated(table)
    _require_tiles(table)
    folds = tuple(read_fold(text, path.name) for text in table.column("fold"))
    _refuse_split_cases(table, folds)
    labels = {
        task: tuple("" if word.lower() in UNKNOWN_WORDS else word for word in table.column(task)) for task in tasks
    }
    notes = list(table.notes)
    if not table.column("case")[0]:
        notes.append("no cases are named: tiles of one patient may be learnt from and judged, figures are optimistic")
    return TileTable(
        path, table.column("tile"), table.column("case"), _read_mpp(table), folds, labels, table.lines, table.sha256,
        tuple(notes),
    )  # fmt: skip


class TileReader:
    """Reads tiles of a table; archives stay open between tiles."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._archives: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, tile: str) -> NDArray[np.uint8]:
        """(height_px, width_px, 3) uint8 RGB of a tile.

        Raises:
            CohortError: It is not there, or not an image.
        """
        file, *inside = tile.split(SEPARATOR)
        try:
            if len(inside) == 2:
                pixels: NDArray[np.uint8] = np.asarray(self._open_h5(file)[inside[0]][int(inside[1])])
                return pixels
            content = self._read_member(file, inside[0]) if inside else (self._folder / file).read_bytes()
        except (OSError, KeyError, ValueError, IndexError, tarfile.TarError) as error:
            raise CohortError(f"{tile} cannot be read ({error}); mend its line, or delete it") from error
        return _decode(tile, content)

    def names(self, file: str) -> frozenset[str]:
        """Names of the files in a tar."""
        return frozenset(self._open_tar(file).getnames())

    def count(self, file: str, dataset: str) -> int:
        """Number of tiles in a dataset of an HDF5 file."""
        return int(self._open_h5(file)[dataset].shape[0])

    def _read_member(self, file: str, name: str) -> bytes:
        stored = self._open_tar(file).extractfile(name)
        if stored is None:
            raise KeyError(f"{name} is a folder")
        return stored.read()

    def _open_tar(self, file: str) -> tarfile.TarFile:
        if file not in self._archives:
            opened = tarfile.open(self._folder / file)  # noqa: SIM115  closed with the reader
            self._archives[file] = self._open.enter_context(opened)
        archive: tarfile.TarFile = self._archives[file]
        return archive

    def _open_h5(self, file: str) -> Any:
        if file not in self._archives:
            self._archives[file] = self._open.enter_context(h5py.File(self._folder / file, "r"))
        return self._archives[file]


def _decode(tile: str, content: bytes) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if pixels is None:
        raise CohortError(f"{tile} is not an image; mend its line, or delete it")
    rgb: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


def _require_all_or_none(table: Table, column: str) -> None:
    empty = [line for value, line in zip(table.column(column), table.lines, strict=True) if not value]
    if empty and len(empty) < len(table):
        raise CohortError(
            f"{table.path.name}, {name_lines(empty)}: no {column}, though other lines have one; fill it in, or delete "
            "the column"
        )


def _refuse_repeated(table: Table) -> None:
    seen: dict[str, int] = {}
    for tile, line in zip(table.column("tile"), table.lines, strict=True):
        first = seen.setdefault(tile, line)
        if first != line or not tile:
            what = f"the same tile twice ({tile})" if tile else "no tile"
            raise CohortError(f"{table.path.name}, lines {first} and {line}: {what}; keep one line")


def _require_tiles(table: Table) -> None:
    """Refuse tiles that are not there; archives are opened once, pixels are not read."""
    wanted: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    missing = []
    for tile, line in zip(table.column("tile"), table.lines, strict=True):
        parts = tile.split(SEPARATOR)
        if len(parts) == 1 and not is_there(table.path.parent / tile, file=True):
            missing.append((tile, line))
        elif len(parts) > 1:
            wanted.setdefault(tuple(parts[:-1]), []).append((parts[-1], line))
    with TileReader(table.path.parent) as reader:
        for archive, inside in wanted.items():
            missing += [
                (SEPARATOR.join((*archive, name)), line) for name, line in _list_missing(reader, archive, inside)
            ]
    if missing:
        listed = name_some(f"line {line}: {tile}" for tile, line in sorted(missing, key=lambda one: one[1]))
        raise CohortError(
            f"{table.path.name}: {len(missing)} of {len(table)} tiles are not there: {listed}. Paths are relative to "
            f"{table.path.parent}; mend them, or delete the lines"
        )


def _list_missing(reader: TileReader, archive: tuple[str, ...], inside: list[tuple[str, int]]) -> list[tuple[str, int]]:
    try:
        if len(archive) == 1:
            names = reader.names(archive[0])
            return [one for one in inside if one[0] not in names]
        count = reader.count(archive[0], archive[1])
    except (OSError, KeyError, tarfile.TarError):
        return inside
    return [one for one in inside if not one[0].isdigit() or int(one[0]) >= count]


def _refuse_split_cases(table: Table, folds: tuple[str, ...]) -> None:
    where: dict[str, set[str]] = {}
    for case, fold in zip(table.column("case"), folds, strict=True):
        where.setdefault(case, set()).add(fold)
    torn = [case for case, those in where.items() if case and len(those) > 1]
    if torn:
        raise LeakageError(
            f"{table.path.name}: {len(torn)} cases stand in two folds ({name_some(torn)}); put all tiles of a case "
            "into one, or delete the column fold"
        )


def _read_mpp(table: Table) -> NDArray[np.float64]:
    try:
        mpp = np.array([float(text.replace(",", ".")) for text in table.column("mpp")])
    except ValueError:
        mpp = np.zeros(1)
    if not ((mpp >= 0.05) & (mpp <= 20)).all():
        raise CohortError(
            f"{table.path.name}: a tile has no mpp from 0.05 to 20; give microns per pixel of each, e.g. 0.5"
        )
    return mpp
