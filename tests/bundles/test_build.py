"""Building a case bundle: budgets are kept by precision first, tiers 0 and 1 stay small, bytes are the same twice."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles import codec_steps
from slideway.bundles.build import PRECISIONS, build_bundle, encode_thumbnail
from slideway.bundles.container import pack_container
from slideway.bundles.lock import lock_parts
from slideway.bundles.read import read_bundle
from slideway.core.bundle import BriefFinding
from slideway.registry.keys import SigningKey

RECEIVER = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SIGNER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def release(built):
    """Signed and locked, as it travels; with its head."""
    parts, lock = lock_parts(built.parts, RECEIVER.public_key())
    content = pack_container(parts, lock=lock, signer=SIGNER)
    return content, read_bundle(content, key=RECEIVER)


def fill_first_tiers(content):
    """A slide whose opinion and thumbnail hardly compress."""
    random = np.random.default_rng(0)
    return replace(
        content,
        opinion={"findings": random.bytes(14_500).hex()},
        thumbnail=random.integers(0, 256, (900, 900, 3), np.uint8),
    )


@pytest.fixture
def no_own_axes(monkeypatch):
    """Finding principal axes of 2,560 numbers takes 15 s; without them vectors take more bytes, never fewer."""
    monkeypatch.setattr(codec_steps, "_own_axes", lambda centred, step: [codec_steps.send_axes(centred[:0])])


def test_the_same_slide_gives_the_same_bytes_and_another_other_ones(toy, short_chunks):
    first = build_bundle(toy()).pack()
    assert build_bundle(toy()).pack() == first
    assert build_bundle(toy(seed=1)).pack() != first


@pytest.mark.parametrize("codec", PRECISIONS)
def test_every_precision_builds_and_reads(toy, short_chunks, codec):
    built = build_bundle(toy(), codec=codec)
    bundle = read_bundle(built.pack())
    assert bundle.summary.codec == codec
    assert len(bundle.bag()) == 200


def test_tier_0_stays_below_two_kilobytes_signed_and_locked_with_many_findings_and_tiles(toy):
    content = toy(200_000, 2)
    findings = tuple(
        BriefFinding(
            f"head-{i % 12}/question-{i}", "set", tuple(f"label {i} {k} of some length" for k in range(6)), 0.5, True
        )
        for i in range(60)
    )
    reasons = ("blurred", "folded", "pen", "pale", "small-tissue")
    content = replace(content, summary=replace(content.summary, findings=findings, reasons=reasons))
    _, bundle = release(build_bundle(content, codec="int8"))
    assert bundle.head.bytes_of_tier(0) <= 2_048
    assert bundle.summary.tiles == 200_000
    assert bundle.summary.findings_left_out == 60 - len(bundle.summary.findings)
    assert len(bundle.summary.findings) >= 5


@pytest.mark.parametrize(
    ("n", "width"),
    [(0, 512), (1, 512), (63, 512), (64, 512), (5_000, 512), (60_000, 8), (800, 1_536), (63, 2_560), (800, 2_560)],
)
def test_tiers_0_and_1_stay_below_150_kb_whatever_the_slide(toy, no_own_axes, n, width):
    _, bundle = release(build_bundle(fill_first_tiers(toy(n, width))))
    assert bundle.head.bytes_of_tier(0) <= 2_048
    assert bundle.head.bytes_of_tier(0) + bundle.head.bytes_of_tier(1) <= 150_000
    assert (bundle.bag() is None) == (n == 0)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "width"), [(64, 1_536), (5_000, 1_536), (1, 2_560), (64, 2_560), (5_000, 2_560)])
def test_tiers_0_and_1_stay_below_150_kb_for_wide_vectors_with_their_axes(toy, n, width):
    _, bundle = release(build_bundle(fill_first_tiers(toy(n, width))))
    assert bundle.head.bytes_of_tier(0) + bundle.head.bytes_of_tier(1) <= 150_000
    assert len(bundle.bag()) == n


def test_vectors_that_do_not_compress_leave_tier_1_fewer_tiles_before_coarser_ones(toy, no_own_axes):
    def scatter(bag):
        bag.vectors[:] = np.random.default_rng(0).uniform(-1, 1, bag.vectors.shape).astype(np.float16)
        return bag

    for codec, width in (("fp16", 512), ("fp16", 2_560), ("steps", 2_560)):
        built = build_bundle(fill_first_tiers(toy(300, width, edit_bag=scatter)), codec=codec)
        _, bundle = release(built)
        assert bundle.head.bytes_of_tier(0) + bundle.head.bytes_of_tier(1) <= 150_000
        assert len(bundle.bag()) == 300


def test_a_budget_takes_precision_before_it_takes_tiles(toy, short_chunks):
    content = toy(240, 32)
    sizes = {codec: len(build_bundle(content, codec=codec).pack()) for codec in PRECISIONS}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    for finer, coarser in pairwise(PRECISIONS):
        budget = (sizes[finer] + sizes[coarser]) // 2 + 400  # a seal and a lock are counted, too
        built = build_bundle(content, codec="fp16", budget_bytes=budget, may_leave_tiles_out=True)
        assert built.summary.codec == coarser
        assert built.summary.tiles_left_out == 0
        assert not built.is_over_budget
        assert len(release(built)[0]) <= budget


def test_below_the_coarsest_precision_tiles_are_left_out_only_where_that_is_allowed(toy, short_chunks):
    content = toy(240, 32)
    budget = int(0.6 * len(build_bundle(content, codec="steps-coarse").pack()))
    kept = build_bundle(content, budget_bytes=budget)
    assert kept.is_over_budget
    assert kept.summary.tiles_left_out == 0
    built = build_bundle(content, budget_bytes=budget, may_leave_tiles_out=True)
    released, bundle = release(built)
    assert not built.is_over_budget
    assert len(released) <= budget
    bag = bundle.bag()
    assert 48 < len(bag) == 240 - bundle.summary.tiles_left_out
    assert bag.weights.sum(dtype=np.float64) == pytest.approx(240, rel=1e-5)


def test_a_budget_that_not_even_the_first_tier_meets_is_said_to_be_exceeded(toy, short_chunks):
    built = build_bundle(toy(240, 32), budget_bytes=1_500, may_leave_tiles_out=True)
    assert built.is_over_budget
    assert len(read_bundle(built.pack()).bag()) == 48


def test_an_opinion_too_long_for_the_first_tier_stays_at_home_and_its_summary_travels(toy):
    content = replace(toy(20), opinion={"text": np.random.default_rng(0).bytes(40_000).hex()})
    bundle = read_bundle(build_bundle(content).pack())
    assert bundle.opinion is None
    assert len(bundle.summary.findings) == 2


def test_a_thumbnail_is_at_most_512_pixels_and_coarser_where_it_shows_much():
    random = np.random.default_rng(0)
    plain = encode_thumbnail(np.full((1_000, 2_000, 3), 240, np.uint8))
    busy = encode_thumbnail(random.integers(0, 256, (1_000, 2_000, 3), np.uint8))
    assert len(plain) < 1_000
    assert len(busy) < 40_000
