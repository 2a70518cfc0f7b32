"""Every byte that left or came, by slide, tier and peer; rows are only ever added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, func, select

from slideway.store.facet import Facet
from slideway.store.schema import BYTE_SUMS, BYTES

Direction = Literal["out", "in"]
By = Literal["slide", "tier", "direction", "peer", "transport", "tenant"]
_COLUMNS = {
    "slide": BYTES.c.slide_sha256,
    "tier": BYTES.c.tier,
    "direction": BYTES.c.direction,
    "peer": BYTES.c.peer,
    "transport": BYTES.c.transport,
    "tenant": BYTES.c.tenant,
}


@dataclass(frozen=True)
class ByteEntry:
    """One transfer, or one part of one.

    Attributes:
        number: Grows with every entry of the store.
        tenant: Whose bytes.
        slide_sha256: Slide that they belong to; empty for none.
        tier: Tier of the bundle; None for none.
        direction: `out` of this machine or `in`.
        payload_bytes: What was meant.
        overhead_bytes: What went with it: headers, checksums, what was sent again.
        peer: The other side.
        transport: How, e.g. `tus` or `folder`.
        at_ms: When it was noted.
    """

    number: int
    tenant: str
    slide_sha256: str
    tier: int | None
    direction: str
    payload_bytes: int
    overhead_bytes: int
    peer: str
    transport: str
    at_ms: int


@dataclass(frozen=True)
class ByteTotal:
    """Sums over entries."""

    payload_bytes: int
    overhead_bytes: int
    entries: int

    @property
    def total_bytes(self) -> int:
        """All bytes on the line."""
        return self.payload_bytes + self.overhead_bytes


class ByteLedger(Facet):
    """Bytes of a tenant."""

    def record(
        self,
        slide_sha256: str,
        tier: int | None,
        direction: Direction,
        payload_bytes: int,
        overhead_bytes: int,
        peer: str,
        transport: str,
    ) -> None:
        """Note bytes that went over the line; also of attempts that failed.

        Args:
            slide_sha256: Slide that they belong to; empty for none.
            tier: 0 to 4; None for what belongs to no tier.
            direction: `out` of this machine or `in`.
            payload_bytes: What was meant, at least 0.
            overhead_bytes: What went with it, at least 0: headers, checksums, what was sent again.
            peer: The other side.
            transport: How, e.g. `tus` or `folder`.
        """
        self._insert(
            BYTES,
            slide_sha256=slide_sha256,
            tier=tier,
            direction=direction,
            payload_bytes=payload_bytes,
            overhead_bytes=overhead_bytes,
            peer=peer,
            transport=transport,
            at_ms=self._clock(),
        )

    def totals(
        self, by: By, *, slide_sha256: str | None = None, direction: Direction | None = None, since_ms: int = 0
    ) -> dict[str | int | None, ByteTotal]:
        """Sums by one property, in its order.

        Args:
            by: What to sum by.
            slide_sha256: Only of this slide.
            direction: Only out or only in.
            since_ms: Only what was noted at or after this time.
        """
        column: ColumnElement[str | int | None] = _COLUMNS[by]
        statement = (
            select(column, func.sum(BYTES.c.payload_bytes), func.sum(BYTES.c.overhead_bytes), func.count())
            .where(*self._where(slide_sha256, direction, since_ms))
            .group_by(column)
            .order_by(column)
        )
        return {row[0]: ByteTotal(int(row[1]), int(row[2]), int(row[3])) for row in self._connection.execute(statement)}

    def total(
        self, *, slide_sha256: str | None = None, direction: Direction | None = None, since_ms: int = 0
    ) -> ByteTotal:
        """The sum of all that fits; zeros when nothing does. Of all slides and times it costs a row for each peer."""
        if slide_sha256 is None and not since_ms:
            return self._total_of_peers(direction)
        sums = func.sum(BYTES.c.payload_bytes), func.sum(BYTES.c.overhead_bytes), func.count()
        row = self._connection.execute(select(*sums).where(*self._where(slide_sha256, direction, since_ms))).one()
        return ByteTotal(int(row[0] or 0), int(row[1] or 0), int(row[2]))

    def sums_by_peer(self, *, direction: Direction) -> dict[tuple[str, str], ByteTotal]:
        """All that ever went one way, by (tenant, peer): as many rows as there are peers, however long the ledger is.

        In the transaction of all, over all tenants.
        """
        columns = [BYTE_SUMS.c[name] for name in ("tenant", "peer", "payload_bytes", "overhead_bytes", "entries")]
        statement = select(*columns).where(self._mine(BYTE_SUMS), BYTE_SUMS.c.direction == direction)
        return {
            (row.tenant, row.peer): ByteTotal(int(row.payload_bytes), int(row.overhead_bytes), int(row.entries))
            for row in self._connection.execute(statement)
        }

    def entries(self, *, slide_sha256: str | None = None, since_ms: int = 0) -> Iterator[ByteEntry]:
        """Entries in the order in which they were noted, one by one: there may be many."""
        return self._walk(ByteEntry, BYTES, "number", *self._where(slide_sha256, None, since_ms))

    def _total_of_peers(self, direction: Direction | None) -> ByteTotal:
        sums = [func.sum(BYTE_SUMS.c[name]) for name in ("payload_bytes", "overhead_bytes", "entries")]
        where = [self._mine(BYTE_SUMS), *([] if direction is None else [BYTE_SUMS.c.direction == direction])]
        row = self._connection.execute(select(*sums).where(*where)).one()
        return ByteTotal(int(row[0] or 0), int(row[1] or 0), int(row[2] or 0))

    def _where(self, slide_sha256: str | None, direction: str | None, since_ms: int) -> list[ColumnElement[bool]]:
        where = [self._mine(BYTES), BYTES.c.at_ms >= since_ms]
        where += [] if slide_sha256 is None else [BYTES.c.slide_sha256 == slide_sha256]
        return where + ([] if direction is None else [BYTES.c.direction == direction])
