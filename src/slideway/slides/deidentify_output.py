"""Where a slide without identifiers is written: all at once, never over its source, a full disk named as such."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from slideway.core.errors import DiskFullError, OutputError, WrongUseError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NAME_HEX = 16  # of the sha256 of the stored pixels: 64 bits tell a hospital's slides apart


def is_folder_wanted(out: Path) -> bool:
    """Say whether `out` means a folder to put the slide into: one that is there, or a name without suffix."""
    return out.is_dir() or out.suffix == ""


def check_target(target: Path, source: Path, *, replace: bool) -> None:
    """Refuse a target that is the slide itself, lies in it or holds it, or that is already there.

    Raises:
        WrongUseError: One of those; the message says what to do.
    """
    there, slide = target.resolve(), source.resolve()
    if (target.exists() and target.samefile(source)) or there == slide:
        raise WrongUseError("OUT is the slide itself, and a slide is never changed in place; give another name")
    if there in slide.parents or (slide.is_dir() and slide in there.parents):
        raise WrongUseError("OUT lies in the slide's own folder, or holds it; give a place beside it")
    if target.exists() and not replace:
        raise WrongUseError(f"{target.name}: it is already there and is kept; give another OUT, or add --replace")


@contextlib.contextmanager
def written_at_once(target: Path, *, as_folder: bool) -> Iterator[Path]:
    """Give a hidden place beside `target` to write into; it becomes `target` when the block ends well.

    On any error, Ctrl-C included, the hidden file or folder is removed and what was there before stays.

    Raises:
        DiskFullError: The disk filled up.
        OutputError: The place cannot be written.
    """
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        with write_fence(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            if as_folder:
                part.mkdir()
        yield part
        with write_fence(target.parent):
            _put_in_place(part, target)
    finally:
        _erase(part)


@contextlib.contextmanager
def write_fence(folder: Path) -> Iterator[None]:
    """Turn a failed write into the error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"{folder}: the disk is full; what was half-written has been removed: free some space and run again"
            ) from error
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another OUT or mend its rights"
        ) from error


def flush_to_disk(path: Path) -> None:
    """Make sure that a file, or every file of a folder, is on the disk before it gets its name."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def _put_in_place(part: Path, target: Path) -> None:
    flush_to_disk(part)
    old = target.parent / f".{secrets.token_hex(8)}.old"
    if target.is_dir():  # a folder cannot be renamed over another one
        target.rename(old)
    try:
        part.replace(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _erase(old)


def _erase(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
