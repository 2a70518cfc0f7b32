"""Named places at which a test kills the process, to show that nothing is lost at any of them."""

from __future__ import annotations

import os
import signal

VARIABLE = "SLIDEWAY_CRASH_AT"  # name, or name:n for the n-th time that the place is passed

# Each name stands at exactly one place of the code; a test counts.
CRASH_POINTS = (
    "sync.before-request",
    "sync.after-answer",
    "sync.after-acknowledged",
    "sync.after-receipts",
    "sync.after-receipts-kept",
    "sync.before-message",
    "sync.after-message",
    "tus.after-begin",
    "tus.after-write",
    "tus.after-advance",
    "tus.after-keep",
    "tus.after-take",
    "mailbox.before-commit",
    "mailbox.after-commit",
    "cloud.after-verified",
    "cloud.before-receipt",
    "cloud.after-lease",
    "cloud.before-opinion",
    "cloud.after-opinion",
    "edge.after-accept",
    "edge.after-alone",
    "edge.after-evict",
    "edge.after-hash",
    "edge.after-lease",
    "edge.after-outcome",
    "edge.after-read",
    "edge.before-outcome",
    "edge.before-sent",
    "edge.child-after-read",
    "edge.child-after-regions",
    "edge.child-after-release",
    "edge.in-opinion",
)

_passed: dict[str, int] = {}


def crash_here(name: str) -> None:
    """Die on the spot, as by kill -9, when `SLIDEWAY_CRASH_AT` names this place; otherwise do nothing."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    place, _, count = wanted.partition(":")
    if place != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(count or 1):
        _die()


def _die() -> None:
    kill = getattr(signal, "SIGKILL", None)
    if kill is None:  # Windows: ends at once too, without any clean-up
        os._exit(137)
    os.kill(os.getpid(), kill)
