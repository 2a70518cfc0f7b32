"""A card file: loaded, checked entry by entry with the wrong one named, and written all at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slideway.core.errors import SlidewayError
from slideway.core.files import write_whole
from slideway.registry.records import CARD_FILE, PERMISSIONS

_MAX_CARD_BYTES = 1_000_000
# TOML's whole numbers have no end, Python's floats do.
_LARGEST_NUMBER = 1e300
_LARGEST_COUNT = 2**63


def load_card_file(folder: Path, refused: type[SlidewayError]) -> dict[str, Any]:
    """The entries of a card file, unchecked.

    Raises:
        SlidewayError: Of the type `refused`: no card is there, or it is not TOML.
    """
    try:
        with (folder / CARD_FILE).open("rb") as file:
            content = file.read(_MAX_CARD_BYTES + 1)
        if len(content) > _MAX_CARD_BYTES:
            raise ValueError(f"over {_MAX_CARD_BYTES // 1_000_000} MB")
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise refused(
            f"{folder.name}: no readable {CARD_FILE} in this folder ({type(error).__name__}); "
            "a model is a folder with card.toml, weights and golden tiles"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise refused(f"{folder.name}: {CARD_FILE} is not valid TOML ({error}); mend or replace it") from error


def require_known_schema(folder: Path, content: Mapping[str, Any], major: int, refused: type[SlidewayError]) -> None:
    """Refuse a card without a schema, or of a newer major version.

    Raises:
        SlidewayError: Of the type `refused`.
    """
    schema = content.get("schema")
    parts = re.fullmatch(r"(\d+)\.(\d+)", schema) if isinstance(schema, str) else None
    if parts is None:
        raise refused(f'{folder.name}: {CARD_FILE} has no schema; the first line must be schema = "1.0"')
    if int(parts[1]) != major:
        raise refused(
            f"{folder.name}: {CARD_FILE} is of schema {schema}, this Slideway reads {major}.x; update Slideway"
        )


def write_card_file(path: Path, text: str) -> None:
    """Write a card's text, all or nothing."""
    write_whole(path, text.encode("utf-8"))


def without_empty(entries: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not said: entries that are None, an empty text or an empty tuple."""
    return {key: value for key, value in entries.items() if value is not None and value not in ("", ())}


class CardTable:
    """One section of a card; each getter gives a checked value or names the entry that is wrong."""

    def __init__(self, folder: Path, section: str, entries: object, error: type[SlidewayError]) -> None:
        self.folder, self.section, self.error = folder, section, error
        if not isinstance(entries, dict):
            raise error(f"{folder.name}: {CARD_FILE} has no section [{section}]")
        self.entries: dict[str, Any] = entries

    def refuse(self, key: str, wanted: str) -> SlidewayError:
        """The error that says what an entry must be."""
        where = f"[{self.section}] {key}" if self.section else key
        return self.error(f"{self.folder.name}: {CARD_FILE}: {where} must be {wanted}")

    def text(self, key: str, *, pattern: str = r"(?s).*\S.*") -> str:
        """A text that is not empty and has the form `pattern`."""
        value = self.entries.get(key)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.refuse(key, "a text" if "S" in pattern else f"a text of the form {pattern}")
        return value

    def optional_text(self, key: str) -> str:
        """A text, or an empty one where the card says nothing."""
        return self.text(key) if key in self.entries else ""

    def file_name(self, key: str) -> str:
        """A file name without a path."""
        # A name and no path: a card must not point at files outside its folder. A package holds names up to 100 bytes.
        return self.text(key, pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]{0,94}")

    def permissions(self, key: str) -> tuple[str, ...]:
        """Any of `PERMISSIONS`; none where the card says nothing."""
        value = self.entries.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v in PERMISSIONS for v in value):
            raise self.refuse(key, f"a list of any of {', '.join(PERMISSIONS)}")
        return tuple(value)

    def truth(self, key: str) -> bool:
        """True or false."""
        value = self.entries.get(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def measured(self, key: str) -> float:
        """A number between -1 and 1."""
        value = self.entries.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1.0 <= value <= 1.0:
            raise self.refuse(key, "a number between -1 and 1")
        return float(value)

    def count(self, key: str) -> int:
        """A whole number above 0."""
        value = self.entries.get(key)
        if type(value) is not int or not 0 < value < _LARGEST_COUNT:
            raise self.refuse(key, "a whole number above 0")
        return value

    def number(self, key: str) -> float:
        """A number above 0."""
        value = self.entries.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST_NUMBER:
            raise self.refuse(key, "a number above 0")
        return float(value)

    def three_numbers(self, key: str, *, least: float = 0.0) -> tuple[float, float, float]:
        """A number for each of red, green and blue."""
        value = self.entries.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise self.refuse(key, "three numbers, one for each of red, green and blue")
        if not all(least <= v < _LARGEST_NUMBER for v in value):
            raise self.refuse(key, f"three finite numbers, none below {least:g}")
        red, green, blue = (float(v) for v in value)
        return red, green, blue

    def sentences(self, key: str, wanted: str = "a list of sentences: every model has limits") -> tuple[str, ...]:
        """A list of texts, at least one."""
        value = self.entries.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.refuse(key, wanted)
        return tuple(value)
