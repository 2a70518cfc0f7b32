"""Read a case bundle as far as it came: every prefix is an answer, and what is missing is said."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import imagecodecs
import numpy as np

from slideway.bundles.build import OPINION, THUMBNAIL
from slideway.bundles.codecs import MAX_NUMBERS
from slideway.bundles.container import BundleHead, iterate_parts, read_head
from slideway.bundles.order import weigh_tiles
from slideway.bundles.summary_part import NAME as SUMMARY
from slideway.bundles.summary_part import load_summary
from slideway.bundles.tiles_part import AXES, TileRows, TilesHead, load_shared_axes, load_tiles, peek_tiles
from slideway.core.bag import EmbeddingBag, Sampling
from slideway.core.bundle import BundleSummary
from slideway.core.errors import BrokenBundleError, WrongUseError
from slideway.core.tissue import TileGrid

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from slideway.bundles.lock import Unlocker

_MAX_OPINION_BYTES = 4_000_000
_TILES = re.compile(r"tiles-(0|[1-9][0-9]{0,2})")
REGION = "region.webp"
_KNOWN = {SUMMARY, OPINION, THUMBNAIL, AXES}


@dataclass(frozen=True)
class CaseBundle:
    """What came of a bundle.

    Attributes:
        head: List of parts, id, signer.
        summary: What is known at once.
        contents: Bytes of each part that came, by name; decrypted.
        name: For messages.
    """

    head: BundleHead
    summary: BundleSummary
    contents: Mapping[str, bytes]
    name: str

    @property
    def is_whole(self) -> bool:
        """Whether every part came."""
        return len(self.contents) == len(self.head.entries)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the parts that did not come."""
        return tuple(entry.name for entry in self.head.entries if entry.name not in self.contents)

    @property
    def opinion(self) -> dict[str, Any] | None:
        """Findings and quality in full; None when they did not come or were not to leave.

        Raises:
            BrokenBundleError: The part is not JSON.
        """
        if (content := self.contents.get(OPINION)) is None:
            return None
        try:
            text = imagecodecs.zstd_decode(content, out=_MAX_OPINION_BYTES)
            opinion = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RuntimeError, RecursionError) as error:
            raise BrokenBundleError(
                f"{self.name}: its opinion cannot be read; the sender's program is at fault"
            ) from error
        if not isinstance(opinion, dict):
            raise BrokenBundleError(f"{self.name}: its opinion is of another form; the sender's program is at fault")
        return opinion

    @property
    def thumbnail(self) -> bytes | None:
        """The slide in small as a WebP file; None when it did not come or was not to leave."""
        return self.contents.get(THUMBNAIL)

    @cached_property
    def rows(self) -> TileRows | None:
        """All tiles that came, row-major; None when vectors did not come or were not to leave.

        Raises:
            BrokenBundleError: A part does not hold what it says, or a tile comes twice.
        """
        contents = [self.contents[name] for name in _list_tiles(self.head) if name in self.contents]
        if not contents:
            return None
        _require_promised([peek_tiles(content, self.name) for content in contents], self.summary, self.name)
        basis = None
        if AXES in self.contents:
            basis = load_shared_axes(self.contents[AXES], self.summary.fingerprint, self.name)
        return _join([load_tiles(content, basis, self.name) for content in contents], self.name)

    def bag(self) -> EmbeddingBag | None:
        """The slide's bag as far as it came; None when no vectors did.

        Where tiles are missing, those that came stand for them: `sampling` says for how many each.

        Raises:
            BrokenBundleError: The parts contradict each other.
        """
        if (rows := self.rows) is None:
            return None
        summary = self.summary
        grid = TileGrid(rows.column_row, summary.tile_px, summary.tile_mpp, summary.mpp)
        _require_inside(grid, summary, self.name)
        return EmbeddingBag(
            rows.vectors,
            grid,
            rows.focus,
            summary.encoder_id,
            summary.fingerprint,
            summary.slide_sha256,
            self._weigh(rows),
        )

    def _weigh(self, rows: TileRows) -> Sampling | None:
        """What each tile stands for; None where all came, and all were read on the edge."""
        summary, n = self.summary, len(rows.column_row)
        own = float(rows.weight.sum(dtype=np.float64))
        if own > summary.tissue_tiles + 1 or (n == summary.tiles and own < summary.tissue_tiles - 1):
            raise BrokenBundleError(
                f"{self.name}: its tiles stand for {own:,.0f} of the tissue's {summary.tissue_tiles:,}; "
                "the sender's program is at fault: tell them"
            )
        if n == summary.tiles:
            return Sampling(rows.edge_reason, rows.weight) if summary.is_sampled else None
        last = sum(name in self.contents for name in _list_tiles(self.head)) - 1
        weight = weigh_tiles(rows.since <= last, rows.weight, total_weight=float(summary.tissue_tiles))
        return Sampling(rows.edge_reason if summary.is_sampled else rows.reason, weight)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _list_tiles(head: BundleHead) -> list[str]:
    return [entry.name for entry in head.entries if _TILES.fullmatch(entry.name)]


def _require_promised(heads: list[TilesHead], summary: BundleSummary, name: str) -> None:
    """Before anything is unpacked: no more than the summary promises, and of one kind."""
    n_tiles, width = sum(head.tiles for head in heads), heads[0].width
    if any(head.width != width for head in heads):
        raise BrokenBundleError(f"{name}: vectors of two widths; the sender's program is at fault: tell them")
    if any(head.is_sampled != summary.is_sampled for head in heads):
        raise BrokenBundleError(f"{name}: sampled on the edge, or not; the sender's program is at fault: tell them")
    if n_tiles > summary.tiles - summary.tiles_left_out:
        raise BrokenBundleError(f"{name}: more tiles than its summary promises; the sender's program is at fault")
    if n_tiles * width > MAX_NUMBERS:
        raise BrokenBundleError(f"{name}: {n_tiles:,} tiles of {width:,} numbers, beyond what is read; not a slide")


def _require_inside(grid: TileGrid, summary: BundleSummary, name: str) -> None:
    corner = grid.column_row.astype(np.float64) * grid.tile_level0_px
    if (corner < 0).any() or (corner >= [summary.width_px, summary.height_px]).any():
        raise BrokenBundleError(f"{name}: a tile lies outside its slide; the sender's program is at fault: tell them")


def _join(parts: list[TileRows], name: str) -> TileRows:
    """One after the other, row-major; the list is emptied, so that the largest numbers are held once."""
    place = np.concatenate([part.column_row for part in parts])
    order = np.lexsort((place[:, 0], place[:, 1]))
    place = place[order]
    if len(place) > 1 and (np.diff(place, axis=0) == 0).all(axis=1).any():
        raise BrokenBundleError(f"{name}: a tile comes twice; the sender's program is at fault: tell them")
    facts = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
        for field in fields(TileRows)
        if field.name not in {"column_row", "vectors"}
    }
    vectors = np.empty((len(place), parts[0].vectors.shape[1]), np.float16)
    to = np.argsort(order)
    while parts:
        mine = parts.pop(0).vectors
        vectors[to[: len(mine)]] = mine
        to = to[len(mine) :]
    return TileRows(place, vectors, **facts)


def read_bundle(source: Path | bytes, *, key: X25519PrivateKey | None = None) -> CaseBundle:
    """Read a bundle, or as much of it as came; each part is checked before it is believed.

    Args:
        source: A file, or the bytes themselves.
        key: The receiver's private key, for a bundle that is locked to it.

    Raises:
        BrokenBundleError: Not a bundle, cut off before the end of its summary, changed, or of a newer major version.
        LockedBundleError: Locked to another key, or no key was given.
        WrongUseError: The file cannot be opened.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "the bundle", key)
    try:
        file = source.open("rb")
    except OSError as error:
        raise WrongUseError(f"{source.name}: this bundle cannot be read ({error.strerror}); check the path") from error
    with file:
        return _read(file, source.name, key)


def read_region(content: bytes, *, key: X25519PrivateKey | None = None) -> bytes:
    """The picture (WebP) in the container of one region, as `slideway.bundles.release.release_region` made it.

    Args:
        content: All of it.
        key: The receiver's private key, where it is locked to it.

    Raises:
        BrokenBundleError: Not such a container, cut off, or changed.
        LockedBundleError: Locked to another key, or no key was given.
    """
    file, name = io.BytesIO(content), "the region"
    head = read_head(file, name)
    unlocker = None if head.lock is None else _open_lock(head.lock, key, name)
    for i, part in enumerate(iterate_parts(file, head, name)):
        if part.name == REGION:
            return part.content if unlocker is None else unlocker.unlock(i, part).content
    raise BrokenBundleError(f"{name}: holds no picture, or was cut off before it; ask for it again")


def _read(file: BinaryIO, name: str, key: X25519PrivateKey | None) -> CaseBundle:
    head = read_head(file, name)
    _require_known(head, name)
    unlocker = None if head.lock is None else _open_lock(head.lock, key, name)
    contents: dict[str, bytes] = {}
    for i, part in enumerate(iterate_parts(file, head, name)):
        contents[part.name] = part.content if unlocker is None else unlocker.unlock(i, part).content
    if SUMMARY not in contents:
        raise BrokenBundleError(f"{name}: cut off before the end of its summary; nothing of it can be used")
    return CaseBundle(head, load_summary(contents[SUMMARY], name), contents, name)


def _open_lock(lock: dict[str, Any], key: X25519PrivateKey | None, name: str) -> Unlocker:
    from slideway.bundles.lock import Unlocker  # noqa: PLC0415  # reading a slide opens no lock, and loads no cryptography

    return Unlocker(lock, key, name)


def _require_known(head: BundleHead, name: str) -> None:
    """The list is one that this reader understands, whatever of it will come."""
    if head.entries[0].name != SUMMARY or head.entries[0].tier != 0:
        raise BrokenBundleError(f"{name}: its first part is no summary; the sender's program is at fault: tell them")
    for entry in head.entries:
        if not (entry.is_optional or entry.name in _KNOWN or _TILES.fullmatch(entry.name)):
            raise BrokenBundleError(
                f"{name}: needs a part {entry.name!r} that this Slideway does not know; update Slideway"
            )
    tiles = _list_tiles(head)
    names = [entry.name for entry in head.entries]
    if tiles != [f"tiles-{i}" for i in range(len(tiles))] or (
        AXES in names and tiles[1:] and names.index(AXES) > names.index(tiles[1])
    ):
        raise BrokenBundleError(f"{name}: its tiles are out of order; the sender's program is at fault: tell them")
