"""A store is brought up to date after a backup, all at once, and never taken back."""

from __future__ import annotations

import shutil
import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from slideway.core.errors import FullStoreError, NewerStoreError, OlderStoreError, SlidewayError, StoreError
from slideway.store import database, migrate
from slideway.store.byte_ledger import ByteTotal
from slideway.store.database import open_store
from slideway.store.schema import METADATA, SCHEMA, VERSION

NEXT = '''"""A step of a later version."""
from alembic import op
import sqlalchemy as sa
revision, down_revision = "{revision}", "{before}"
def upgrade():
    op.add_column("cases", sa.Column("{column}", sa.Text()))
    {more}
'''


def add_step(monkeypatch, tmp_path, schema, *, revision="0003", before="0002", column="colour", more="pass"):
    """Let this version be a later one, with one more step."""
    folder = tmp_path / "later"
    folder.mkdir(exist_ok=True)
    (folder / f"v{revision}.py").write_text(NEXT.format(revision=revision, before=before, column=column, more=more))
    monkeypatch.setattr(database, "SCHEMA", schema)
    monkeypatch.setattr(migrate, "STEPS", migrate.Steps(schema, (*migrate.STEPS.folders[:1], folder)))


@pytest.fixture
def fresh(request, tmp_path, made_sqlite):
    """Makes a store that a test may migrate, by the kind of its database."""

    def make(kind):
        if kind == "sqlite":
            shutil.copy(made_sqlite, tmp_path / "slideway.db")
            url = f"sqlite:///{tmp_path / 'slideway.db'}"
        else:
            server = request.getfixturevalue("postgres")
            name = f"migrated{abs(hash(request.node.name)) % 10**9}"
            url = server.add_database(name, owner="slideway")
        with open_store(url) as store:
            store.add_tenant("north")
            with store.transaction("north") as work:
                work.cases.add("case1")
        return url

    return make


def test_the_steps_lead_to_exactly_the_tables_that_the_code_knows(url):
    with open_store(url) as store, store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert connection.execute(VERSION.select()).one() == (1, *SCHEMA)


def test_sqlite_is_backed_up_beside_the_file_and_migrated(fresh, tmp_path, monkeypatch):
    url = fresh("sqlite")
    for number, schema in enumerate([(1, 2), (1, 3)], start=3):
        add_step(
            monkeypatch, tmp_path, schema, revision=f"000{number}", before=f"000{number - 1}", column=f"colour{number}"
        )
        with open_store(url) as store, store.reading("north") as work:
            assert work.cases.get("case1").case_id == "case1"
            assert work.cases._connection.execute(text(f"SELECT colour{number} FROM cases")).all() == [(None,)]
    copies = sorted(path.name for path in tmp_path.glob("*.backup-*"))
    assert copies == ["slideway.db.backup-1.1-1", "slideway.db.backup-1.2-1"]
    with sqlite3.connect(tmp_path / copies[0]) as copy:
        assert copy.execute("SELECT case_id FROM cases").fetchall() == [("case1",)]
        assert "colour3" not in [row[1] for row in copy.execute("PRAGMA table_info(cases)")]
    copy.close()
    with open_store(url):  # an up-to-date store is not backed up again
        assert len(list(tmp_path.glob("*.backup-*"))) == 2


def test_a_backup_is_never_overwritten_and_can_be_put_back(fresh, tmp_path, monkeypatch):
    url = fresh("sqlite")
    (tmp_path / "slideway.db.backup-1.1-1").write_text("of last year")
    with monkeypatch.context() as later:
        add_step(later, tmp_path, (1, 2))
        open_store(url).close()
    assert (tmp_path / "slideway.db.backup-1.1-1").read_text() == "of last year"
    shutil.copy(tmp_path / "slideway.db.backup-1.1-2", tmp_path / "slideway.db")
    with open_store(url) as store, store.reading("north") as work:
        assert work.cases.get("case1").case_id == "case1"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_step_that_fails_changes_nothing(fresh, tmp_path, monkeypatch, kind):
    url = fresh(kind)
    with monkeypatch.context() as later:
        add_step(later, tmp_path, (1, 2), more="raise RuntimeError('a step breaks')")
        with pytest.raises(RuntimeError, match="a step breaks"):
            open_store(url, allow_without_backup=True)
    with open_store(url) as store, store.engine.connect() as connection:
        assert connection.execute(VERSION.select()).one() == (1, *SCHEMA)
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_without_room_for_the_backup_nothing_is_migrated(fresh, tmp_path, monkeypatch):
    url = fresh("sqlite")
    add_step(monkeypatch, tmp_path, (1, 2))
    monkeypatch.setattr("slideway.store.sqlite.sqlite3.connect", _full_disk)
    with pytest.raises(FullStoreError, match="nothing was migrated"):
        open_store(url)
    assert not list(tmp_path.glob("*.backup-*"))


def _full_disk(*_args, **_options):
    class Full:
        def execute(self, *_):
            raise sqlite3.OperationalError("database or disk is full")

        def close(self):
            pass

    return Full()


def test_postgresql_is_migrated_only_with_a_backup_or_the_operators_word(fresh, tmp_path, monkeypatch):
    url, made = fresh("postgresql"), []
    add_step(monkeypatch, tmp_path, (1, 2))
    with pytest.raises(OlderStoreError, match="pg_dump"):
        open_store(url)
    with open_store(url, backup=lambda: made.append("dump")) as store, store.reading("north") as work:
        assert made == ["dump"]
        assert work.cases._connection.execute(text("SELECT colour FROM cases")).all() == [(None,)]


@pytest.mark.parametrize("how", [{"migrate": False}, {"read_only": True}])
def test_an_older_store_is_refused_where_migrating_was_not_asked_for(fresh, tmp_path, monkeypatch, how):
    url = fresh("sqlite")
    add_step(monkeypatch, tmp_path, (1, 2))
    with pytest.raises(OlderStoreError, match=r"schema 1\.1"):
        open_store(url, **how)
    assert not list(tmp_path.glob("*.backup-*"))


def test_a_store_of_a_newer_major_is_refused_and_not_touched(url):
    set_version(url, 2, 0)
    for how in ({}, {"read_only": True}):
        with pytest.raises(NewerStoreError, match="never taken back"):
            open_store(url, **how)
    set_version(url, *SCHEMA, found=2)
    open_store(url).close()


def test_a_store_of_a_newer_minor_is_worked_with_and_not_taken_back(url):
    set_version(url, 1, 7)
    with open_store(url) as store, store.engine.begin() as connection:
        assert connection.execute(VERSION.select()).one() == (1, 1, 7)
    set_version(url, *SCHEMA)


def set_version(url, major, minor, found=1):
    """Write a version past our own code."""
    engine = create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(VERSION.select()).one()[1] == found
        connection.execute(VERSION.update().values(major=major, minor=minor))
    engine.dispose()


def test_a_database_of_something_else_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE recipes (name)")
    other.close()
    with pytest.raises(StoreError, match="something else"):
        open_store(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(OlderStoreError, match="no store yet"):
        open_store(f"sqlite:///{tmp_path / 'new.db'}", migrate=False)


def test_two_processes_that_migrate_at_once_migrate_once(postgres):
    url, errors = postgres.add_database("twice", owner="slideway"), []

    def run():
        try:
            open_store(url).close()
        except SlidewayError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with open_store(url) as store, store.engine.connect() as connection:
        assert connection.execute(VERSION.select()).all() == [(1, *SCHEMA)]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_first_version_with_bytes_in_it_gets_their_sums(request, tmp_path, monkeypatch, kind):
    first = tmp_path / "first"
    first.mkdir()
    shutil.copy(migrate.MIGRATIONS / "versions" / "v0001_first_tables.py", first)
    url = f"sqlite:///{tmp_path / 'old.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").add_database("first_version", owner="slideway")
    with monkeypatch.context() as earlier:
        earlier.setattr(database, "SCHEMA", (1, 0))
        earlier.setattr(migrate, "STEPS", migrate.Steps((1, 0), (first,)))
        with open_store(url) as store:
            for tenant in ("north", "south"):
                store.add_tenant(tenant)
                with store.transaction(tenant) as work:
                    for peer, way, n_bytes in (("lab-1", "in", 100), ("lab-1", "in", 20), ("lab-2", "out", 3)):
                        work.bytes.record("", None, way, n_bytes, 1, peer, "tus")
    with pytest.raises(OlderStoreError, match=r"schema 1\.0"):
        open_store(url, migrate=False)
    with open_store(url, allow_without_backup=True) as store:
        with store.transaction("north") as work:
            work.bytes.record("", None, "in", 1000, 5, "lab-1", "tus")
        with store.reading_of_all() as everything:
            assert everything.bytes.sums_by_peer(direction="in") == {
                ("north", "lab-1"): ByteTotal(1120, 7, 3), ("south", "lab-1"): ByteTotal(120, 2, 2),
            }  # fmt: skip
            assert everything.bytes.sums_by_peer(direction="out")["south", "lab-2"] == ByteTotal(3, 1, 1)
        with store.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_bytes_that_come_while_the_sums_are_made_are_in_them(postgres, tmp_path, monkeypatch):
    first = tmp_path / "first"
    first.mkdir()
    shutil.copy(migrate.MIGRATIONS / "versions" / "v0001_first_tables.py", first)
    url = postgres.add_database("busy_version", owner="slideway")
    with monkeypatch.context() as earlier:
        earlier.setattr(database, "SCHEMA", (1, 0))
        earlier.setattr(migrate, "STEPS", migrate.Steps((1, 0), (first,)))
        old = open_store(url)
        old.add_tenant("north")
    stop, written = threading.Event(), []

    def write():
        while not stop.is_set():
            with old.transaction("north") as work:
                work.bytes.record("", None, "in", 7, 0, "lab-1", "tus")
            written.append(7)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 20:
            stop.wait(0.01)
        store = open_store(url, allow_without_backup=True)
        stop.wait(0.1)
    finally:
        stop.set()
        writer.join()
        old.close()
    with store, store.reading("north") as work:
        assert work.bytes.sums_by_peer(direction="in")["north", "lab-1"] == ByteTotal(sum(written), 0, len(written))
