"""Tiles are chosen for a reason that is recorded; the random share is seeded and keeps estimates unbiased."""

from __future__ import annotations

import numpy as np
import pytest

from slideway.heads import Screening, select_tiles
from slideway.heads.screen import CELLULARITY, DIVERSITY, NOVELTY, RANDOM, Shares, _spread_evenly, find_lonely, whiten


def draw_screening(n=1000, *, seed=0, kinds=3):
    random = np.random.default_rng(seed)
    looks = random.normal(0, 1, (kinds, 8))[random.integers(0, kinds, n)] * 4 + random.normal(0, 1, (n, 8))
    return Screening(looks.astype(np.float32), random.random(n).astype(np.float32), n // 16)


def test_shares_are_kept_and_every_tile_has_one_reason():
    selection = select_tiles(draw_screening(), seed=1)
    assert selection.sampling.counts == {"novelty": 200, "cellularity": 40, "diversity": 40, "random": 72}
    assert len(np.unique(selection.tiles)) == len(selection.tiles) == 352
    assert (np.diff(selection.tiles) > 0).all()


def test_a_lone_look_is_chosen_as_novel():
    screening = draw_screening()
    screening.looks[[123, 124]] += 40
    selection = select_tiles(screening, seed=1)
    reason = dict(zip(selection.tiles.tolist(), selection.sampling.reason.tolist(), strict=True))
    assert reason[123] == reason[124] == NOVELTY


def test_the_most_cellular_tiles_are_chosen():
    screening = draw_screening()
    screening.cellularity[[7, 500]] = 9
    assert {7, 500} <= set(select_tiles(screening, seed=1).tiles.tolist())


def test_a_rare_kind_of_tissue_gets_its_share_of_diversity():
    random = np.random.default_rng(3)
    kind = np.repeat([0, 1], [950, 50])
    looks = np.where(kind[:, None] == 0, -5, 5) + random.normal(0, 1, (1000, 8))
    shares = Shares(novelty=0, cellularity=0, diversity=0.04, random=0.05)
    selection = select_tiles(Screening(looks.astype(np.float32), np.zeros(1000, np.float32), 60), seed=1, shares=shares)
    chosen = selection.tiles[selection.sampling.reason == DIVERSITY]
    assert (kind[chosen] == 1).sum() >= 5  # by its area it would have two


def test_the_seed_decides_the_draw_and_nothing_else():
    screening = draw_screening()
    first, again, other = (select_tiles(screening, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.tiles, again.tiles)
    drawn = [set(s.tiles[s.sampling.reason == RANDOM].tolist()) for s in (first, other)]
    chosen = [set(s.tiles[s.sampling.reason != RANDOM].tolist()) for s in (first, other)]
    assert drawn[0] != drawn[1]
    assert chosen[0] == chosen[1]


def test_weighted_estimates_are_unbiased_and_plain_ones_are_not():
    """A quantity that goes with cellularity, which the choice favours: over 400 draws only the weighted mean holds."""
    screening = draw_screening(600)
    value = screening.cellularity.astype(np.float64) ** 2 + (find_lonely(whiten(screening.looks)) > 3)
    selections = [select_tiles(screening, seed=seed) for seed in range(400)]
    weighted = np.array([np.average(value[s.tiles], weights=s.sampling.weight) for s in selections])
    plain = np.array([value[s.tiles].mean() for s in selections])
    error = weighted.std() / np.sqrt(len(weighted))
    assert abs(weighted.mean() - value.mean()) < 4 * error
    assert abs(plain.mean() - value.mean()) > 10 * error


def test_weights_add_up_to_all_tiles():
    for n in (200, 777, 1501):
        assert select_tiles(draw_screening(n), seed=5).sampling.weight.sum() == pytest.approx(n, rel=1e-5)


def test_every_tile_that_was_not_chosen_is_drawn_equally_often():
    screening = draw_screening(300)
    counts = np.zeros(300)
    for seed in range(600):
        selection = select_tiles(screening, seed=seed)
        counts[selection.tiles[selection.sampling.reason == RANDOM]] += 1
    drawable = counts[counts > 0]
    assert len(drawable) == 300 - 60 - 12 - 12
    assert drawable.std() < 1.3 * np.sqrt(600 * 0.1)  # as chance scatters them


def test_tiles_that_could_not_be_screened_are_read():
    screening = draw_screening()
    screening.looks[[3, 4]] = np.nan
    screening.cellularity[[3, 4]] = np.nan
    selection = select_tiles(screening, seed=1)
    assert {3, 4} <= set(selection.tiles[selection.sampling.reason == NOVELTY].tolist())


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_tiles_and_tiles_all_alike_are_no_error(n):
    alike = Screening(np.ones((n, 8), np.float32), np.ones(n, np.float32), 1)
    selection = select_tiles(alike, seed=1)
    assert len(selection.tiles) <= n
    assert selection.sampling.weight.sum() == pytest.approx(n)


def test_reasons_are_named_in_the_order_of_the_bag():
    assert (NOVELTY, CELLULARITY, DIVERSITY, RANDOM) == (0, 1, 2, 3)


def test_every_beginning_is_spread_evenly():
    for count in (0, 1, 2, 10, 33):
        assert sorted(_spread_evenly(count)) == list(range(count))
    assert np.ptp(_spread_evenly(64)[:4]) >= 32
