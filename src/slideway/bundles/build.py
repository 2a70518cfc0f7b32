"""Make a case bundle of a slide that was read: what must travel first comes first, and the budget is kept.

Precision is given up before tiles: ten percent of the tiles lost a small lesion that coarser vectors of all kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideway.bundles.codec_basis import FeatureBasis
from slideway.bundles.container import Part, pack_container
from slideway.bundles.order import FEWEST_FIRST, MOST_CHUNK_TILES, TileOrder, count_first, order_tiles
from slideway.bundles.summary_part import MAX_TIER0_BYTES, dump_summary
from slideway.bundles.summary_part import NAME as SUMMARY
from slideway.bundles.tiles_part import AXES, MAX_PART_NUMBERS, dump_tiles, find_shared_axes
from slideway.core.bag import EmbeddingBag
from slideway.core.bundle import BundleSummary

OPINION, THUMBNAIL, FIRST_TILES = "opinion", "thumbnail", "tiles-0"
# Changes no answer about a slide; a budget falls from it to `steps`, then to `steps-coarse` (docs/parity.md).
DEFAULT_CODEC = "steps-fine"
# What a budget makes of it, finest first; nothing coarser keeps the answer (docs/parity.md).
PRECISIONS = ("fp16", "int8", "steps-fine", "steps", "steps-coarse")
MAX_TIER1_BYTES = 150_000 - MAX_TIER0_BYTES
# A signature and a lock are added when the bundle is released: 96 bytes and 160; a lock makes every part 16 longer, and
# then its size may take 2 bytes more in the list.
_SEAL_BYTES, _LOCK_BYTES, _TAG_BYTES, _LONGER_SIZE_BYTES = 96, 168, 16, 2
_THUMBNAIL_PX = 512
_THUMBNAIL_BYTES = 16_000
_OPINION_BYTES = 30_000
# Bytes of a tile in a large part, as a share of those in the first: 0.4 to 0.5 on real slides (docs/codecs.md, bytes
# against the number of tiles). A precision that would not fit even with a fifth is not tried: that spares most time.
_LEAST_LATER = 0.2
_QUALITIES = (60, 40, 25, 10)


@dataclass(frozen=True)
class BundleContent:
    """What is known of a slide after reading it, and may go into its bundle.

    Attributes:
        bag: Its embeddings.
        summary: As it stands before codec and budget are settled.
        opinion: Findings and quality in full, for JSON; no name of a file, a person or a date.
        thumbnail: (height, width, 3) uint8, the slide without label and macro; None leaves it out.
        attention: (n_tiles,) what heads looked at; None when none spoke.
        novelty: (n_tiles,) percentile; None without a reference.
        representatives: For each group of like tiles, those that show it best.
    """

    bag: EmbeddingBag
    summary: BundleSummary
    opinion: Mapping[str, Any]
    thumbnail: NDArray[np.uint8] | None = None
    attention: NDArray[np.float32] | None = None
    novelty: NDArray[np.float32] | None = None
    representatives: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class BuiltBundle:
    """A bundle before it is signed, locked or cut down for a receiver.

    Attributes:
        parts: In order.
        summary: As its first part says it.
        is_over_budget: Not even the coarsest precision fits, and tiles were not to be left out.
    """

    parts: tuple[Part, ...]
    summary: BundleSummary
    is_over_budget: bool = False

    def pack(self) -> bytes:
        """The bytes of the bundle, unsigned."""
        return pack_container(self.parts)


def build_bundle(
    content: BundleContent,
    *,
    codec: str = DEFAULT_CODEC,
    budget_bytes: int | None = None,
    may_leave_tiles_out: bool = False,
) -> BuiltBundle:
    """Make the parts of a bundle.

    Args:
        content: What is known of the slide.
        codec: Name in `CODECS`; where the budget asks for it, a coarser one of `PRECISIONS` is taken.
        budget_bytes: Size that the bundle should stay below; None for no limit.
        may_leave_tiles_out: Leave tiles out when even the coarsest precision does not fit. Those that travel then stand
            for them, and the summary says how many are missing.

    Raises:
        ValueError: The opinion holds a number that JSON does not know, or an id is far too long for the summary.
    """
    if budget_bytes is None:
        return _build_whole(content, codec)
    ladder = PRECISIONS[PRECISIONS.index(codec) :] if codec in PRECISIONS else (codec,)
    for candidate in ladder[:-1]:
        if (finer := _build_within(content, candidate, budget_bytes)) is not None:
            return finer
    built = _build_whole(content, ladder[-1])
    if _size(built) > budget_bytes and may_leave_tiles_out:
        built = _leave_out(content, ladder[-1], budget_bytes, built)
    return replace(built, is_over_budget=_size(built) > budget_bytes)


def _order(content: BundleContent, *, first: int | None = None, limit: int | None = None) -> TileOrder:
    return order_tiles(
        len(content.bag),
        attention=content.attention,
        novelty=content.novelty,
        representatives=content.representatives,
        seed=int(content.bag.slide_sha256[:16], 16),
        first=first,
        most_chunk=min(MOST_CHUNK_TILES, max(1, MAX_PART_NUMBERS // content.bag.width)),
        limit=limit,
    )


def _build_within(content: BundleContent, codec: str, budget_bytes: int) -> BuiltBundle | None:
    """A bundle in one precision; None, as soon as that is clear, when it does not fit."""
    parts, order = _first_tier(content, codec, None)
    if (
        len(content.bag)
        and len(parts[-1].content) * _LEAST_LATER * len(content.bag) / len(order.chunks[0]) > budget_bytes
    ):
        return None
    for part in _later_parts(content, order, codec):
        parts.append(part)
        if sum(len(part.content) for part in parts) > budget_bytes:
            return None
    built = _summarise(content, order, codec, parts)
    return built if _size(built) <= budget_bytes else None


def _build_whole(content: BundleContent, codec: str, *, limit: int | None = None) -> BuiltBundle:
    parts, order = _first_tier(content, codec, limit)
    return _summarise(content, order, codec, [*parts, *_later_parts(content, order, codec)])


def _later_parts(content: BundleContent, order: TileOrder, codec: str) -> Iterator[Part]:
    later = order.chunks[1:]
    if not later:
        return
    shared = basis = None
    if len(later) > 1:
        shared = find_shared_axes(content.bag.vectors[np.concatenate(later)], codec, content.bag.fingerprint)
    if shared is not None:
        axes, basis = shared
        yield Part(AXES, 2, axes)
    for i in range(1, len(order.chunks)):
        yield _tiles_part(content, order, i, codec, basis)


def _summarise(content: BundleContent, order: TileOrder, codec: str, parts: list[Part]) -> BuiltBundle:
    left_out = len(content.bag) - sum(len(chunk) for chunk in order.chunks)
    summary = replace(content.summary, codec=codec, tiles_left_out=left_out)
    # What stands before the parts counts to tier 0: leave room for a signature and a lock.
    head_bytes = len(pack_container([Part(SUMMARY, 0, b"-"), *parts])) - sum(len(part.content) for part in parts) - 1
    room = MAX_TIER0_BYTES - head_bytes - _count_release_bytes(1 + len(parts)) - _TAG_BYTES
    return BuiltBundle((Part(SUMMARY, 0, dump_summary(summary, room=room)), *parts), summary)


def _count_release_bytes(n_parts: int) -> int:
    """What a signature and a lock may add before the first part."""
    return _SEAL_BYTES + _LOCK_BYTES + _LONGER_SIZE_BYTES * n_parts


def _first_tier(content: BundleContent, codec: str, limit: int | None) -> tuple[list[Part], TileOrder]:
    parts = []
    opinion = bytes(
        imagecodecs.zstd_encode(json.dumps(content.opinion, ensure_ascii=False, allow_nan=False).encode(), 19)
    )
    if len(opinion) <= _OPINION_BYTES:
        parts.append(Part(OPINION, 1, opinion, is_optional=True))
    if content.thumbnail is not None:
        parts.append(Part(THUMBNAIL, 1, encode_thumbnail(content.thumbnail), is_optional=True))
    order = _order(content, limit=limit)
    if len(content.bag):
        room = MAX_TIER1_BYTES - sum(len(part.content) + _TAG_BYTES for part in parts) - _TAG_BYTES
        first, order = _fill_first(content, order, codec, room, limit)
        parts.append(first)
    return parts, order


def _fill_first(
    content: BundleContent, order: TileOrder, codec: str, room: int, limit: int | None
) -> tuple[Part, TileOrder]:
    """The most telling tiles, as many as there is room for; a few coarser ones rather than hardly any.

    Those that find no room travel next.
    """
    n = len(order.chunks[0])
    coarser = PRECISIONS[PRECISIONS.index(codec) + 1 :] if codec in PRECISIONS else PRECISIONS[-1:]
    counts = _halve(n, FEWEST_FIRST)
    ways = [(count, codec) for count in counts] + [(counts[-1], coarse) for coarse in coarser]
    ways += [(count, ways[-1][1]) for count in _halve(counts[-1], 1)[1:]]
    for count, candidate in ways:
        tried = order if count == n else _order(content, first=count, limit=limit)
        first = _tiles_part(content, tried, 0, candidate, None)
        if len(first.content) <= room:
            break
    return first, tried


def _halve(n: int, fewest: int) -> list[int]:
    """n, then 3/4 of what came before, not below `fewest`."""
    counts = [n]
    while (fewer := max(min(fewest, n), counts[-1] * 3 // 4)) < counts[-1]:
        counts.append(fewer)
    return counts


def _tiles_part(content: BundleContent, order: TileOrder, index: int, codec: str, basis: FeatureBasis | None) -> Part:
    tiles = dump_tiles(
        content.bag,
        order.chunks[index],
        reason=order.reason,
        since=order.since,
        novelty=content.novelty,
        codec=codec,
        basis=basis,
    )
    return Part(f"tiles-{index}", 1 if index == 0 else 2, tiles)


def _size(built: BuiltBundle) -> int:
    """Bytes once it is signed and locked."""
    return len(built.pack()) + _count_release_bytes(len(built.parts)) + _TAG_BYTES * len(built.parts)


def _leave_out(content: BundleContent, codec: str, budget_bytes: int, whole: BuiltBundle) -> BuiltBundle:
    """Send fewer tiles until it fits; those of the first tier always stay."""
    built, n = whole, len(content.bag)
    n_first = count_first(n)
    while _size(built) > budget_bytes and n > n_first:
        over = _size(built) / budget_bytes
        n = max(n_first, min(n - 16, int(n / over)))
        built = _build_whole(content, codec, limit=n)
    return built


def encode_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """The slide as WebP of at most 512 pixels and about 16 kB; coarser where it shows much."""
    content = b""
    for quality in _QUALITIES:
        content = bytes(imagecodecs.webp_encode(_shrink(pixels), level=quality, lossless=False))
        if len(content) <= _THUMBNAIL_BYTES:
            break
    return content


def _shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    return np.asarray(picture)
