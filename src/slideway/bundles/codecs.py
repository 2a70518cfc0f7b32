"""Turn the vectors of one slide into few bytes and back: one table of codecs, one way in, one way out.

What each costs and keeps on real slides: `docs/codecs.md`. Encoding is deterministic on one machine; another processor
may round a principal axis differently, and then only the bytes differ, not what they promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles import codec_axes, codec_products, codec_scalar, codec_steps
from slideway.bundles.codec_basis import FeatureBasis, fit_basis
from slideway.bundles.codec_bytes import SectionReader, SectionWriter
from slideway.core.errors import UnreadableBagError

__all__ = ["CODECS", "Codec", "EncodedVectors", "FeatureBasis", "decode", "encode", "find_clamped", "fit_basis"]

VERSION = 1
# 200,000 tiles of 2,560 numbers; as float32 that is 2 GiB, more than any slide at hand comes near.
MAX_NUMBERS = 2**29
MAX_WIDTH = 2**16

Floats = NDArray[np.float32]
Write = Callable[[SectionWriter, Floats, FeatureBasis | None], dict[str, Any]]
Read = Callable[[SectionReader, int, int, dict[str, Any], FeatureBasis | None], Floats]


@dataclass(frozen=True)
class Codec:
    """One way to write vectors.

    Attributes:
        bits: Bits a number takes before compression; for codes of no fixed length, what they took on real slides.
        description: What it does and what it promises, for people.
        write: Appends sections and returns what the header must say.
        read: Inverse of `write`.
        wants_basis: Whether a basis makes it smaller.
    """

    bits: float
    description: str
    write: Write
    read: Read
    wants_basis: bool = False


@dataclass(frozen=True)
class EncodedVectors:
    """The vectors of one slide, encoded.

    Attributes:
        codec: Name in `CODECS`.
        shape: (n_tiles, width) of what `decode` gives back.
        payload: The sections; what is counted on the line.
        header: Small facts for JSON: version, tiles clamped, basis needed, and what the codec adds.
    """

    codec: str
    shape: tuple[int, int]
    payload: bytes
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> EncodedVectors:
        """The coarse first part of a codec with a residual; the whole for any other."""
        prefix_bytes = self.header.get("prefix_bytes")
        return replace(self, payload=self.payload[:prefix_bytes]) if type(prefix_bytes) is int else self


def encode(vectors: NDArray[Any], codec: str, *, basis: FeatureBasis | None = None) -> EncodedVectors:
    """Encode the vectors of one slide.

    Numbers that are not finite are clamped before any scale is set: infinite ones to the farthest finite number of
    their dimension, the others to its mean. `find_clamped` says in which tiles. `pq` without codebooks sends its own;
    where these cost more than they spare, the answer is encoded as `int4` and says so.

    Args:
        vectors: (n_tiles, width) float16, as in a bag; may hold no tile.
        codec: Name in `CODECS`.
        basis: Axes and codebooks of the encoder that made the vectors; the caller has compared fingerprints.

    Raises:
        ValueError: No such codec, vectors of another shape, or a basis of another width.
    """
    if codec not in CODECS:
        raise ValueError(f"no codec {codec!r}; there are {', '.join(CODECS)}")
    clean, is_clamped = _clamp(vectors)
    n, width = clean.shape
    used = basis if CODECS[codec].wants_basis else None
    if used is not None and used.width != width:
        raise ValueError(f"the basis is for vectors of {used.width} numbers, these have {width}")
    header: dict[str, Any] = {"version": VERSION, "clamped": int(is_clamped.sum())}
    if n == 0:
        return EncodedVectors(codec, (0, width), b"", header)
    encoded = _encode_clean(clean, is_clamped, codec, used, header)
    if codec == "pq" and encoded.header["codebooks_inside"]:
        instead = _encode_clean(clean, is_clamped, "int4", None, header)
        return min(encoded, instead, key=lambda one: len(one.payload))
    return encoded


def _encode_clean(
    clean: Floats, is_clamped: NDArray[np.bool_], codec: str, basis: FeatureBasis | None, header: dict[str, Any]
) -> EncodedVectors:
    writer = SectionWriter()
    if is_clamped.any():
        writer.add(np.packbits(is_clamped))
    facts = CODECS[codec].write(writer, clean, basis)
    is_inside = facts.get("axes_inside", facts.get("codebooks_inside", True))
    needed = {} if basis is None or is_inside else {"basis": basis.id}
    return EncodedVectors(codec, clean.shape, writer.join(), {**header, **needed, **facts})


def decode(encoded: EncodedVectors, *, basis: FeatureBasis | None = None) -> Floats:
    """Give the vectors back, as near as the codec keeps them.

    Nothing in `encoded` is trusted. Memory stays within a small multiple of the declared shape, and a payload too short
    for that shape is refused before memory is set aside.

    Returns:
        (n_tiles, width) float32, finite.

    Raises:
        UnreadableBagError: Cut off, damaged, of a newer version, too large, or encoded with a basis that is not given.
    """
    codec, reader = _open(encoded)
    n, width = encoded.shape
    if n == 0:
        reader.finish()
        return np.empty((0, width), np.float32)
    needed = encoded.header.get("basis")
    if needed is not None and (basis is None or basis.id != needed or basis.width != width):
        raise UnreadableBagError(f"decoding needs the basis {needed!r:.40} that it was encoded with; pass basis=")
    _read_clamped(reader, encoded)
    vectors = codec.read(reader, n, width, encoded.header, basis if needed is not None else None)
    _require_whole_parts(encoded)
    reader.finish()
    if not np.isfinite(vectors).all():
        raise UnreadableBagError("the vectors are not finite; the bundle is damaged: ask for it again")
    return vectors


def find_clamped(encoded: EncodedVectors) -> NDArray[np.int64]:
    """Tiles, ascending, that held numbers which are not finite; as untrusting as `decode`.

    Raises:
        UnreadableBagError: As `decode`.
    """
    return np.flatnonzero(_read_clamped(_open(encoded)[1], encoded))


def _open(encoded: EncodedVectors) -> tuple[Codec, SectionReader]:
    """Codec and reader of something whose header and shape are plausible."""
    if type(encoded.codec) is not str or encoded.codec not in CODECS:
        raise UnreadableBagError(
            f"encoded with {encoded.codec!r:.40}, which this Slideway does not know; update Slideway"
        )
    version = encoded.header.get("version") if isinstance(encoded.header, dict) else None
    if type(version) is not int or version != VERSION:
        raise UnreadableBagError(f"vectors of version {version!r:.40}; this Slideway reads {VERSION}; update Slideway")
    shape = encoded.shape
    if len(shape) != 2 or any(type(number) is not int for number in shape):
        raise UnreadableBagError("the shape is not two whole numbers; ask for the bundle again")
    if shape[0] < 0 or not 0 < shape[1] <= MAX_WIDTH or shape[0] * shape[1] > MAX_NUMBERS:
        raise UnreadableBagError(f"declares {shape[0]} vectors of {shape[1]} numbers, beyond what is read; not a slide")
    return CODECS[encoded.codec], SectionReader(encoded.payload)


def _read_clamped(reader: SectionReader, encoded: EncodedVectors) -> NDArray[np.bool_]:
    n, declared = encoded.shape[0], encoded.header.get("clamped")
    if type(declared) is not int or not 0 <= declared <= n:
        raise UnreadableBagError(f"declares {declared!r:.40} clamped tiles of {n}; ask for the bundle again")
    if not declared:
        return np.zeros(n, bool)
    is_clamped = np.unpackbits(reader.take_array(np.uint8, -(-n // 8)), count=n).astype(bool)
    if int(is_clamped.sum()) != declared:
        raise UnreadableBagError("the clamped tiles are not as many as declared; ask for the bundle again")
    return is_clamped


def _require_whole_parts(encoded: EncodedVectors) -> None:
    """A codec with a residual ends where its header says, with the residual or without."""
    n_bytes, prefix_bytes = len(encoded.payload), encoded.header.get("prefix_bytes")
    if "+" in encoded.codec and (type(prefix_bytes) is not int or n_bytes < prefix_bytes):
        raise UnreadableBagError(f"{n_bytes} bytes where the coarse part takes {prefix_bytes!r:.40}; ask for it again")


def _clamp(vectors: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, width) float32, finite, and which rows were not."""
    given = np.asarray(vectors)
    if given.ndim != 2 or given.dtype.kind != "f" or not 0 < given.shape[1] <= MAX_WIDTH:
        raise ValueError(f"vectors are (n_tiles, width) floating-point numbers, not {given.shape} {given.dtype}")
    if given.size > MAX_NUMBERS:
        raise ValueError(f"{len(given)} vectors of {given.shape[1]} numbers are more than a payload takes")
    with np.errstate(over="ignore"):
        clean = given.astype(np.float16).astype(np.float32)
    is_finite: NDArray[np.bool_] = np.isfinite(clean)
    is_clamped: NDArray[np.bool_] = np.logical_not(is_finite.all(axis=1))
    if is_clamped.any():
        finite = np.where(is_finite, clean, np.float32(0))
        high = np.where(is_finite, clean, -np.inf).max(axis=0)
        low = np.where(is_finite, clean, np.inf).min(axis=0)
        mean = finite.sum(axis=0, dtype=np.float64) / np.maximum(is_finite.sum(axis=0), 1)
        is_known = is_finite.any(axis=0)
        high, low = np.where(is_known, high, 0), np.where(is_known, low, 0)
        clean = np.where(np.isnan(clean), mean.astype(np.float16).astype(np.float32), np.clip(clean, low, high))
    return clean.astype(np.float32), is_clamped


def _alone(write: Callable[[SectionWriter, Floats], int | None]) -> Write:
    """A codec of single dimensions as one that could have had a basis; where its prefix ends goes into the header."""

    def write_alone(writer: SectionWriter, vectors: Floats, basis: FeatureBasis | None) -> dict[str, Any]:
        del basis
        prefix_bytes = write(writer, vectors)
        return {} if prefix_bytes is None else {"prefix_bytes": prefix_bytes}

    return write_alone


def _read_alone(read: Callable[[SectionReader, int, int], Floats]) -> Read:
    def read_alone(
        reader: SectionReader, n: int, width: int, header: dict[str, Any], basis: FeatureBasis | None
    ) -> Floats:
        del header, basis
        return read(reader, n, width)

    return read_alone


CODECS: dict[str, Codec] = {
    "fp16": Codec(16, "lossless", _alone(codec_scalar.write_fp16), _read_alone(codec_scalar.read_fp16)),
    "int8": Codec(
        8,
        "256 even steps from the lowest to the highest number of each dimension; within half a step",
        _alone(codec_scalar.write_int8),
        _read_alone(codec_scalar.read_int8),
    ),
    "int4": Codec(
        4,
        "16 even steps from the lowest to the highest number of each dimension; within half a step",
        _alone(codec_scalar.write_int4),
        _read_alone(codec_scalar.read_int4),
    ),
    "steps-fine": Codec(
        3.3,
        "as steps; every number within an eighth of the usual spread",
        partial(codec_steps.write_in_steps, share=0.25),
        codec_steps.read_in_steps,
        wants_basis=True,
    ),
    "steps": Codec(
        1.9,
        "principal axes and what they leave over, one step for all; every number within a quarter of the usual spread",
        partial(codec_steps.write_in_steps, share=0.5),
        codec_steps.read_in_steps,
        wants_basis=True,
    ),
    "steps-coarse": Codec(
        1.3,
        "as steps; every number within three eighths of the usual spread",
        partial(codec_steps.write_in_steps, share=0.75),
        codec_steps.read_in_steps,
        wants_basis=True,
    ),
    "pca-int8": Codec(
        2,
        "256 even steps along each of the first 128 principal axes; what these do not reach is lost",
        partial(codec_axes.write_along_axes, levels=256),
        partial(codec_axes.read_along_axes, levels=256),
        wants_basis=True,
    ),
    "pca-int4": Codec(
        1,
        "16 even steps along each of the first 128 principal axes; what these do not reach is lost",
        partial(codec_axes.write_along_axes, levels=16),
        partial(codec_axes.read_along_axes, levels=16),
        wants_basis=True,
    ),
    "pq": Codec(
        2,
        "product quantisation: the nearest of 256 centres for every four numbers; no bound for a single tile",
        codec_products.write_products,
        codec_products.read_products,
        wants_basis=True,
    ),
    "binary": Codec(
        1,
        "above or below each dimension's mean; decoded as the mean of those above or below",
        _alone(codec_scalar.write_binary),
        _read_alone(codec_scalar.read_binary),
    ),
    "steps+int8": Codec(
        6.3,
        "steps, usable alone, then what is missing to int8; together int8 to within one of its steps",
        partial(codec_steps.write_steps_first, share=0.5),
        codec_steps.read_steps_first,
        wants_basis=True,
    ),
    "int4+int8": Codec(
        8,
        "the upper halves of the int8 codes, usable alone, then the lower; together exactly int8",
        _alone(codec_scalar.write_int4_first),
        _read_alone(codec_scalar.read_int4_first),
    ),
    "binary+int8": Codec(
        8,
        "one bit a number, usable alone, then how far from the middle; together exactly int8",
        _alone(codec_scalar.write_binary_first),
        _read_alone(codec_scalar.read_binary_first),
    ),
}
