"""Take messages in exactly once, and give out what waits for a peer until it says that it has taken it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slideway.core.crash import crash_here
from slideway.core.errors import LineRefusedError, SlidewayError, StoreError
from slideway.registry.keys import SigningKey
from slideway.store.database import Store
from slideway.store.schema import canonical_json
from slideway.store.work import Work
from slideway.sync.bugs import BUG, describe_bug, log_bug
from slideway.sync.identity import sign_receipt
from slideway.sync.messages import MAX_BATCH_BYTES, Message
from slideway.sync.outgoing import message_of

_SPAN = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
MAX_NUMBERS = 1000
"""So many numbers of messages are named at once."""
_ROUND_BYTES = 64  # of a delivery beside its message: its number, and what stands between
_MOST_BYTES = MAX_BATCH_BYTES - 2**12


@dataclass(frozen=True)
class Arrival:
    """A message that has arrived for the first time.

    Attributes:
        message: The message.
        sender: Who sent it: a node's id, or `cloud`.
        is_newest: Nothing newer of its kind on its subject came before it; a late one must not overwrite.
    """

    message: Message
    sender: str
    is_newest: bool


Handler = Callable[[Work, Arrival], None]
"""Lets a message take effect, inside the transaction that takes it in; an error refuses the message."""


@dataclass(frozen=True)
class Refusal:
    """Why a message was not taken in: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Taken:
    """What became of a batch.

    Attributes:
        ids: Messages that are durably here, now or from before.
        refused: The others, by id.
    """

    ids: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a peer that fetches.

    Attributes:
        number: What the peer says when it has taken it.
        message: The message.
    """

    number: int
    message: Message


def take_messages(
    store: Store,
    tenant: str,
    sender: str,
    messages: Sequence[Message],
    handlers: Mapping[str, Handler],
    *,
    also: Callable[[Work], object] | None = None,
) -> Taken:
    """Take messages in, each with its effect, exactly once; a message that is refused stands in nobody's way.

    Args:
        store: Where to.
        tenant: Whose.
        sender: Who sent them.
        messages: In any order; duplicates are harmless.
        handlers: What each kind does; a kind without one is refused.
        also: Done once, in a transaction that takes messages in where there is one, e.g. to note what they cost.

    Returns:
        `ids` maps id to the hash of the content.

    Raises:
        StoreError: The store cannot write now; nothing of what was not taken before is taken.
    """
    try:
        return Taken(ids=_take(store, tenant, sender, messages, handlers, also))
    except StoreError:
        raise
    except SlidewayError:
        pass  # one of them is refused: take them one by one
    except Exception as error:  # noqa: BLE001  # one that nobody foresaw must not keep the others out
        log_bug("messages", error)
    taken = Taken()
    for message in messages:
        try:
            taken.ids.update(_take(store, tenant, sender, [message], handlers, also))
            also = None
        except StoreError:
            raise
        except SlidewayError as error:
            code = error.refusal if isinstance(error, LineRefusedError) and error.refusal else error.code
            taken.refused[message.id] = Refusal(code, str(error))
        except Exception as error:  # noqa: BLE001  # as above
            taken.refused[message.id] = Refusal(BUG, describe_bug(error))
    if also is not None:
        store.retrying(tenant, also)
    return taken


def accept_messages(
    store: Store,
    tenant: str,
    node: str,
    messages: Sequence[Message],
    handlers: Mapping[str, Handler],
    signing: SigningKey,
) -> tuple[dict[str, str], dict[str, Refusal]]:
    """What the cloud does with a node's batch: take it in, then sign a receipt for each message that is durably here.

    Messages of kind `taken` are understood here: the node says which of ours it has.

    Returns:
        Receipts by id, and what was refused by id.
    """
    ours = {"taken": _note_taken, **handlers}
    taken = take_messages(store, tenant, node, messages, ours)
    receipts = {
        key: sign_receipt(signing, tenant=tenant, node=node, key=key, sha256=sha256)
        for key, sha256 in taken.ids.items()
    }
    return receipts, taken.refused


def next_messages(work: Work, peer: str, *, limit: int = 100, without: Collection[int] = ()) -> list[Delivery]:
    """What a peer has not taken yet, most pressing first, as much as it unpacks of one answer; the rest comes next.

    It comes again until `acknowledge` names it.

    Args:
        work: Transaction.
        peer: Whose.
        limit: At most so many.
        without: Numbers that the peer refused: they wait, and do not stand before what it could take.
    """
    passed_over = frozenset(without)
    found = find_messages(work, peer, limit=limit + len(passed_over))
    return next(cut_batches([item for item in found if item.number not in passed_over], most=limit), [])


def find_messages(work: Work, peer: str, *, limit: int) -> list[Delivery]:
    """What a peer has not taken yet, most pressing first; perhaps more than it unpacks at once: see `cut_batches`."""
    return [Delivery(row.number, message_of(row)) for row in work.outbox.find_open(peer=peer, limit=limit)]


def cut_batches(deliveries: Sequence[Delivery], *, most: int = 1000) -> Iterator[list[Delivery]]:
    """Deliveries in their order, in batches of at most `most`, none longer than its receiver unpacks."""
    batch, n_bytes = list[Delivery](), 0
    for delivery in deliveries:
        own = len(canonical_json(delivery.message.content).encode("utf-8")) + _ROUND_BYTES
        if batch and (n_bytes + own > _MOST_BYTES or len(batch) == most):
            yield batch
            batch, n_bytes = [], 0
        batch.append(delivery)
        n_bytes += own
    if batch:
        yield batch


def acknowledge(work: Work, peer: str, numbers: Sequence[int]) -> int:
    """Note that a peer has taken exactly these; how many of them were still open."""
    return work.outbox.acknowledge_numbers(numbers, peer=peer, receipt=f"taken-by:{peer}") if numbers else 0


def write_numbers(numbers: Sequence[int]) -> str:
    """Numbers as short text, e.g. `4-6,9`."""
    parts: list[str] = []
    ordered, start = sorted(set(numbers)), 0
    for i, number in enumerate(ordered):
        if i + 1 < len(ordered) and ordered[i + 1] == number + 1:
            continue
        first = ordered[start]
        parts.append(str(number) if first == number else f"{first}-{number}")
        start = i + 1
    return ",".join(parts)


def read_numbers(text: str, *, limit: int = MAX_NUMBERS, name: str = "taken") -> list[int]:
    """What `write_numbers` wrote; an error says it of `name`.

    Raises:
        LineRefusedError: It is something else, or more than `limit`.
    """
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        found = _SPAN.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            raise LineRefusedError(f"{name}: numbers as in 4-6,9", status=422, refusal="message-malformed")
        if last - first >= limit - len(numbers):  # before anything of that length is made
            raise LineRefusedError(f"{name}: at most {limit} numbers", status=422, refusal="message-malformed")
        numbers.extend(range(first, last + 1))
    return numbers


def _take(
    store: Store,
    tenant: str,
    sender: str,
    messages: Sequence[Message],
    handlers: Mapping[str, Handler],
    also: Callable[[Work], object] | None,
) -> dict[str, str]:
    were_new = set[str]()  # in any try: when none of them is new any more, a commit whose answer was lost was one

    def take(work: Work) -> dict[str, str]:
        hashes, new = {}, set[str]()
        for message in messages:
            if _take_one(work, sender, message, handlers):
                new.add(message.id)
            hashes[message.id] = message.sha256
        if also is not None and not (were_new and not new):
            also(work)
        were_new.update(new)
        crash_here("mailbox.before-commit")
        return hashes

    hashes = store.retrying(tenant, take)
    crash_here("mailbox.after-commit")
    return hashes


def _take_one(work: Work, sender: str, message: Message, handlers: Mapping[str, Handler]) -> bool:
    """Whether it is new."""
    handler = handlers.get(message.kind)
    if handler is None:
        raise LineRefusedError(f"{message.kind!r}: unknown here", status=422, refusal="message-unknown")
    acceptance = work.inbox.accept(
        sender,
        message.id,
        kind=message.kind,
        sha256=message.sha256,
        sequence=message.sequence,
        subject=message.subject,
    )
    if acceptance.is_new:
        handler(work, Arrival(message, sender, acceptance.is_newest))
    return acceptance.is_new


def _note_taken(work: Work, arrival: Arrival) -> None:
    numbers: Any = arrival.message.body.get("numbers")
    acknowledge(work, arrival.sender, read_numbers(numbers if isinstance(numbers, str) else "?"))
