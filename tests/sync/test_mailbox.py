"""What waits for a peer: as much at a time as it unpacks, and all of it in the end."""

from __future__ import annotations

import pytest

from slideway.core.errors import LineRefusedError
from slideway.store.database import Store
from slideway.sync.mailbox import acknowledge, cut_batches, find_messages, next_messages
from slideway.sync.messages import (
    MAX_BATCH_MESSAGES,
    MAX_MESSAGE_BYTES,
    Message,
    pack_json,
    parse_messages,
    unpack_json,
)
from slideway.sync.outgoing import put_message

from .conftest import NODE, TENANT, Cloud

COUNT = 80


def fill(store: Store, letter: str) -> None:
    body = {"text": letter * ((MAX_MESSAGE_BYTES - 500) // len(letter.encode()))}
    with store.transaction(TENANT) as work:
        for number in range(COUNT):
            put_message(work, Message(f"o{number}", "opinion", f"{number}", 0, body), peer=NODE)


@pytest.mark.parametrize("letter", ["a", "é"])  # one byte of UTF-8, and two
def test_long_messages_that_have_gathered_for_a_week_all_come_through(cloud: Cloud, letter: str) -> None:
    fill(cloud.store, letter)
    came: list[str] = []
    while True:
        with cloud.store.reading(TENANT) as work:
            given = next_messages(work, NODE)
        if not given:
            break
        sent = {"messages": [{"number": item.number, **item.message.content} for item in given]}
        came += [item["id"] for item in unpack_json(pack_json(sent))["messages"]]
        with cloud.store.transaction(TENANT) as work:
            acknowledge(work, NODE, [item.number for item in given])
    assert came == [f"o{number}" for number in range(COUNT)]


def test_all_at_once_would_be_more_than_a_peer_unpacks(cloud: Cloud) -> None:
    fill(cloud.store, "a")
    with cloud.store.reading(TENANT) as work:
        found = find_messages(work, NODE, limit=COUNT)
    with pytest.raises(LineRefusedError):
        unpack_json(pack_json({"messages": [item.message.content for item in found]}))
    batches = list(cut_batches(found, most=64))
    assert [item for batch in batches for item in batch] == found
    assert [len(batch) for batch in cut_batches(found[:5], most=2)] == [2, 2, 1]
    assert not list(cut_batches([]))


def test_what_a_peer_refused_does_not_stand_before_the_others(cloud: Cloud) -> None:
    with cloud.store.transaction(TENANT) as work:
        for number in range(5):
            put_message(work, Message(f"o{number}", "opinion", "", number, {}), peer=NODE)
        numbers = [item.number for item in find_messages(work, NODE, limit=5)]
        given = next_messages(work, NODE, limit=2, without=numbers[:3])
    assert [item.message.id for item in given] == ["o3", "o4"]


def test_a_batch_has_at_most_a_thousand_messages() -> None:
    items = [Message(f"m{number}", "status", "", 0, {}).content for number in range(MAX_BATCH_MESSAGES + 1)]
    assert len(parse_messages(items[1:])) == 1_000
    with pytest.raises(LineRefusedError, match="at most 1,000 in a batch") as refused:
        parse_messages(items)
    assert refused.value.status == 422
