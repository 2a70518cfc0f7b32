"""Nodes are enrolled by a code that works once; uploads go on where they stopped."""

from __future__ import annotations

import pytest

from slideway.core.errors import ConflictError, TransitionError, UnknownRecordError
from slideway.store.nodes import NodeState
from slideway.store.uploads import UploadState

CODE, OTHER = "a" * 64, "b" * 64


def test_a_code_enrols_one_node_once(store):
    with store.transaction("north") as work:
        assert work.nodes.invite("node1", code_sha256=CODE, within_seconds=60, name="Lab").state is NodeState.INVITED
        assert work.nodes.find_by_key("") == []
    with store.transaction_of_all() as everything:
        node = everything.nodes.enrol(CODE, public_key="key1")
        assert (node.tenant, node.node, node.state, node.public_key) == ("north", "node1", "enrolled", "key1")
        with pytest.raises(UnknownRecordError):
            everything.nodes.enrol(CODE, public_key="thief")
        assert [node.tenant for node in everything.nodes.find_by_key("key1")] == ["north"]


def test_a_code_that_is_too_old_or_taken_enrols_nobody(store, clock):
    with store.transaction("north") as work:
        work.nodes.invite("node1", code_sha256=CODE, within_seconds=60)
    with pytest.raises(ConflictError, match="new one"), store.transaction("south") as work:
        work.nodes.invite("node9", code_sha256=CODE, within_seconds=60)
    clock.move(61)
    with pytest.raises(UnknownRecordError), store.transaction("north") as work:
        work.nodes.enrol(CODE, public_key="key1")


def test_a_revoked_node_is_nobody_until_it_is_invited_again(store, clock):
    with store.transaction("north") as work:
        work.nodes.invite("node1", code_sha256=CODE, within_seconds=60)
        with pytest.raises(TransitionError):
            work.nodes.note_seen("node1", version="1", status={})
        work.nodes.enrol(CODE, public_key="key1")
        clock.move(5)
        seen = work.nodes.note_seen("node1", version="1.2", status={"waiting": 3})
        assert (seen.seen_ms, seen.version, seen.status) == (clock.now_ms, "1.2", {"waiting": 3})
        assert work.nodes.revoke("node1", reason="stolen").reason == "stolen"
        assert work.nodes.find_by_key("key1") == []
        with pytest.raises(TransitionError):
            work.nodes.note_seen("node1", version="1", status={})
        work.nodes.invite("node1", code_sha256=OTHER, within_seconds=60)
        assert work.nodes.enrol(OTHER, public_key="key2").state is NodeState.ENROLLED
        assert work.nodes.find_by_key("key1") == []


def test_an_upload_grows_from_where_it_is_and_is_complete_once(store, clock):
    with store.transaction("north") as work:
        work.uploads.begin("u1", node="node1", within_seconds=60, length_bytes=10, sha256=CODE, facts={"tier": 1})
        with pytest.raises(ConflictError):
            work.uploads.begin("u1", node="node1", within_seconds=60)
        work.uploads.advance("u1", from_bytes=0, to_bytes=6, within_seconds=60)
        for from_bytes, to_bytes in ((0, 6), (6, 11), (6, 5)):
            with pytest.raises(ConflictError):
                work.uploads.advance("u1", from_bytes=from_bytes, to_bytes=to_bytes, within_seconds=60)
        with pytest.raises(ConflictError, match="whole"):
            work.uploads.complete("u1", sha256=CODE)
        work.uploads.advance("u1", from_bytes=6, to_bytes=10, within_seconds=60)
        with pytest.raises(ConflictError):
            work.uploads.complete("u1", sha256=OTHER)
        done = work.uploads.complete("u1", sha256=CODE)
        assert work.uploads.complete("u1", sha256=CODE) == done and done.state is UploadState.COMPLETE
        with pytest.raises(TransitionError):
            work.uploads.advance("u1", from_bytes=10, to_bytes=10, within_seconds=60)
        assert work.uploads.end("u1") == done
        clock.move(1000)
        assert work.uploads.find_expired() == []


def test_an_upload_that_does_not_grow_expires(store, clock):
    with store.transaction("north") as work:
        work.uploads.begin("u1", node="node1", within_seconds=60, length_bytes=10)
        clock.move(59)
        work.uploads.advance("u1", from_bytes=0, to_bytes=1, within_seconds=60)
        clock.move(59)
        assert work.uploads.find_expired() == []
        clock.move(1)
        assert [upload.upload_id for upload in work.uploads.find_expired()] == ["u1"]
        assert work.uploads.end("u1").state is UploadState.ENDED
        assert work.uploads.find_expired() == []
