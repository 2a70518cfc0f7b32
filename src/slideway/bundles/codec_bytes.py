"""Numbers as compressed sections: columns, nibbles and bit planes, each with a length that is checked on the way back.

A section is a little-endian uint32, the number of compressed bytes, and one zstd frame. The reader always knows from
the declared shape how many bytes a section unpacks to; a frame that is too short to hold so many is refused before
memory is set aside for it.
"""

from __future__ import annotations

import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import UnreadableBagError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint32]

# Byte columns gain nothing beyond level 3; bit planes gain half a percent at level 9 (docs/codecs.md).
COLUMN_LEVEL = 3
PLANE_LEVEL = 9
MAX_PLANES = 26
# RFC 8878, 3.1.1.2: a block has a header of 3 bytes and unpacks to 128 KiB at most.
_BLOCK_BYTES = 128 * 1024
_BLOCK_HEADER_BYTES = 3


class SectionWriter:
    """Collects sections in the order in which they will be read."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, values: NDArray[Any] | bytes, *, level: int = COLUMN_LEVEL) -> None:
        """Append one section; no bytes make an empty one."""
        data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
        packed = imagecodecs.zstd_encode(data, level) if data else b""
        self._parts.append(struct.pack("<I", len(packed)) + packed)

    def add_planes(self, codes: Codes) -> None:
        """Append (width, n) codes as bit planes, as many as the largest needs; small codes then cost little."""
        planes = int(codes.max(initial=0)).bit_length()
        self.add(bytes([planes]))
        bits = [np.packbits((codes >> plane) & 1 != 0, axis=1).tobytes() for plane in range(planes)]
        self.add(b"".join(bits), level=PLANE_LEVEL)

    def extend(self, other: SectionWriter) -> None:
        """Append all sections of another."""
        self._parts += other._parts

    @property
    def n_bytes(self) -> int:
        """Bytes collected so far."""
        return sum(len(part) for part in self._parts)

    def join(self) -> bytes:
        """All sections, one after the other."""
        return b"".join(self._parts)


class SectionReader:
    """Gives sections back in the order in which they were written, from bytes that nobody vouches for."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    @property
    def at(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._payload)

    def take(self, n_bytes: int) -> bytes:
        """Unpack the next section, which must hold exactly `n_bytes`.

        Raises:
            UnreadableBagError: It is cut off, is not zstd, or unpacks to another length.
        """
        start = self._at + 4
        if start > len(self._payload):
            raise UnreadableBagError("the vectors are cut off: a section is missing; ask for the bundle again")
        end = start + int(struct.unpack_from("<I", self._payload, self._at)[0])
        if end > len(self._payload):
            raise UnreadableBagError("the vectors are cut off within a section; ask for the bundle again")
        self._at = end
        return _unpack(self._payload[start:end], n_bytes)

    def take_array(self, dtype: Any, *shape: int) -> NDArray[Any]:
        """The next section as an array; floating-point numbers in it are finite."""
        kind = np.dtype(dtype)
        n_numbers = int(np.prod(shape, dtype=object)) if shape else 1
        values = np.frombuffer(self.take(n_numbers * kind.itemsize), kind).reshape(shape)
        if kind.kind == "f" and not np.isfinite(values).all():
            raise UnreadableBagError("the vectors are damaged: a scale is not a number; ask for the bundle again")
        return values

    def take_planes(self, width: int, n: int) -> NDArray[np.uint32]:
        """(width, n) codes from bit planes."""
        planes = self.take(1)[0]
        if planes > MAX_PLANES:
            raise UnreadableBagError(f"the vectors are damaged: {planes} bit planes; ask for the bundle again")
        row_bytes = -(-n // 8)
        packed = np.frombuffer(self.take(planes * width * row_bytes), np.uint8).reshape(planes, width, row_bytes)
        codes = np.zeros((width, n), np.uint32)
        for plane in range(planes):
            codes |= np.unpackbits(packed[plane], axis=1, count=n).astype(np.uint32) << np.uint32(plane)
        return codes

    def finish(self) -> None:
        """Require that nothing follows.

        Raises:
            UnreadableBagError: Something does.
        """
        if not self.is_at_end:
            extra = len(self._payload) - self._at
            raise UnreadableBagError(f"{extra} bytes follow the vectors; the bundle is damaged: ask for it again")


def _unpack(packed: bytes, n_bytes: int) -> bytes:
    if n_bytes == 0:
        if packed:
            raise UnreadableBagError("a section that should be empty is not; the bundle is damaged: ask for it again")
        return b""
    if n_bytes > len(packed) // _BLOCK_HEADER_BYTES * _BLOCK_BYTES:
        raise UnreadableBagError(
            f"{len(packed)} bytes cannot hold the {n_bytes} that the shape asks for; ask for the bundle again"
        )
    try:
        data = bytes(imagecodecs.zstd_decode(packed, out=n_bytes))
    except imagecodecs.ZstdError as error:
        raise UnreadableBagError(f"a section is not what zstd wrote ({error}); ask for the bundle again") from error
    if len(data) != n_bytes:
        raise UnreadableBagError(
            f"a section unpacks to {len(data)} bytes instead of {n_bytes}; the bundle is damaged: ask for it again"
        )
    return data


def fold_signs(codes: NDArray[np.int32]) -> Codes:
    """Signed to unsigned, small staying small: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4."""
    folded: Codes = ((codes << 1) ^ (codes >> 31)).astype(np.uint32)
    return folded


def unfold_signs(codes: Codes) -> NDArray[np.int32]:
    """Inverse of `fold_signs`."""
    return (codes >> np.uint32(1)).astype(np.int32) ^ -(codes & np.uint32(1)).astype(np.int32)


def pack_nibbles(codes: Bytes) -> Bytes:
    """(width, n) codes below 16, two neighbouring tiles a byte: (width, ceil(n / 2))."""
    even = codes if codes.shape[1] % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)), mode="edge")
    return (even[:, ::2] << np.uint8(4)) | even[:, 1::2]


def unpack_nibbles(packed: Bytes, n: int) -> Bytes:
    """Inverse of `pack_nibbles`."""
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    codes[:, ::2] = packed >> np.uint8(4)
    codes[:, 1::2] = packed & np.uint8(15)
    return codes[:, :n]
