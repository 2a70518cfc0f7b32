"""A head of single tiles: the highest tiles speak for the slide, as many of them as the tissue has."""

import numpy as np
import pytest

from slideway.heads.instance import LEAST_TOP, score_instances, score_tiles
from slideway.testing.heads import TOY_QUESTIONS, make_toy_head

BINARY = TOY_QUESTIONS[:2]


@pytest.fixture(scope="module")
def scorer():
    return make_toy_head(BINARY, form="instance").network


def make_tiles(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


def test_logit_of_the_slide_is_the_mean_of_its_five_highest_tiles(scorer):
    tiles = make_tiles(100)
    each = score_tiles(scorer, tiles, "neoplastic")
    scores = score_instances(scorer, tiles)
    assert scores.logits["neoplastic"][0] == pytest.approx(np.sort(each)[-LEAST_TOP:].mean(), rel=1e-5)
    assert sorted(np.flatnonzero(scores.attention)) == sorted(np.argsort(each)[-LEAST_TOP:])
    assert scores.attention.sum() == pytest.approx(1, abs=1e-6)


def test_one_percent_of_a_large_slide_decides(scorer):
    scores = score_instances(scorer, make_tiles(1_000))
    assert (scores.attention > 0).sum() == 10


@pytest.mark.parametrize("n", [1, 3])
def test_slide_of_fewer_tiles_than_five_is_judged_by_all(scorer, n):
    scores = score_instances(scorer, make_tiles(n))
    np.testing.assert_allclose(scores.attention, 1 / n)


def test_single_odd_tile_does_not_decide_a_slide(scorer):
    tiles = make_tiles(100) * 0.1
    tiles[7, 0] = 10
    assert score_tiles(scorer, tiles, "neoplastic")[7] > 10
    odd = score_instances(scorer, tiles).logits["neoplastic"][0]
    tiles[20:24, 0] = 10
    assert odd < 0 < score_instances(scorer, tiles).logits["neoplastic"][0]


def test_planted_tiles_are_hottest_and_push_towards_yes(scorer):
    tiles = make_tiles(300)
    tiles[[5, 90, 91, 200, 299], 0] += 8
    scores = score_instances(scorer, tiles)
    assert sorted(np.flatnonzero(scores.attention)) == [5, 90, 91, 200, 299]
    assert sorted(np.argsort(scores.push["neoplastic"][:, 0])[-5:]) == [5, 90, 91, 200, 299]
    assert scores.push["neoplastic"][5, 0] > 0
    assert scores.push["neoplastic"].sum() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("heavy", [4, 77])
def test_tile_of_weight_three_counts_like_three_equal_tiles(scorer, heavy):
    tiles = make_tiles(80)
    tiles[4, 0] = 9  # among the highest; 77 is not
    weights = np.ones(80, np.float32)
    weights[heavy] = 3
    weighted = score_instances(scorer, tiles, weights)
    repeated = score_instances(scorer, np.concatenate([tiles, tiles[[heavy, heavy]]]))
    for task in ("neoplastic", "malignant"):
        np.testing.assert_allclose(weighted.logits[task], repeated.logits[task], rtol=1e-5)
    assert weighted.attention[heavy] == pytest.approx(repeated.attention[[heavy, 80, 81]].sum(), abs=1e-6)
    of_heavy = repeated.push["neoplastic"][[heavy, 80, 81]].sum()
    assert weighted.push["neoplastic"][heavy, 0] == pytest.approx(of_heavy, rel=1e-3)


def test_order_of_tiles_does_not_matter(scorer):
    tiles, order = make_tiles(500), np.random.default_rng(1).permutation(500)
    straight, shuffled = score_instances(scorer, tiles), score_instances(scorer, tiles[order])
    np.testing.assert_allclose(straight.logits["malignant"], shuffled.logits["malignant"], rtol=1e-6)
    np.testing.assert_allclose(straight.attention[order], shuffled.attention)
