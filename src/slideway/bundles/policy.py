"""What may leave, to whom and why: the policy file of an installation. What it does not name stays."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import platformdirs

from slideway.core.errors import PolicyError

VERSION = (1, 0)
_MAX_POLICY_BYTES = 1_000_000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
_KEYS = ("may_leave", "thumbnail", "reason", "key", "must_encrypt", "sites", "max_bytes")
_LEAST_REASON = 10  # letters: a sentence that an auditor can follow, not "yes"

EXAMPLE = """\
# What may leave this laboratory, to whom and why. Slideway reads it before every release.
# Whoever is not named here gets nothing; a file that cannot be understood lets nothing leave.
# `slideway bundle policy` checks it.
version = "1.0"

# One table for each receiver; its name is what `slideway bundle release --to NAME` says.
[receiver.county-hospital]
# Each level includes those before it:
#   nothing   not even that the slide exists
#   opinions  what the heads say, quality, sizes, the slide's hash, the case's pseudonym; questions that are asked here
#   features  also the tiles' vectors; treat them as pictures of the patient (docs/privacy.md)
#   regions   also named regions as pixels, when the receiver asks for them
#   slide     also the whole slide, when a person asks for it
may_leave = "features"
# Why, in a sentence: who decided, on what basis. It is shown with every release.
reason = "Second opinion under the contract of 2026; the data protection officer agreed."
# A picture of the tissue, at most 512 pixels wide. Default: false.
thumbnail = false
# Fingerprint of the receiver's key. They run `slideway bundle key` and read it out to you by telephone;
# their key file itself is kept by `slideway bundle receivers add county-hospital FILE`.
key = "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
# Lock what leaves to that key, so that nobody on the way can read it. Default: true.
must_encrypt = true

[receiver.cancer-registry]
may_leave = "opinions"
reason = "Counts of referred slides; agreed with the registry, reviewed every year."
key = "11111111 11111111 11111111 11111111 11111111 11111111 11111111 11111111"
# Only slides from these sites (`slideway coverage` lists them); without it, from all.
sites = ["lung", "prostate"]
# A slide whose bundle would be larger does not leave. Without it, any size.
max_bytes = 20_000
"""


class Level(IntEnum):
    """How much may leave; each includes those before it."""

    NOTHING = 0
    OPINIONS = 1
    FEATURES = 2
    REGIONS = 3
    SLIDE = 4

    @property
    def word(self) -> str:
        """As the policy file writes it."""
        return self.name.lower()


@dataclass(frozen=True)
class ReceiverRule:
    """What one receiver may have.

    Attributes:
        name: As the policy file calls them.
        level: How much.
        reason: Why, in a sentence.
        thumbnail: Also the picture of the tissue.
        key: Fingerprint (64 hex digits) of the key that bundles for them are locked to; empty when none is given.
        must_encrypt: Nothing leaves for them unlocked.
        sites: Only slides from these sites of the catalogue; empty for all.
        max_bytes: Largest bundle; None for any.
    """

    name: str
    level: Level
    reason: str
    thumbnail: bool = False
    key: str = ""
    must_encrypt: bool = True
    sites: tuple[str, ...] = ()
    max_bytes: int | None = None


@dataclass(frozen=True)
class Policy:
    """What may leave this installation.

    Attributes:
        receivers: Rule of each receiver, by name.
        source: Where it was read, for messages.
    """

    receivers: Mapping[str, ReceiverRule]
    source: str = "the policy"

    def require(self, receiver: str, level: Level) -> ReceiverRule:
        """The receiver's rule, when it lets that level leave.

        Raises:
            PolicyError: It does not, or no rule is for this receiver.
        """
        rule = self.receivers.get(receiver)
        if rule is None:
            known = ", ".join(self.receivers) or "nobody"
            raise PolicyError(
                f"{self.source}: names no receiver {receiver!r}, so nothing may leave for them (named: {known}). If "
                f"they are to have something, write a table [receiver.{receiver}]; `slideway bundle policy --example` "
                "shows one"
            )
        if rule.level < level:
            raise PolicyError(
                f'{self.source}: [receiver.{receiver}] may_leave = "{rule.level.word}", which does not let '
                f"{level.word} leave; if they are to have it, the person who answers for the policy changes that line"
            )
        return rule

    def require_question(self, receiver: str, site: str) -> ReceiverRule:
        """The receiver's rule, when it lets a question about a slide leave that a person here wrote in their own words.

        A question says no more than opinions do as long as nobody writes a name into it; so it needs that level, and
        the same rule of sites as the slide itself.

        Args:
            receiver: Name of the receiver.
            site: Of the slide, as an id of the catalogue; empty when not given.

        Raises:
            PolicyError: It does not let it leave.
        """
        rule = self.require(receiver, Level.OPINIONS)
        if rule.sites and site not in rule.sites:
            told = f"from {site}" if site else "of no stated site"
            raise PolicyError(
                f"{self.source}: [receiver.{receiver}] sites = {', '.join(rule.sites)}, and this slide is {told}; the "
                "question stays"
            )
        return rule


def fingerprint_of(public_key: bytes) -> str:
    """Sha256 of a public key's 32 bytes, in hex."""
    return hashlib.sha256(public_key).hexdigest()


def policy_path() -> Path:
    """Where the policy lies: `SLIDEWAY_POLICY`, else `policy.toml` in the user's settings folder."""
    if named := os.environ.get("SLIDEWAY_POLICY"):
        return Path(named)
    return Path(platformdirs.user_config_dir("slideway", appauthor=False)) / "policy.toml"


def load_policy(path: Path | None = None) -> Policy:
    """Read the policy file.

    Args:
        path: The file; None means `policy_path()`.

    Raises:
        PolicyError: There is none, or it is not understood to the last word; then nothing may leave.
    """
    path = path or policy_path()
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_POLICY_BYTES + 1)
    except FileNotFoundError as error:
        raise PolicyError(
            f"{path}: there is no policy file, so nothing may leave. Write one: `slideway bundle policy --example` "
            "prints an example to start from; save it there, or name yours with --policy or SLIDEWAY_POLICY"
        ) from error
    except OSError as error:
        raise PolicyError(f"{path}: the policy cannot be read ({error.strerror}), so nothing may leave") from error
    if len(content) > _MAX_POLICY_BYTES:
        raise PolicyError(f"{path.name}: larger than any policy; is it the right file? Nothing may leave")
    try:
        text = content.decode("utf-8-sig")  # editors on Windows put a mark in front
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path.name}: not UTF-8; save it as UTF-8. Nothing may leave") from error
    return parse_policy(text, path.name)


def parse_policy(text: str, source: str = "the policy") -> Policy:
    """Read a policy from its text.

    Raises:
        PolicyError: It is not understood to the last word; the message names line and key.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{source}: not TOML: {error}; nothing may leave until it is mended") from error
    reader = _Reader(text, source)
    reader.require_version(content.get("version"))
    for key in content.keys() - {"version", "receiver"}:
        raise reader.refuse("", key, 'is not known; known are version = "1.0" and tables [receiver.NAME]')
    tables = content.get("receiver", {})
    if not isinstance(tables, dict):
        raise reader.refuse("", "receiver", "is no table; write [receiver.NAME]")
    return Policy({name: reader.read_rule(name, table) for name, table in tables.items()}, source)


class _Reader:
    """Turns tables into rules; every refusal names line and key."""

    def __init__(self, text: str, source: str) -> None:
        self._lines, self._source = text.splitlines(), source

    def require_version(self, version: Any) -> None:
        parts = _VERSION.fullmatch(version) if isinstance(version, str) else None
        if parts is None:
            raise self.refuse("", "version", 'must be there as text; write version = "1.0" in the first line')
        if int(parts[1]) != VERSION[0]:
            raise self.refuse("", "version", f"is {version}, this Slideway knows {VERSION[0]}.x; update Slideway")

    def read_rule(self, name: str, table: Any) -> ReceiverRule:
        if not _NAME.fullmatch(name):
            raise self.refuse(name, "", "is no name for a receiver; use small letters, digits and hyphens")
        if not isinstance(table, dict):
            raise self.refuse("", name, f"is no table; write [receiver.{name}]")
        for key in table:
            if key not in _KEYS:
                raise self.refuse(name, key, f"is not known; known are {', '.join(_KEYS)}")
        rule = ReceiverRule(
            name=name,
            level=self._read_level(name, table),
            reason=self._read_reason(name, table),
            thumbnail=self._read_bool(name, table, "thumbnail", default=False),
            key=self._read_fingerprint(name, table),
            must_encrypt=self._read_bool(name, table, "must_encrypt", default=True),
            sites=self._read_sites(name, table),
            max_bytes=self._read_max_bytes(name, table),
        )
        if rule.level is Level.NOTHING and rule.thumbnail:
            raise self.refuse(name, "thumbnail", 'contradicts may_leave = "nothing"; change one of them')
        if rule.level is not Level.NOTHING and rule.must_encrypt and not rule.key:
            raise self.refuse(
                name, "", "needs key, the fingerprint of the receiver's key (`slideway bundle key` there), since what "
                "leaves is encrypted unless must_encrypt = false"
            )  # fmt: skip
        return rule

    def _read_level(self, name: str, table: dict[str, Any]) -> Level:
        words = {level.word: level for level in Level}
        word = table.get("may_leave")
        if not isinstance(word, str) or word not in words:
            raise self.refuse(name, "may_leave", f"must be one of {', '.join(words)}")
        return words[word]

    def _read_reason(self, name: str, table: dict[str, Any]) -> str:
        reason = table.get("reason")
        if not isinstance(reason, str) or len(reason.strip()) < _LEAST_REASON:
            raise self.refuse(name, "reason", "must say in a sentence why this may leave, and who decided")
        return reason.strip()

    def _read_bool(self, name: str, table: dict[str, Any], key: str, *, default: bool) -> bool:
        value = table.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(name, key, "must be true or false, without quotes")
        return value

    def _read_fingerprint(self, name: str, table: dict[str, Any]) -> str:
        if "key" not in table:
            return ""
        key = table["key"]
        digits = "".join(key.split()).lower() if isinstance(key, str) else ""
        if not _FINGERPRINT.fullmatch(digits):
            raise self.refuse(name, "key", "must be a fingerprint: 64 hex digits, as `slideway bundle key` shows it")
        return digits

    def _read_sites(self, name: str, table: dict[str, Any]) -> tuple[str, ...]:
        sites = table.get("sites")
        if sites is None:
            return ()
        if not isinstance(sites, list) or not sites or not all(isinstance(site, str) and site for site in sites):
            raise self.refuse(name, "sites", 'must be a list of sites such as ["lung"]; leave it out for all')
        return tuple(sites)

    def _read_max_bytes(self, name: str, table: dict[str, Any]) -> int | None:
        most = table.get("max_bytes")
        if most is not None and (type(most) is not int or most < 1):
            raise self.refuse(name, "max_bytes", "must be a whole number above 0; leave it out for any size")
        return most

    def refuse(self, receiver: str, key: str, what: str) -> PolicyError:
        """The error about a key of a receiver's table, or of the file when no receiver is named."""
        line = self._find_line(receiver, key)
        where = f"{self._source}, line {line}" if line else self._source
        told = " ".join(part for part in (f"[receiver.{receiver}]" if receiver else "", key) if part)
        return PolicyError(f"{where}: {told} {what}. Nothing may leave until it is mended")

    def _find_line(self, receiver: str, key: str) -> int:
        """Line of the key, else of its table, from 1; 0 when neither is written in the usual way."""
        table_line, here = 0, not receiver
        for number, line in enumerate(self._lines, start=1):
            if header := re.match(r"""\s*\[\s*receiver\s*\.\s*["']?([^"'\]]*?)["']?\s*\]""", line):
                here = header[1] == receiver
                table_line = number if here else table_line
            elif here and key and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", line):
                return number
        return table_line
