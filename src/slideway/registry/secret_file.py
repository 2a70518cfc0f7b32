"""A secret of this node as a file that only its user may read; made once, and by one process of several."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from slideway.core.errors import WrongUseError
from slideway.registry.staging import write_fence


def read_secret(path: Path, what: str) -> bytes | None:
    """Content of a secret file; None when there is none yet.

    Args:
        path: The file.
        what: What it holds, for messages, e.g. "receiving key".

    Raises:
        WrongUseError: It cannot be read, or other users may read it.
    """
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WrongUseError(f"{path}: this {what} cannot be read ({error.strerror}); mend its rights") from error
    if os.name == "posix" and mode & 0o077:
        raise WrongUseError(f"{path}: other users may read this {what}; run: chmod 600 {path}")
    return content


def keep_secret(path: Path, content: bytes) -> None:
    """Keep a new secret (mode 0600, durable); where another process was first, its secret stays.

    Raises:
        OutputError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with write_fence(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _give_name(part, path)
        finally:
            part.unlink(missing_ok=True)


def _give_name(part: Path, path: Path) -> None:
    """Unlike `replace`, never in the place of a file that is there."""
    with contextlib.suppress(FileExistsError):
        if os.name == "nt":
            part.rename(path)
            return
        try:
            os.link(part, path)
        except PermissionError:  # a disk without hard links
            if not path.exists():
                part.rename(path)
