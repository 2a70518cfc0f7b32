"""Logs as one JSON object a line, of fields on a list: what is not on it, and so no patient data, is not written.

A request is named by its route, never by its path or query; an error by its type, code and place, never by its message,
which may quote what somebody sent.
"""

from __future__ import annotations

import contextvars
import logging
import sys
from typing import IO, Any

from slideway.core.log_lines import JsonLines

LOGGER = "slideway.cloud"
FIELDS = (
    "request_id", "method", "route", "status", "code", "ms", "bytes_in", "bytes_out", "tenant", "node", "person",
    "slide", "bundle", "job", "tier", "attempt", "worker", "port", "signal", "version", "seconds",
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
    handler.setFormatter(JsonLines(LOGGER, more=_name_request))
    for name in (LOGGER, "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(level if name == LOGGER else max(level, logging.WARNING))
        logger.propagate = name == "uvicorn.error"
    logging.getLogger("uvicorn.access").disabled = True


def _name_request() -> dict[str, str]:
    return {"request_id": known} if (known := request_id.get()) else {}
