"""A cohort and its bags brought together: every label at its slide, no slide without tiles, one encoder."""

import csv

import numpy as np
import pytest

from slideway.core.errors import CohortError, FingerprintMismatchError, UnreadableBagError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.learning.cohort import read_cohort
from slideway.learning.questions import select_tasks
from slideway.learning.sample import gather_sample
from slideway.testing.heads import make_toy_bag, write_toy_bag, write_toy_cohort

PARENT = TaskQuestion("neoplastic", "Neoplastic?", Kind.BINARY, ("no", "yes"))
CHILD = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"), parent="neoplastic")
GRADE = TaskQuestion("grade", "Grade", Kind.ORDINAL, ("G1", "G2"), parent="malignant")


def write_cohort(folder, header, rows, empty=()):
    """A cohort file with a bag of its own for each row."""
    for number, row in enumerate(rows):
        vectors = np.random.default_rng(number).normal(size=(0 if number in empty else 5, 4))
        write_toy_bag(folder / row[0], make_toy_bag(vectors))
    path = folder / "cohort.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return read_cohort(path)


def bags_of(cohort):
    return [row.path for row in cohort.rows]


def test_labels_cases_and_sites_stay_with_their_slides(tmp_path):
    toy = write_toy_cohort(tmp_path, cases=6, classes=3, slides=2, tiles=8)
    cohort = read_cohort(toy.path)
    sample = gather_sample(cohort, select_tasks(cohort, ["organ"]), toy.bags)
    assert len(sample) == 12
    assert sample.cases == toy.cases
    names = sample.questions[0].labels
    assert tuple(names[i] for i in sample.labels["organ"]) == toy.labels
    assert set(sample.facts["site"]) == {"site-0", "site-1"}
    assert sample.names[3] == "slide-003.safetensors"
    assert len(sample.bag(5)) == 8


def test_child_of_a_slide_whose_parent_is_no_is_no_and_a_grade_is_not_asked_there(tmp_path):
    header = ("slide", "case", "neoplastic", "malignant", "grade")
    rows = [
        ("a", "1", "no", "", "G1"),
        ("b", "2", "yes", "yes", "G2"),
        ("c", "3", "yes", "no", "G1"),
        ("d", "4", "yes", "", ""),
        ("e", "5", "", "yes", "G1"),
    ]
    cohort = write_cohort(tmp_path, header, rows)
    sample = gather_sample(cohort, (PARENT, CHILD, GRADE), bags_of(cohort))
    assert sample.labels["neoplastic"].tolist() == [0, 1, 1, 1, -1]
    assert sample.labels["malignant"].tolist() == [0, 1, 0, -1, 1]
    assert sample.labels["grade"].tolist()[1:] == [1, -1, -1, 0]


def test_slides_without_tiles_are_left_out_with_everything_that_is_theirs(tmp_path):
    rows = [(name, name, label, site) for name, label, site in zip("abcd", ["no", "yes"] * 2, "wxyz", strict=True)]
    cohort = write_cohort(tmp_path, ("slide", "case", "malignant", "site"), rows, empty=(1,))
    sample = gather_sample(cohort, select_tasks(cohort, ["malignant"]), bags_of(cohort))
    assert sample.names == ("a", "c", "d")
    assert sample.labels["malignant"].tolist() == [0, 0, 1]
    assert sample.facts["site"] == ("w", "y", "z")


def test_cohort_without_a_single_tile_is_refused(tmp_path):
    rows = [(name, name, label) for name, label in zip("abcd", ["no", "yes"] * 2, strict=True)]
    with pytest.raises(CohortError):
        cohort = write_cohort(tmp_path, ("slide", "case", "malignant"), rows, empty=range(4))
        gather_sample(cohort, select_tasks(cohort, ["malignant"]), bags_of(cohort))


def test_bags_of_two_encoders_never_meet(tmp_path):
    toy = write_toy_cohort(tmp_path, cases=4, tiles=4)
    cohort = read_cohort(toy.path)
    write_toy_bag(toy.bags[2], make_toy_bag(np.ones((4, 16)), fingerprint="a" * 64))
    with pytest.raises(FingerprintMismatchError):
        gather_sample(cohort, select_tasks(cohort, ["malignant"]), toy.bags)


def test_damaged_bag_is_refused(tmp_path):
    toy = write_toy_cohort(tmp_path, cases=4, tiles=4)
    cohort = read_cohort(toy.path)
    toy.bags[1].write_bytes(toy.bags[1].read_bytes()[:-7])
    with pytest.raises(UnreadableBagError, match=r"slide-001\.safetensors"):
        gather_sample(cohort, select_tasks(cohort, ["malignant"]), toy.bags)


def test_selection_keeps_the_order_that_was_asked_for(tmp_path):
    toy = write_toy_cohort(tmp_path, cases=6, tiles=4)
    cohort = read_cohort(toy.path)
    sample = gather_sample(cohort, select_tasks(cohort, ["malignant"]), toy.bags)
    some = sample.select([4, 1])
    assert some.cases == ("case-004", "case-001")
    assert some.labels["malignant"].tolist() == [0, 1]
    assert np.array_equal(some.bag(0).vectors, sample.bag(4).vectors)
