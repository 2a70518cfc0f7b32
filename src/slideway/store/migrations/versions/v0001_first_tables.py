"""The first tables of the store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from slideway.store.migrations.guards import Guard, add_guard, add_refusal, keep_tenants_apart, refuse_truncation

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TENANT_TABLES = (
    "tenants", "nodes", "cases", "specimens", "blocks", "slides", "jobs", "outbox", "inbox", "findings", "reports",
    "consultations", "uploads", "audit", "audit_heads", "bytes",
)  # fmt: skip

ENDED = "OLD.state IN ('reported', 'referred', 'rejected')"
GUARDS = (
    Guard("audit", "UPDATE", "", "audit is only added to"),
    Guard("audit", "DELETE", "", "audit is only added to"),
    Guard("bytes", "UPDATE", "", "bytes are only added to"),
    Guard("bytes", "DELETE", "", "bytes are only added to"),
    Guard("findings", "UPDATE", "", "a finding that is kept never changes"),
    Guard("inbox", "UPDATE", "", "a message that was accepted never changes"),
    Guard(
        "slides",
        "UPDATE",
        f"OLD.slide_sha256 <> NEW.slide_sha256 OR {ENDED} AND (NEW.state <> OLD.state OR NEW.reason <> OLD.reason)",
        "the end of a slide never changes",
    ),
    Guard(
        "jobs",
        "UPDATE",
        "OLD.state = 'done' AND (NEW.state <> OLD.state OR NEW.result <> OLD.result)",
        "a job that is done stays done",
    ),
    Guard(
        "outbox",
        "UPDATE",
        "OLD.key <> NEW.key OR OLD.payload <> NEW.payload OR "
        "OLD.state = 'acknowledged' AND (NEW.state <> OLD.state OR NEW.receipt <> OLD.receipt)",
        "a receipt stands, and so does what was put",
    ),
    Guard(
        "reports",
        "UPDATE",
        "OLD.state <> 'draft' AND (NEW.content <> OLD.content OR NEW.content_sha256 <> OLD.content_sha256 OR "
        "NEW.signed_by <> OLD.signed_by OR NEW.signed_ms <> OLD.signed_ms OR NEW.state = 'draft' OR "
        "OLD.state = 'superseded' AND NEW.state <> OLD.state)",
        "a signed report never changes",
    ),
    Guard("reports", "DELETE", "OLD.state <> 'draft'", "a signed report is never removed"),
    Guard(
        "consultations",
        "UPDATE",
        "OLD.state = 'answered' AND (NEW.state <> OLD.state OR NEW.answer <> OLD.answer)",
        "an answer never changes",
    ),
)


def upgrade() -> None:
    """Make all tables, and what guards them."""
    op.create_table(
        "schema_version",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("major", sa.Integer(), nullable=False),
        sa.Column("minor", sa.Integer(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_schema_version_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schema_version")),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("tenant <> '*'", name=op.f("ck_tenants_named")),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tenants")),
    )
    op.create_table(
        "audit",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=False),
        sa.Column("details", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("previous_sha256", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_audit_tenant")),
        sa.PrimaryKeyConstraint("tenant", "sequence", name=op.f("pk_audit")),
    )
    op.create_table(
        "audit_heads",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_audit_heads_tenant")),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_audit_heads")),
    )
    op.create_table(
        "bytes",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("slide_sha256", sa.String(length=64), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=True),
        sa.Column("direction", sa.String(length=3), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("overhead_bytes", sa.BigInteger(), nullable=False),
        sa.Column("peer", sa.String(length=128), nullable=False),
        sa.Column("transport", sa.String(length=32), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("direction IN ('out', 'in')", name=op.f("ck_bytes_direction_known")),
        sa.CheckConstraint("payload_bytes >= 0 AND overhead_bytes >= 0", name=op.f("ck_bytes_not_negative")),
        sa.CheckConstraint("tier IS NULL OR tier BETWEEN 0 AND 4", name=op.f("ck_bytes_tier_known")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_bytes_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_bytes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_bytes_tenant_at_ms"), "bytes", ["tenant", "at_ms"], unique=False)
    op.create_index(op.f("ix_bytes_tenant_slide_sha256"), "bytes", ["tenant", "slide_sha256"], unique=False)
    op.create_table(
        "cases",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("case_id", sa.String(length=64), nullable=False),
        sa.Column("accession", sa.String(length=64), nullable=True),
        sa.Column("site", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_cases_tenant")),
        sa.PrimaryKeyConstraint("tenant", "case_id", name=op.f("pk_cases")),
        sa.UniqueConstraint("tenant", "accession", name=op.f("uq_cases_tenant_accession")),
    )
    op.create_table(
        "inbox",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("sender", sa.String(length=128), nullable=False),
        sa.Column("message_id", sa.String(length=256), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("receipt", sa.String(length=64), nullable=False),
        sa.Column("received_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_inbox_tenant")),
        sa.PrimaryKeyConstraint("tenant", "sender", "message_id", name=op.f("pk_inbox")),
    )
    op.create_index(
        op.f("ix_inbox_tenant_sender_kind_subject_sequence"),
        "inbox",
        ["tenant", "sender", "kind", "subject", "sequence"],
        unique=False,
    )
    op.create_table(
        "nodes",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("node", sa.String(length=63), nullable=False),
        sa.Column("name", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("code_sha256", sa.String(length=64), nullable=True),
        sa.Column("code_expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("public_key", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("version", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("enrolled_ms", sa.BigInteger(), nullable=True),
        sa.Column("seen_ms", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint("state IN ('invited', 'enrolled', 'revoked')", name=op.f("ck_nodes_state_known")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_nodes_tenant")),
        sa.PrimaryKeyConstraint("tenant", "node", name=op.f("pk_nodes")),
        sa.UniqueConstraint("code_sha256", name=op.f("uq_nodes_code_sha256")),
    )
    op.create_table(
        "outbox",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("peer", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("blob_sha256", sa.String(length=64), nullable=True),
        sa.Column("slide_sha256", sa.String(length=64), nullable=True),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.BigInteger(), server_default=sa.text("100"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("receipt", sa.String(length=256), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state <> 'acknowledged' OR receipt IS NOT NULL", name=op.f("ck_outbox_acknowledged_by_receipt")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'sent', 'acknowledged', 'withdrawn')", name=op.f("ck_outbox_state_known")
        ),
        sa.CheckConstraint("tier BETWEEN 0 AND 4", name=op.f("ck_outbox_tier_known")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_outbox_tenant")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_outbox")),
        sa.UniqueConstraint("tenant", "key", name=op.f("uq_outbox_tenant_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outbox_tenant_slide_sha256"), "outbox", ["tenant", "slide_sha256"], unique=False)
    op.create_index(op.f("ix_outbox_tenant_state_peer"), "outbox", ["tenant", "state", "peer"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("upload_id", sa.String(length=64), nullable=False),
        sa.Column("node", sa.String(length=63), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("length_bytes", sa.BigInteger(), nullable=True),
        sa.Column("offset_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("facts", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'complete', 'ended')", name=op.f("ck_uploads_state_known")),
        sa.CheckConstraint(
            "length_bytes IS NULL OR offset_bytes <= length_bytes", name=op.f("ck_uploads_within_length")
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_uploads_tenant")),
        sa.PrimaryKeyConstraint("tenant", "upload_id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_state_expires_ms"), "uploads", ["state", "expires_ms"], unique=False)
    op.create_table(
        "reports",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("report_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("case_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("content", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("signed_by", sa.String(length=128), nullable=True),
        sa.Column("signed_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state = 'draft' OR (signed_by IS NOT NULL AND signed_ms IS NOT NULL)",
            name=op.f("ck_reports_signed_by_someone"),
        ),
        sa.CheckConstraint("state IN ('draft', 'signed', 'superseded')", name=op.f("ck_reports_state_known")),
        sa.ForeignKeyConstraint(
            ["tenant", "case_id"], ["cases.tenant", "cases.case_id"], name=op.f("fk_reports_tenant_case_id")
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_reports_tenant")),
        sa.PrimaryKeyConstraint("tenant", "report_id", "version", name=op.f("pk_reports")),
    )
    op.create_index(op.f("ix_reports_tenant_case_id"), "reports", ["tenant", "case_id"], unique=False)
    op.create_table(
        "specimens",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("specimen_id", sa.String(length=64), nullable=False),
        sa.Column("case_id", sa.String(length=64), nullable=False),
        sa.Column("site", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "case_id"], ["cases.tenant", "cases.case_id"], name=op.f("fk_specimens_tenant_case_id")
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_specimens_tenant")),
        sa.PrimaryKeyConstraint("tenant", "specimen_id", name=op.f("pk_specimens")),
    )
    op.create_table(
        "blocks",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("block_id", sa.String(length=64), nullable=False),
        sa.Column("specimen_id", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "specimen_id"],
            ["specimens.tenant", "specimens.specimen_id"],
            name=op.f("fk_blocks_tenant_specimen_id"),
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_blocks_tenant")),
        sa.PrimaryKeyConstraint("tenant", "block_id", name=op.f("pk_blocks")),
    )
    op.create_table(
        "slides",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("slide_sha256", sa.String(length=64), nullable=False),
        sa.Column("case_id", sa.String(length=64), nullable=True),
        sa.Column("block_id", sa.String(length=64), nullable=True),
        sa.Column("container_id", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("facts", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("accepted_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state <> 'rejected' OR reason <> ''", name=op.f("ck_slides_rejected_with_reason")),
        sa.CheckConstraint(
            "state IN ('accepted', 'encoded', 'sent', 'answered', 'reported', 'referred', 'rejected')",
            name=op.f("ck_slides_state_known"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "block_id"], ["blocks.tenant", "blocks.block_id"], name=op.f("fk_slides_tenant_block_id")
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "case_id"], ["cases.tenant", "cases.case_id"], name=op.f("fk_slides_tenant_case_id")
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_slides_tenant")),
        sa.PrimaryKeyConstraint("tenant", "slide_sha256", name=op.f("pk_slides")),
    )
    op.create_index(op.f("ix_slides_tenant_case_id"), "slides", ["tenant", "case_id"], unique=False)
    op.create_index(op.f("ix_slides_tenant_state"), "slides", ["tenant", "state"], unique=False)
    op.create_table(
        "consultations",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("consultation_id", sa.String(length=64), nullable=False),
        sa.Column("slide_sha256", sa.String(length=64), nullable=False),
        sa.Column("organ", sa.String(length=64), nullable=False),
        sa.Column("centre", sa.String(length=63), nullable=False),
        sa.Column("asked_by", sa.String(length=128), nullable=False),
        sa.Column("question", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("specialist", sa.String(length=128), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("asked_ms", sa.BigInteger(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state <> 'answered' OR answer IS NOT NULL", name=op.f("ck_consultations_answered_with_answer")
        ),
        sa.CheckConstraint(
            "state IN ('open', 'taken', 'answered', 'withdrawn')", name=op.f("ck_consultations_state_known")
        ),
        sa.ForeignKeyConstraint(
            ["tenant", "slide_sha256"],
            ["slides.tenant", "slides.slide_sha256"],
            name=op.f("fk_consultations_tenant_slide_sha256"),
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_consultations_tenant")),
        sa.PrimaryKeyConstraint("tenant", "consultation_id", name=op.f("pk_consultations")),
    )
    op.create_index(
        op.f("ix_consultations_state_organ_due_ms"), "consultations", ["state", "organ", "due_ms"], unique=False
    )
    op.create_table(
        "findings",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("finding_id", sa.String(length=64), nullable=False),
        sa.Column("slide_sha256", sa.String(length=64), nullable=False),
        sa.Column("place", sa.String(length=16), nullable=False),
        sa.Column("head_id", sa.String(length=128), nullable=False),
        sa.Column("head_version", sa.String(length=64), nullable=False),
        sa.Column("head_sha256", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=128), nullable=False),
        sa.Column("content", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("place IN ('edge', 'cloud', 'person')", name=op.f("ck_findings_place_known")),
        sa.ForeignKeyConstraint(
            ["tenant", "slide_sha256"],
            ["slides.tenant", "slides.slide_sha256"],
            name=op.f("fk_findings_tenant_slide_sha256"),
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_findings_tenant")),
        sa.PrimaryKeyConstraint("tenant", "finding_id", name=op.f("pk_findings")),
        sa.UniqueConstraint(
            "tenant", "slide_sha256", "place", "head_sha256", "fingerprint", "task", name="uq_findings_once"
        ),
    )
    op.create_table(
        "jobs",
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("slide_sha256", sa.String(length=64), nullable=False),
        sa.Column("step", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.BigInteger(), server_default=sa.text("100"), nullable=False),
        sa.Column("payload", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts_allowed", sa.BigInteger(), server_default=sa.text("5"), nullable=False),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.String(length=128), nullable=True),
        sa.Column("leased_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('waiting', 'leased', 'done', 'quarantined')", name=op.f("ck_jobs_state_known")),
        sa.ForeignKeyConstraint(
            ["tenant", "slide_sha256"],
            ["slides.tenant", "slides.slide_sha256"],
            name=op.f("fk_jobs_tenant_slide_sha256"),
        ),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.tenant"], name=op.f("fk_jobs_tenant")),
        sa.PrimaryKeyConstraint("tenant", "job_id", name=op.f("pk_jobs")),
        sa.UniqueConstraint(
            "tenant", "slide_sha256", "step", "model", name=op.f("uq_jobs_tenant_slide_sha256_step_model")
        ),
    )
    op.create_index(
        op.f("ix_jobs_state_is_urgent_priority_created_ms"),
        "jobs",
        ["state", "is_urgent", "priority", "created_ms"],
        unique=False,
    )
    add_refusal()
    for guard in GUARDS:
        add_guard(guard)
    for table in ("audit", "bytes"):
        refuse_truncation(table)
    keep_tenants_apart(TENANT_TABLES)
