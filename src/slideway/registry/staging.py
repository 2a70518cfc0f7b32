"""A model's folder made all at once: filled in a hidden folder beside its place, renamed into it when all is right."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from slideway.core.errors import DiskFullError, OutputError
from slideway.registry.blobs import drop_unused_blobs

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)-[0-9a-f]{8}\.(?P<kind>part|old|gone)")


class Staging:
    """Makes `root/name` appear all at once, or not at all; on any error what stood there before stays.

    Attributes:
        path: Where to write until `commit`.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._name = root, name
        self.path = _hidden(root, name, "part")
        self._is_committed = False

    def __enter__(self) -> Self:
        with write_fence(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._root)
            self.path.mkdir()
        return self

    def commit(self) -> Path:
        """Put the folder in its place; an older one of that name is replaced. Returns the place."""
        final, old = self._root / self._name, _hidden(self._root, self._name, "old")
        had_one = final.exists()
        if had_one:
            final.rename(old)
        try:
            self.path.rename(final)
        except OSError:
            if had_one:
                old.rename(final)
            raise
        self._is_committed = True
        _erase(old, ignore_errors=True)
        return final

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_committed:
            shutil.rmtree(self.path, ignore_errors=True)
        drop_unused_blobs(self._root)
        if isinstance(error, OSError):
            raise explain_write_error(error, self._root) from error


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A hidden folder on the models' own disk, gone afterwards; what a killed process left is removed later."""
    path = _hidden(root, "scratch", "part")
    with write_fence(root):
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_folder(root: Path, name: str) -> None:
    """Remove `root/name`: gone at once for everyone who lists models, its bytes a moment later."""
    gone = _hidden(root, name, "gone")
    with write_fence(root):
        (root / name).rename(gone)
        _erase(gone)
    drop_unused_blobs(root)


def remove_leftovers(root: Path) -> None:
    """Remove what killed processes left behind; what belongs to a process that still runs is not touched."""
    for left in list(root.iterdir()):
        if (parts := _LEFT.fullmatch(left.name)) is None or psutil.pid_exists(int(parts["process"])):
            continue
        if parts["kind"] == "old" and not (root / parts["name"]).exists():
            left.rename(root / parts["name"])  # killed between the two renames of `commit`: the older model stands
        else:
            _erase(left, ignore_errors=True)
    drop_unused_blobs(root)


def _erase(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder; of a link to one, the link alone: what it leads to is the user's."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    elif folder.exists():
        shutil.rmtree(folder, ignore_errors=ignore_errors)


@contextmanager
def write_fence(place: Path) -> Iterator[None]:
    """Turn a failed write into the error that says what to do."""
    try:
        yield
    except OSError as error:
        raise explain_write_error(error, place) from error


def explain_write_error(error: OSError, place: Path) -> OutputError:
    """The error that says what to do about a failed write at a place."""
    if error.errno in FULL:
        return DiskFullError(
            f"{place}: the disk is full; what was half-written has been removed: free some space, or choose another "
            "place (SLIDEWAY_MODELS moves the models)"
        )
    return OutputError(f"{place}: cannot be written ({error.strerror or error}); mend its rights or choose another")


def require_space(root: Path, n_bytes: int) -> None:
    """Refuse at once what would fill the disk in the middle.

    Raises:
        DiskFullError: Less than `n_bytes` are free.
    """
    free = shutil.disk_usage(root).free
    if free < n_bytes:
        raise DiskFullError(
            f"{root}: the model needs {n_bytes / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; free some space, or "
            "move the models with SLIDEWAY_MODELS"
        )


def _hidden(root: Path, name: str, kind: str) -> Path:
    return root / f".{name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}"
