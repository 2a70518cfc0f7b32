"""The audit: only added to, chained, and a change anywhere shows."""

from __future__ import annotations

import itertools
import shutil
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from slideway.core.errors import BrokenChainError, ConflictError
from slideway.store.audit import START, ChainEnd
from slideway.store.database import open_store
from slideway.store.faults import in_our_words


def add(store, count, tenant="north"):
    for number in range(count):
        with store.transaction(tenant) as work:
            work.audit.append(
                "slide-accepted", actor="node1", subject=f"s{number}", details={"tier": number, "a": None}
            )
            work.audit.append("job-leased", actor="w1", subject=f"s{number}")


@contextmanager
def raw(store):
    """A transaction past our own code, with the rights of the operator."""
    with in_our_words("store"), store.engine.connect() as connection:
        connection.execution_options(slideway_writes=True)
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT set_config('slideway.tenant', '*', true)"))
            yield connection


def run_as_vandal(store, *statements):
    """Change what the triggers protect, as someone with all rights on the file or server could."""
    with raw(store) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"))
        else:
            connection.execute(text("DROP TRIGGER refuse_update_of_audit"))
            connection.execute(text("DROP TRIGGER refuse_delete_of_audit"))
        for statement in statements:
            connection.execute(text(statement))
        if connection.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE audit ENABLE TRIGGER USER"))


def test_a_chain_verifies_and_each_tenant_has_its_own(store):
    add(store, 3)
    add(store, 1, tenant="south")
    with store.reading("north") as work:
        end = work.audit.verify_chain()
        entries = list(work.audit.entries())
        assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5, 6]
        assert entries[0].previous_sha256 == START and entries[0].details == {"tier": 0, "a": None}
        assert end == ChainEnd(6, entries[-1].sha256) == work.audit.head()
    with store.reading("south") as work:
        assert work.audit.verify_chain().entries == 2


def test_an_empty_chain_is_whole(store):
    with store.reading("north") as work:
        assert work.audit.verify_chain() == ChainEnd(0, START)


@pytest.mark.parametrize(
    ("harm", "sequence"),
    [
        ("UPDATE audit SET actor = 'other' WHERE tenant = 'north' AND sequence = 3", 3),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE tenant = 'north' AND sequence = 1", 1),
        ("UPDATE audit SET details = '{}' WHERE tenant = 'north' AND sequence = 5", 5),
        ("DELETE FROM audit WHERE tenant = 'north' AND sequence = 2", 2),
        ("DELETE FROM audit WHERE tenant = 'north' AND sequence > 4", 5),
        ("DELETE FROM audit WHERE tenant = 'north'", 1),
    ],
)
def test_a_change_shows_and_is_located(store, harm, sequence):
    add(store, 3)
    run_as_vandal(store, harm)
    with pytest.raises(BrokenChainError, match=f"entry {sequence} "), store.reading("north") as work:
        work.audit.verify_chain()


def test_a_chain_rewritten_as_a_whole_shows_against_a_witness_kept_elsewhere(store, clock):
    add(store, 2)
    with store.reading("north") as work:
        witness = work.audit.head()
    run_as_vandal(store, "DELETE FROM audit WHERE tenant = 'north'", "DELETE FROM audit_heads WHERE tenant = 'north'")
    clock.move(1)
    add(store, 4)
    with store.reading("north") as work:
        work.audit.verify_chain()
        with pytest.raises(BrokenChainError, match="entry 4 "):
            work.audit.verify_chain(witness=witness)


def test_the_database_itself_refuses_to_change_what_is_only_added_to(store):
    add(store, 1)
    with store.transaction("north") as work:
        work.bytes.record("", None, "out", 1, 1, "cloud", "tus")
    statements = ["UPDATE {} SET at_ms = 1", "DELETE FROM {}"]
    statements += ["TRUNCATE {}"] if store.engine.dialect.name == "postgresql" else []
    for statement, table in itertools.product(statements, ["audit", "bytes"]):
        with pytest.raises(ConflictError, match="only added to"), raw(store) as connection:
            connection.execute(text(statement.format(table)))


def test_sqlites_replace_does_not_pass_by_the_guard(made_sqlite, tmp_path):
    shutil.copy(made_sqlite, tmp_path / "s.db")
    with open_store(f"sqlite:///{tmp_path / 's.db'}") as store:
        store.add_tenant("north")
        add(store, 1)
        with pytest.raises(ConflictError, match="only added to"), raw(store) as connection:
            connection.execute(
                text(
                    "INSERT OR REPLACE INTO audit SELECT tenant, sequence, 1, actor, action, subject, details, "
                    "previous_sha256, sha256 FROM audit"
                )
            )


def test_a_text_that_could_be_a_name_is_not_written(store):
    for bad in ("Meier, Anna", "Anna Meier", "1970\n", "Müller"):
        for where in ("action", "actor", "subject", "details"):
            words = {"action": "a", "actor": "b", "subject": "c", "details": {}}
            words[where] = {"x": bad} if where == "details" else bad
            with pytest.raises(ValueError, match="ids, codes"), store.transaction("north") as work:
                work.audit.append(words.pop("action"), **words)


def test_entries_of_a_failed_transaction_leave_no_gap(store):
    add(store, 1)
    with pytest.raises(RuntimeError), store.transaction("north") as work:
        work.audit.append("lost", actor="w", subject="s")
        raise RuntimeError
    add(store, 1)
    with store.reading("north") as work:
        assert work.audit.verify_chain().entries == 4


def test_writers_at_once_make_one_chain(store):
    threads = [threading.Thread(target=add, args=(store, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading("north") as work:
        assert work.audit.verify_chain().entries == 40
