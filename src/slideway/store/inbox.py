"""What has arrived: each message takes effect once, however often and in whatever order it comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select

from slideway.core.errors import ConflictError
from slideway.store.facet import Facet, hash_json
from slideway.store.schema import INBOX

_KNOWN = select(INBOX.c.message_id).where(
    INBOX.c.tenant == bindparam("own_tenant"),
    INBOX.c.sender == bindparam("own_sender"),
    INBOX.c.message_id.in_(bindparam("ids", expanding=True)),
)


@dataclass(frozen=True)
class InboxMessage:
    """A message that was accepted.

    Attributes:
        tenant: Whose it is.
        sender: Who sent it.
        message_id: Its name, the sender's own.
        kind: What it is.
        subject: What it is about; of one kind and subject the highest sequence is the newest.
        sequence: The sender's own count.
        sha256: Hash of its content.
        receipt: What the sender gets, now and every time it asks again.
        received_ms: When it first came.
    """

    tenant: str
    sender: str
    message_id: str
    kind: str
    subject: str
    sequence: int
    sha256: str
    receipt: str
    received_ms: int


@dataclass(frozen=True)
class Acceptance:
    """What to do with a message that came.

    Attributes:
        receipt: For the sender, once the transaction is committed.
        is_new: It was not here before: let it take effect, in this transaction.
        is_newest: Nothing newer of its kind on its subject came before it; a late one is kept but must not overwrite.
    """

    receipt: str
    is_new: bool
    is_newest: bool


class Inbox(Facet):
    """Messages that a tenant has received."""

    def accept(
        self, sender: str, message_id: str, *, kind: str, sha256: str, sequence: int = 0, subject: str = ""
    ) -> Acceptance:
        """Take a message in; a duplicate gets the same receipt and takes no effect.

        Args:
            sender: Who sent it.
            message_id: The sender's own name for it.
            kind: What it is.
            sha256: Hash of the content that was received and verified, in hex.
            sequence: The sender's count; messages may come in any order.
            subject: What it is about, as a slide's hash.

        Raises:
            ConflictError: The sender used the id for other content.
        """
        message, is_new = self.add(sender, message_id, kind=kind, sha256=sha256, sequence=sequence, subject=subject)
        newest = self._newest(message)
        return Acceptance(message.receipt, is_new, message.sequence >= newest)

    def add(
        self, sender: str, message_id: str, *, kind: str, sha256: str, sequence: int = 0, subject: str = ""
    ) -> tuple[InboxMessage, bool]:
        """As `accept`, for what nothing newer can come before; the message, and whether it is new.

        Raises:
            ConflictError: The sender used the id for other content.
        """
        message, is_new = self._add(
            InboxMessage,
            INBOX,
            {"sender": sender, "message_id": message_id},
            kind=kind,
            subject=subject,
            sequence=sequence,
            sha256=sha256,
            receipt=hash_json([self._own, sender, message_id, sha256]),
            received_ms=self._clock(),
        )
        if message.sha256 != sha256:
            raise ConflictError(f"inbox: {message_id} of {sender} came before with other content; it was not accepted")
        return message, is_new

    def get(self, sender: str, message_id: str) -> InboxMessage:
        """The message of a sender's id."""
        return self._get(InboxMessage, INBOX, sender=sender, message_id=message_id)

    def find(self, sender: str, message_id: str) -> InboxMessage | None:
        """The message of a sender's id, or None."""
        return self._find_key(InboxMessage, INBOX, sender=sender, message_id=message_id)

    def find_known(self, sender: str, message_ids: Sequence[str]) -> set[str]:
        """Which of these came before."""
        values = {"own_tenant": self._own, "own_sender": sender, "ids": list(message_ids)}
        return {row[0] for row in self._connection.execute(_KNOWN, values)}

    def find_all(self, *, sender: str | None = None, limit: int | None = None) -> list[InboxMessage]:
        """Messages in the order in which they came."""
        where = [] if sender is None else [INBOX.c.sender == sender]
        order = [INBOX.c.received_ms.asc(), INBOX.c.sequence.asc(), INBOX.c.message_id.asc()]
        return self._list(InboxMessage, INBOX, *where, order=order, limit=limit)

    def _newest(self, message: InboxMessage) -> int:
        like_it = self._key(INBOX, sender=message.sender, kind=message.kind, subject=message.subject)
        return int(self._connection.execute(select(func.max(INBOX.c.sequence)).where(like_it)).scalar_one())
