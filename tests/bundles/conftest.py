"""Toy slides for tests of the case bundle: a bag with structure, findings and a thumbnail, in a few kilobytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from slideway.bundles.build import BundleContent, build_bundle
from slideway.core.bag import EmbeddingBag, Sampling
from slideway.core.bundle import BriefFinding, BundleSummary
from slideway.core.tissue import TileGrid


def make_content(n=200, width=64, *, seed=0, n_findings=2, is_sampled=False, edit_bag=None):
    """What is known of a toy slide: vectors near few directions, scores, groups, two findings, a thumbnail."""
    random = np.random.default_rng(seed)
    columns = max(1, int(np.ceil(np.sqrt(1.3 * n))))
    cells = np.sort(random.choice(max(1, int(1.3 * columns * columns)), n, replace=False))
    place = np.stack([cells % columns, cells // columns], axis=1).astype(np.int32)
    along = random.normal(size=(n, 6)).astype(np.float32) * (8 * 0.8 ** np.arange(6)).astype(np.float32)
    axes = np.random.default_rng(9).normal(size=(6, width)).astype(np.float32)
    vectors = (along @ axes + 0.3 * random.normal(size=(n, width)) + 1).astype(np.float16)
    focus = random.uniform(0, 900, n).astype(np.float32)
    sampling = None
    if is_sampled:
        is_random = random.random(n) < 0.7
        sampling = Sampling(np.where(is_random, 3, 0).astype(np.uint8), np.where(is_random, 3.25, 1).astype(np.float32))
    grid = TileGrid(place, 224, 0.5, 0.25)
    bag = EmbeddingBag(vectors, grid, focus, "toy-encoder", "fe" * 32, "5a" * 32, sampling)
    bag = bag if edit_bag is None else edit_bag(bag)
    side = int(place.max(initial=0) + 1) * 448
    summary = BundleSummary(
        slide_sha256=bag.slide_sha256,
        case="case-7",
        site="lymph-node",
        width_px=side,
        height_px=side,
        mpp=0.25,
        is_mpp_estimated=False,
        tissue_mm2=12.5,
        verdict="readable",
        reasons=("blurred",),
        tile_px=224,
        tile_mpp=0.5,
        tiles=n,
        tiles_left_out=0,
        tissue_tiles=max(n, round(float(bag.weights.sum(dtype=np.float64)))),
        is_sampled=is_sampled,
        novel_share=0.03,
        encoder_id=bag.encoder_id,
        fingerprint=bag.fingerprint,
        codec="",
        findings=tuple(
            BriefFinding(f"task-{i}", "answer", ("metastasis", "no metastasis"), 0.91, i == 0)
            for i in range(n_findings)
        ),
    )
    picture = np.full((24, 32, 3), 255, np.uint8)
    picture[4:20, 6:25] = (205, 150, 190)
    return BundleContent(
        bag=bag,
        summary=summary,
        opinion={"findings": [{"task": f"task-{i}"} for i in range(n_findings)], "quality": {"verdict": "readable"}},
        thumbnail=picture,
        attention=random.random(n).astype(np.float32),
        novelty=random.uniform(0, 100, n).astype(np.float32),
        representatives=tuple(tuple(range(g, n, 5))[:4] for g in range(min(5, n))),
    )


@pytest.fixture
def toy():
    """`make_content`."""
    return make_content


@pytest.fixture
def short_chunks(monkeypatch):
    """Toy bags travel in several parts, too."""
    monkeypatch.setattr("slideway.bundles.order._CHUNK_TILES", 40)
    monkeypatch.setattr("slideway.bundles.order._MOST_FULL_CHUNKS", 3)
    monkeypatch.setattr("slideway.bundles.build.MOST_CHUNK_TILES", 60)


@pytest.fixture
def built(toy, short_chunks):
    """A bundle of 200 tiles in five parts, axes among them."""
    return build_bundle(toy(), codec="steps")


@pytest.fixture
def repack():
    """Put changed parts into a container with right hashes: hostile content in a valid bundle."""
    return lambda built, **changed: replace(
        built,
        parts=tuple(
            replace(part, content=changed.get(part.name.replace("-", "_"), part.content)) for part in built.parts
        ),
    ).pack()
