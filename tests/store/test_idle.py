"""Connections that lay idle while the database was restarted: noticed before they are used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import event, text

from slideway.store import postgresql
from slideway.store.database import Store, open_store
from slideway.testing.postgres import serve_or_skip


@pytest.fixture
def store() -> Iterator[Store]:
    with serve_or_skip() as server, open_store(server.add_database("idle", owner="slideway")) as store:
        store.add_tenant("north")
        yield store


def test_connection_that_was_cut_while_it_lay_is_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_IDLE_SECONDS", 0.0)
    with store.engine.connect() as one, store.engine.connect() as two:
        mine = one.execute(text("SELECT pg_backend_pid()")).scalar()
        other = two.execute(text("SELECT pg_backend_pid()")).scalar()
    with store.engine.connect() as one:
        kept = one.execute(text("SELECT pg_backend_pid()")).scalar()
        cut = other if kept == mine else mine
        one.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": cut})
        with store.reading("north") as work:  # gets the one that was cut
            assert work.uploads.find("0" * 40) is None


def test_busy_connection_is_not_asked_before_each_transaction(store: Store) -> None:
    asked: list[str] = []
    ping = store.engine.dialect.do_ping
    store.engine.dialect.do_ping = lambda connection: asked.append("ping") or ping(connection)  # type: ignore[method-assign]
    begun: list[object] = []
    event.listen(store.engine, "begin", begun.append)
    for _ in range(5):
        with store.reading("north"):
            pass
    assert len(begun) == 5
    assert len(asked) <= 1  # the first may have lain
