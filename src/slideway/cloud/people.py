"""People who may call the cloud: specialists and operators, known by a token of which only the hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from slideway.core.catalogue import load_catalogue
from slideway.core.errors import WrongUseError
from slideway.core.files import write_whole

ROLES = ("specialist", "operator")
ALL_ORGANS = "*"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = 1


@dataclass(frozen=True)
class Person:
    """Someone with a token.

    Attributes:
        name: Id, as it stands in the audit.
        role: `specialist` (answers consultations) or `operator` (runs the fleet).
        token_sha256: Hash of the token, in hex.
        organs: Ids of the catalogue's sites whose consultations they get; `*` for all.
        centre: Centre they answer for; empty for any.
    """

    name: str
    role: str
    token_sha256: str
    organs: tuple[str, ...] = ()
    centre: str = ""

    def covers(self, organ: str) -> bool:
        """Whether consultations on this organ are theirs."""
        return ALL_ORGANS in self.organs or organ in self.organs


class People:
    """The file of people, read again when it changed; threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._seen: tuple[int, int] | None = None
        self._people: tuple[Person, ...] = ()

    def find(self, token: str) -> Person | None:
        """Who has this token; takes as long for a wrong one as for a right one."""
        given = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        found = None
        for person in self.list_all():
            if hmac.compare_digest(person.token_sha256, given):
                found = person
        return found

    def list_all(self) -> tuple[Person, ...]:
        """Everybody, by name.

        Raises:
            WrongUseError: The file is damaged.
        """
        with self._lock:
            try:
                stat = self._path.stat()
            except FileNotFoundError:
                self._seen, self._people = None, ()
                return self._people
            seen = (stat.st_mtime_ns, stat.st_ino)
            if seen != self._seen:
                self._people, self._seen = _read(self._path), seen
            return self._people

    def add(self, name: str, role: str, *, organs: Sequence[str] = (), centre: str = "") -> str:
        """Add someone, or give them a new token in place of the old; returns the token, which is not kept.

        Raises:
            WrongUseError: An unknown role or organ, or a name that cannot be an id.
        """
        _require_fit(name, role, organs)
        token = f"swp_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(token.encode("ascii")).hexdigest()
        others = [person for person in self.list_all() if person.name != name]
        self._write([*others, Person(name, role, digest, tuple(organs), centre)])
        return token

    def remove(self, name: str) -> bool:
        """Let someone do nothing any more; False when there was nobody of that name."""
        everybody = self.list_all()
        others = [person for person in everybody if person.name != name]
        if len(others) == len(everybody):
            return False
        self._write(others)
        return True

    def _write(self, people: list[Person]) -> None:
        content = {"version": _VERSION, "people": [asdict(person) for person in sorted(people, key=lambda p: p.name)]}
        write_whole(self._path, json.dumps(content, indent=2).encode("utf-8"), mode=0o600)


def _require_fit(name: str, role: str, organs: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise WrongUseError(f"{name!r} is no name for a person here: small letters, digits, dots, - and _, at most 63")
    if role not in ROLES:
        raise WrongUseError(f"role {role!r}: one of {', '.join(ROLES)}")
    known = {site.id for site in load_catalogue().sites}
    if unknown := sorted(set(organs) - known - {ALL_ORGANS}):
        raise WrongUseError(f"no such organ: {', '.join(unknown)}; `slideway coverage` lists them, * stands for all")
    if role == "specialist" and not organs:
        raise WrongUseError("a specialist has organs: --organs lung,kidney, or --organs '*' for all")


def _read(path: Path) -> tuple[Person, ...]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']}")
        return tuple(Person(**{**row, "organs": tuple(row["organs"])}) for row in content["people"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUseError(f"{path.name}: cannot be read ({error}); bring it back from a backup") from error
