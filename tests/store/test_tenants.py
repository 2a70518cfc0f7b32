"""No reading across tenants (invariant I4), tested by trying, also past our own code."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from slideway.core.errors import ConflictError, UnknownRecordError, UnknownTenantError, UnsafeRoleError, WrongUseError
from slideway.store.database import open_store
from slideway.store.schema import METADATA, TENANT_TABLES

SLIDE, NODE_KEY = "a" * 64, "key-of-south"


@pytest.fixture
def full(store):
    return fill(store)


@pytest.fixture
def guarded(empty_postgres, clock):
    """SQLite has no row-level security; the edge has one tenant."""
    with open_store(empty_postgres(), clock=clock) as store:
        store.add_tenant("north")
        store.add_tenant("south")
        yield fill(store)


def fill(store):
    """North has nothing; south has a row in every table."""
    with store.transaction("south") as work:
        work.cases.add("case1", accession="A-1")
        work.cases.add_specimen("s1", case_id="case1")
        work.cases.add_block("b1", specimen_id="s1")
        work.slides.accept(SLIDE, case_id="case1", block_id="b1")
        work.jobs.enqueue(SLIDE, "encode")
        work.outbox.put("bundle", "key1", slide_sha256=SLIDE)
        work.inbox.accept("node1", "m1", kind="bundle", sha256=SLIDE)
        work.findings.record(
            SLIDE,
            "neoplastic",
            {"p": 1},
            place="edge",
            head_id="h",
            head_version="1",
            head_sha256=SLIDE,
            fingerprint=SLIDE,
        )
        work.reports.draft("r1", case_id="case1", content={"text": "x"})
        work.consultations.ask(
            "c1", slide_sha256=SLIDE, organ="kidney", asked_by="u1", question={"q": 1}, within_seconds=60
        )
        work.nodes.invite("node1", code_sha256=SLIDE, within_seconds=60)
        work.uploads.begin("u1", node="node1", within_seconds=60)
        work.audit.append("slide-accepted", actor="node1", subject=SLIDE)
        work.bytes.record(SLIDE, 0, "in", 100, 10, "node1", "tus")
    return store


LOOKS = {
    "cases": lambda work: work.cases.find_all(),
    "accession": lambda work: work.cases.find_by_accession("A-1"),
    "specimens": lambda work: work.cases.specimens("case1"),
    "blocks": lambda work: work.cases.blocks("s1"),
    "slides": lambda work: work.slides.find_all(),
    "slide": lambda work: work.slides.find(SLIDE),
    "slide counts": lambda work: sum(work.slides.counts().values()),
    "jobs": lambda work: work.jobs.find_all(),
    "job": lambda work: work.jobs.find(SLIDE, "encode"),
    "outbox": lambda work: work.outbox.find_all(),
    "next": lambda work: work.outbox.next_due(limit=10),
    "waiting": lambda work: work.outbox.waiting_bytes(),
    "waiting for peers": lambda work: work.outbox.open_sums(),
    "byte sums": lambda work: work.bytes.sums_by_peer(direction="in"),
    "open questions": lambda work: work.consultations.count_open(),
    "overdue questions": lambda work: work.consultations.count_overdue(),
    "inbox": lambda work: work.inbox.find_all(),
    "message": lambda work: work.inbox.find("node1", "m1"),
    "findings": lambda work: work.findings.of_slide(SLIDE),
    "reports": lambda work: work.reports.of_case("case1"),
    "report": lambda work: work.reports.newest("r1"),
    "consultations": lambda work: work.consultations.find_open(),
    "asked": lambda work: work.consultations.of_slide(SLIDE),
    "nodes": lambda work: work.nodes.find_all(),
    "uploads": lambda work: work.uploads.find_expired(),
    "audit": lambda work: list(work.audit.entries()),
    "head": lambda work: work.audit.head().entries,
    "bytes": lambda work: work.bytes.totals("slide"),
    "byte entries": lambda work: list(work.bytes.entries()),
    "byte total": lambda work: work.bytes.total().total_bytes,
}


def test_north_sees_nothing_of_south(full, clock):
    clock.move(3600)
    with full.reading("south") as south:
        assert [name for name, look in LOOKS.items() if not look(south)] == [], "else this test proves nothing"
    with full.reading("north") as north:
        assert [name for name, look in LOOKS.items() if look(north)] == []


def test_every_table_of_tenants_has_a_row_of_south_in_these_tests(full):
    with full.reading_of_all() as everything:
        for table in TENANT_TABLES:
            count = everything._connection.execute(select(func.count()).where(table.c.tenant == "south")).scalar()
            assert count == 1, table.name


TOUCHES = {
    "slide": lambda work: work.slides.move(SLIDE, "encoded"),
    "facts": lambda work: work.slides.add_facts(SLIDE, {"a": 1}),
    "outbox": lambda work: work.outbox.mark_acknowledged("key1", receipt="r"),
    "withdraw": lambda work: work.outbox.withdraw("key1", reason="x"),
    "upload": lambda work: work.uploads.advance("u1", from_bytes=0, to_bytes=5, within_seconds=5),
    "node": lambda work: work.nodes.revoke("node1", reason="x"),
    "enrol": lambda work: work.nodes.enrol(SLIDE, public_key="k"),
    "report": lambda work: work.reports.sign("r1", 1, shown_sha256=SLIDE, signed_by="u"),
    "consultation": lambda work: work.consultations.take("c1", specialist="u"),
}


def test_north_changes_nothing_of_south(full):
    for name, touch in TOUCHES.items():
        with full.transaction("north") as work:
            try:
                touch(work)
            except UnknownRecordError:
                continue
        raise AssertionError(name)


def test_a_row_cannot_refer_to_a_row_of_another_tenant(full):
    with pytest.raises(ConflictError), full.transaction("north") as work:
        work.jobs.enqueue(SLIDE, "encode")
    with pytest.raises(ConflictError), full.transaction("north") as work:
        work.slides.accept("b" * 64, case_id="case1")


def test_both_may_have_the_same_slide_and_each_has_its_own(full):
    with full.transaction("north") as work:
        work.slides.accept(SLIDE)
        work.slides.move(SLIDE, "encoded")
    with full.reading("south") as work:
        assert work.slides.get(SLIDE).state == "accepted"


def test_every_table_but_the_version_belongs_to_tenants():
    assert {table.name for table in METADATA.sorted_tables} - {table.name for table in TENANT_TABLES} == {
        "schema_version"
    }


def test_a_tenant_that_is_not_there_is_refused(store):
    for tenant in ["", "*", "North", "no such", "x" * 64, "nowhere", "-north"]:
        with pytest.raises(UnknownTenantError), store.transaction(tenant):
            pass
        with pytest.raises(UnknownTenantError), store.reading(tenant):
            pass


def test_a_tenant_has_a_plain_name(store):
    for tenant in ["", "*", "North", "a b", "x" * 64, "-a", "a-", "a;drop"]:
        with pytest.raises(WrongUseError):
            store.add_tenant(tenant)


def test_the_operator_sees_all_tenants_and_asks_for_that_by_name(full):
    with full.reading_of_all() as everything:
        assert [tenant.tenant for tenant in everything.tenants.find_all()] == ["north", "south"]
        assert [node.tenant for node in everything.nodes.find_all()] == ["south"]
        assert everything.bytes.totals("tenant")["south"].total_bytes == 110
        with pytest.raises(ValueError, match="one tenant"):
            everything.slides.get(SLIDE)
        assert everything.of("north").slides.find(SLIDE) is None
        assert everything.of("south").slides.get(SLIDE).tenant == "south"


def test_raw_sql_sees_only_rows_of_the_transactions_tenant(guarded):
    wanted = {"south": 1, "north": 0, None: 0, "": 0, "*": 1}
    for tenant, count in wanted.items():
        with guarded.engine.begin() as connection:
            if tenant is not None:
                connection.execute(text("SELECT set_config('slideway.tenant', :t, true)"), {"t": tenant})
            for table in TENANT_TABLES:
                seen = connection.execute(text(f"SELECT count(*) FROM {table.name} WHERE tenant = 'south'")).scalar()
                assert seen == count, (tenant, table.name)


def test_a_tenant_does_not_stay_on_a_pooled_connection(guarded):
    with guarded.transaction("south") as work:
        assert work.slides.find_all()
    with guarded.engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM slides")).scalar() == 0


def test_raw_sql_cannot_write_or_move_rows_into_another_tenant(guarded):
    into = "INSERT INTO cases (tenant, case_id, created_ms) VALUES ('south', 'x', 1)"
    moved = "UPDATE tenants SET tenant = 'east' WHERE tenant = 'north'"
    for statement in (into, moved):
        with pytest.raises(DBAPIError, match="row-level security"), guarded.engine.begin() as connection:
            connection.execute(text("SELECT set_config('slideway.tenant', 'north', true)"))
            connection.execute(text(statement))
    for statement in ("UPDATE slides SET reason = 'x'", "DELETE FROM uploads"):
        with guarded.engine.begin() as connection:
            connection.execute(text("SELECT set_config('slideway.tenant', 'north', true)"))
            assert connection.execute(text(statement)).rowcount == 0


def test_every_table_is_guarded_also_against_its_owner(guarded):
    with guarded.engine.begin() as connection:
        rows = connection.execute(
            text(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relrowsecurity AND relforcerowsecurity "
                "AND relnamespace = 'public'::regnamespace"
            )
        )
        assert {row[0] for row in rows} == {table.name for table in TENANT_TABLES}


def test_a_role_that_passes_by_the_guards_is_refused(postgres):
    with pytest.raises(UnsafeRoleError, match="NOBYPASSRLS"):
        open_store(postgres.url("made", "admin"))
