"""Log lines of a node: what happened, to which hash, with which numbers; no file name, no path, no person."""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import IO

LOGGER = "slideway.edge"
_WORD = re.compile(r"[A-Za-z0-9_.:+-]{0,80}")
_logger = logging.getLogger(LOGGER)


def log(event: str, *, level: int = logging.INFO, **values: str | int | float | bool | None) -> None:
    """Write a line.

    Args:
        event: What happened, as a code.
        level: How bad it is.
        values: Numbers, codes and hashes; a text with other signs is written as `-`, for it could be a name.
    """
    words = [f"{name}={_tell(value)}" for name, value in values.items() if value is not None]
    _logger.log(level, "%s", " ".join([event, *words]))


def set_up_logs(stream: IO[str] | None = None, *, level: int = logging.INFO) -> None:
    """Let the node's lines go to a stream, and of uvicorn's only warnings."""
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    for name in (LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level if name == LOGGER else logging.WARNING)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _tell(value: str | int | float | bool) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value) if not isinstance(value, str) or _WORD.fullmatch(value) else "-"
