"""On the cloud's own database: many requests for one upload and one message, each effect once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slideway.core.errors import SlidewayError
from slideway.store.database import Store, open_store
from slideway.sync.identity import make_keys
from slideway.sync.mailbox import accept_messages
from slideway.sync.messages import Message
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Shelf
from slideway.testing.postgres import serve_or_skip

from .conftest import NODE, TENANT, KeepingIntake, a_file, a_plan, effects, note_arrival


@pytest.fixture
def store() -> Iterator[Store]:
    with serve_or_skip() as server, open_store(server.add_database("sync", owner="slideway")) as store:
        store.add_tenant(TENANT)
        yield store


def test_concurrent_writers_of_one_upload_and_one_message_have_one_effect(store: Store, tmp_path: Path) -> None:
    keys, intake, sender = make_keys(), KeepingIntake(), Sender(TENANT, NODE)
    content = a_file(60_000)
    plan = a_plan(content, 10_000, 60_000)
    message = Message("m", "status", "", 1, {})
    receipts: set[str] = set()

    def write() -> None:
        shelf = Shelf(store, tmp_path / "parts", signing=keys.signing, intake=intake)
        upload = shelf.begin(sender, plan, len(content))
        while len(receipts) < 3 or upload.offset_bytes < len(content):
            at = upload.offset_bytes
            try:
                if at < len(content):
                    shelf.append(upload, at, content[at : at + 10_000])
                found = shelf.find(sender, upload.upload_id)
                assert found is not None
                upload = found
                receipts.update(shelf.settle(sender, upload).receipts.values())
                given, _ = accept_messages(store, TENANT, NODE, [message], {"status": note_arrival}, keys.signing)
                receipts.update(given.values())
            except (SlidewayError, FileNotFoundError):  # another was faster
                found = shelf.find(sender, upload.upload_id)
                assert found is not None
                upload = found

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(effects(store, "took")) == [piece.key for piece in plan.pieces]
    assert effects(store, "message") == ["m"]
    assert intake.kept[plan.pieces[1].key] == content
    assert len(receipts) == 3
