"""What a bundle costs the cloud: the figures that bench/cloud/load.py rests on, held where no clock is needed."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from asyncio import sslproto
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import anyio.to_thread
import pytest
from sqlalchemy import event
from sqlalchemy.engine import make_url

from slideway.cloud import serve
from slideway.cloud.worker import _CHILD_NICE, _begin_child
from slideway.store import postgresql


def test_a_bundle_by_tiers_takes_few_transactions_and_statements(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    for seed in (901, 902):  # the first of a node makes what all others find: its session, the head of its audit
        content = node.pack(
            seed=seed, case=f"KZ2QGX7LB3MWO{seed}".replace("9", "A").replace("0", "B").replace("1", "C")
        )
        plan, engine, begun, asked = node.plan(content), shared_house.cloud.store.engine, [], []

        def note_statement(*told, asked=asked):
            asked.append(told[2])

        note = begun.append
        event.listen(engine, "begin", note)
        event.listen(engine, "before_cursor_execute", note_statement)
        try:
            progress = node.line.begin_upload(plan, content[: plan.ends_bytes[0]])
            for end in plan.ends_bytes[1:]:
                part = content[progress.offset_bytes : end]
                progress = node.line.send_part(progress.path, progress.offset_bytes, part)
        finally:
            event.remove(engine, "begin", note)
            event.remove(engine, "before_cursor_execute", note_statement)
        assert set(progress.receipts) == {0, 1, 2}
    # For each of three requests: one for who sends, where its upload is and its bytes, one for what takes effect.
    assert len(begun) == 3 * 2
    assert len([text for text in asked if not text.startswith(("PRAGMA", "BEGIN"))]) <= 39


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


def test_an_idle_tls_connection_holds_little_to_read_into(monkeypatch):
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    serve._limit_tls_memory()

    async def connect() -> int:
        tls = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        protocol = sslproto.SSLProtocol(loop, asyncio.Protocol(), tls, loop.create_future())
        protocol._app_transport._closed = True  # there is no line to close
        return len(protocol._ssl_buffer)

    assert asyncio.run(connect()) <= 32 * 2**10


def test_serving_limits_its_threads():
    async def look() -> float:
        serve._limit_threads()
        return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert anyio.run(look) == serve._THREADS


@pytest.mark.skipif(sys.platform == "win32", reason="no niceness there")
def test_computing_comes_after_what_takes_bundles_in():
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin_child, initargs=(1,)) as pool:
        assert pool.submit(os.nice, 0).result() - os.nice(0) == _CHILD_NICE
