"""Frames between Slideway and its reader: what was written is read, anything else is refused within bounds."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.errors import ReaderStoppedError
from slideway.slides.wire import read_frame, write_frame

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(head=st.dictionaries(st.text(), JSON, max_size=5), payload=st.binary(max_size=300))
def test_what_was_written_is_read(head: dict[str, Any], payload: bytes) -> None:
    stream = io.BytesIO()
    write_frame(stream, head, payload)
    write_frame(stream, {"next": 1})
    stream.seek(0)
    assert read_frame(stream, max_payload=300) == (head, bytearray(payload))
    assert read_frame(stream, max_payload=0) == ({"next": 1}, bytearray())


@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_or_run_out(content: bytes) -> None:
    with pytest.raises((EOFError, ReaderStoppedError)):
        read_frame(io.BytesIO(content), max_payload=1000)


@settings(max_examples=300)
@given(content=st.binary(max_size=60), head_bytes=st.integers(0, 2**32 - 1), payload_bytes=st.integers(0, 2**64 - 1))
def test_a_true_start_with_anything_behind_is_refused_or_runs_out(
    content: bytes, head_bytes: int, payload_bytes: int
) -> None:
    frame = struct.pack("<4sIQ", b"SWF1", head_bytes % 80, payload_bytes % 2000) + content
    try:
        head, payload = read_frame(io.BytesIO(frame), max_payload=1000)
    except (EOFError, ReaderStoppedError):
        return
    assert isinstance(head, dict)
    assert len(payload) <= 1000


@pytest.mark.parametrize(("head_bytes", "payload_bytes"), [(2**32 - 1, 0), (2, 2**64 - 1), (2, 1001)])
def test_a_frame_larger_than_agreed_is_refused_before_memory_is_taken(head_bytes: int, payload_bytes: int) -> None:
    frame = struct.pack("<4sIQ", b"SWF1", head_bytes, payload_bytes) + b"{}"
    with pytest.raises(ReaderStoppedError):
        read_frame(io.BytesIO(frame), max_payload=1000)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[1]", b"null", b"{", b'{"a": NaN', b"\xff\xfe"])
def test_a_head_that_is_no_object_is_refused(text: bytes) -> None:
    frame = struct.pack("<4sIQ", b"SWF1", len(text), 0) + text
    with pytest.raises(ReaderStoppedError):
        read_frame(io.BytesIO(frame), max_payload=10)


def test_head_is_json_and_never_a_pickle() -> None:
    stream = io.BytesIO()
    write_frame(stream, {"a": [1, 2]})
    assert json.loads(stream.getvalue()[16:]) == {"a": [1, 2]}
