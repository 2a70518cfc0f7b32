"""For how long a node has served: a time that only its own work moves on, for what a wrong clock must not decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from slideway.core.files import write_whole

_KEEP_SECONDS = 60.0


class ServedTime:
    """Seconds of service, over all starts; a computer's clock that jumps, forward or back, does not move them.

    Hours in which the node does not run are not counted: what waits for a time then waits longer, never shorter.
    """

    def __init__(self, file: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._file, self._monotonic = file, monotonic
        self._before = self._kept = _read(file)
        self._began = monotonic()

    def seconds(self) -> int:
        """Whole seconds until now."""
        return self._before + max(0, int(self._monotonic() - self._began))

    def since(self, at_s: int | None) -> int | None:
        """Seconds of service since a moment of it; None when nobody knows.

        Args:
            at_s: What `seconds` was then; None when it was not noted. One that lies ahead is of a count that was lost
                with its file, or of a newer one than a backup that was put back: it says nothing.
        """
        now = self.seconds()
        return None if at_s is None or at_s > now else now - at_s

    def keep(self, *, at_once: bool = False) -> None:
        """Write them down, about once a minute; what is lost by a crash is counted too little.

        Raises:
            OSError: It cannot be written.
        """
        now = self.seconds()
        if now - self._kept >= (1 if at_once else _KEEP_SECONDS):
            write_whole(self._file, b"%d\n" % now, mode=0o600)
            self._kept = now


def _read(file: Path) -> int:
    """What was written; 0 when it is not there or damaged: then all of it is counted anew, which only keeps longer."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdigit() and len(text) < 16 else 0
