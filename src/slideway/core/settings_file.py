"""A settings file in TOML as frozen records: whatever is not understood is refused with its line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from slideway.core.errors import WrongUseError


def read_sections(
    text: str, sections: Mapping[str, type[Any]], *, source: str, takes_environment: bool = False
) -> dict[str, Any]:
    """Read the tables of a settings file; those that are not in it are not in the answer.

    Args:
        text: TOML.
        sections: Dataclass of each table that may occur, by its name.
        source: Name of the file, for messages.
        takes_environment: `env:NAME` stands for what the environment says: where passwords come from.

    Raises:
        WrongUseError: Not TOML, or a word or value that is not understood; the message names the line.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUseError(f"{source}: not TOML: {error}") from error
    reader = _Reader(text, source, takes_environment=takes_environment)
    made: dict[str, Any] = {}
    for section, table in content.items():
        if section not in sections or not isinstance(table, dict):
            raise reader.refuse(section, "", f"is not known; known are {', '.join(f'[{name}]' for name in sections)}")
        made[section] = reader.read_section(section, table, sections[section])
    return made


class _Reader:
    """Turns tables into records; every refusal names its line."""

    def __init__(self, text: str, source: str, *, takes_environment: bool) -> None:
        self._lines, self._source, self._takes_environment = text.splitlines(), source, takes_environment

    def read_section(self, section: str, table: dict[str, Any], kind: type[Any]) -> Any:
        assert is_dataclass(kind)
        types = get_type_hints(kind)
        for key in table:
            if key not in types:
                raise self.refuse(section, key, f"is not known; known are {', '.join(types)}")
        return kind(**{key: self._read_value(section, key, value, types[key]) for key, value in table.items()})

    def _read_value(self, section: str, key: str, value: Any, kind: Any) -> Any:
        if kind is str and isinstance(value, str):
            return self._read_text(section, key, value)
        if kind is float and type(value) in (int, float):
            return float(value)
        if kind in (int, bool) and type(value) is kind:
            return value
        if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        wanted = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}
        raise self.refuse(section, key, f"must be {wanted.get(kind, 'a list of texts')}")

    def _read_text(self, section: str, key: str, value: str) -> str:
        if not (self._takes_environment and value.startswith("env:")):
            return value
        name = value.removeprefix("env:")
        found = os.environ.get(name)
        if found is None:
            raise self.refuse(section, key, f"names the environment variable {name}, which is not set")
        return found

    def refuse(self, section: str, key: str, what: str) -> WrongUseError:
        line = self._find_line(section, key)
        where = f"{self._source}, line {line}" if line else self._source
        return WrongUseError(f"{where}: [{section}] {f'{key} ' if key else ''}{what}")

    def _find_line(self, section: str, key: str) -> int:
        line, here = 0, False
        for number, text in enumerate(self._lines, start=1):
            if header := re.match(r"\s*\[\s*([^\]]*?)\s*\]", text):
                here = header[1] == section
                line = number if here and not key else line
            elif re.match(rf"\s*{re.escape(key or section)}\s*=", text) and (here or not key):
                return number
        return line
