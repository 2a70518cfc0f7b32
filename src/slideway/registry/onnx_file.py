"""Which other files an ONNX file takes tensors from, read from its bytes without an inference library."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Field number -> kind of message in it, for each kind that can hold tensors; everything else is skipped unread.
# Source: onnx/onnx.proto3 of ONNX 1.17 (IR version 10); the numbers of a protobuf schema never change.
_HELD = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def list_external_files(path: Path) -> set[str]:
    """Names of all files that tensors of an ONNX file lie in, as the file spells them.

    A tensor that is marked as external and names no file counts as the file ''.

    Raises:
        ValueError: It is no ONNX file, or is cut off.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ValueError("empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _find_locations(content)


def _find_locations(content: mmap.mmap) -> set[str]:
    found: set[str] = set()
    has_graph = False
    todo = [("model", 0, len(content))]
    while todo:
        kind, start, end = todo.pop()
        if kind == "tensor":
            found |= _locations_of_tensor(content, start, end)
            continue
        for number, _, at, until in _fields(content, start, end):
            if (held := _HELD[kind].get(number)) is not None:
                todo.append((held, at, until))
                has_graph = has_graph or held == "graph"
    if not has_graph:
        raise ValueError("no graph in it")
    return found


def _locations_of_tensor(content: mmap.mmap, start: int, end: int) -> set[str]:
    found: set[str] = set()
    is_external = False
    for number, value, at, until in _fields(content, start, end):
        if number == 14:  # data_location; 1 is EXTERNAL
            is_external = value & 0xFFFFFFFF == 1
        elif number == 13:
            entry = {n: content[a:u] for n, _, a, u in _fields(content, at, until)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode("utf-8", "replace"))
    return found or ({""} if is_external else set())


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, value, start, end) of each field of a message; `value` of a number, `start` and `end` of bytes."""
    at = start
    while at < end:
        key, at = _varint(content, at, end)
        # Other readers keep 32 bits of a key and 31 of a length: what they would read as something else is refused.
        if key >> 32 or not key >> 3:
            raise ValueError(f"an impossible field at byte {at}")
        kind, value, until = key & 7, 0, at
        if kind == _VARINT:
            value, at = _varint(content, at, end)
            until = at
        elif kind == _BYTES:
            length, at = _varint(content, at, end)
            if length >> 31:
                raise ValueError(f"an impossible length at byte {at}")
            until = at + length
        elif kind in (_FIXED64, _FIXED32):
            until = at + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if until > end:
            raise ValueError(f"a field at byte {at} ends after its message")
        yield key >> 3, value, at, until
        at = until


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number at byte {at} does not end")
