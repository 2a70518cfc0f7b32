"""A slide unlike the cases a head learnt from stands out, an ordinary one does not."""

from __future__ import annotations

import time

import numpy as np
import pytest

from slideway.heads.typicality import Typicality, fit_typicality, score_typicality

WIDTH = 12
SPREAD = np.linspace(3.0, 0.5, WIDTH)


def draw_case(random: np.random.Generator, tiles: int = 25) -> np.ndarray:
    """Tiles around a case's own middle, as slides of one laboratory vary."""
    return (random.normal(0, 0.5, WIDTH) + random.normal(0, 1, (tiles, WIDTH))) * SPREAD


@pytest.fixture(scope="module")
def typicality() -> Typicality:
    random = np.random.default_rng(1)
    return fit_typicality([draw_case(random) for _ in range(60)])


def test_ordinary_slides_are_called_strange_as_rarely_as_the_level_says():
    p_values = []
    for seed in range(25):  # over many sets of known cases: of one set the rate itself scatters by 3 %
        random = np.random.default_rng(seed)
        known = fit_typicality([draw_case(random, 20) for _ in range(39)])
        p_values += [score_typicality(known, draw_case(random, 20)).p_value for _ in range(30)]
    assert 0.03 < (np.array(p_values) <= 0.05).mean() < 0.07
    assert 0.46 < np.mean(p_values) < 0.54


def test_slide_far_from_every_case_is_as_strange_as_can_be(typicality):
    score = score_typicality(typicality, draw_case(np.random.default_rng(3)) + 12)
    assert score.strangeness == 1
    assert score.p_value == pytest.approx(1 / 61)
    assert (score.tile_strangeness > 0.95).all()


def test_slide_between_known_kinds_of_tissue_is_strange_though_near_the_common_mean():
    random, ends = np.random.default_rng(4), np.zeros(WIDTH)
    ends[0] = 20
    known = fit_typicality([random.normal(0, 1, (50, WIDTH)) + ends * (1 if i % 2 else -1) for i in range(40)])
    between = score_typicality(known, random.normal(0, 1, (50, WIDTH)))
    assert between.p_value == pytest.approx(1 / 41)
    assert between.tile_strangeness.mean() < 0.6  # by distance from the common middle alone it would pass


def test_strange_tiles_are_named(typicality):
    vectors = draw_case(np.random.default_rng(5))
    vectors[7] += 30
    vectors[9] = np.nan
    score = score_typicality(typicality, vectors)
    assert score.tile_strangeness[[7, 9]].tolist() == [1, 1]
    assert np.median(score.tile_strangeness) < 0.9


def test_vectors_that_are_not_finite_do_not_spoil_the_slide(typicality):
    vectors = draw_case(np.random.default_rng(6))
    clean = score_typicality(typicality, vectors).p_value
    spoilt = score_typicality(typicality, np.vstack([vectors, np.full((3, WIDTH), np.inf)]))
    assert spoilt.p_value == clean


@pytest.mark.parametrize("vectors", [np.empty((0, WIDTH)), np.full((4, WIDTH), np.nan)])
def test_slide_without_a_finite_vector_is_as_strange_as_can_be(typicality, vectors):
    score = score_typicality(typicality, vectors)
    assert (score.strangeness, score.p_value) == (1, pytest.approx(1 / 61))
    assert score.tile_strangeness.shape == (len(vectors),)


def test_tile_that_stands_for_many_weighs_as_many(typicality):
    ordinary, strange = draw_case(np.random.default_rng(7), 40), draw_case(np.random.default_rng(8), 8) + 12
    vectors = np.vstack([ordinary, strange])
    weights = np.r_[np.ones(40), np.full(8, 50.0)]
    repeated = np.vstack([ordinary, np.repeat(strange, 50, axis=0)])
    weighted = score_typicality(typicality, vectors, weights)
    assert weighted.p_value == score_typicality(typicality, repeated).p_value == pytest.approx(1 / 61)
    assert score_typicality(typicality, vectors).p_value > weighted.p_value


def test_few_cases_can_call_nothing_strange_and_say_so():
    random = np.random.default_rng(9)
    few = fit_typicality([draw_case(random) for _ in range(12)])
    assert not few.can_tell(0.05)
    assert few.can_tell(0.10)
    assert score_typicality(few, draw_case(random) + 50).p_value > 0.05


def test_fewer_than_five_cases_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        fit_typicality([np.ones((3, WIDTH))] * 4)


def test_one_large_resection_does_not_decide_what_is_ordinary():
    random = np.random.default_rng(10)
    cases = [draw_case(random) for _ in range(30)]
    odd = draw_case(random, 20_000) + 12
    known = fit_typicality([*cases, odd])
    assert score_typicality(known, draw_case(random)).p_value > 0.05


def test_stored_and_read_again_it_says_the_same(typicality):
    again = Typicality.from_arrays(typicality.to_arrays())
    vectors = draw_case(np.random.default_rng(11)) + 1
    first, second = (score_typicality(one, vectors) for one in (typicality, again))
    assert (first.p_value, first.strangeness) == (second.p_value, second.strangeness)
    assert np.array_equal(first.tile_strangeness, second.tile_strangeness)


def test_arrays_of_two_widths_are_refused(typicality):
    with pytest.raises(ValueError, match="one width"):
        Typicality.from_arrays({**typicality.to_arrays(), "mean": np.zeros(WIDTH + 1, np.float32)})


def test_same_seed_gives_the_same_typicality():
    cases = [draw_case(np.random.default_rng(seed), 500) for seed in range(8)]
    first, second, other = (fit_typicality(cases, seed=seed).to_arrays() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["bank"], other["bank"])


def test_more_cases_than_folds_keep_the_level():
    p_values = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        known = fit_typicality([draw_case(random, 10) for _ in range(119)])
        p_values += [score_typicality(known, draw_case(random, 10)).p_value for _ in range(100)]
    assert 0.02 < (np.array(p_values) <= 0.05).mean() < 0.085


def test_fifty_thousand_tiles_take_no_second():
    random = np.random.default_rng(13)
    known = fit_typicality([random.normal(size=(80, 64)) for _ in range(30)])
    vectors = random.normal(size=(50_000, 64)).astype(np.float32)
    began = time.process_time()
    score_typicality(known, vectors)
    assert time.process_time() - began < 1.0  # 0.06 s on one core; a search of every tile takes longer than this
