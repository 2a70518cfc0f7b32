"""Log lines of a node: what happened, to which hash, with which numbers; no file name, no path, no person."""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import IO

from slideway.core.log_lines import JsonLines

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
    told = {name: _keep(value) for name, value in values.items() if value is not None}
    _logger.log(level, event, extra={"slideway": told})


def set_up_logs(stream: IO[str] | None = None, *, level: int = logging.INFO, form: str = "text") -> None:
    """Let the node's lines go to a stream, and of uvicorn's only warnings.

    Args:
        stream: Where to; None for stderr.
        level: From how bad on.
        form: `text`, or `json` for one object a line, as the cloud writes them.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(LOGGER) if form == "json" else _TextLines())
    for name in (LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level if name == LOGGER else logging.WARNING)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)


class _TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        words = [f"{name}={_tell(value)}" for name, value in getattr(record, "slideway", {}).items()]
        return " ".join([super().formatMessage(record), *words])


def _keep(value: str | float | bool) -> str | int | float | bool:
    return value if not isinstance(value, str) or _WORD.fullmatch(value) else "-"


def _tell(value: str | float | bool) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
