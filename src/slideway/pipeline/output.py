"""An output folder that is complete or absent: written beside its place and renamed into it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from slideway.core.errors import DiskFullError, OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def folder_name(path: Path) -> str:
    """Name of a slide's output folder: its file name without the last suffix, made safe for every file system."""
    stem = path.stem if path.is_file() else path.name
    return "".join(c if c.isalnum() or c in "-_. ()+" else "_" for c in stem).strip(" .") or "slide"


def distinct_folder_names(paths: list[Path]) -> dict[Path, str]:
    """A folder name for each slide; where two would share one, both get a mark made from their place."""
    names = {path: folder_name(path) for path in paths}
    taken = [name.casefold() for name in names.values()]  # Windows and macOS do not tell A from a
    return {
        path: name if taken.count(name.casefold()) == 1 else f"{name}-{_mark(path)}" for path, name in names.items()
    }


def _mark(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]


class OutputFolder:
    """Makes `root/name` appear all at once.

    Everything is written into `path`, a hidden folder beside it; `commit` renames it. On any error, Ctrl-C included,
    the hidden folder is removed and what was there before stays untouched.

    Attributes:
        path: Where to write until `commit`.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self.final = root / name
        self.path = root / f".{name}.{os.getpid()}.part"
        self._is_committed = False

    def __enter__(self) -> Self:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._remove_stale()
            self.path.mkdir()
        except OSError as error:
            raise explain_write_error(error, self._root) from error
        return self

    def commit(self) -> Path:
        """Put the folder in its place; an older one of that name is replaced. Returns the place."""
        old = self._root / f".{self.final.name}.{os.getpid()}.old"
        if self.final.exists():
            self.final.rename(old)
        self.path.rename(self.final)
        self._is_committed = True
        shutil.rmtree(old, ignore_errors=True)
        return self.final

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_committed:
            shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise explain_write_error(error, self._root) from error

    def _remove_stale(self) -> None:
        """Remove what a killed run left behind; a folder of a process that still runs is not touched."""
        for left in self._root.glob(f".{self.final.name}.*"):
            process_id, _, kind = left.name.removeprefix(f".{self.final.name}.").partition(".")
            if kind not in {"part", "old"} or not process_id.isdecimal():
                continue
            if int(process_id) != os.getpid() and psutil.pid_exists(int(process_id)):
                continue
            if kind == "old" and not self.final.exists():
                left.rename(self.final)  # killed between the two renames: the older answer still stands
            else:
                shutil.rmtree(left, ignore_errors=True)


def explain_write_error(error: OSError, folder: Path) -> OutputError:
    """Turn a failed write into the error that says what to do."""
    if error.errno in _FULL or "No space left" in str(error):
        return DiskFullError(
            f"{folder}: the disk is full; what was half-written has been removed: free some space and run again, "
            "slides that are done are kept"
        )
    words = error.strerror or str(error)
    return OutputError(f"{folder}: cannot be written ({words}); choose another folder with --out or mend its rights")
