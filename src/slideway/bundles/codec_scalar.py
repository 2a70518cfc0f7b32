"""Codecs that treat each dimension by itself: fp16, int8, int4, binary, and coarse codes with a residual to int8.

All write column-major: the numbers of one dimension lie side by side. `vectors` are (n, width) float32, finite and
exactly representable in float16; what is read back is (n, width) float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slideway.bundles.codec_bytes import SectionReader, SectionWriter, pack_nibbles, unpack_nibbles
from slideway.core.errors import UnreadableBagError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def write_fp16(writer: SectionWriter, vectors: Floats) -> None:
    """Lossless: all low bytes, then all high bytes, a tenth smaller than side by side."""
    halves = np.ascontiguousarray(vectors.T, "<f2").view(np.uint8).reshape(*vectors.T.shape, 2)
    writer.add(halves[..., 0])
    writer.add(halves[..., 1])


def read_fp16(reader: SectionReader, n: int, width: int) -> Floats:
    """Inverse of `write_fp16`."""
    low_and_high = [reader.take_array(np.uint8, width, n) for _ in range(2)]
    values = np.stack(low_and_high, axis=-1).view("<f2")[..., 0]
    return np.ascontiguousarray(values.T, np.float32)


def fit_range(vectors: Floats, levels: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Lowest value and step of each dimension, so that `levels` steps from the lowest reach at least the highest.

    Nothing is cut off at the ends: what is rare lies there. Both are float16: the lowest is one of the vectors' own
    numbers and so exact, the step is rounded up.
    """
    low = vectors.min(axis=0).astype(np.float16)
    exact = (vectors.max(axis=0) - low.astype(np.float32)) / np.float32(levels - 1)
    step = exact.astype(np.float16)
    step = np.where(step.astype(np.float32) < exact, np.nextafter(step, np.float16(np.inf)), step)
    return low, np.maximum(step, np.finfo(np.float16).smallest_subnormal)


def quantise(vectors: Floats, low: NDArray[np.float16], step: NDArray[np.float16], levels: int) -> Bytes:
    """(width, n) codes below `levels`; each number is within half a step of its code."""
    codes = np.rint((vectors - low.astype(np.float32)) / step.astype(np.float32)).T
    return np.clip(codes, 0, levels - 1).astype(np.uint8)


def scale_back(codes: Bytes, low: NDArray[np.float16], step: NDArray[np.float16], *, shift: float = 0.0) -> Floats:
    """(n, width) numbers of (width, n) codes; `shift` is added to every code."""
    values = (codes.T.astype(np.float32) + np.float32(shift)) * step.astype(np.float32)
    values += low.astype(np.float32)
    return values


def write_int8(writer: SectionWriter, vectors: Floats) -> None:
    """256 even steps a dimension."""
    low, step = write_range(writer, vectors, 256)
    writer.add(quantise(vectors, low, step, 256))


def read_int8(reader: SectionReader, n: int, width: int) -> Floats:
    """Inverse of `write_int8`, within half a step."""
    low, step = read_range(reader, width)
    return scale_back(reader.take_array(np.uint8, width, n), low, step)


def write_int4(writer: SectionWriter, vectors: Floats) -> None:
    """16 even steps a dimension, two tiles a byte."""
    low, step = write_range(writer, vectors, 16)
    writer.add(pack_nibbles(quantise(vectors, low, step, 16)))


def read_int4(reader: SectionReader, n: int, width: int) -> Floats:
    """Inverse of `write_int4`, within half a step."""
    low, step = read_range(reader, width)
    return scale_back(_take_nibbles(reader, n, width), low, step)


def write_binary(writer: SectionWriter, vectors: Floats) -> None:
    """One bit a number: above or below the dimension's mean; decoded as the mean of those above or below."""
    _write_sides(writer, vectors, (vectors > vectors.mean(axis=0, dtype=np.float64)).T)


def read_binary(reader: SectionReader, n: int, width: int) -> Floats:
    """Two values a dimension."""
    is_above, below, above = _read_sides(reader, n, width)
    return np.where(is_above.T, above, below)


def write_int4_first(writer: SectionWriter, vectors: Floats) -> int:
    """The upper halves of the int8 codes, then the lower; returns where the upper ones end."""
    low, step = write_range(writer, vectors, 256)
    codes = quantise(vectors, low, step, 256)
    writer.add(pack_nibbles(codes >> np.uint8(4)))
    prefix_bytes = writer.n_bytes
    writer.add(pack_nibbles(codes & np.uint8(15)))
    return prefix_bytes


def read_int4_first(reader: SectionReader, n: int, width: int) -> Floats:
    """The middle of each sixteenth of the range; with the residual, what int8 gives, to the bit."""
    low, step = read_range(reader, width)
    upper = _take_nibbles(reader, n, width)
    if reader.is_at_end:
        return scale_back(upper << np.uint8(4), low, step, shift=7.5)
    return scale_back((upper << np.uint8(4)) | _take_nibbles(reader, n, width), low, step)


def write_binary_first(writer: SectionWriter, vectors: Floats) -> int:
    """Which side of the mean code each int8 code lies on, then how far; returns where the sides end."""
    low, step = fit_range(vectors, 256)
    codes = quantise(vectors, low, step, 256)
    middle = np.rint(codes.mean(axis=1, keepdims=True)).astype(np.uint8)
    is_above = codes >= middle
    _write_sides(writer, vectors, is_above)
    prefix_bytes = writer.n_bytes
    writer.add(np.stack([low, step]).astype("<f2"))
    writer.add(middle)
    writer.add(np.where(is_above, codes - middle, middle - 1 - codes).astype(np.uint8))
    return prefix_bytes


def read_binary_first(reader: SectionReader, n: int, width: int) -> Floats:
    """Two values a dimension; with the residual, what int8 gives, to the bit."""
    is_above, below, above = _read_sides(reader, n, width)
    if reader.is_at_end:
        return np.where(is_above.T, above, below)
    low, step = read_range(reader, width)
    middle = reader.take_array(np.uint8, width, 1).astype(np.int16)
    distance = reader.take_array(np.uint8, width, n).astype(np.int16)
    codes = np.where(is_above, middle + distance, middle - 1 - distance)
    if codes.min(initial=0) < 0 or codes.max(initial=0) > 255:
        raise UnreadableBagError("the residual leaves the range of int8; the bundle is damaged: ask for it again")
    return scale_back(codes.astype(np.uint8), low, step)


def write_range(writer: SectionWriter, vectors: Floats, levels: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Append the range of each dimension; returns lowest value and step."""
    low, step = fit_range(vectors, levels)
    writer.add(np.stack([low, step]).astype("<f2"))
    return low, step


def read_range(reader: SectionReader, width: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Lowest value and step of each dimension.

    Raises:
        UnreadableBagError: A step is not above 0.
    """
    low, step = reader.take_array("<f2", 2, width)
    if not (step > 0).all():
        raise UnreadableBagError("a step is not above 0; the bundle is damaged: ask for it again")
    return low, step


def _write_sides(writer: SectionWriter, vectors: Floats, is_above: NDArray[np.bool_]) -> None:
    n_above = is_above.sum(axis=1)
    sum_above = np.where(is_above, vectors.T, 0).sum(axis=1, dtype=np.float64)
    sum_below = vectors.sum(axis=0, dtype=np.float64) - sum_above
    above = sum_above / np.maximum(n_above, 1)
    below = sum_below / np.maximum(len(vectors) - n_above, 1)
    writer.add(np.stack([below, above]).astype("<f2"))
    writer.add(np.packbits(is_above, axis=1))


def _read_sides(reader: SectionReader, n: int, width: int) -> tuple[NDArray[np.bool_], Floats, Floats]:
    below, above = reader.take_array("<f2", 2, width).astype(np.float32)
    packed = reader.take_array(np.uint8, width, -(-n // 8))
    return np.unpackbits(packed, axis=1, count=n).astype(bool), below, above


def _take_nibbles(reader: SectionReader, n: int, width: int) -> Bytes:
    return unpack_nibbles(reader.take_array(np.uint8, width, -(-n // 2)), n)
