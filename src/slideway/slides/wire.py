"""Frames between Slideway and its sandboxed reader: a JSON head and raw pixels, never a pickle.

Layout, little endian: 4 bytes `SWF1`, uint32 length of the head, uint64 length of the payload, head, payload.
The receiver states how much it is ready to take, so that a hostile worker cannot make it allocate more.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

from slideway.core.errors import ReaderStoppedError

_MAGIC = b"SWF1"
_PREFIX = struct.Struct("<4sIQ")
_MAX_HEAD_BYTES = 16_000_000


def write_frame(stream: BinaryIO, head: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Write one frame and flush it."""
    text = json.dumps(head, separators=(",", ":")).encode()
    stream.write(_PREFIX.pack(_MAGIC, len(text), memoryview(payload).nbytes) + text)
    if payload:
        stream.write(payload)
    stream.flush()


def read_frame(stream: BinaryIO, *, max_payload: int) -> tuple[dict[str, Any], bytearray]:
    """Read one frame.

    Raises:
        EOFError: The other side has gone.
        ReaderStoppedError: The bytes are no frame, or larger than `max_payload`.
    """
    magic, head_bytes, payload_bytes = _PREFIX.unpack(_read_exactly(stream, _PREFIX.size))
    if magic != _MAGIC or head_bytes > _MAX_HEAD_BYTES or payload_bytes > max_payload:
        raise ReaderStoppedError("the sandboxed reader answered with something that is no answer; it was stopped")
    try:
        head = json.loads(_read_exactly(stream, head_bytes))
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise ReaderStoppedError("the sandboxed reader answered with something that is no answer; it was stopped")
    return head, _read_exactly(stream, payload_bytes)


def _read_exactly(stream: BinaryIO, n_bytes: int) -> bytearray:
    buffer = bytearray(n_bytes)
    view = memoryview(buffer)
    at = 0
    while at < n_bytes:
        got = stream.readinto(view[at:])  # type: ignore[attr-defined]  # every pipe has readinto
        if not got:
            raise EOFError
        at += got
    return buffer
