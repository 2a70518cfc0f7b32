"""What a process does now and then beside its work; one failure, of whatever kind, does not end it for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable

from slideway.cloud.logs import log
from slideway.core.errors import SlidewayError

LONGEST_WAIT_SECONDS = 3600.0


class Chore:
    """Something that is done again and again, less often while it fails."""

    def __init__(self, name: str, do: Callable[[], object], *, every_seconds: float) -> None:
        self._name, self._do, self._every_seconds = name, do, every_seconds
        self._failures = 0

    def run(self) -> float:
        """Do it once; seconds until it is to be done again: twice as long with each failure in a row."""
        try:
            self._do()
        except SlidewayError as error:
            self._fail(code=error.code)
        except Exception as error:  # noqa: BLE001  # a thread or task that ends here would end its chore for ever
            self._fail(error=error)
        else:
            self._failures = 0
        return min(self._every_seconds * 2.0**self._failures, max(LONGEST_WAIT_SECONDS, self._every_seconds))

    def _fail(self, *, code: str = "", error: Exception | None = None) -> None:
        self._failures = min(self._failures + 1, 16)
        log(f"{self._name}-failed", level=logging.WARNING, error=error, code=code, attempt=self._failures)
