"""Who did what when, in a chain of hashes: entries are only added, and a change anywhere shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, bindparam, select, update

from slideway.core.errors import BrokenChainError
from slideway.store.facet import Clock, Facet, hash_json
from slideway.store.schema import AUDIT, AUDIT_HEADS

START = "0" * 64  # what the first entry follows
Detail = str | int | bool | None

# Ids, codes and hashes have no spaces; names, diagnoses and addresses do. A fence against the common slip, not a proof.
_TOKEN = re.compile(r"[A-Za-z0-9_.:/+=@*-]{0,256}")

_HOLD_HEAD = (
    select(AUDIT_HEADS.c.sequence, AUDIT_HEADS.c.sha256)
    .where(AUDIT_HEADS.c.tenant == bindparam("own_tenant"))
    .with_for_update()
)
_MOVE_HEAD = (
    update(AUDIT_HEADS)
    .where(AUDIT_HEADS.c.tenant == bindparam("own_tenant"))
    .values(sequence=bindparam("new_sequence"), sha256=bindparam("new_sha256"))
)
_ADD = AUDIT.insert()


@dataclass(frozen=True)
class AuditEntry:
    """One entry of a tenant's chain.

    Attributes:
        tenant: Whose chain.
        sequence: 1, 2, 3 …
        at_ms: When it was written.
        actor: Who: a user's id, a node, a worker.
        action: What, as a code, e.g. `slide-rejected`.
        subject: On what, as an id or hash.
        details: Codes, ids and numbers.
        previous_sha256: Hash of the entry before.
        sha256: Hash over all of the above.
    """

    tenant: str
    sequence: int
    at_ms: int
    actor: str
    action: str
    subject: str
    details: Mapping[str, Detail]
    previous_sha256: str
    sha256: str


@dataclass(frozen=True)
class ChainEnd:
    """Where a verified chain ends.

    Attributes:
        entries: How many there are.
        sha256: Hash of the last; 64 zeros of an empty chain.
    """

    entries: int
    sha256: str


class Audit(Facet):
    """The audit of a tenant."""

    def __init__(self, connection: Connection, tenant: str | None, clock: Clock) -> None:
        super().__init__(connection, tenant, clock)
        self._to_write: list[dict[str, object]] = []

    def append(self, action: str, *, actor: str, subject: str, details: Mapping[str, Detail] | None = None) -> None:
        """Add an entry; it is written as the transaction's last step, so that transactions wait for each other least.

        Raises:
            ValueError: A text holds a space or another sign that ids and codes do not have: no names, no sentences.
        """
        details = dict(details or {})
        for text in (action, actor, subject, *details, *(v for v in details.values() if isinstance(v, str))):
            if not _TOKEN.fullmatch(text):
                raise ValueError(f"audit {action!r}: only ids, codes and numbers; a text with other signs is not kept")
        self._to_write.append(
            {
                "tenant": self._own,
                "at_ms": self._clock(),
                "actor": actor,
                "action": action,
                "subject": subject,
                "details": details,
            }
        )

    def write(self) -> None:
        """Write what was appended; the transaction calls it before it commits."""
        if not self._to_write:
            return
        entries, self._to_write = self._to_write, []
        head = self._hold_head()
        if head is None:  # the first entry of all
            self._insert(AUDIT_HEADS, sequence=0, sha256=START)
            head = self._hold_head()
            assert head is not None
        sequence, last = head
        for entry in entries:
            sequence += 1
            entry |= {"sequence": sequence, "previous_sha256": last}
            last = hash_json(entry)
            entry["sha256"] = last
        self._connection.execute(_ADD, entries)
        self._connection.execute(_MOVE_HEAD, {"own_tenant": self._own, "new_sequence": sequence, "new_sha256": last})

    def _hold_head(self) -> tuple[int, str] | None:
        row = self._connection.execute(_HOLD_HEAD, {"own_tenant": self._own}).first()
        return None if row is None else (int(row.sequence), str(row.sha256))

    def entries(self, *, after: int = 0) -> Iterator[AuditEntry]:
        """Entries in their order, behind a sequence, one by one: there may be many."""
        return self._walk(AuditEntry, AUDIT, "sequence", self._key(AUDIT), after=after)

    def head(self) -> ChainEnd:
        """Where the chain should end; to be kept elsewhere too, as a witness."""
        columns = AUDIT_HEADS.c.sequence, AUDIT_HEADS.c.sha256
        row = self._connection.execute(select(*columns).where(self._key(AUDIT_HEADS))).first()
        return ChainEnd(0, START) if row is None else ChainEnd(int(row.sequence), str(row.sha256))

    def verify_chain(self, *, witness: ChainEnd | None = None) -> ChainEnd:
        """Recompute the chain from its start.

        Args:
            witness: An earlier end that was kept elsewhere; the chain must contain it.

        Raises:
            BrokenChainError: An entry was changed, removed or put in, at the sequence named.
        """
        sequence, last = 0, START
        for entry in self.entries():
            said = asdict(entry)
            sha256 = said.pop("sha256")
            if entry.sequence != sequence + 1 or entry.previous_sha256 != last or hash_json(said) != sha256:
                raise _broken(self._own, sequence + 1)
            sequence, last = entry.sequence, sha256
            if witness is not None and witness.entries == sequence and witness.sha256 != last:
                raise _broken(self._own, sequence)
        end = ChainEnd(sequence, last)
        if self.head() != end or (witness is not None and witness.entries > sequence):
            raise _broken(self._own, sequence + 1)
        return end


def _broken(tenant: str, sequence: int) -> BrokenChainError:
    return BrokenChainError(
        f"audit of {tenant}: entry {sequence} is not what was written; stop, keep this store as it is, and compare it "
        "with its backups"
    )
