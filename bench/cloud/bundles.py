"""Signed and locked bundles of one size, many and cheap: vectors are packed once, slide, lock and signature are new."""

from __future__ import annotations

import hashlib
import io
import secrets
from dataclasses import dataclass, replace

import numpy as np

from slideway.bundles.build import BundleContent, build_bundle
from slideway.bundles.container import Part, pack_container, read_head
from slideway.bundles.lock import lock_parts
from slideway.bundles.summary_part import dump_summary
from slideway.core.bag import EmbeddingBag
from slideway.core.bundle import BundleSummary
from slideway.core.tissue import TileGrid
from slideway.sync.identity import Endpoint, Keys
from slideway.sync.outgoing import UploadPlan

TILES, WIDTH = 915, 384  # with the codec `steps`: 150 KB
_ROOM = 1_400
_CASE = "KZ2QGX7LB3MWOA5T"


@dataclass(frozen=True)
class Sendable:
    """One bundle as it travels.

    Attributes:
        content: Its bytes.
        plan: What is said of it when its upload begins.
    """

    content: bytes
    plan: UploadPlan


class BundleMaker:
    """Makes bundles that differ in slide, lock and signature; the cloud has as much work with each as with any."""

    def __init__(self, tiles: int = TILES, *, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        columns = int(np.ceil(np.sqrt(tiles)))
        place = np.stack([np.arange(tiles) % columns, np.arange(tiles) // columns], axis=1).astype(np.int32)
        slide, fingerprint = hashlib.sha256(b"load").hexdigest(), hashlib.sha256(b"encoder").hexdigest()
        bag = EmbeddingBag(
            random.normal(size=(tiles, WIDTH)).astype(np.float16),
            TileGrid(place, 224, 0.5, 0.25),
            np.full(tiles, 100, np.float32),
            "load-encoder",
            fingerprint,
            slide,
        )
        summary = BundleSummary(
            slide_sha256=slide, case=_CASE, site="lung", width_px=65_536, height_px=65_536, mpp=0.25,
            is_mpp_estimated=False, tissue_mm2=12.5, verdict="readable", reasons=(), tile_px=224, tile_mpp=0.5,
            tiles=tiles, tiles_left_out=0, tissue_tiles=tiles, is_sampled=False, novel_share=None,
            encoder_id="load-encoder", fingerprint=fingerprint, codec="", findings=(),
        )  # fmt: skip
        thumbnail = random.integers(150, 255, size=(64, 64, 3)).astype(np.uint8)
        opinion = {"findings": [], "quality": {"verdict": "readable"}}
        content = BundleContent(
            bag=bag, summary=summary, opinion=opinion, thumbnail=thumbnail, representatives=((0, 1, 2),)
        )
        built = build_bundle(content, codec="steps")
        self._summary, self._parts = built.summary, built.parts

    def make(self, keys: Keys, endpoint: Endpoint) -> Sendable:
        """A bundle of a slide that nobody saw before."""
        summary = replace(self._summary, slide_sha256=secrets.token_hex(32), case=_make_case())
        first = Part(self._parts[0].name, 0, dump_summary(summary, room=_ROOM))
        locked, how = lock_parts((first, *self._parts[1:]), endpoint.receiver)
        content = pack_container(locked, lock=how, signer=keys.signing)
        head, ends = read_head(io.BytesIO(content), "load"), [0]
        for tier in range(3):
            ends.append(ends[-1] + head.bytes_of_tier(tier))
        sha256 = hashlib.sha256(content).hexdigest()
        return Sendable(content, UploadPlan("bundle", sha256, summary.slide_sha256, tuple(ends[1:])))


def _make_case() -> str:
    """Random, in the form of a pseudonym."""
    return "".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(len(_CASE)))
