"""The same tissue in two cases is found, in whatever form; different tissue is not."""

import numpy as np
import pytest

from slideway.core.bag import EmbeddingBag
from slideway.core.errors import FingerprintMismatchError, LeakageError
from slideway.core.tissue import TileGrid
from slideway.learning.leakage import LeakKind, compare, find_leaks, prepare, require_no_leaks

WIDTH = 48
SIDE = 12


def lay(vectors, *, places=None, sha="0", fingerprint="f" * 64):
    n = len(vectors)
    if places is None:
        places = np.stack([np.arange(n) % SIDE, np.arange(n) // SIDE], 1)
    grid = TileGrid(np.asarray(places, np.int32), 224, 0.5, 0.5)
    return EmbeddingBag(
        np.asarray(vectors, np.float16), grid, np.ones(n, np.float32), "toy", fingerprint, sha.rjust(64, "0")
    )


@pytest.fixture
def slides():
    """Vectors of twelve slides of 144 tiles: tissue common to all, and what is the slide's own."""
    random = np.random.default_rng(5)
    common = random.standard_normal(WIDTH) * 5
    tissues = random.standard_normal((6, WIDTH))
    return [
        common + tissues[random.integers(0, 6, SIDE * SIDE)] + 0.8 * random.standard_normal((SIDE * SIDE, WIDTH))
        for _ in range(12)
    ]


def cohort(slides):
    return [lay(vectors, sha=str(i)) for i, vectors in enumerate(slides)]


def names(count):
    return [str(i) for i in range(count)]


def test_different_slides_are_no_leak(slides):
    assert find_leaks(cohort(slides), names(12)) == ()


def test_a_copy_in_two_cases_is_found_and_in_one_case_it_is_not_a_leak(slides):
    bags = [*cohort(slides), lay(slides[3], sha="3")]
    (leak,) = find_leaks(bags, names(13))
    assert (leak.first, leak.second, leak.kind) == (3, 12, LeakKind.COPY)
    assert find_leaks(bags, [*names(12), "3"]) == ()


def test_an_export_of_a_slide_is_found_in_any_order_of_tiles(slides):
    random = np.random.default_rng(0)
    order = random.permutation(SIDE * SIDE)
    again = slides[3][order] + 0.1 * random.standard_normal((SIDE * SIDE, WIDTH))
    (leak,) = find_leaks([*cohort(slides), lay(again, sha="99")], names(13))
    assert (leak.first, leak.second, leak.kind) == (3, 12, LeakKind.NEAR)
    assert leak.likeness.share > 0.8


@pytest.mark.parametrize("turn", [1, -1])
def test_a_second_scan_beside_the_grid_is_found_by_its_shift(slides, turn):
    """Tiles only partly alike, but all displaced by the same way: told by places, not by likeness alone."""
    random = np.random.default_rng(1)
    again = slides[3] + 0.75 * random.standard_normal((SIDE * SIDE, WIDTH))
    places = turn * cohort(slides)[3].grid.column_row + np.array([40, 7])
    bags = [*cohort(slides), lay(again, places=places, sha="99")]
    prepared = prepare(bags)
    likeness = compare(prepared[3], prepared[12])
    assert likeness.share < 0.2
    assert likeness.aligned > 0.3
    assert [(leak.first, leak.second) for leak in find_leaks(bags, names(13))] == [(3, 12)]


def test_a_part_of_a_slide_is_found_in_the_whole(slides):
    part = slides[3][:40] + 0.05
    (leak,) = find_leaks([*cohort(slides), lay(part, sha="99")], names(13))
    assert (leak.first, leak.second) == (3, 12)


def test_one_common_tile_is_no_leak(slides):
    slides[4][0] = slides[3][0]
    assert find_leaks(cohort(slides), names(12)) == ()


def test_empty_and_broken_bags_match_nothing(slides):
    broken = np.full((SIDE * SIDE, WIDTH), np.nan)
    empty = lay(np.empty((0, WIDTH)), sha="98")
    assert find_leaks([*cohort(slides), empty, lay(broken, sha="99")], names(14)) == ()
    assert find_leaks([empty], ["a"]) == ()
    assert find_leaks([], []) == ()


def test_bags_of_two_encoders_are_never_compared(slides):
    with pytest.raises(FingerprintMismatchError):
        find_leaks([lay(slides[0]), lay(slides[1], sha="1", fingerprint="e" * 64)], ["a", "b"])


def test_what_is_found_is_refused_by_name(slides):
    bags = [*cohort(slides), lay(slides[3], sha="3")]
    cases = names(13)
    with pytest.raises(LeakageError, match=r"s3.svs \(case 3\) and s12.svs \(case 12\), copy: 100 % of tiles"):
        require_no_leaks(find_leaks(bags, cases), [f"s{i}.svs" for i in range(13)], cases)
    require_no_leaks((), [], [])
