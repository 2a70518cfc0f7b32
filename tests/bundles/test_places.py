"""Grid coordinates as bytes, and neighbours merged with a count."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slideway.bundles.places import decode_places, encode_places, merge_near_identical
from slideway.core.errors import UnreadableBagError

ANYWHERE = hnp.arrays(
    np.int32, st.tuples(st.integers(0, 30), st.just(2)), elements=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 9)
)


def tissue(width=60, height=40):
    """Row-major cells of two ellipses."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    inside = ((x - 15) / 12) ** 2 + ((y - 20) / 15) ** 2 < 1
    inside |= ((x - 42) / 14) ** 2 + ((y - 18) / 10) ** 2 < 1
    return np.stack([x[inside], y[inside]], axis=1).astype(np.int32)


@settings(max_examples=150, deadline=None)
@given(ANYWHERE)
def test_any_coordinates_come_back_exactly_and_in_their_order(column_row):
    data = encode_places(column_row)
    decoded = decode_places(data, len(column_row))
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, column_row)
    assert encode_places(column_row) == data


def test_a_row_major_grid_takes_less_than_two_bits_a_tile_and_comes_back():
    grid = tissue()
    data = encode_places(grid + np.int32(1_000))
    assert np.array_equal(decode_places(data, len(grid)), grid + 1_000)
    assert len(data) < len(grid) / 4


def test_priority_order_is_kept():
    grid = tissue()
    shuffled = grid[np.random.default_rng(0).permutation(len(grid))]
    data = encode_places(shuffled)
    assert np.array_equal(decode_places(data, len(grid)), shuffled)
    assert len(data) < 2 * len(grid) + 40


def test_a_place_that_occurs_twice_and_far_scattered_tiles_come_back():
    for places in ([[3, 3], [3, 3], [4, 3]], [[0, 0], [2_000_000_000, 0], [-2_000_000_000, 2_000_000_000]]):
        assert decode_places(encode_places(np.array(places)), 3).tolist() == places


def test_no_tiles_take_no_bytes():
    assert encode_places(np.empty((0, 2), np.int32)) == b""
    assert decode_places(b"", 0).shape == (0, 2)
    with pytest.raises(UnreadableBagError, match="follow"):
        decode_places(b"123", 0)


@pytest.mark.parametrize("wrong", [np.zeros((3, 3), int), np.zeros(4, int), np.zeros((2, 2)), np.array([[2**31, 0]])])
def test_what_is_no_grid_is_a_callers_mistake(wrong):
    with pytest.raises(ValueError, match="coordinates"):
        encode_places(wrong)


def try_to_decode(data, n_tiles):
    try:
        places = decode_places(data, n_tiles)
    except UnreadableBagError as error:
        assert len(str(error)) > 20
    else:
        assert places.shape == (n_tiles, 2)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120), st.integers(-1, 50))
def test_random_bytes_are_refused(data, n_tiles):
    try_to_decode(data, n_tiles)


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.data())
def test_flipped_bits_cuts_and_wrong_counts_never_end_in_anything_but_places_or_a_refusal(is_sorted, data):
    grid = tissue(30, 30)
    whole = bytearray(encode_places(grid if is_sorted else grid[::-1]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try_to_decode(bytes(whole), len(grid))
    try_to_decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]), len(grid))
    with pytest.raises(UnreadableBagError):
        decode_places(encode_places(grid), len(grid) + data.draw(st.sampled_from([-5, -1, 1, 7, 10**9])))


def test_bytes_that_declare_giants_get_no_memory():
    grid = tissue()
    tracemalloc.start()
    for n_tiles in (2**24, 2**24 + 1, 2**60):
        with pytest.raises(UnreadableBagError):
            decode_places(encode_places(grid), n_tiles)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# Merging


def test_near_identical_neighbours_become_one_tile_with_a_count_and_none_is_lost():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(12, 16))
    vectors[1] = vectors[0] + 0.01  # right of it
    vectors[4] = vectors[0] - 0.01  # below it
    column_row = np.array([[i % 4, i // 4] for i in range(12)], np.int32)
    merged = merge_near_identical(vectors, column_row, threshold=0.99)
    assert merged.kept.tolist() == [0, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert merged.count.tolist() == [3] + [1] * 9
    assert merged.kept[merged.stands_in].tolist() == [0, 0, 2, 3, 0, 5, 6, 7, 8, 9, 10, 11]


def test_alike_tiles_that_do_not_touch_stay_apart():
    vectors = np.random.default_rng(0).normal(size=(3, 8))
    vectors[2] = vectors[0]
    merged = merge_near_identical(vectors, np.array([[0, 0], [1, 0], [2, 0]]), threshold=0.9)
    assert merged.count.tolist() == [1, 1, 1]


def test_a_slow_change_across_the_tissue_is_not_merged_into_one():
    angle = np.linspace(0, np.pi, 60)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vectors = np.concatenate([vectors, -vectors])  # so that the mean is 0
    places = np.array([[i, 0] for i in range(60)] + [[i, 5] for i in range(60)])
    merged = merge_near_identical(vectors, places, threshold=0.95)
    assert merged.count.max() < 10
    for tile, keeper in enumerate(merged.kept[merged.stands_in]):
        assert vectors[tile] @ vectors[keeper] >= 0.949


def test_the_order_of_tiles_does_not_change_which_are_merged():
    random = np.random.default_rng(1)
    grid = tissue(20, 20)
    vectors = np.repeat(random.normal(size=(-(-len(grid) // 3), 8)), 3, axis=0)[: len(grid)]
    order = random.permutation(len(grid))
    straight = merge_near_identical(vectors, grid, threshold=0.99)
    shuffled = merge_near_identical(vectors[order], grid[order], threshold=0.99)
    assert sorted(order[shuffled.kept].tolist()) == straight.kept.tolist()
    assert straight.count.sum() == shuffled.count.sum() == len(grid)
    assert len(straight.kept) < len(grid)


def test_vectors_that_are_not_finite_stay_alone_and_an_empty_bag_stays_empty():
    vectors = np.ones((4, 3), np.float16)
    vectors[1] = np.nan
    vectors[3] = 2
    places = np.array([[i, 0] for i in range(4)])
    assert 1 in merge_near_identical(vectors, places, threshold=0.5).kept.tolist()
    assert merge_near_identical(np.full((2, 3), np.nan), places[:2], threshold=0.5).count.tolist() == [1, 1]
    empty = merge_near_identical(np.empty((0, 3)), np.empty((0, 2), int), threshold=0.5)
    assert empty.kept.shape == empty.count.shape == empty.stands_in.shape == (0,)


def test_two_tiles_at_one_place_and_a_threshold_beyond_one_are_a_callers_mistake():
    with pytest.raises(ValueError, match="one place"):
        merge_near_identical(np.ones((2, 3)), np.zeros((2, 2), int), threshold=0.9)
    with pytest.raises(ValueError, match="threshold"):
        merge_near_identical(np.ones((1, 3)), np.zeros((1, 2), int), threshold=1.5)


def test_time_grows_with_the_number_of_tiles_only():
    def measure(n):
        vectors = np.random.default_rng(0).normal(size=(n, 16)).astype(np.float16)
        places = np.array([[i % 100, i // 100] for i in range(n)])
        start = time.process_time()
        merge_near_identical(vectors, places, threshold=0.5)
        return time.process_time() - start

    measure(500)
    assert measure(16_000) < 60 * measure(1_000)  # 256 × if it were quadratic
