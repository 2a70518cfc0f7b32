"""Files that are whole or absent, also after a power cut: written beside their place, synced, then named."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file durably, in the place of the one that is there; on an error that one stays.

    Args:
        path: The file; its folder exists.
        content: All of it.
        mode: Rights of the file, less what the process's mask takes away; 0o600 for its user only.

    Raises:
        OSError: It cannot be written; nothing half-written stays.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


_BINARY = getattr(os, "O_BINARY", 0)  # Windows would turn line ends otherwise


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until a folder's names are on disk; Windows writes them by itself and opens no folder."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
