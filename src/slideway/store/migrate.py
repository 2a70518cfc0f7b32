"""Bring a store's tables up to date in one transaction, after a backup; never back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from slideway.store.schema import SCHEMA

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Steps:
    """The migrations of this version of Slideway.

    Attributes:
        schema: (major, minor) that they lead to.
        folders: Where their files are.
    """

    schema: tuple[int, int]
    folders: tuple[Path, ...]


STEPS = Steps(SCHEMA, (MIGRATIONS / "versions",))


def run_steps(connection: Connection, steps: Steps) -> None:
    """Run the steps that the store has not seen, inside the caller's transaction.

    We call Alembic without its `env.py` and `alembic.ini`: there is one database at hand, and nothing to configure.
    """
    folder = ScriptDirectory(str(MIGRATIONS), version_locations=[str(place) for place in steps.folders])
    revisions: Callable[..., object] = lambda revision, _: folder._upgrade_revs("head", revision)  # noqa: E731
    with EnvironmentContext(Config(), folder, fn=revisions) as environment:
        # SQLite's tables change inside a transaction too, as long as we begin it ourselves.
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
