"""Opening, locking, damage, full disks, and transactions that are kept whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import event, text

from slideway.core.errors import (
    BusyStoreError,
    ConflictError,
    CorruptStoreError,
    FullStoreError,
    LockedStoreError,
    StoreError,
    UnreachableStoreError,
    WrongUseError,
)
from slideway.store import database
from slideway.store.database import now_ms, open_store
from slideway.testing.postgres import find_postgres, run_postgres

SLIDE = "a" * 64


@pytest.fixture
def path(made_sqlite, tmp_path):
    return shutil.copy(made_sqlite, tmp_path / "slideway.db")


def fill(path, count=200):
    with open_store(f"sqlite:///{path}") as store:
        store.add_tenant("north")
        with store.transaction("north") as work:
            for number in range(count):
                work.slides.accept(f"{number:064x}")


def test_a_store_keeps_what_was_written(url):
    with open_store(url) as store:
        store.add_tenant("north")
        store.add_tenant("north", name="again")
        with store.transaction("north") as work:
            work.slides.accept(SLIDE)
    with open_store(url) as store, store.reading("north") as work:
        assert work.slides.get(SLIDE).state == "accepted"
        assert abs(work.slides.get(SLIDE).accepted_ms - now_ms()) < 60_000


def test_a_look_writes_nothing_and_sees_one_moment(store):
    with store.reading("north") as look:
        assert look.slides.find_all() == []
        with store.transaction("north") as work:
            work.slides.accept(SLIDE)
        assert look.slides.find_all() == []
        with pytest.raises(Exception, match=r"(?i)read-?only"):
            look.slides.accept("b" * 64)
    with store.reading("north") as look:
        assert [slide.slide_sha256 for slide in look.slides.find_all()] == [SLIDE]
    with store.transaction("north") as work:
        work.slides.accept("c" * 64)


def test_read_only_takes_no_lock_and_refuses_to_write(url):
    with open_store(url) as writer:
        writer.add_tenant("north")
        with open_store(url, read_only=True) as reader:
            with writer.transaction("north") as work:
                work.bytes.record(SLIDE, 0, "out", 1, 1, "cloud", "tus")
            with reader.reading("north") as look:
                assert look.bytes.total().total_bytes == 2
            with pytest.raises(StoreError, match="read-only"), reader.transaction("north"):
                pass


def test_a_second_writer_is_refused_and_told_who_writes(path):
    with open_store(f"sqlite:///{path}"), pytest.raises(LockedStoreError, match=rf"process {os.getpid()} "):
        open_store(f"sqlite:///{path}")
    open_store(f"sqlite:///{path}").close()


def test_a_killed_writer_leaves_no_lock_and_nothing_half_done(path):
    code = (
        "import sys, time\n"
        "from slideway.store.database import open_store\n"
        f"store = open_store('sqlite:///{path}')\n"
        "store.add_tenant('north')\n"
        "with store.transaction('north') as work:\n"
        "    work.slides.accept('a' * 64)\n"
        "with store.transaction('north') as work:\n"
        "    work.slides.accept('b' * 64)\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        with pytest.raises(LockedStoreError, match=f"process {process.pid} "):
            open_store(f"sqlite:///{path}")
        process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    with open_store(f"sqlite:///{path}") as store, store.reading("north") as work:
        assert [slide.slide_sha256 for slide in work.slides.find_all()] == [SLIDE]
        assert store.check() == []


def test_sqlite_is_set_so_that_a_loss_of_power_loses_nothing(path):
    with open_store(f"sqlite:///{path}") as store, store.engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "recursive_triggers")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "recursive_triggers": 1}


def test_postgresql_is_set_so_that_a_commit_is_on_disk(empty_postgres):
    with open_store(empty_postgres()) as store, store.engine.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
        assert connection.execute(text("SHOW lock_timeout")).scalar() == "15s"


@pytest.mark.parametrize("harm", ["head", "middle", "other"])
def test_a_damaged_file_is_set_aside_with_its_date_and_never_overwritten(path, clock, harm):
    fill(path)
    content = bytearray(path.read_bytes())
    if harm == "head":
        content[:100] = b"\0" * 100
    elif harm == "middle":
        content[100:4096] = os.urandom(3996)
    else:
        content = bytearray(b"this is a text and no database\n" * 500)
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"slideway\.db\.corrupt-20270115T080000Z"):
        open_store(f"sqlite:///{path}", clock=clock)
    assert (path.parent / "slideway.db.corrupt-20270115T080000Z").read_bytes() == content
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="Z-1"):
        open_store(f"sqlite:///{path}", clock=clock)
    assert not path.exists()
    with open_store(f"sqlite:///{path}") as store:
        assert store.check() == []


def test_damage_that_does_not_show_at_once_is_found_by_a_check_and_by_reading(path):
    fill(path, count=1000)
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 4096 * 6 // 10, len(content) // 4096, 3):
        content[page * 4096 : page * 4096 + 64] = os.urandom(64)
    path.write_bytes(content)
    with open_store(f"sqlite:///{path}") as store:
        with pytest.raises(CorruptStoreError, match="damaged"), store.reading("north") as work:
            work.slides.find_all()
        assert store.check() != []


def test_a_full_disk_is_named_and_loses_nothing(path):
    fill(path, count=1)
    with open_store(f"sqlite:///{path}") as store:
        with store.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

        def limit(count):
            @event.listens_for(store.engine, "checkout")
            def _limit(connection, *_):
                connection.execute(f"PRAGMA max_page_count = {count}")

        limit(pages)
        with pytest.raises(FullStoreError, match="disk is full"), store.transaction("north") as work:
            for number in range(1000, 2000):
                work.slides.accept(f"{number:064x}")
        limit(1_000_000)
        with store.transaction("north") as work:
            assert sum(work.slides.counts().values()) == 1
            work.slides.accept(SLIDE)
        assert store.check() == []


@pytest.mark.parametrize(
    "bad",
    ["", "nonsense", "mysql://host/x", "sqlite://", "sqlite:///:memory:", "postgresql://host/x", "/folder/file.db"],
)
def test_a_url_that_names_no_store_is_refused(bad):
    with pytest.raises(WrongUseError, match="sqlite:///"):
        open_store(bad)


def test_a_folder_that_is_not_there_and_a_store_that_is_not_there_are_named(tmp_path):
    with pytest.raises(UnreachableStoreError, match="folder"):
        open_store(f"sqlite:///{tmp_path / 'no' / 'slideway.db'}")
    with pytest.raises(UnreachableStoreError, match="no such store"):
        open_store(f"sqlite:///{tmp_path / 'slideway.db'}", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(UnreachableStoreError, match="does not answer") as caught:
        open_store("postgresql+psycopg://user:secret@127.0.0.1:9/hospital")
    assert "secret" not in str(caught.value)


def test_nested_transactions_end_in_an_error_and_not_in_a_hang(path, monkeypatch):
    monkeypatch.setattr(database, "WAIT_FOR_WRITER_SECONDS", 0.05)
    fill(path, count=1)
    with (
        open_store(f"sqlite:///{path}") as store,
        store.transaction("north"),
        pytest.raises(BusyStoreError, match="nest"),
        store.transaction("north"),
    ):
        raise AssertionError("never here")


def test_threads_write_one_after_the_other(store):
    def write(number):
        for step in range(5):
            with store.transaction("north") as work:
                work.slides.accept(f"{number * 100 + step:064x}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading("north") as work:
        assert sum(work.slides.counts().values()) == 20


def test_a_deadlock_ends_in_an_error_that_can_be_tried_again(empty_postgres):
    with open_store(empty_postgres()) as store:
        store.add_tenant("north")
        with store.transaction("north") as work:
            work.slides.accept(SLIDE)
            work.slides.accept("b" * 64)
        barrier, errors = threading.Barrier(2), []

        def cross(first, second):
            try:
                with store.transaction("north") as work:
                    work.slides.add_facts(first, {"by": first})
                    barrier.wait(timeout=10)
                    work.slides.add_facts(second, {"by": first})
            except BusyStoreError as error:
                errors.append(error)

        threads = [threading.Thread(target=cross, args=pair) for pair in ((SLIDE, "b" * 64), ("b" * 64, SLIDE))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 1
        with store.reading("north") as work:
            assert len({work.slides.get(slide).facts["by"] for slide in (SLIDE, "b" * 64)}) == 1


def test_a_server_killed_in_the_middle_of_a_transaction_loses_nothing_that_was_committed(postgres):
    with run_postgres(find_postgres()) as server:
        server.add_role("slideway")
        with open_store(server.add_database("hospital", owner="slideway")) as store:
            store.add_tenant("north")
            with store.transaction("north") as work:
                work.slides.accept(SLIDE)
            with pytest.raises(UnreachableStoreError), store.transaction("north") as work:
                work.slides.accept("b" * 64)
                server.kill()
                work.slides.accept("c" * 64)
            back = threading.Thread(target=lambda: (time.sleep(0.3), server.start()))
            back.start()
            again = store.retrying("north", lambda work: work.slides.accept("d" * 64))
            back.join()
            with store.reading("north") as work:
                assert {slide.slide_sha256 for slide in work.slides.find_all()} == {SLIDE, again.slide_sha256}


def test_retrying_gives_up_on_what_trying_again_does_not_mend(store):
    tries = []

    def do(work):
        tries.append(work)
        raise ConflictError("no")

    with pytest.raises(ConflictError):
        store.retrying("north", do)
    assert len(tries) == 1


def test_an_existing_store_opens_fast(path):
    fill(path)
    best = min(_time_to_open(path) for _ in range(5))
    assert best < 0.15


def _time_to_open(path):
    start = time.perf_counter()
    with open_store(f"sqlite:///{path}") as store, store.reading("north"):
        return time.perf_counter() - start
