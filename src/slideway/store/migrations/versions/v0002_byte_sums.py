"""Sums of the byte ledger, kept by the database itself, and an index by which one tenant's jobs are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from slideway.store.migrations.guards import keep_tenants_apart

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ADD = (
    "INSERT INTO byte_sums (tenant, peer, direction, payload_bytes, overhead_bytes, entries) "
    "VALUES (NEW.tenant, NEW.peer, NEW.direction, NEW.payload_bytes, NEW.overhead_bytes, 1) "
    "ON CONFLICT (tenant, peer, direction) DO UPDATE SET "
    "payload_bytes = byte_sums.payload_bytes + excluded.payload_bytes, "
    "overhead_bytes = byte_sums.overhead_bytes + excluded.overhead_bytes, entries = byte_sums.entries + 1"
)


def upgrade() -> None:
    """Make the table, let the database keep it, then sum up what is there already."""
    op.create_table(
        "byte_sums",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("peer", sa.String(length=128), nullable=False),
        sa.Column("direction", sa.String(length=3), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("overhead_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("entries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("direction IN ('out', 'in')", name=op.f("ck_byte_sums_direction_known")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_byte_sums_tenant")),
        sa.PrimaryKeyConstraint("tenant", "peer", "direction", name=op.f("pk_byte_sums")),
    )
    op.create_index(
        op.f("ix_jobs_tenant_state_is_urgent_priority_created_ms"),
        "jobs",
        ["tenant", "state", "is_urgent", "priority", "created_ms"],
        unique=False,
    )
    keep_tenants_apart(("byte_sums",))
    _keep_sums()
    # After the trigger: to make one waits for those who write and holds up those who come, so that no row is missed.
    op.execute(
        "INSERT INTO byte_sums (tenant, peer, direction, payload_bytes, overhead_bytes, entries) "
        "SELECT tenant, peer, direction, CAST(SUM(payload_bytes) AS BIGINT), CAST(SUM(overhead_bytes) AS BIGINT), "
        "COUNT(*) FROM bytes GROUP BY tenant, peer, direction"
    )


def _keep_sums() -> None:
    """A trigger, so that whoever adds to the ledger, also an older Slideway, keeps its sums."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER sum_bytes AFTER INSERT ON bytes FOR EACH ROW BEGIN {_ADD}; END")
        return
    op.execute(
        f"CREATE FUNCTION slideway_sum_bytes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {_ADD}; RETURN NULL; END $$"
    )
    op.execute("CREATE TRIGGER sum_bytes AFTER INSERT ON bytes FOR EACH ROW EXECUTE FUNCTION slideway_sum_bytes()")
