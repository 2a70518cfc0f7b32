"""What a bundle costs the cloud: the figures that bench/cloud/load.py rests on, held where no clock is needed."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import anyio.to_thread
import pytest
from sqlalchemy import event
from sqlalchemy.engine import make_url

from slideway.cloud import serve
from slideway.cloud.worker import _CHILD_NICE, _begin_child
from slideway.store import postgresql


def test_a_bundle_by_tiers_takes_few_transactions(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(seed=901)
    plan, engine, begun = node.plan(content), shared_house.cloud.store.engine, []
    note = begun.append
    node.line.find_upload(node.line.begin_upload(node.plan(node.pack(seed=902))).path)  # its session is there now
    event.listen(engine, "begin", note)
    try:
        progress = node.line.begin_upload(plan, content[: plan.ends_bytes[0]])
        for end in plan.ends_bytes[1:]:
            progress = node.line.send_part(progress.path, progress.offset_bytes, content[progress.offset_bytes : end])
    finally:
        event.remove(engine, "begin", note)
    assert set(progress.receipts) == {0, 1, 2}
    # For each of three requests: who sends, where its upload is, its bytes, what is here, what takes effect.
    assert len(begun) <= 3 * 5


def test_a_bundle_in_many_chunks_is_taken_whole(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(seed=903, n=3000, width=384)
    assert len(content) > 2**18 * 1.5  # more than is held before it goes to disk
    assert set(node.send(content)) == {0, 1, 2}


def test_receipts_that_were_lost_come_again_with_the_same_words(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(seed=904)
    first = node.send(content)
    progress = node.line.begin_upload(node.plan(content))
    assert dict(progress.receipts) == first
    assert dict(node.line.find_upload(progress.path).receipts) == first


def test_requests_use_no_more_threads_than_the_store_keeps_connections():
    pytest.importorskip("psycopg")
    place = postgresql.open_place(
        make_url("postgresql+psycopg://a@127.0.0.1:1/b"), backup=None, allow_without_backup=True
    )
    try:
        assert place.engine.pool.size() >= serve._THREADS
    finally:
        place.engine.dispose()


def test_serving_limits_its_threads():
    async def look() -> float:
        serve._limit_threads()
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert anyio.run(look) == serve._THREADS


@pytest.mark.skipif(sys.platform == "win32", reason="no niceness there")
def test_computing_comes_after_what_takes_bundles_in():
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin_child, initargs=(1,)) as pool:
        assert pool.submit(os.nice, 0).result() - os.nice(0) == _CHILD_NICE
