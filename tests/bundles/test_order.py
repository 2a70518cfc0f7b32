"""The order of tiles: what tells most first, the rest in fair draws, so that any prefix stands for the whole."""

import numpy as np
import pytest

from slideway.bundles.order import NEVER, RANDOM, count_first, order_tiles, weigh_tiles
from slideway.core.bag import REASONS


def scores(n, seed=0):
    random = np.random.default_rng(seed)
    return random.random(n).astype(np.float32), random.random(n).astype(np.float32)


def order_some(n, seed=0, **options):
    attention, novelty = scores(n)
    groups = [list(range(g, n, 7))[:4] for g in range(min(7, n))]
    return order_tiles(n, attention=attention, novelty=novelty, representatives=groups, seed=seed, **options)


@pytest.mark.parametrize("n", [0, 1, 2, 47, 48, 63, 64, 5_000, 200_000])
def test_every_tile_travels_once_in_few_parts(n):
    order = order_some(n)
    everything = np.concatenate(order.chunks)
    assert sorted(everything.tolist()) == list(range(n))
    assert all((np.diff(chunk) > 0).all() for chunk in order.chunks)
    assert len(order.chunks[0]) == count_first(n)
    assert len(order.chunks) <= 14


def test_the_first_part_holds_the_top_of_attention_novelty_each_group_and_random_ones():
    n = 4_000
    attention, novelty = scores(n)
    order = order_some(n)
    first = set(order.chunks[0].tolist())
    assert set(np.argsort(-attention)[:40].tolist()) <= first
    assert set(np.argsort(-novelty)[:36].tolist()) <= first
    assert set(range(7)) <= first
    reasons = {REASONS[code] for code in order.reason[order.chunks[0]]}
    assert reasons == {"attention", "novelty", "diversity", "random"}
    assert (order.reason[order.chunks[0]] == RANDOM).sum() >= 40


def test_the_same_seed_gives_the_same_order_and_another_another():
    one, same, other = order_some(500), order_some(500), order_some(500, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(one.chunks, same.chunks, strict=True))
    assert not np.array_equal(one.chunks[0], other.chunks[0])


def test_scores_that_are_not_numbers_come_last():
    attention = np.array([np.nan] * 50 + [1.0] * 50 + [np.inf] + [-np.inf] * 99, np.float32)
    order = order_tiles(200, attention=attention, novelty=None, representatives=[], seed=0)
    assert order.reason[100] == REASONS.index("attention")
    chosen = np.flatnonzero(order.reason == REASONS.index("attention"))
    assert (attention[chosen[:12]] >= 1).all()


def test_a_limit_keeps_the_first_part_and_as_many_as_asked():
    order = order_some(5_000, limit=1_500)
    assert sum(len(chunk) for chunk in order.chunks) == 1_500
    assert np.array_equal(order.chunks[0], order_some(5_000).chunks[0])


def test_what_is_chosen_follows_from_the_scores_and_never_from_the_draw():
    one, other = order_some(5_000, seed=1), order_some(5_000, seed=2)
    assert np.array_equal(one.since, other.since)
    assert (one.since < NEVER).any()
    assert ((one.reason == RANDOM) & (one.since < NEVER)).any()


@pytest.mark.parametrize("codes", [1, 2, 3])
def test_weighted_means_over_any_prefix_estimate_those_over_the_whole(codes):
    """Over 400 draws the mean of the estimates is within four standard errors, also for what scores choose most."""
    n = 3_000
    random = np.random.default_rng(codes)
    attention = random.random(n).astype(np.float32)
    values = np.stack([attention > 0.9, attention, random.random(n), np.arange(n) < 500], axis=1).astype(float)
    own = random.uniform(1, 5, n).astype(np.float32) if codes == 3 else np.ones(n, np.float32)
    truth = (values * own[:, None]).sum(axis=0) / own.sum()
    estimates = []
    for seed in range(400):
        order = order_tiles(n, attention=attention, novelty=None, representatives=[range(9)], seed=seed)
        n_parts = 1 if codes == 1 else 2
        came = np.concatenate(order.chunks[:n_parts])
        is_chosen = order.since[came] < n_parts
        weight = weigh_tiles(is_chosen, own[came], total_weight=float(own.sum()))
        assert weight.sum(dtype=np.float64) == pytest.approx(own.sum(), rel=1e-5)
        estimates.append((values[came] * weight[:, None]).sum(axis=0) / weight.sum(dtype=np.float64))
    off = np.abs(np.mean(estimates, axis=0) - truth)
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert (off <= 4 * error + 1e-9).all()
    assert (error < 0.01).all()


def test_without_one_drawn_at_random_all_share_what_is_missing():
    weight = weigh_tiles(np.ones(4, bool), np.array([1, 1, 1, 2], np.float32), total_weight=10)
    assert weight.tolist() == [2, 2, 2, 4]


def test_when_nothing_is_missing_weights_stay_as_they_were():
    own = np.array([1, 3.5, 2], np.float32)
    assert weigh_tiles(np.array([True, False, False]), own, total_weight=6.5) is own
