"""Read a case bundle as far as it came: every prefix is an answer, and what is missing is said."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles.build import OPINION, THUMBNAIL
from slideway.bundles.container import BundleHead, Part, iterate_parts, read_head
from slideway.bundles.lock import Unlocker
from slideway.bundles.order import weigh_tiles
from slideway.bundles.summary_part import NAME as SUMMARY
from slideway.bundles.summary_part import load_summary
from slideway.bundles.tiles_part import AXES, TileRows, load_shared_axes, load_tiles
from slideway.core.bag import EmbeddingBag, Sampling
from slideway.core.bundle import BundleSummary
from slideway.core.errors import BrokenBundleError, WrongUseError
from slideway.core.tissue import TileGrid

_MAX_OPINION_BYTES = 4_000_000
_TILES = "tiles-"


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
            opinion = json.loads(imagecodecs.zstd_decode(content, out=_MAX_OPINION_BYTES))
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
        names = [entry.name for entry in self.head.entries if entry.name.startswith(_TILES)]
        basis = None
        if AXES in self.contents:
            basis = load_shared_axes(self.contents[AXES], self.summary.fingerprint, self.name)
        parts = [load_tiles(self.contents[name], basis, self.name) for name in names if name in self.contents]
        if not parts:
            return None
        if len({part.vectors.shape[1] for part in parts}) > 1:
            raise BrokenBundleError(f"{self.name}: vectors of two widths; the sender's program is at fault: tell them")
        return _join(parts, self.name)

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
        if len(grid) > summary.tiles:
            raise BrokenBundleError(
                f"{self.name}: more tiles than its summary promises; the sender's program is at fault"
            )
        sampling = None
        if summary.is_sampled or len(grid) < summary.tiles:
            weight = weigh_tiles(rows.reason, rows.weight, total_weight=float(summary.tissue_tiles))
            sampling = Sampling(rows.edge_reason if summary.is_sampled else rows.reason, weight)
        return EmbeddingBag(
            rows.vectors.astype(np.float16),
            grid,
            rows.focus,
            summary.encoder_id,
            summary.fingerprint,
            summary.slide_sha256,
            sampling,
        )


def _join(parts: list[TileRows], name: str) -> TileRows:
    place = np.concatenate([part.column_row for part in parts])
    order = np.lexsort((place[:, 0], place[:, 1]))
    place = place[order]
    if len(place) > 1 and (np.diff(place, axis=0) == 0).all(axis=1).any():
        raise BrokenBundleError(f"{name}: a tile comes twice; the sender's program is at fault: tell them")

    def gather(field: str) -> Any:
        return np.concatenate([getattr(part, field) for part in parts])[order]

    return TileRows(
        place,
        gather("vectors"),
        gather("reason"),
        gather("focus"),
        gather("novelty"),
        gather("weight"),
        gather("edge_reason"),
    )


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


def _read(file: BinaryIO, name: str, key: X25519PrivateKey | None) -> CaseBundle:
    head = read_head(file, name)
    unlocker = None if head.lock is None else Unlocker(head.lock, key, name)
    contents: dict[str, bytes] = {}
    for i, part in enumerate(iterate_parts(file, head, name)):
        _require_known(part, name)
        contents[part.name] = part.content if unlocker is None else unlocker.unlock(i, part).content
    if head.entries[0].name != SUMMARY:
        raise BrokenBundleError(f"{name}: its first part is no summary; the sender's program is at fault: tell them")
    if SUMMARY not in contents:
        raise BrokenBundleError(f"{name}: cut off before the end of its summary; nothing of it can be used")
    return CaseBundle(head, load_summary(contents[SUMMARY], name), contents, name)


def _require_known(part: Part, name: str) -> None:
    if part.is_optional or part.name in {SUMMARY, OPINION, THUMBNAIL, AXES} or part.name.startswith(_TILES):
        return
    raise BrokenBundleError(f"{name}: needs a part {part.name!r} that this Slideway does not know; update Slideway")
