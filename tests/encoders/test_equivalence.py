"""The gate lets through what is the same encoder and refuses what is not."""

import numpy as np
import pytest

from slideway.encoders.equivalence import Gate, group_by_likeness, measure_equivalence, measure_probe_loss


@pytest.fixture(scope="module")
def vectors():
    """Six kinds of tissue, forty tiles each, in 64 numbers."""
    random = np.random.default_rng(3)
    kinds = random.normal(0, 3, (6, 64))
    return (np.repeat(kinds, 40, axis=0) + random.normal(0, 1, (240, 64)) + 5).astype(np.float32)


KINDS = np.repeat(np.arange(6), 40)


def test_the_same_vectors_pass_with_nothing_lost(vectors):
    near = measure_equivalence(vectors, vectors.copy())
    assert near.failures(Gate()) == ()
    assert near.cosine_min == pytest.approx(1)
    assert (near.neighbour_agreement, near.probe_loss, near.tiles) == (1.0, 0.0, 240)


def test_rounding_to_half_floats_passes(vectors):
    assert measure_equivalence(vectors, vectors.astype(np.float16).astype(np.float32)).failures(Gate()) == ()


@pytest.mark.parametrize("noise", [0.6, 1.5])
def test_noise_is_refused_and_every_reason_is_named(vectors, noise):
    spoilt = vectors + np.random.default_rng(4).normal(0, noise, vectors.shape).astype(np.float32)
    failures = measure_equivalence(vectors, spoilt).failures(Gate())
    assert any("first percentile" in words for words in failures)
    assert any("neighbour" in words for words in failures)


def test_one_tile_in_fifty_that_changes_completely_is_refused(vectors):
    spoilt = vectors.copy()
    spoilt[::50] = vectors[7::50][: len(spoilt[::50])]
    near = measure_equivalence(vectors, spoilt)
    assert near.cosine_median == pytest.approx(1)
    assert any("first percentile" in words for words in near.failures(Gate()))


def test_a_shift_of_all_vectors_is_a_difference_although_it_keeps_neighbours(vectors):
    near = measure_equivalence(vectors, vectors + 2)
    assert near.neighbour_agreement < 1 or near.cosine_p01 < 0.99
    assert near.failures(Gate())


def test_exchanged_vectors_lose_the_probe(vectors):
    mixed = vectors.copy()
    mixed[:80:2], mixed[160::2] = vectors[160::2], vectors[:80:2]
    near = measure_equivalence(vectors, mixed, labels=KINDS)
    assert near.probe_loss > 0.2
    assert any("probe" in words for words in near.failures(Gate()))


def test_numbers_that_are_not_finite_fail_everything(vectors):
    broken = vectors.copy()
    broken[3, 3] = np.nan
    near = measure_equivalence(vectors, broken)
    assert len(near.failures(Gate())) == 4


def test_without_two_classes_there_is_no_probe(vectors):
    assert measure_probe_loss(vectors.astype(float), vectors.astype(float), np.zeros(240, np.int64)) is None
    few = np.arange(240) // 2  # two tiles a class: none can be fitted and asked
    assert measure_equivalence(vectors, vectors, labels=few).probe_loss is None


def test_groups_of_like_vectors_are_found_and_repeat(vectors):
    groups = group_by_likeness(vectors.astype(float))
    assert np.array_equal(groups, group_by_likeness(vectors.astype(float)))
    for kind in range(6):  # eight groups for six kinds: a group may hold part of a kind, never two
        assert all(len(set(KINDS[groups == group])) == 1 for group in set(groups[kind == KINDS]))


def test_identical_tiles_make_one_group():
    assert set(group_by_likeness(np.ones((70, 4)))) == {0}


def test_vectors_of_other_tiles_are_a_mistake_of_the_caller(vectors):
    with pytest.raises(ValueError, match="same tiles"):
        measure_equivalence(vectors, vectors[:-1])


def test_a_tightened_gate_lets_through_half_of_the_error():
    gate = Gate().tightened(0.5)
    assert gate.cosine_p01 == pytest.approx(0.995)
    assert gate.probe_loss == pytest.approx(0.005)
    assert "0.995" in gate.words
