"""Held-out figures: a separable problem is solved, shuffled labels end at chance, no judged case is learnt from."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from slideway.core.bag import Sampling
from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.fit import Training
from slideway.heads.metrics import measure_auroc
from slideway.learning import crossval
from slideway.learning.baselines import judge_by_mean, judge_by_neighbours, pool_mean
from slideway.learning.cohort import read_cohort
from slideway.learning.crossval import ABMIL, MEAN_POOL, METHODS, NEIGHBOURS, cross_validate
from slideway.learning.questions import select_tasks
from slideway.learning.sample import Sample, gather_sample
from slideway.learning.splits import Fold, case_folds, leave_one_case_out
from slideway.testing.heads import TOY_QUESTIONS, make_toy_bag, write_toy_bag, write_toy_cohort

TINY = Training(more_steps=(), rank=8, hidden=12, attention=6, epochs=30, batch=8, rate=1e-2, dropout=0.1, seeds=(0,))
LESION = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
ORGAN = TOY_QUESTIONS[3]
GRADE = replace(TOY_QUESTIONS[2], parent="")


def gather(folder, **kwargs):
    toy = write_toy_cohort(folder, **kwargs)
    cohort = read_cohort(toy.path)
    return gather_sample(cohort, select_tasks(cohort, [toy.task]), toy.bags)


def relabel(sample, labels):
    return replace(sample, labels={sample.questions[0].id: np.asarray(labels)})


def fold(sample, k=4):
    return case_folds(sample.cases, sample.labels[sample.questions[0].id], k, 0)


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    return gather(tmp_path_factory.mktemp("separable"), cases=24, planted=20, width=4)


@pytest.fixture(scope="module")
def held(separable):
    return cross_validate(separable, fold(separable), TINY)


def measure(sample, held, method):
    task = sample.questions[0].id
    return measure_auroc(held.logits[method][task][:, 0], sample.labels[task] == 1, cases=sample.cases)


@pytest.mark.parametrize("method", METHODS)
def test_separable_problem_ends_near_one(separable, held, method):
    found = measure(separable, held, method)
    assert found.value > 0.95
    assert found.low > 0.5
    assert held.judged.all()


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_end_at_chance(separable, seed):
    shuffled = relabel(separable, np.random.default_rng(seed).permutation(separable.labels["malignant"]))
    told = cross_validate(shuffled, fold(shuffled), TINY)
    for method in METHODS:
        found = measure(shuffled, told, method)
        assert found.low <= 0.5 <= found.high, (method, found)


def write_marked(folder, *, cases=12, slides=2, tiles=10):
    """Every tile carries its case: a vector far along the case's own axis, and nothing else."""
    paths, names = [], []
    for number in range(cases * slides):
        vectors = np.random.default_rng(number).normal(size=(tiles, cases)) * 0.1
        vectors[:, number // slides] += 50
        paths.append(write_toy_bag(folder / f"{number}.safetensors", make_toy_bag(vectors)))
        names.append(f"case-{number // slides}")
    return paths, names


def make_sample(paths, cases, questions, labels):
    count = len(paths)
    own = {question: np.asarray(values) for question, values in labels.items()}
    return Sample(tuple(paths), tuple(cases), questions, own, {}, ("",) * count, tuple(map(str, range(count))))


def test_no_case_that_is_judged_was_learnt_from(tmp_path, monkeypatch):
    """Markers of the cases that each fit sees, in every method, are those of the fold's training cases alone."""
    paths, cases = write_marked(tmp_path)
    labels = np.repeat(np.random.default_rng(0).permutation([0, 1] * 6), 2)
    sample = make_sample(paths, cases, (LESION,), {"malignant": labels})
    folds = case_folds(cases, labels, 3, 0)
    seen = {"abmil": [], "typicality": [], "mean": [], "neighbours": []}

    def read_markers(vectors):
        return set(np.asarray(vectors, np.float32).argmax(axis=1).tolist())

    def watch(name, original, markers):
        def watched(*args, **kwargs):
            seen[name].append(markers(*args))
            return original(*args, **kwargs)

        return watched

    def of_bags(bags, *_):
        return set().union(*map(read_markers, bags))

    def of_known(question, known, labels, asked):
        return read_markers(known[labels != -1])

    monkeypatch.setattr(crossval, "fit_abmil", watch("abmil", crossval.fit_abmil, of_bags))
    monkeypatch.setattr(crossval, "fit_typicality", watch("typicality", crossval.fit_typicality, len))
    monkeypatch.setattr(crossval, "judge_by_mean", watch("mean", judge_by_mean, of_known))
    monkeypatch.setattr(crossval, "judge_by_neighbours", watch("neighbours", judge_by_neighbours, of_known))
    cross_validate(sample, folds, replace(TINY, epochs=1))
    for number, one in enumerate(folds):
        judged = {int(cases[i].removeprefix("case-")) for i in one.test}
        for name in ("abmil", "mean", "neighbours"):
            assert seen[name][number] == set(range(12)) - judged
        assert seen["typicality"][number] == 12 - len(judged), "two slides of one case are one case"


def test_markers_of_cases_give_nothing_away_unless_a_case_is_torn(tmp_path):
    paths, cases = write_marked(tmp_path)
    labels = np.repeat(np.random.default_rng(1).permutation([0, 1] * 6), 2)
    sample = make_sample(paths, cases, (LESION,), {"malignant": labels})
    honest = cross_validate(sample, leave_one_case_out(cases), replace(TINY, epochs=2))
    even, odd = np.arange(0, 24, 2), np.arange(1, 24, 2)
    torn = cross_validate(sample, (Fold("a", even, odd), Fold("b", odd, even)), replace(TINY, epochs=2))
    assert measure(sample, honest, NEIGHBOURS).low <= 0.5
    assert measure(sample, torn, NEIGHBOURS).low > 0.55, "the markers can be used, so that this test can fail"


def test_figures_do_not_depend_on_the_number_of_processes(separable):
    small = separable.select(np.arange(12))
    folds = fold(small, 3)
    training = replace(TINY, epochs=4)
    told = []
    one = cross_validate(small, folds, training, processes=1)
    two = cross_validate(small, folds, training, processes=2, tell=lambda done, of: told.append((done, of)))
    for method in METHODS:
        assert np.array_equal(one.logits[method]["malignant"], two.logits[method]["malignant"])
    assert np.array_equal(one.p_value, two.p_value)
    assert np.array_equal(one.strangeness, two.strangeness)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_slides_that_no_fold_judges_have_no_numbers(separable):
    some = Fold("half", np.arange(12), np.arange(12, 20))
    told = cross_validate(separable, (some,), replace(TINY, epochs=1))
    assert told.judged.tolist() == [False] * 12 + [True] * 8 + [False] * 4
    for method in METHODS:
        assert np.isfinite(told.logits[method]["malignant"]).all(axis=1).tolist() == told.judged.tolist()
    assert np.isfinite(told.p_value).tolist() == told.judged.tolist()


def test_too_few_cases_leave_strangeness_unknown_instead_of_made_up(separable):
    told = cross_validate(separable, (Fold("few", np.arange(4), np.arange(4, 8)),), replace(TINY, epochs=1))
    assert np.isnan(told.p_value).all()
    assert told.judged[4:8].all()


def test_strange_slide_is_strange_to_a_fold_that_has_not_seen_it(tmp_path, held):
    random = np.random.default_rng(0)
    paths = [
        write_toy_bag(tmp_path / f"{i}", make_toy_bag(random.normal(size=(20, 8)) + 40 * (i == 9))) for i in range(10)
    ]
    sample = make_sample(paths, [f"c{i}" for i in range(10)], (LESION,), {"malignant": [0, 1] * 5})
    told = cross_validate(sample, leave_one_case_out(sample.cases), replace(TINY, epochs=1))
    assert told.strangeness[9] == 1
    assert told.p_value[9] == pytest.approx(1 / 10)
    assert np.median(held.p_value) > 0.2


def test_tasks_of_every_kind_are_judged_together_and_unknown_labels_are_let_be(tmp_path):
    toy = write_toy_cohort(tmp_path, cases=18, classes=3, planted=8)
    organ = np.array([int(label[-1] == "b") + 2 * (label[-1] == "c") for label in toy.labels])
    neoplastic = np.where(np.arange(18) % 6 == 5, -1, organ > 0)
    questions = (TOY_QUESTIONS[0], ORGAN, GRADE)
    labels = {"neoplastic": neoplastic, "organ": organ, "grade": organ}
    sample = make_sample(toy.bags, toy.cases, questions, labels)
    told = cross_validate(sample, case_folds(toy.cases, organ, 3, 0), TINY)
    for method in METHODS:
        assert told.logits[method]["organ"].shape == (18, 3)
        assert told.logits[method]["grade"].shape == (18, 2)
        assert np.isfinite(told.logits[method]["neoplastic"]).all(), "also slides whose label nobody knows are judged"
        assert (told.logits[method]["organ"].argmax(axis=1) == organ).mean() > 0.6


@pytest.mark.parametrize("judge", [judge_by_mean, judge_by_neighbours])
def test_baseline_gives_logits_that_become_probabilities_even_for_a_label_nobody_has(judge):
    from slideway.heads.abmil import to_probabilities

    random = np.random.default_rng(0)
    labels = np.array([0, 2] * 10)
    known = random.normal(size=(20, 4)) + 5 * (labels == 2)[:, None]
    asked = np.array([[0.0] * 4, [5.0] * 4])
    for question in (ORGAN, GRADE):
        own = to_probabilities(question, judge(question, known, labels, asked))
        np.testing.assert_allclose(own.sum(axis=1), 1)
        assert own.argmax(axis=1).tolist() == [0, 2]
        assert own[:, 1].max() < 0.01 or judge is judge_by_neighbours
    binary = judge(LESION, known, labels // 2, asked)
    assert binary.shape == (2, 1)
    assert binary[0, 0] < 0 < binary[1, 0]


@pytest.mark.parametrize("judge", [judge_by_mean, judge_by_neighbours])
def test_baseline_hears_a_rare_label_as_loud_as_a_common_one(judge):
    random = np.random.default_rng(0)
    labels = np.array([0] * 30 + [1] * 3)
    known = random.normal(size=(33, 4)) + 2 * labels[:, None]
    asked = random.normal(size=(200, 4)) + 1.0  # half way
    called = (judge(LESION, known, labels, asked)[:, 0] > 0).mean()
    assert 0.2 < called < 0.9


@pytest.mark.parametrize("judge", [judge_by_mean, judge_by_neighbours])
def test_baseline_never_learns_from_slides_of_unknown_label(judge):
    random = np.random.default_rng(0)
    known, labels = random.normal(size=(12, 4)), np.array([0, 1, -1] * 4)
    moved = np.where((labels == -1)[:, None], 100 * known, known)
    asked = random.normal(size=(5, 4))
    np.testing.assert_array_equal(judge(LESION, known, labels, asked), judge(LESION, moved, labels, asked))


def test_mean_tile_counts_tiles_for_what_they_stand_and_broken_ones_for_nothing():
    vectors = np.array([[1.0, 0], [4, 2], [np.nan, 7], [np.inf, -np.inf]])
    plain = make_toy_bag(vectors)
    np.testing.assert_allclose(pool_mean(plain), [2.5, 1])
    weight = np.array([1, 3, 5, 5], np.float32)
    sampled = make_toy_bag(vectors, sampling=Sampling(np.zeros(4, np.uint8), weight))
    np.testing.assert_allclose(pool_mean(sampled), [13 / 4, 6 / 4])
    np.testing.assert_allclose(pool_mean(make_toy_bag(vectors[2:])), 0)


def test_names_of_the_methods_are_those_on_cards():
    assert METHODS == (ABMIL, MEAN_POOL, NEIGHBOURS) == ("abmil", "mean-pool + logistic regression", "nearest cases")
