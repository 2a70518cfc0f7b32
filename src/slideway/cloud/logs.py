"""Logs as one JSON object a line, of fields on a list: what is not on it, and so no patient data, is not written.

A request is named by its route, never by its path or query; an error by its type, code and place, never by its message,
which may quote what somebody sent.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
import traceback
from typing import IO, Any

LOGGER = "slideway.cloud"
FIELDS = (
    "request_id", "method", "route", "status", "code", "ms", "bytes_in", "bytes_out", "tenant", "node", "person",
    "slide", "bundle", "job", "tier", "attempt", "worker", "port", "signal", "version",
)  # fmt: skip
"""Ids, codes, counts: everything that a log line may hold beside time, level and event."""

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
_logger = logging.getLogger(LOGGER)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **values: Any) -> None:
    """Write a line.

    Args:
        event: What happened, as a code.
        level: How bad it is.
        error: Told by its type and places in our code, never by its message.
        values: Of `FIELDS` only.

    Raises:
        ValueError: A field is not on the list.
    """
    if unknown := values.keys() - set(FIELDS):
        raise ValueError(f"log {event}: {', '.join(sorted(unknown))} not among the fields that are written")
    _logger.log(level, event, extra={"slideway": values, "slideway_error": error})


def set_up_logs(stream: IO[str] | None = None, *, level: int = logging.INFO) -> None:
    """Let everything that this process logs be JSON lines; uvicorn's own lines too."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(_JsonLines())
    for name in (LOGGER, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(level if name == LOGGER else max(level, logging.WARNING))
        logger.propagate = name == "uvicorn.error"
    logging.getLogger("uvicorn.access").disabled = True


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.msg if record.name == LOGGER else "server",
        }
        if known := request_id.get():
            line["request_id"] = known
        line |= {name: value for name, value in getattr(record, "slideway", {}).items() if value != ""}
        error = getattr(record, "slideway_error", None) or (record.exc_info[1] if record.exc_info else None)
        if error is not None:
            line |= {"error": type(error).__name__, "where": _find_places(error)}
        return json.dumps(line, default=str)


def _find_places(error: BaseException) -> list[str]:
    """Where it came from: files and lines, innermost last, without a word of what was in the variables."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{frame.filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames]
