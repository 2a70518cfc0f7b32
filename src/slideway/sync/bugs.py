"""Say of an error that nobody expected what it was and where, and nothing of what it was about."""

from __future__ import annotations

import logging

from slideway.core.log_lines import find_places

BUG = "bug"
"""Why something waits that an unexpected error kept from getting through."""
_LOGGERS = ("slideway.edge", "slideway.cloud")  # this room serves both; whoever runs has set one of them up


def describe_bug(error: BaseException) -> str:
    """Kind and place of an error, e.g. `KeyError at answers.py:88`; its text may hold contents and is left out."""
    places = find_places(error)
    return f"{type(error).__name__} at {places[-1]}" if places else type(error).__name__


def log_bug(during: str, error: BaseException) -> None:
    """Write an unexpected error into the log: what was being done, its kind and its place."""
    name = next((name for name in _LOGGERS if logging.getLogger(name).handlers), _LOGGERS[0])
    places = find_places(error)
    told = {"during": during, "error": type(error).__name__, "place": places[-1] if places else ""}
    logging.getLogger(name).error("bug", extra={"slideway": told})
