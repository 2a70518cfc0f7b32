"""What the policy lets the cloud have now, read again whenever its file changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slideway.bundles.policy import Level, load_policy
from slideway.core.errors import PolicyError
from slideway.edge.settings import EdgeSettings


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
    """The policy's rule for the cloud; a policy that is missing or not understood lets nothing leave.

    A rule of sites that this node's own site does not fit lets nothing leave either: all of its slides stay.
    """

    def __init__(self, policy: Path, receiver: str, endpoint: Path, *, site: str) -> None:
        """Watch a policy file.

        Args:
            policy: The file.
            receiver: What the cloud is called there.
            endpoint: The file that says with which cloud this node is enrolled.
            site: Where all tissue of this node comes from, as an id of the catalogue; empty when not stated.
        """
        self._policy, self._receiver, self._endpoint, self._site = policy, receiver, endpoint, site
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

    def require_question(self, site: str) -> Right:
        """What may leave, when a question about a slide from this site may.

        Raises:
            PolicyError: It may not.
        """
        if not self.is_enrolled:
            raise PolicyError(
                "this node is not enrolled with a cloud, so nobody can be asked; see `slideway edge enrol`"
            )
        rule = load_policy(self._policy).require_question(self._receiver, site)
        return Right(rule.level, rule.reason)

    def _read(self) -> Right:
        try:
            rule = load_policy(self._policy).require(self._receiver, Level.NOTHING)
        except PolicyError as error:
            return Right(Level.NOTHING, str(error))
        if rule.sites and self._site not in rule.sites:
            told = f"this node's tissue is from {self._site}" if self._site else "this node states no site"
            return Right(Level.NOTHING, f"the policy lets only {', '.join(rule.sites)} leave, and {told}")
        return Right(rule.level, rule.reason)


def make_rights(settings: EdgeSettings) -> Rights:
    """What the policy that a node's settings name lets its cloud have."""
    own = settings.policy
    return Rights(settings.policy_file, own.receiver, settings.places.endpoint, site=settings.reading.site)
