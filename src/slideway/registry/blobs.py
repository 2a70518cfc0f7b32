"""Weights kept once, under their sha256, however many models share them.

A blob and the weights in a model's folder are one file under two names (hard links), so a blob whose link count has
fallen to one belongs to no model. Where a file system knows no hard links, a model keeps its own copy and no blob is
made: a second copy would save nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

BLOBS = "blobs"
# Says that the folder is ours: other programs keep blobs in folders of that name, too, and theirs are never touched.
_MARK = ".slideway"
_NAME = re.compile(r"[0-9a-f]{64}")


def hash_file(path: Path) -> str:
    """Sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_blob(root: Path, sha256: str, target: Path) -> bool:
    """Link the blob of that hash to `target`, if there is an undamaged one; says whether it did."""
    blob = root / BLOBS / sha256
    try:
        if hash_file(blob) != sha256:
            return False
        os.link(blob, target)
    except OSError:  # no such blob, or no hard links here
        return False
    return True


def share_blob(root: Path, sha256: str, weights: Path) -> None:
    """Make a verified file of weights and the blob of its hash one file; does nothing where links do not work."""
    blob = root / BLOBS / sha256
    beside = weights.with_name(f".{weights.name}.link")
    try:
        _claim(blob.parent)
        if blob.exists() and blob.samefile(weights):
            return
        if take_blob(root, sha256, beside):
            beside.replace(weights)
        else:  # none yet, or a damaged one
            os.link(weights, beside)
            beside.replace(blob)
    except OSError:
        beside.unlink(missing_ok=True)


def drop_unused_blobs(root: Path) -> None:
    """Remove blobs that belong to no model any more."""
    folder = root / BLOBS
    if not (folder / _MARK).is_file():
        return
    for blob in list(folder.iterdir()):
        try:
            if _NAME.fullmatch(blob.name) and blob.stat().st_nlink == 1:
                blob.unlink()
        except OSError:  # another process removed it, or may not be disturbed: the next time will do
            continue
    if [left.name for left in folder.iterdir()] == [_MARK]:
        with suppress(OSError):  # another process may have put a blob there meanwhile
            (folder / _MARK).unlink()
            folder.rmdir()


def _claim(folder: Path) -> None:
    """Make the folder of blobs and mark it as ours; a folder that was there before us stays unmarked and unused.

    Raises:
        FileExistsError: Somebody else's folder has that name; no blob is kept then.
    """
    if not folder.is_dir():
        folder.mkdir()
        (folder / _MARK).touch()
    if not (folder / _MARK).is_file():
        raise FileExistsError(folder)
