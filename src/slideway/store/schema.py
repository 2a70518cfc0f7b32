"""Every table of the store, once for both databases; migrations are held to it by a test.

A row that belongs to a tenant names it, and the tenant is part of every key between such tables: a foreign key cannot
lead out of a tenant. Times are UTC in milliseconds. Enumerations are checked by the database as well.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

# A newer minor only adds what an older reader may ignore; a newer major is refused.
SCHEMA = (1, 1)

ALL_TENANTS = "*"  # never the name of a tenant: what PostgreSQL's policies take for the operator's view

SHA256 = String(64)
# SQLite counts by itself only for a column that is declared INTEGER.
COUNTER = BigInteger().with_variant(Integer(), "sqlite")


def canonical_json(value: Any) -> str:
    """Write JSON so that equal values are equal bytes: keys sorted, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class CanonicalJson(TypeDecorator[Any]):
    """JSON as canonical text: the same hash on both databases."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Write it."""
        return None if value is None else canonical_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        """Read it."""
        return None if value is None else json.loads(value)


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _words(column: str, *words: str) -> CheckConstraint:
    quoted = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({quoted})", name=f"{column}_known")


def _tenant(*, key: bool = True) -> Column[str]:
    return Column("tenant", String(63), ForeignKey("tenants.tenant"), primary_key=key, nullable=False)


def _key(name: str, kind: String = SHA256) -> Column[str]:
    return Column(name, kind, primary_key=True)


def _ms(name: str, *, empty: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=empty)


def _text(name: str, *, empty: bool = False) -> Column[str]:
    return Column(name, Text, nullable=empty, server_default=None if empty else text("''"))


def _number(name: str, start: int = 0) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text(str(start)))


def _yes_no(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False, server_default=text("false"))


def _json(name: str, *, empty: bool = False) -> Column[Any]:
    return Column(name, CanonicalJson, nullable=empty, server_default=None if empty else text("'{}'"))


def _belongs(column: str, table: str, key: str | None = None) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", column], [f"{table}.tenant", f"{table}.{key or column}"])


VERSION = Table(
    "schema_version",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("major", Integer, nullable=False),
    Column("minor", Integer, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

TENANTS = Table(
    "tenants",
    METADATA,
    Column("tenant", String(63), primary_key=True),
    _text("name"),
    _ms("created_ms"),
    CheckConstraint(f"tenant <> '{ALL_TENANTS}'", name="named"),
)

NODES = Table(
    "nodes",
    METADATA,
    _tenant(),
    _key("node", String(63)),
    _text("name"),
    Column("state", String(16), nullable=False),
    Column("code_sha256", SHA256),  # of the one-time code; gone once it was used
    _ms("code_expires_ms", empty=True),
    _text("public_key"),
    _text("version"),
    _json("status"),
    _ms("created_ms"),
    _ms("enrolled_ms", empty=True),
    _ms("seen_ms", empty=True),
    _text("reason"),
    _words("state", "invited", "enrolled", "revoked"),
    UniqueConstraint("code_sha256"),
)

CASES = Table(
    "cases",
    METADATA,
    _tenant(),
    _key("case_id", String(64)),
    Column("accession", String(64)),
    _text("site"),
    _yes_no("is_urgent"),
    _ms("created_ms"),
    UniqueConstraint("tenant", "accession"),
)

SPECIMENS = Table(
    "specimens",
    METADATA,
    _tenant(),
    _key("specimen_id", String(64)),
    Column("case_id", String(64), nullable=False),
    _text("site"),
    _ms("created_ms"),
    _belongs("case_id", "cases"),
)

BLOCKS = Table(
    "blocks",
    METADATA,
    _tenant(),
    _key("block_id", String(64)),
    Column("specimen_id", String(64), nullable=False),
    _ms("created_ms"),
    _belongs("specimen_id", "specimens"),
)

SLIDES = Table(
    "slides",
    METADATA,
    _tenant(),
    _key("slide_sha256"),
    Column("case_id", String(64)),
    Column("block_id", String(64)),
    Column("container_id", String(64)),
    Column("state", String(16), nullable=False),
    _text("reason"),
    _yes_no("is_urgent"),
    _number("size_bytes"),
    _json("facts"),
    _ms("accepted_ms"),
    _ms("changed_ms"),
    _words("state", "accepted", "encoded", "sent", "answered", "reported", "referred", "rejected"),
    CheckConstraint("state <> 'rejected' OR reason <> ''", name="rejected_with_reason"),
    _belongs("case_id", "cases"),
    _belongs("block_id", "blocks"),
    Index(None, "tenant", "state"),
    Index(None, "tenant", "case_id"),
)

JOBS = Table(
    "jobs",
    METADATA,
    _tenant(),
    _key("job_id"),
    Column("slide_sha256", SHA256, nullable=False),
    Column("step", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    _yes_no("is_urgent"),
    _number("priority", 100),
    _json("payload"),
    _number("attempts"),
    _number("attempts_allowed", 5),
    _number("fence"),
    Column("worker", String(128)),
    _ms("leased_until_ms", empty=True),
    _ms("not_before_ms"),
    _text("reason"),
    _json("result", empty=True),
    _ms("created_ms"),
    _ms("changed_ms"),
    _words("state", "waiting", "leased", "done", "quarantined"),
    _belongs("slide_sha256", "slides"),
    UniqueConstraint("tenant", "slide_sha256", "step", "model"),  # I3: one effect for each of these
    Index(None, "state", "is_urgent", "priority", "created_ms"),
    Index(None, "tenant", "state", "is_urgent", "priority", "created_ms"),
)

OUTBOX = Table(
    "outbox",
    METADATA,
    Column("number", COUNTER, primary_key=True, autoincrement=True),
    _tenant(key=False),
    Column("key", String(256), nullable=False),
    Column("peer", String(128), nullable=False),
    Column("kind", String(64), nullable=False),
    _json("payload"),
    Column("blob_sha256", SHA256),
    Column("slide_sha256", SHA256),
    Column("tier", Integer, nullable=False),
    _yes_no("is_urgent"),
    _number("priority", 100),
    _number("size_bytes"),
    Column("state", String(16), nullable=False),
    _number("attempts"),
    _ms("not_before_ms"),
    _text("reason"),
    Column("receipt", String(256)),
    _ms("created_ms"),
    _ms("changed_ms"),
    _words("state", "waiting", "sent", "acknowledged", "withdrawn"),
    CheckConstraint("state <> 'acknowledged' OR receipt IS NOT NULL", name="acknowledged_by_receipt"),
    CheckConstraint("tier BETWEEN 0 AND 4", name="tier_known"),
    UniqueConstraint("tenant", "key"),
    Index(None, "tenant", "state", "peer"),
    Index(None, "tenant", "slide_sha256"),
    sqlite_autoincrement=True,  # a number is never given twice, also not after a deletion
)

INBOX = Table(
    "inbox",
    METADATA,
    _tenant(),
    _key("sender", String(128)),
    _key("message_id", String(256)),
    Column("kind", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("sha256", SHA256, nullable=False),
    Column("receipt", SHA256, nullable=False),
    _ms("received_ms"),
    Index(None, "tenant", "sender", "kind", "subject", "sequence"),
)

FINDINGS = Table(
    "findings",
    METADATA,
    _tenant(),
    _key("finding_id"),
    Column("slide_sha256", SHA256, nullable=False),
    Column("place", String(16), nullable=False),
    Column("head_id", String(128), nullable=False),
    Column("head_version", String(64), nullable=False),
    Column("head_sha256", SHA256, nullable=False),
    Column("fingerprint", SHA256, nullable=False),
    Column("task", String(128), nullable=False),
    _json("content"),
    Column("content_sha256", SHA256, nullable=False),
    _ms("created_ms"),
    _words("place", "edge", "cloud", "person"),
    _belongs("slide_sha256", "slides"),
    UniqueConstraint("tenant", "slide_sha256", "place", "head_sha256", "fingerprint", "task", name="uq_findings_once"),
)

REPORTS = Table(
    "reports",
    METADATA,
    _tenant(),
    _key("report_id", String(64)),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("case_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    _json("content"),
    Column("content_sha256", SHA256, nullable=False),
    Column("signed_by", String(128)),
    _ms("signed_ms", empty=True),
    _ms("created_ms"),
    _ms("changed_ms"),
    _words("state", "draft", "signed", "superseded"),
    CheckConstraint("state = 'draft' OR (signed_by IS NOT NULL AND signed_ms IS NOT NULL)", name="signed_by_someone"),
    _belongs("case_id", "cases"),
    Index(None, "tenant", "case_id"),
)

CONSULTATIONS = Table(
    "consultations",
    METADATA,
    _tenant(),
    _key("consultation_id", String(64)),
    Column("slide_sha256", SHA256, nullable=False),
    Column("organ", String(64), nullable=False),
    Column("centre", String(63), nullable=False),
    Column("asked_by", String(128), nullable=False),
    _json("question"),
    _yes_no("is_urgent"),
    Column("state", String(16), nullable=False),
    Column("specialist", String(128)),
    _json("answer", empty=True),
    _ms("asked_ms"),
    _ms("due_ms"),
    _ms("changed_ms"),
    _words("state", "open", "taken", "answered", "withdrawn"),
    CheckConstraint("state <> 'answered' OR answer IS NOT NULL", name="answered_with_answer"),
    _belongs("slide_sha256", "slides"),
    Index(None, "state", "organ", "due_ms"),
)

UPLOADS = Table(
    "uploads",
    METADATA,
    _tenant(),
    _key("upload_id", String(64)),
    Column("node", String(63), nullable=False),
    Column("sha256", SHA256),
    Column("length_bytes", BigInteger),  # null while the sender has not said it (tus: Upload-Defer-Length)
    _number("offset_bytes"),
    _json("facts"),
    Column("state", String(16), nullable=False),
    _ms("expires_ms"),
    _ms("created_ms"),
    _ms("changed_ms"),
    _words("state", "open", "complete", "ended"),
    CheckConstraint("length_bytes IS NULL OR offset_bytes <= length_bytes", name="within_length"),
    Index(None, "state", "expires_ms"),
)

AUDIT = Table(
    "audit",
    METADATA,
    _tenant(),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    _ms("at_ms"),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    _json("details"),
    Column("previous_sha256", SHA256, nullable=False),
    Column("sha256", SHA256, nullable=False),
)

# Where each chain ends, so that a cut-off tail shows; also what writers of one tenant wait for.
AUDIT_HEADS = Table(
    "audit_heads",
    METADATA,
    _tenant(),
    Column("sequence", BigInteger, nullable=False),
    Column("sha256", SHA256, nullable=False),
)

BYTES = Table(
    "bytes",
    METADATA,
    Column("number", COUNTER, primary_key=True, autoincrement=True),
    _tenant(key=False),
    Column("slide_sha256", String(64), nullable=False),  # empty for what belongs to no slide: heartbeats, commands
    Column("tier", Integer),  # null for what belongs to no tier
    Column("direction", String(3), nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("overhead_bytes", BigInteger, nullable=False),
    Column("peer", String(128), nullable=False),
    Column("transport", String(32), nullable=False),
    _ms("at_ms"),
    _words("direction", "out", "in"),
    CheckConstraint("tier IS NULL OR tier BETWEEN 0 AND 4", name="tier_known"),
    CheckConstraint("payload_bytes >= 0 AND overhead_bytes >= 0", name="not_negative"),
    Index(None, "tenant", "slide_sha256"),
    Index(None, "tenant", "at_ms"),
    sqlite_autoincrement=True,
)

# Sums over BYTES, which grows for ever: kept by a trigger, in the transaction that adds to the ledger.
BYTE_SUMS = Table(
    "byte_sums",
    METADATA,
    _tenant(),
    _key("peer", String(128)),
    _key("direction", String(3)),
    _number("payload_bytes"),
    _number("overhead_bytes"),
    _number("entries"),
    _words("direction", "out", "in"),
)

# All tables with a column `tenant`; PostgreSQL guards each by a row-level policy.
TENANT_TABLES = tuple(table for table in METADATA.sorted_tables if "tenant" in table.c)
APPEND_ONLY = ("audit", "bytes")
