"""The contract suite runs over both databases; PostgreSQL is a real server, or the tests say why they skip."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from slideway.store.database import Store, open_store
from slideway.store.schema import TENANT_TABLES
from slideway.testing.postgres import PostgresServer, serve_or_skip

START_MS = 1_800_000_000_000


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def move(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server with an ordinary role `slideway` and its database `made`, an empty store."""
    with serve_or_skip() as server:
        open_store(server.add_database("made", owner="slideway")).close()
        yield server


@pytest.fixture(scope="session")
def empty_postgres(postgres: PostgresServer) -> Iterator[Callable[[], str]]:
    """Empties the one database between tests: faster than a new one, and only a superuser can."""
    admin = create_engine(postgres.url("made"))
    empty = "; ".join(f"DELETE FROM {table.name}" for table in reversed(TENANT_TABLES))

    def run() -> str:
        with admin.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(empty))
        return postgres.url("made", "slideway")

    yield run
    admin.dispose()


@pytest.fixture(scope="session")
def made_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.db"
    open_store(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store that is made already."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("made_sqlite"), tmp_path / "slideway.db")
        return f"sqlite:///{tmp_path / 'slideway.db'}"
    empty: Callable[[], str] = request.getfixturevalue("empty_postgres")
    return empty()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[Store]:
    """A store of tenants `north` and `south`."""
    with open_store(url, clock=clock) as opened:
        opened.add_tenant("north", name="North hospital")
        opened.add_tenant("south", name="South hospital")
        yield opened
