"""How fast to send: parts sized to the line, a limit on its width, pauses after failures, and a window at night."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from datetime import time as time_of_day

from slideway.core.errors import WrongUseError

Monotonic = Callable[[], float]
Sleep = Callable[[float], None]


@dataclass(frozen=True)
class NightWindow:
    """Hours in which large tiers may leave, by the node's local clock; a comfort, never needed for correctness.

    Attributes:
        start: When it begins, e.g. 20:00.
        end: When it ends; before `start` when it crosses midnight.
        from_tier: This tier and those after it wait for the window; smaller ones leave at any hour.
    """

    start: time_of_day
    end: time_of_day
    from_tier: int = 2

    def is_open(self, now: datetime) -> bool:
        """Whether large tiers may leave now."""
        moment = now.time()
        if self.start <= self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end

    def tiers(self, now: datetime) -> tuple[int, ...]:
        """Tiers that may leave now; empty for all."""
        return () if self.is_open(now) else tuple(range(self.from_tier))


def read_window(text: str, *, from_tier: int = 2) -> NightWindow:
    """A window written as `20:00-06:00`.

    Raises:
        WrongUseError: It is not.
    """
    first, _, last = text.partition("-")
    try:
        return NightWindow(time_of_day.fromisoformat(first.strip()), time_of_day.fromisoformat(last.strip()), from_tier)
    except ValueError as error:
        raise WrongUseError(f"night window {text!r}: write it as 20:00-06:00") from error


class PartSize:
    """Size of the next part, so that one takes about ten seconds on this line as it is now."""

    def __init__(self, *, target_seconds: float = 10.0, least: int = 4 * 2**10, most: int = 4 * 2**20) -> None:
        self._target_seconds, self._least, self._most = target_seconds, least, most
        self.n_bytes = min(64 * 2**10, most)

    def note_sent(self, n_bytes: int, seconds: float) -> None:
        """A part got through; grow or shrink towards the target, at most fourfold at once."""
        if n_bytes < self.n_bytes // 2 and seconds < self._target_seconds:
            return  # the end of a tier says little about the line
        fitting = n_bytes * self._target_seconds / max(seconds, 1e-3)
        self._set(min(max(fitting, self.n_bytes / 4), self.n_bytes * 4))

    def note_failed(self) -> None:
        """A part did not get through: what is smaller is lost less."""
        self._set(self.n_bytes / 2)

    def _set(self, n_bytes: float) -> None:
        self.n_bytes = round(min(max(n_bytes, self._least), self._most))


class Backoff:
    """Pauses after failures: full jitter, so that a thousand nodes do not come back at once.

    Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """

    def __init__(
        self, *, first_seconds: float = 1.0, most_seconds: float = 300.0, rng: random.Random | None = None
    ) -> None:
        self._first_seconds, self._most_seconds = first_seconds, most_seconds
        self._rng = rng or random.Random()  # noqa: S311  # not a secret
        self.failures = 0

    def note_failed(self, *, asked_seconds: float | None = None) -> float:
        """Seconds to wait now.

        Args:
            asked_seconds: What the other side asked for; waited for at least, and believed up to the longest pause.
        """
        ceiling = min(self._most_seconds, self._first_seconds * 2 ** min(self.failures, 32))
        self.failures += 1
        pause = self._rng.uniform(0, ceiling)
        if asked_seconds is None:
            return pause
        return min(max(asked_seconds, 0.0) + self._rng.uniform(0, self._first_seconds), self._most_seconds)

    def twin(self) -> Backoff:
        """Another of the same kind, with the same dice."""
        return Backoff(first_seconds=self._first_seconds, most_seconds=self._most_seconds, rng=self._rng)

    def note_success(self) -> None:
        """The line works again."""
        self.failures = 0


class Limit:
    """A limit on bytes a second: a bucket that fills at the rate, and holds a quarter of a second."""

    def __init__(
        self, bytes_per_second: float | None, *, monotonic: Monotonic = time.monotonic, sleep: Sleep = time.sleep
    ) -> None:
        """Limit a line.

        Args:
            bytes_per_second: None for no limit.
            monotonic: Seconds that only go on.
            sleep: Waits.
        """
        if bytes_per_second is not None and bytes_per_second < 128:
            raise WrongUseError(
                "a limit below 128 bytes a second lets nothing through; leave it away, or stop the node"
            )
        self._rate, self._monotonic, self._sleep = bytes_per_second, monotonic, sleep
        self._holds = 0.0 if bytes_per_second is None else bytes_per_second / 4
        self._tokens, self._then = self._holds, monotonic()

    @property
    def step_bytes(self) -> int:
        """How much to send at once, so that the limit is smooth."""
        return 64 * 2**10 if self._rate is None else max(32, min(64 * 2**10, int(self._rate / 8)))

    def take(self, n_bytes: int) -> None:
        """Wait until so many bytes may go; what was sent unasked, as headers are, is waited for too."""
        if self._rate is None:
            return
        now = self._monotonic()
        self._tokens = min(self._holds, self._tokens + (now - self._then) * self._rate)
        self._then = now
        self._tokens -= n_bytes
        if self._tokens < 0:
            self._sleep(-self._tokens / self._rate)
