"""A part with tiles: where they are, their vectors in a codec, and what else is known of each, all as zstd sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from slideway.bundles.codec_basis import FeatureBasis
from slideway.bundles.codec_bytes import SectionReader, SectionWriter
from slideway.bundles.codec_steps import choose_axes
from slideway.bundles.codecs import MAX_WIDTH, EncodedVectors, decode, encode
from slideway.bundles.places import decode_places, encode_places
from slideway.core.bag import REASONS, EmbeddingBag
from slideway.core.errors import BrokenBundleError, UnreadableBagError

AXES = "axes"
_UNKNOWN = 255  # code of a focus or novelty that is not known
_PERCENTILE_CODES = 200  # half a percent each
# As float32 that is 256 MiB; the largest part that is written has 200,000 / 8 tiles of 2,560 numbers.
MAX_PART_NUMBERS = 2**26
_MOST_FITTED = 4_096  # tiles that shared axes are fitted on, evenly spread: time and memory then have a bound
_FARTHEST = 1e12  # of a focus
_LARGEST = np.float32(np.finfo(np.float16).max)
_MOST_WEIGHT = 2**24


@dataclass(frozen=True)
class TileRows:
    """Some tiles of one slide.

    Attributes:
        column_row: (n, 2) int32, their places, row-major.
        vectors: (n, width) float16, as near as the codec keeps them.
        reason: (n,) uint8, why each travels where it does, position in `REASONS`.
        since: (n,) uint8, number of the part from which on each counts as chosen; 255 for never.
        focus: (n,) float32, sharpness to 1/254 of the part's range; NaN where unknown.
        novelty: (n,) float32, percentile to half a percent; NaN where unknown.
        weight: (n,) float32, tiles that each stood for on the edge; 1 when all were read.
        edge_reason: (n,) uint8, why each was read on the edge; all 0 when all were read.
    """

    column_row: NDArray[np.int32]
    vectors: NDArray[np.float16]
    reason: NDArray[np.uint8]
    since: NDArray[np.uint8]
    focus: NDArray[np.float32]
    novelty: NDArray[np.float32]
    weight: NDArray[np.float32]
    edge_reason: NDArray[np.uint8]


@dataclass(frozen=True)
class TilesHead:
    """What a part with tiles says of itself, before anything of it is unpacked.

    Attributes:
        tiles: Number of tiles.
        width: Length of their vectors.
        is_sampled: Each tile has a weight and a reason of the edge's own sampling.
    """

    tiles: int
    width: int
    is_sampled: bool


def find_shared_axes(vectors: NDArray[Any], codec: str, fingerprint: str) -> tuple[bytes, FeatureBasis] | None:
    """Axes that all further parts of the slide share, as a part and as a basis; None where they do not pay."""
    share = {"steps-fine": 0.25, "steps": 0.5, "steps-coarse": 0.75}.get(codec)
    if share is None:
        return None
    spread = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), _MOST_FITTED)).round().astype(np.int64))
    fitted = np.asarray(vectors[spread], np.float32)
    axes = choose_axes(fitted[np.isfinite(fitted).all(axis=1)], share=share)
    if axes is None or axes.sent is None or not 0 < axes.rows.size <= MAX_PART_NUMBERS:
        return None
    codes, scale = axes.sent
    writer = SectionWriter()
    writer.add(scale.astype("<f2"))
    writer.add(codes)
    head = {"axes": len(axes.rows), "width": axes.rows.shape[1]}
    return _join(head, writer.join()), FeatureBasis(fingerprint, axes.rows)


def load_shared_axes(content: bytes, fingerprint: str, name: str) -> FeatureBasis:
    """Read them back.

    Raises:
        BrokenBundleError: Not such a part.
    """
    head, body = _split(content, name)
    n_axes, width = head.get("axes"), head.get("width")
    if type(n_axes) is not int or type(width) is not int or not 0 < n_axes <= width <= MAX_WIDTH:
        raise BrokenBundleError(f"{name}: its axes are of another form; the sender's program is at fault: tell them")
    if n_axes * width > MAX_PART_NUMBERS:
        raise BrokenBundleError(f"{name}: {n_axes} axes of {width} numbers, beyond what is read; not a slide")
    try:
        reader = SectionReader(body)
        scale = reader.take_array("<f2", n_axes)
        rows = reader.take_array(np.int8, n_axes, width) * scale.astype(np.float32)[:, None]
        reader.finish()
        return FeatureBasis(fingerprint, rows)
    except (UnreadableBagError, ValueError) as error:
        raise BrokenBundleError(f"{name}: its axes cannot be read ({error})") from error


def dump_tiles(
    bag: EmbeddingBag,
    tiles: NDArray[np.int64],
    *,
    reason: NDArray[np.uint8],
    since: NDArray[np.uint8],
    novelty: NDArray[np.float32] | None,
    codec: str,
    basis: FeatureBasis | None = None,
) -> bytes:
    """One part with some of a bag's tiles.

    Args:
        bag: The whole bag.
        tiles: Which, ascending.
        reason: (n_bag_tiles,) why each travels where it does.
        since: (n_bag_tiles,) number of the part from which on each counts as chosen.
        novelty: (n_bag_tiles,) percentile; None without a reference.
        codec: Name in `CODECS`.
        basis: Axes sent before, if any.
    """
    encoded = encode(bag.vectors[tiles], codec, basis=basis)
    focus = np.clip(np.asarray(bag.focus[tiles], np.float32), -_FARTHEST, _FARTHEST)
    low, step = _find_range(focus)
    places = encode_places(bag.grid.column_row[tiles])
    writer = SectionWriter()
    writer.add(reason[tiles])
    writer.add(since[tiles])
    writer.add(_code(focus, low, step, _UNKNOWN - 1))
    if novelty is not None:
        writer.add(_code(novelty[tiles], 0, 100 / _PERCENTILE_CODES, _PERCENTILE_CODES))
    if bag.sampling is not None:
        writer.add(bag.sampling.reason[tiles])
        writer.add(bag.sampling.weight[tiles].astype("<f4"))
    head = {
        "tiles": len(tiles),
        "width": encoded.shape[1],
        "codec": encoded.codec,
        "header": encoded.header,
        "bytes": [len(places), len(encoded.payload)],
        "focus": [low, step],
        "has_novelty": novelty is not None,
        "is_sampled": bag.sampling is not None,
    }
    return _join(head, places + encoded.payload + writer.join())


def peek_tiles(content: bytes, name: str) -> TilesHead:
    """What a part with tiles says of itself; nothing is unpacked, and nothing in it is trusted.

    Raises:
        BrokenBundleError: It is not one, or says that it holds more than a part may.
    """
    head, _ = _split(content, name)
    tiles, width, is_sampled = (head.get(key) for key in ("tiles", "width", "is_sampled"))
    if type(tiles) is not int or type(width) is not int or type(is_sampled) is not bool:
        raise BrokenBundleError(
            f"{name}: a part with tiles is of another form; the sender's program is at fault: tell them"
        )
    if tiles < 1 or not 0 < width <= MAX_WIDTH or tiles * width > MAX_PART_NUMBERS:
        raise BrokenBundleError(f"{name}: a part of {tiles} tiles of {width} numbers, beyond what is read; not a slide")
    return TilesHead(tiles, width, is_sampled)


def load_tiles(content: bytes, basis: FeatureBasis | None, name: str) -> TileRows:
    """Read a part with tiles; nothing in it is trusted.

    Raises:
        BrokenBundleError: It is not one, or does not hold what it says.
    """
    promised = peek_tiles(content, name)
    head, body = _split(content, name)
    try:
        places_bytes, vector_bytes = (_whole(number) for number in head["bytes"])
        places = decode_places(body[:places_bytes], promised.tiles)
        vectors = _load_vectors(head, body[places_bytes : places_bytes + vector_bytes], promised, basis)
        rows = _load_facts(head, SectionReader(body[places_bytes + vector_bytes :]), places, vectors)
    except (UnreadableBagError, ValueError, KeyError, TypeError) as error:
        raise BrokenBundleError(f"{name}: a part with tiles cannot be read ({error})") from error
    return rows


def _load_vectors(
    head: dict[str, Any], payload: bytes, promised: TilesHead, basis: FeatureBasis | None
) -> NDArray[np.float16]:
    header, width = head["header"], promised.width
    if not isinstance(header, dict):
        raise TypeError("the vectors have no header")
    n_axes = header.get("axes", 0)
    if type(n_axes) is not int or n_axes * width > MAX_PART_NUMBERS:
        raise ValueError("more axes than are read")
    decoded = decode(EncodedVectors(head["codec"], (promised.tiles, width), payload, header), basis=basis)
    # Half a step beside the farthest number of float16 is still meant to be that number.
    return np.clip(decoded, -_LARGEST, _LARGEST, out=decoded).astype(np.float16)


def _load_facts(
    head: dict[str, Any], reader: SectionReader, places: NDArray[np.int32], vectors: NDArray[np.float16]
) -> TileRows:
    n = len(places)
    reason, since = _take_reasons(reader, n), reader.take_array(np.uint8, n)
    focus = _restore(reader.take_array(np.uint8, n), *_read_range(head["focus"]))
    novelty = np.full(n, np.nan, np.float32)
    if _is_true(head["has_novelty"]):
        codes = reader.take_array(np.uint8, n)
        if ((codes > _PERCENTILE_CODES) & (codes < _UNKNOWN)).any():
            raise ValueError("a percentile is above 100")
        novelty = _restore(codes, 0, 100 / _PERCENTILE_CODES)
    edge_reason, weight = np.zeros(n, np.uint8), np.ones(n, np.float32)
    if _is_true(head["is_sampled"]):
        edge_reason, weight = _take_reasons(reader, n), reader.take_array("<f4", n).astype(np.float32)
    reader.finish()
    if not ((weight >= 1) & (weight <= _MOST_WEIGHT)).all():
        raise ValueError("a weight is out of range")
    return TileRows(places, vectors, reason, since, focus, novelty, weight, edge_reason)


def _read_range(numbers: Any) -> tuple[float, float]:
    low, step = numbers
    if type(low) is not float or type(step) is not float or not (abs(low) <= _FARTHEST and 0 < step <= _FARTHEST):
        raise ValueError("the range of focus is out of range")
    return low, step


def _is_true(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError("a yes or no is neither")
    return value


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError("a count is not a whole number")
    return number


def _take_reasons(reader: SectionReader, n: int) -> NDArray[np.uint8]:
    reason: NDArray[np.uint8] = reader.take_array(np.uint8, n)
    if int(reason.max(initial=0)) >= len(REASONS):
        raise ValueError("a reason is not known")
    return reason


def _find_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Lowest finite value and a step that reaches the highest in 254 steps."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low = float(finite.min())
    return low, max(float(finite.max()) - low, 1e-6) / (_UNKNOWN - 1)


def _code(values: NDArray[np.float32], low: float, step: float, most: int) -> NDArray[np.uint8]:
    is_known = np.isfinite(values)
    steps = np.rint((np.where(is_known, values, low) - low) / step)
    codes: NDArray[np.uint8] = np.where(is_known, np.clip(steps, 0, most), _UNKNOWN).astype(np.uint8)
    return codes


def _restore(codes: NDArray[np.uint8], low: float, step: float) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.where(codes == _UNKNOWN, np.nan, codes * step + low).astype(np.float32)
    return values


def _join(head: dict[str, Any], body: bytes) -> bytes:
    packed: bytes = msgpack.packb(head)
    return len(packed).to_bytes(2, "little") + packed + body


def _split(content: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    at = 2 + int.from_bytes(content[:2], "little")
    try:
        head = msgpack.unpackb(content[2:at], strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise BrokenBundleError(f"{name}: a part has no head ({error}); the sender's program is at fault") from error
    if not isinstance(head, dict):
        raise BrokenBundleError(f"{name}: a part has a head of another form; the sender's program is at fault")
    return head, content[at:]
