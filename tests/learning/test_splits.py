"""Folds: whatever the cohort, no case is ever on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.errors import CohortError, LeakageError
from slideway.learning.splits import (
    Fold,
    case_folds,
    leave_one_case_out,
    leave_site_out,
    own_split,
    require_disjoint,
    tile_folds,
)

COHORTS = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(-1, 3)), min_size=4, max_size=60).filter(
    lambda slides: len({case for case, _ in slides}) >= 4
)


def check(folds, cases):
    """Every slide is judged once, learnt from in all other folds, and no case is torn."""
    judged = np.concatenate([fold.test for fold in folds])
    assert sorted(judged.tolist()) == list(range(len(cases)))
    for fold in folds:
        assert sorted([*fold.train.tolist(), *fold.test.tolist()]) == list(range(len(cases)))
        assert not {cases[i] for i in fold.train} & {cases[i] for i in fold.test}


@settings(max_examples=100, deadline=None)
@given(COHORTS, st.integers(2, 4), st.integers(0, 9))
def test_case_folds_never_tear_a_case_and_deal_evenly(slides, k, seed):
    cases, labels = [case for case, _ in slides], np.array([label for _, label in slides])
    folds = case_folds(cases, labels, k, seed)
    check(folds, cases)
    sizes = [len({cases[i] for i in fold.test}) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(COHORTS)
def test_leaving_one_case_out_judges_each_case_alone(slides):
    cases = [case for case, _ in slides]
    folds = leave_one_case_out(cases)
    check(folds, cases)
    assert [fold.name for fold in folds] == list(dict.fromkeys(cases))
    assert all({cases[i] for i in fold.test} == {fold.name} for fold in folds)


@settings(max_examples=60, deadline=None)
@given(COHORTS)
def test_leaving_a_site_out_judges_each_site_alone(slides):
    cases = [case for case, _ in slides]
    sites = ["north" if case < sorted(set(cases))[2] else "south" for case in cases]
    folds = leave_site_out(sites, cases)
    check(folds, cases)
    assert [fold.name for fold in folds] == ["north", "south"]
    assert all({sites[i] for i in fold.test} == {fold.name} for fold in folds)


def test_each_label_is_dealt_evenly_over_folds():
    cases = [str(i) for i in range(50)]
    labels = np.array([1] * 10 + [0] * 40)
    for fold in case_folds(cases, labels, 5, 3):
        assert int((labels[fold.test] == 1).sum()) == 2


def test_a_class_of_two_cases_is_learnt_in_every_fold():
    labels = np.array([1, 1, 0, 0, 0, 0, 0])
    for seed in range(20):
        folds = case_folds([str(i) for i in range(7)], labels, 3, seed)
        assert all((labels[fold.train] == 1).any() for fold in folds)


def test_several_tasks_are_dealt_at_once():
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 4)
    for fold in case_folds([str(i) for i in range(16)], labels, 4, 0):
        assert sorted(map(tuple, labels[fold.test].tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_seed_decides_and_only_the_seed():
    cases, labels = [str(i) for i in range(30)], np.arange(30) % 2
    first, same, other = (case_folds(cases, labels, 3, seed) for seed in (1, 1, 2))
    assert all((a.test == b.test).all() for a, b in zip(first, same, strict=True))
    assert any(len(a.test) != len(b.test) or (a.test != b.test).any() for a, b in zip(first, other, strict=True))


def test_an_own_split_keeps_validation_aside():
    (fold,) = own_split(["train", "validation", "test", "train"], ["a", "b", "c", "d"])
    assert (fold.train.tolist(), fold.validation.tolist(), fold.test.tolist()) == ([0, 3], [1], [2])
    (fold,) = own_split(["train", "validation"], ["a", "b"])
    assert (fold.train.tolist(), fold.validation.tolist(), fold.test.tolist()) == ([0], [], [1])


def test_an_own_split_that_tears_a_case_is_refused():
    with pytest.raises(LeakageError, match="1 cases stand on two sides \\(a\\)"):
        own_split(["train", "test"], ["a", "a"])
    with pytest.raises(LeakageError):
        own_split(["train", "validation", "test"], ["a", "a", "b"])


def test_a_case_of_two_sites_cannot_be_left_out():
    with pytest.raises(LeakageError, match="come from two sites \\(a\\)"):
        leave_site_out(["x", "y", "y"], ["a", "a", "b"])


@pytest.mark.parametrize(
    "split",
    [
        lambda: leave_one_case_out(["a", "a"]),
        lambda: case_folds(["a", "b"], np.zeros(2, np.int64), 3, 0),
        lambda: leave_site_out(["x", "x"], ["a", "b"]),
        lambda: leave_site_out(["x", ""], ["a", "b"]),
        lambda: own_split(["train", ""], ["a", "b"]),
        lambda: own_split(["train", "train"], ["a", "b"]),
    ],
)
def test_too_little_to_split_is_refused(split):
    with pytest.raises(CohortError):
        split()


def test_a_torn_fold_is_refused_wherever_it_comes_from():
    fold = Fold("by slide", np.array([0, 2]), np.array([1, 3]))
    with pytest.raises(LeakageError, match="by slide: 2 cases stand on two sides"):
        require_disjoint(fold, ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="two sides"):
        Fold("twice", np.array([0, 1]), np.array([1]))
    with pytest.raises(ValueError, match="something to judge"):
        Fold("empty", np.array([0, 1]), np.array([], np.int64))


def test_tiles_are_dealt_by_label():
    labels = np.array([0, 1] * 10)
    assert [int(labels[fold.test].sum()) for fold in tile_folds(labels, 5, 0)] == [2] * 5
