"""What the databases themselves refuse: changed ends, changed audit, rows of other tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from alembic import op


class Guard(NamedTuple):
    """A change that is refused.

    Attributes:
        table: On which table.
        event: `UPDATE` or `DELETE`.
        when: On which rows, over OLD and NEW; empty for all.
        says: What the error says.
    """

    table: str
    event: str
    when: str
    says: str


def add_guard(guard: Guard) -> None:
    """Let the database refuse a change, also to those who pass by our code."""
    name = f"refuse_{guard.event.lower()}_of_{guard.table}"
    when = f"WHEN ({guard.when})" if guard.when else ""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {guard.event} ON {guard.table} FOR EACH ROW {when} "
            f"BEGIN SELECT RAISE(ABORT, '{guard.says}'); END"
        )
        return
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {guard.event} ON {guard.table} FOR EACH ROW {when} "
        f"EXECUTE FUNCTION slideway_refuse('{guard.says}')"
    )


def add_refusal() -> None:
    """Make the function that PostgreSQL's guards call; 23514 is a broken check."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION slideway_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = '23514'; END $$"
        )


def refuse_truncation(table: str) -> None:
    """Let PostgreSQL refuse to empty a table at once; SQLite knows no such statement."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE TRIGGER refuse_truncate_of_{table} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION slideway_refuse('{table} is only added to')"
        )


def keep_tenants_apart(tables: Sequence[str]) -> None:
    """Let PostgreSQL show and take only rows of the transaction's tenant, also for the tables' owner.

    Without a tenant nothing shows; `*` is the operator's view, which code must ask for by name.
    """
    if op.get_bind().dialect.name != "postgresql":
        return
    said = "current_setting('slideway.tenant', true)"
    mine = f"tenant = {said} OR {said} = '*'"
    for table in tables:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_tenant ON {table} USING ({mine}) WITH CHECK ({mine})")
