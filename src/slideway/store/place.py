"""Where a store is, and what only its kind of database can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine


@dataclass(frozen=True)
class Place:
    """An open database.

    Attributes:
        engine: Connections to it.
        name: For messages: a file's or database's name, never a path, address or password.
        reading_options: Of a connection that only reads, and sees one moment.
        begin: Called first in every transaction, with its tenant or `*`.
        check_role: Refuses a connection that could pass by the guards.
        back_up: Makes a backup before a migration from this schema; None when nobody said how.
        take_turns: Waits, inside a transaction, until no other process migrates.
        set_aside: Puts a damaged file away and gives its new name; None where that is not ours to do.
        release: Lets other processes write.
    """

    engine: Engine
    name: str
    reading_options: dict[str, Any]
    begin: Callable[[Connection, str], None]
    check_role: Callable[[Connection], None]
    back_up: Callable[[tuple[int, int]], None] | None
    take_turns: Callable[[Connection], None]
    set_aside: Callable[[int], str] | None
    release: Callable[[], None]


def nothing(*_: object) -> None:
    """Do what the other database has to do."""
