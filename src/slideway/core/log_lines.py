"""One JSON object a line, for logs of node and cloud: of fields that were thought about, and never an error's message.

A message may quote what somebody sent, or what a slide says of a patient; an error is told by its type and its places
in our code.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


class JsonLines(logging.Formatter):
    """Writes a record as JSON: `at` (UTC), `level`, `event`, then what stands in the record's `slideway`.

    Args:
        logger: Whose records name their event; what another logger says is the event `server`.
        more: Gives further fields of every line, e.g. the id of the request.
    """

    def __init__(self, logger: str, *, more: Callable[[], Mapping[str, Any]] | None = None) -> None:
        super().__init__()
        self._logger, self._more = logger, more

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.msg if record.name == self._logger else "server",
        }
        line |= self._more() if self._more is not None else {}
        line |= {name: value for name, value in getattr(record, "slideway", {}).items() if value != ""}
        error = getattr(record, "slideway_error", None) or (record.exc_info[1] if record.exc_info else None)
        if error is not None:
            line |= {"error": type(error).__name__, "where": find_places(error)}
        return json.dumps(line, default=str)


def find_places(error: BaseException) -> list[str]:
    """Where an error came from: files and lines, innermost last, without a word of what was in the variables."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{frame.filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames]
