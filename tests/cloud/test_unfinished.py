"""A bundle whose rest never comes: what was acknowledged of it stays durable when its part file goes."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
from tests.cloud.conftest import plan_of

from slideway.bundles.read import read_bundle
from slideway.cloud.app import make_shelf
from slideway.cloud.ingest import Ingest
from slideway.core.errors import ConflictError
from slideway.store.blobs import CHUNK_BYTES
from slideway.sync.outgoing import Piece
from slideway.sync.sessions import Sender
from slideway.sync.shelf import name_upload


def expire(house, node, plan) -> int:
    upload_id = name_upload(Sender(node.tenant, node.node), plan)
    with house.cloud.store.transaction(node.tenant) as work:
        at = work.uploads.get(upload_id).offset_bytes
        work.uploads.advance(upload_id, from_bytes=at, to_bytes=at, within_seconds=-1)
    return make_shelf(house.cloud).remove_expired(node.tenant)


def test_tier_0_that_was_acknowledged_outlives_its_part_file(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(seed=931)
    plan = plan_of(content, slide=hashlib.sha256(b"931").hexdigest())
    assert set(node.line.begin_upload(plan, content[: plan.ends_bytes[0]]).receipts) == {0}
    assert expire(shared_house, node, plan) == 1
    cloud = shared_house.cloud
    assert not list((cloud.settings.uploads_folder / tenant).glob("*.part"))
    with cloud.store.reading(tenant) as work:
        kept = work.slides.get(plan.slide).facts["kept"][plan.sha256]
        (entry,) = [entry for entry in work.audit.entries() if entry.action == "bundle-unfinished"]
    assert (kept["tier"], kept["node"], kept["blob"]) == (0, "lab-1", entry.details["blob"])
    blob = cloud.blobs.get(tenant, kept["blob"])
    assert blob == content[: plan.ends_bytes[0]]
    assert read_bundle(blob, key=cloud.folder.keys.receiving).summary.slide_sha256 == plan.slide


def test_a_bundle_that_expired_can_come_again_and_gets_the_same_receipts(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(seed=932)
    first = node.send(content, upto=1)
    assert expire(shared_house, node, node.plan(content)) == 1
    again = node.send(content)
    assert set(again) == {0, 1, 2}
    assert {tier: again[tier] for tier in first} == first


def test_a_sender_that_gives_an_upload_up_takes_nothing_back(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(seed=933)
    plan = node.plan(content)
    node.send(content, upto=0)
    node.line.end_upload(node.line.begin_upload(plan).path)
    with shared_house.cloud.store.reading(tenant) as work:
        (entry,) = [entry for entry in work.audit.entries() if entry.action == "bundle-unfinished"]
    assert shared_house.cloud.blobs.get(tenant, entry.details["blob"]) == content[: plan.ends_bytes[0]]


def test_a_part_file_that_was_cut_short_here_does_not_refuse_the_bundle_for_good(shared_house, tenant, tmp_path):
    node, cloud = shared_house.enrol(tenant, "lab-1"), shared_house.cloud
    content = node.pack(seed=934)
    plan, part = node.plan(content), tmp_path / "short.part"
    part.write_bytes(content[:100])
    ingest = Ingest(cloud.store, cloud.blobs, cloud.folder.keys, cloud.settings, cloud.metrics)
    with pytest.raises(ConflictError, match="begins again"):
        ingest.keep(Sender(tenant, "lab-1"), plan, plan.pieces[0], part)
    with cloud.store.reading(tenant) as work:
        assert not [row for row in work.outbox.find_open(peer="lab-1") if row.kind == "rejected"]
    assert set(node.send(content)) == {0, 1, 2}


def test_few_large_files_are_verified_at_a_time_and_small_ones_wait_for_none(monkeypatch):
    running, most, lock = 0, [], threading.Lock()

    def read_whole(*_):
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        time.sleep(0.05)
        with lock:
            running -= 1

    monkeypatch.setattr(Ingest, "_read_whole", read_whole)
    ingest, sender = object.__new__(Ingest), Sender("north", "lab-1")
    for n_bytes in (CHUNK_BYTES + 1, CHUNK_BYTES):
        most.clear()
        piece = Piece(2, "key", 0, n_bytes)
        threads = [threading.Thread(target=ingest._verify, args=(sender, None, piece, None)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 2 if n_bytes > CHUNK_BYTES else max(most) > 2


def test_a_node_that_begins_and_gives_up_for_ever_fills_nothing(shared_house, tenant):
    node, cloud = shared_house.enrol(tenant, "lab-1"), shared_house.cloud
    for _ in range(10):
        content = node.pack(seed=935)  # locked anew: another bundle of the same slide
        node.send(content, upto=0)
        node.line.end_upload(node.line.begin_upload(node.plan(content)).path)
    slide = hashlib.sha256(b"935").hexdigest()
    with cloud.store.reading(tenant) as work:
        kept = work.slides.get(slide).facts["kept"]
        blobs = [entry.details["blob"] for entry in work.audit.entries() if entry.action == "bundle-unfinished"]
    assert len(kept) == 8
    assert {blob for blob in blobs if blob} == {row["blob"] for row in kept.values()}
    assert blobs[8:] == ["", ""]
    assert set(node.send(content)) == {0, 1, 2}  # the last one can come all the same
    shared_house.work()
    assert [opinion["tiles"] for opinion in node.fetch("opinion")] == [60]
