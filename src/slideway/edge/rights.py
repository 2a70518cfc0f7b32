"""What the policy lets the cloud have now, read again whenever its file changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slideway.bundles.policy import Level, load_policy
from slideway.core.errors import PolicyError


@dataclass(frozen=True)
class Right:
    """What may leave for the cloud.

    Attributes:
        level: How much.
        reason: Why it may, in the policy's words; or why nothing may.
    """

    level: Level
    reason: str


class Rights:
    """The policy's rule for the cloud; a policy that is missing or not understood lets nothing leave."""

    def __init__(self, policy: Path, receiver: str, endpoint: Path) -> None:
        self._policy, self._receiver, self._endpoint = policy, receiver, endpoint
        self._stamp: tuple[int, int] | None = None
        self._right = Right(Level.NOTHING, "not read yet")

    @property
    def is_enrolled(self) -> bool:
        """There is a cloud."""
        return self._endpoint.exists()

    def now(self) -> Right:
        """What may leave now."""
        try:
            status = self._policy.stat()
            stamp = (status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (-1, -1)
        if stamp != self._stamp:
            self._right, self._stamp = self._read(), stamp
        return self._right if self.is_enrolled else Right(Level.NOTHING, "this node is not enrolled with a cloud")

    @property
    def may_tell(self) -> bool:
        """The cloud may know that a slide exists."""
        return self.now().level >= Level.OPINIONS

    def _read(self) -> Right:
        try:
            rule = load_policy(self._policy).require(self._receiver, Level.NOTHING)
        except PolicyError as error:
            return Right(Level.NOTHING, str(error))
        return Right(rule.level, rule.reason)
