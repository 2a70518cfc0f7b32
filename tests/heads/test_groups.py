"""Tiles are grouped by likeness: the same way every time, whatever their number and order."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.heads import group_tiles
from slideway.heads.groups import MAX_GROUPS, REPRESENTATIVES, mean_silhouette, spread_out


def draw_tissues(sizes, *, width=64, apart=3.0, seed=0):
    """Vectors of several tissues, mixed over the slide; returns them with the tissue of each."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, apart, (len(sizes), width))
    tissue = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return centres[tissue] + random.normal(0, 1, (len(tissue), width)), tissue


def test_empty_bag_has_no_groups(lay_bag):
    groups = group_tiles(lay_bag(np.empty((0, 64))))
    assert groups.count == 0
    assert groups.group.shape == (0,)
    assert groups.shares == ()


@pytest.mark.parametrize("n", [1, 2, 5, 15])
def test_few_tiles_are_one_group(lay_bag, n):
    groups = group_tiles(lay_bag(draw_tissues([n])[0]))
    assert groups.count == 1
    assert sorted(groups.representatives[0]) == list(range(n))


@pytest.mark.parametrize("sizes", [[300, 200], [400, 200, 100], [200, 150, 100, 80, 60]])
def test_clearly_different_tissues_are_found_with_their_number(lay_bag, sizes):
    vectors, tissue = draw_tissues(sizes)
    groups = group_tiles(lay_bag(vectors))
    assert groups.count == len(sizes)
    assert all(len(set(tissue[groups.group == g])) == 1 for g in range(groups.count))


def test_rare_but_distinct_tissue_is_kept_apart(lay_bag):
    vectors, tissue = draw_tissues([480, 20])
    groups = group_tiles(lay_bag(vectors))
    assert set(groups.group[tissue == 1]).isdisjoint(groups.group[tissue == 0])


def test_one_even_tissue_is_one_group(lay_bag):
    assert group_tiles(lay_bag(draw_tissues([800])[0])).count == 1


def test_identical_tiles_are_one_group(lay_bag):
    assert group_tiles(lay_bag(np.ones((200, 64)))).count == 1


def test_groups_come_in_order_of_size(lay_bag):
    shares = group_tiles(lay_bag(draw_tissues([60, 300, 140])[0])).shares
    assert list(shares) == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_same_bag_gives_the_same_groups(lay_bag):
    bag = lay_bag(draw_tissues([300, 250, 90])[0])
    first, second = group_tiles(bag), group_tiles(bag)
    assert np.array_equal(first.group, second.group)
    assert first.representatives == second.representatives


def test_order_of_the_tiles_does_not_decide_who_belongs_together(lay_bag):
    vectors, _ = draw_tissues([300, 200, 100])
    order = np.random.default_rng(5).permutation(600)
    straight, shuffled = group_tiles(lay_bag(vectors)).group, group_tiles(lay_bag(vectors[order])).group
    assert np.array_equal(straight[order], shuffled)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 200), kinds=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_tile_has_a_group_and_every_group_shows_itself(lay_bag, n, kinds, seed):
    vectors = draw_tissues([n // kinds + 1] * kinds, seed=seed)[0][:n]
    groups = group_tiles(lay_bag(vectors))
    assert 0 <= groups.count <= MAX_GROUPS
    assert set(groups.group) == set(range(groups.count))
    for g, representatives in enumerate(groups.representatives):
        assert 1 <= len(representatives) <= REPRESENTATIVES
        assert len(set(representatives)) == len(representatives)
        assert (groups.group[list(representatives)] == g).all()


def test_representatives_are_typical_and_lie_apart(lay_bag):
    bag = lay_bag(draw_tissues([900, 700])[0])
    groups = group_tiles(bag)
    for g, representatives in enumerate(groups.representatives):
        members = bag.vectors[groups.group == g].astype(np.float32)
        distance = np.linalg.norm(bag.vectors.astype(np.float32) - members.mean(axis=0), axis=1)
        assert np.median(distance[list(representatives)]) < np.median(distance[groups.group == g])
        places = bag.grid.column_row[list(representatives)].astype(float)
        gaps = np.abs(places[:, None] - places[None]).max(axis=2)
        assert gaps[np.triu_indices(len(places), 1)].min() >= 3


def test_spreading_gives_way_when_all_candidates_touch():
    touching = np.stack([np.arange(20) % 5, np.arange(20) // 5], axis=1).astype(float)
    assert sorted(spread_out(np.arange(20), touching)) != []
    assert len(spread_out(np.arange(20), touching)) == REPRESENTATIVES


def test_vectors_that_are_not_finite_do_not_spoil_the_others(lay_bag):
    vectors, tissue = draw_tissues([300, 200])
    vectors[7], vectors[8] = np.nan, np.inf
    groups = group_tiles(lay_bag(vectors))
    good = np.setdiff1d(np.arange(500), [7, 8])
    assert groups.count == 2
    assert (groups.group[good] == tissue[good]).all()


def test_silhouette_is_high_apart_and_low_mixed():
    line = np.array([0.0, 0.1, 5.0, 5.1])
    distance = np.abs(line[:, None] - line[None])
    assert mean_silhouette(distance, np.array([0, 0, 1, 1])) > 0.9
    assert mean_silhouette(distance, np.array([0, 1, 0, 1])) < 0
    assert mean_silhouette(distance, np.array([0, 0, 0, 0])) == 0


def test_fifty_thousand_tiles_are_grouped_within_seconds(lay_bag):
    bag = lay_bag(draw_tissues([20_000, 15_000, 10_000, 5_000], width=256)[0])
    began = time.process_time()
    assert group_tiles(bag).count == 4
    assert time.process_time() - began < 6  # under 2 s on an idle core; other work may share it
