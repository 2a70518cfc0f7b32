"""Make a case bundle of a slide that was read: what must travel first comes first, and the budget is kept.

Precision is given up before tiles: ten percent of the tiles lost a small lesion that coarser vectors of all kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideway.bundles.codec_basis import FeatureBasis
from slideway.bundles.container import Part, pack_container
from slideway.bundles.order import RANDOM, TileOrder, order_tiles
from slideway.bundles.summary_part import MAX_TIER0_BYTES, dump_summary
from slideway.bundles.summary_part import NAME as SUMMARY
from slideway.bundles.tiles_part import AXES, dump_tiles, find_shared_axes
from slideway.core.bag import EmbeddingBag
from slideway.core.bundle import BundleSummary

OPINION, THUMBNAIL, FIRST_TILES = "opinion", "thumbnail", "tiles-0"
DEFAULT_CODEC = "steps"  # docs/parity.md
# What a budget makes of it, finest first; nothing coarser keeps the answer (docs/parity.md).
PRECISIONS = ("fp16", "int8", "steps-fine", "steps", "steps-coarse")
MAX_TIER1_BYTES = 150_000 - MAX_TIER0_BYTES
_SEAL_BYTES = 97  # a signature and a lock are added when the bundle is released
_LOCK_BYTES = 180
_THUMBNAIL_PX = 512
_THUMBNAIL_BYTES = 16_000
_OPINION_BYTES = 30_000
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
    """
    order = _order(content)
    ladder = [codec]
    if codec in PRECISIONS and budget_bytes is not None:
        ladder = list(PRECISIONS[PRECISIONS.index(codec) :])
    built = BuiltBundle((), content.summary)
    for candidate in ladder:
        built = _build(content, order, candidate)
        if budget_bytes is None or _size(built) <= budget_bytes:
            return built
    if may_leave_tiles_out and budget_bytes is not None:
        return _leave_out(content, order, ladder[-1], budget_bytes, built)
    return replace(built, is_over_budget=True)


def _order(content: BundleContent) -> TileOrder:
    return order_tiles(
        len(content.bag),
        attention=content.attention,
        novelty=content.novelty,
        representatives=content.representatives,
        seed=int(content.bag.slide_sha256[:16], 16),
    )


def _build(content: BundleContent, order: TileOrder, codec: str) -> BuiltBundle:
    parts = _first_tier(content, order, codec)
    later = order.chunks[1:]
    if later:
        shared = find_shared_axes(content.bag.vectors[np.concatenate(later)], codec, content.bag.fingerprint)
        basis = None
        if shared is not None:
            axes, basis = shared
            parts.append(Part(AXES, 2, axes))
        parts += [_tiles_part(content, order, i, codec, basis) for i in range(1, len(order.chunks))]
    left_out = len(content.bag) - sum(len(chunk) for chunk in order.chunks)
    summary = replace(content.summary, codec=codec, tiles_left_out=left_out)
    # What stands before the parts counts to tier 0: leave room for a signature and a lock.
    head_bytes = len(pack_container([Part(SUMMARY, 0, b"-"), *parts])) - sum(len(part.content) for part in parts)
    room = MAX_TIER0_BYTES - head_bytes - _SEAL_BYTES - _LOCK_BYTES
    return BuiltBundle((Part(SUMMARY, 0, dump_summary(summary, room=room)), *parts), summary)


def _first_tier(content: BundleContent, order: TileOrder, codec: str) -> list[Part]:
    parts = []
    opinion = bytes(imagecodecs.zstd_encode(json.dumps(content.opinion, ensure_ascii=False).encode(), 19))
    if len(opinion) <= _OPINION_BYTES:
        parts.append(Part(OPINION, 1, opinion, is_optional=True))
    if content.thumbnail is not None:
        parts.append(Part(THUMBNAIL, 1, encode_thumbnail(content.thumbnail), is_optional=True))
    if len(content.bag):
        room = MAX_TIER1_BYTES - sum(len(part.content) for part in parts)
        for candidate in [codec, *PRECISIONS[3:]]:
            first = _tiles_part(content, order, 0, candidate, None)
            if len(first.content) <= room:
                break
        parts.append(first)
    return parts


def _tiles_part(content: BundleContent, order: TileOrder, index: int, codec: str, basis: FeatureBasis | None) -> Part:
    tiles = dump_tiles(
        content.bag,
        order.chunks[index],
        reason=order.reason,
        novelty=content.novelty,
        codec=codec,
        basis=basis,
    )
    return Part(f"tiles-{index}", 1 if index == 0 else 2, tiles)


def _size(built: BuiltBundle) -> int:
    return len(built.pack())


def _leave_out(
    content: BundleContent, order: TileOrder, codec: str, budget_bytes: int, whole: BuiltBundle
) -> BuiltBundle:
    """Cut tiles off the end of the order until it fits; the first tier always stays."""
    sequence = np.concatenate([order.chunks[0], *(_by_reason(chunk, order) for chunk in order.chunks[1:])])
    n_first, built = len(order.chunks[0]), whole
    n = len(sequence)
    while _size(built) > budget_bytes and n > n_first:
        over = _size(built) / budget_bytes
        n = max(n_first, min(n - 16, int(n / over)))
        kept = np.zeros(len(content.bag), bool)
        kept[sequence[:n]] = True
        chunks = tuple(chunk[kept[chunk]] for chunk in order.chunks)
        built = _build(content, TileOrder(tuple(c for c in chunks if len(c)), order.reason), codec)
    return replace(built, is_over_budget=_size(built) > budget_bytes)


def _by_reason(chunk: NDArray[np.int64], order: TileOrder) -> NDArray[np.int64]:
    """Tiles that were chosen before those that were drawn; drawn ones are in grid order, so they are shuffled."""
    is_chosen = order.reason[chunk] != RANDOM
    shuffled = np.random.default_rng(len(chunk)).permutation(len(chunk))
    return np.concatenate([chunk[is_chosen], chunk[shuffled][~is_chosen[shuffled]]])


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
