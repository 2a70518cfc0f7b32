"""Similar tissue is found exactly, the same way every time, and only among bags of one encoder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from slideway.core.bag import Sampling
from slideway.core.errors import FingerprintMismatchError
from slideway.core.findings import Novelty, TissueGroups
from slideway.heads import find_similar, group_tiles
from slideway.heads import similar as module


def draw_slide(tissues, *, per_tissue=60, width=32, seed=0):
    """Vectors of a slide that holds some of five tissues, all on one large part in common."""
    centres = np.random.default_rng(99).normal(0, 3, (5, width)) + 20
    random = np.random.default_rng(seed)
    return np.concatenate([centres[t] + random.normal(0, 1, (per_tissue, width)) for t in tissues])


@pytest.fixture
def lay_slide(lay_bag):
    def lay(tissues, seed, **options):
        return dataclasses.replace(lay_bag(draw_slide(tissues, seed=seed, **options)), slide_sha256=f"{seed:064x}")

    return lay


def ask(query, library, **options):
    return find_similar(query, group_tiles(query), library, **options)


def test_slides_of_the_same_tissues_come_first(lay_slide):
    query = lay_slide([0, 1], seed=1)
    library = [lay_slide([2, 3], seed=2), lay_slide([0, 1], seed=3), lay_slide([1, 4], seed=4)]
    found = ask(query, library)
    assert [case.slide for case in found.cases] == [1, 2, 0]
    assert found.cases[0].score > found.cases[1].score + 0.2
    assert all(match.slide != 0 for matches in found.matches for match in matches[:2])


def test_the_best_match_is_the_exact_one(lay_slide, monkeypatch):
    query, library = lay_slide([0], seed=1), [lay_slide([0, 1, 2], seed=s) for s in (2, 3)]
    monkeypatch.setattr(module, "_ROWS", 37)  # the blocks a slide is read in must not show
    found = ask(query, library)
    centre = np.mean([bag.vectors.astype(float).mean(axis=0) for bag in library], axis=0)
    for region, matches in zip(found.regions, found.matches, strict=True):
        direction = query.vectors[region.tile].astype(float) - centre
        cosines = [
            (bag.vectors - centre)
            @ direction
            / np.linalg.norm(bag.vectors - centre, axis=1)
            / np.linalg.norm(direction)
            for bag in library
        ]
        assert matches[0].cosine == pytest.approx(max(c.max() for c in cosines), abs=1e-4)
        assert cosines[matches[0].slide][matches[0].tile] == pytest.approx(matches[0].cosine, abs=1e-4)


def test_the_same_question_gives_the_same_answer(lay_slide):
    query, library = lay_slide([0, 1], seed=1), [lay_slide([0, 1], seed=s) for s in (2, 3, 4)]
    assert ask(query, library) == ask(query, library)


def test_the_slide_itself_and_repeated_slides_are_left_out_and_said(lay_slide):
    query, other = lay_slide([0, 1], seed=1), lay_slide([0, 1], seed=2)
    found = ask(query, [query, other, other])
    assert found.itself == (0,)
    assert found.repeated == (2,)
    assert [case.slide for case in found.cases] == [1]


def test_bags_of_another_encoder_are_refused(lay_slide):
    query, other = lay_slide([0], seed=1), lay_slide([0], seed=2)
    foreign = dataclasses.replace(other, fingerprint="0" * 64)
    with pytest.raises(FingerprintMismatchError):
        ask(query, [other, foreign])


def test_matches_of_one_slide_lie_apart_and_do_not_crowd_out_others(lay_slide):
    query, library = lay_slide([0], seed=1), [lay_slide([0], seed=s) for s in (2, 3, 4)]
    for matches in ask(query, library, top=6).matches:
        slides = [match.slide for match in matches]
        assert max(slides.count(s) for s in slides) == 2
        for slide in set(slides):
            first, second = (library[slide].grid.column_row[m.tile] for m in matches if m.slide == slide)
            assert np.abs(first - second).max() > 2


def test_each_slide_counts_once_in_the_centre(lay_slide):
    small, large = lay_slide([0], seed=1), lay_slide([1], seed=2, per_tissue=900)
    centre = module.find_centre([small, large])
    means = [bag.vectors.astype(float).mean(axis=0) for bag in (small, large)]
    assert np.allclose(centre, np.mean(means, axis=0), atol=1e-3)


def test_weights_of_a_slide_read_in_part_count_in_its_mean(lay_slide):
    bag = lay_slide([0, 1], seed=1)
    weight = np.where(np.arange(len(bag)) < 60, 1, 10).astype(np.float32)
    sampled = dataclasses.replace(bag, sampling=Sampling(np.zeros(len(bag), np.uint8), weight))
    expected = np.average(bag.vectors.astype(float), axis=0, weights=weight)
    assert np.allclose(module.find_centre([sampled]), expected, atol=1e-3)


def test_nothing_to_search_and_nothing_to_ask_are_answers(lay_slide, lay_bag):
    query, empty = lay_slide([0], seed=1), lay_bag(np.empty((0, 32)))
    assert ask(query, []).cases == ()
    assert ask(query, [empty]).cases == ()
    assert all(matches == () for matches in ask(query, [empty]).matches)
    assert ask(empty, [query]).regions == ()


def test_vectors_that_are_not_finite_match_nothing(lay_slide):
    query, other = lay_slide([0], seed=1), lay_slide([0], seed=2)
    vectors = np.array(other.vectors)
    vectors[5] = np.nan
    found = ask(query, [dataclasses.replace(other, vectors=vectors)])
    assert all(np.isfinite(m.cosine) and m.tile != 5 for matches in found.matches for m in matches)
    assert np.isfinite(found.cases[0].score)


def test_novel_tiles_inside_the_tissue_are_asked_those_at_its_rim_are_not(lay_slide):
    query, other = lay_slide([0], seed=1, per_tissue=100), lay_slide([0], seed=2)  # a square of 10 × 10 tiles
    percentile = np.full(100, 50, np.float32)
    percentile[[0, 44, 55]] = 99.5  # a corner, and two inside
    groups = TissueGroups(np.zeros(100, np.int16), ((12,),))
    found = find_similar(query, groups, [other], novelty=Novelty(percentile, "toy", 0.03))
    assert [region.tile for region in found.regions] == [12, 44, 55]
    assert [region.group for region in found.regions] == [0, None, None]


def test_cosines_are_of_centred_vectors(lay_slide):
    """Uncentred, the large part that all tissue has in common would make every cosine about 1."""
    found = ask(lay_slide([0, 1], seed=1), [lay_slide([2, 3], seed=2), lay_slide([0, 4], seed=3)])
    assert min(case.score for case in found.cases) < 0.5
