"""A head is judged first and trained then; what does not beat its baseline is off, and nothing is lost on the way."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from slideway.core.bag import Sampling
from slideway.core.errors import CohortError, WrongUseError
from slideway.core.opinion import Answer, Kind, TaskQuestion
from slideway.heads.diagnose import SlideFacts, form_opinion
from slideway.heads.fit import Training
from slideway.heads.head import load_head
from slideway.learning import train
from slideway.learning.cohort import read_cohort
from slideway.learning.questions import select_tasks
from slideway.learning.sample import gather_sample
from slideway.learning.splits import CASE_FOLDS, LEAVE_ONE_CASE_OUT, LEAVE_SITE_OUT, OWN_SPLIT
from slideway.learning.train import Plan, choose_split, make_folds, require_learnable, say_why_off, train_head
from slideway.registry.head_card import read_head_card
from slideway.registry.head_records import Bounds
from slideway.testing.heads import make_toy_bag, make_toy_evidence, write_toy_bag, write_toy_cohort

TINY = Training(more_steps=(), rank=8, hidden=12, attention=6, epochs=20, batch=8, rate=1e-2, dropout=0.1, seeds=(0,))
PLAN = Plan("toy", "Toy", training=TINY, split=CASE_FOLDS, curve=False, min_tiles=5)
FAST = replace(PLAN, training=replace(TINY, epochs=1))


def gather(folder, **kwargs):
    toy = write_toy_cohort(folder, **{"planted": 6, "width": 8, **kwargs})
    cohort = read_cohort(toy.path)
    return gather_sample(cohort, select_tasks(cohort, [toy.task]), toy.bags)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Twelve cases with two slides each."""
    return gather(tmp_path_factory.mktemp("cohort"), cases=12, slides=2)


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    told = []
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_CURVE", (0.75, 1.0))  # of four steps two, for the time
        result = train_head(sample, replace(PLAN, curve=True), folder, tell=lambda *step: told.append(step))
    return result, told


def relabel(sample, labels):
    return replace(sample, labels={sample.questions[0].id: np.asarray(labels)})


def test_head_folder_is_whole_and_its_card_says_what_was_measured(sample, trained):
    result, _ = trained
    card = result.card
    assert sorted(path.name for path in card.folder.iterdir()) == [
        "LICENSE", "card.toml", "evaluation.json", "head.safetensors",
    ]  # fmt: skip
    assert read_head_card(card.folder) == card
    assert (card.id, card.state, card.weights.form) == ("toy", "candidate", "abmil")
    assert card.input.encoder_fingerprint == sample.bag(0).fingerprint
    evidence = card.tasks[0].evidence
    assert (evidence.cases, evidence.positives, evidence.split, evidence.sites) == (12, 6, "case-folds", 2)
    assert "24 slides of 12 cases" in card.training.data
    assert card.metrics["tasks"]["malignant"]["methods"]["abmil"]["auroc"]["value"] == evidence.value.value
    assert any("not validated" in sentence for sentence in card.limits)


def test_evaluation_file_holds_all_figures(trained):
    result, _ = trained
    stored = json.loads((result.card.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(result.evaluation, allow_nan=False))
    assert set(stored) >= {
        "head", "command", "of", "split", "folds", "slides", "cases", "sites", "policy", "training",
        "tasks", "learning_curve", "leave_site_out",
    }  # fmt: skip
    assert (stored["slides"], stored["cases"], stored["sites"], stored["folds"]) == (24, 12, 2, 5)
    assert stored["tasks"][0]["off_because"] == result.card.tasks[0].off_because
    assert {row["cases"] for row in stored["learning_curve"]} >= {9}
    assert set(stored["learning_curve"][0]["methods"]) == set(stored["tasks"][0]["methods"])
    assert stored["leave_site_out"][0]["task"] == "malignant"


def test_steps_are_told_to_their_end(trained):
    _, told = trained
    assert list(dict.fromkeys(step[0] for step in told)) == [
        "judging", "learning curve", "leaving sites out", "training",
    ]  # fmt: skip
    for name in ("judging", "learning curve", "training"):
        done = [step for step in told if step[0] == name]
        assert done[-1][1] == done[-1][2]


def test_every_slide_of_a_case_is_judged_by_a_head_that_knew_neither(sample, trained):
    result, _ = trained
    assert result.judged[0].rows.tolist() == list(range(24))
    assert result.held.judged.all()


def test_trained_head_answers_a_new_slide_and_its_lesion_is_hottest(trained):
    result, _ = trained
    head = load_head(result.card)
    vectors = np.random.default_rng(99).normal(size=(30, 8))
    vectors[[3, 9, 14, 15, 22, 28], 1] += 6
    opinion = form_opinion(result.card, head, make_toy_bag(vectors), SlideFacts(stain="H&E"))
    assert opinion.findings[0].leading == "yes"
    assert sorted(np.argsort(opinion.attention.push)[-6:]) == [3, 9, 14, 15, 22, 28]
    assert (opinion.attention.push[[3, 9, 14, 15, 22, 28]] > 0).all()
    assert opinion.findings[0].answer is Answer.REFER, "twelve cases cannot tell a strange slide"
    assert head.known.names == tuple(f"case-{i:03d}" for i in range(12))
    assert set(head.known.labels["malignant"]) == {"no", "yes"}


def test_same_seed_gives_the_same_head_and_figures_to_the_byte(sample, tmp_path):
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        train_head(sample, FAST, tmp_path / name)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_shuffled_labels_leave_every_task_off_with_the_reason(sample, tmp_path):
    labels = np.repeat(np.random.default_rng(2).permutation([0, 1] * 6), 2)
    card = train_head(relabel(sample, labels), PLAN, tmp_path).card
    assert not card.tasks[0].in_force
    assert card.tasks[0].off_because.startswith("The lower 95 % bound of its auroc")
    evidence = card.tasks[0].evidence
    assert evidence.value.low <= 0.5 <= evidence.value.high


def test_task_is_off_unless_its_lower_bound_beats_the_best_baseline():
    question = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
    evidence = make_toy_evidence(question)
    assert say_why_off(evidence) == ""
    for low, baseline in ((0.7, 0.7), (0.69, 0.7), (0.9, 0.95)):
        weak = replace(evidence, value=Bounds(0.95, low, 0.99), baseline_value=Bounds(baseline, 0.5, 0.99))
        assert f"({low:.3f}) is not above the best baseline's" in say_why_off(weak)


def test_split_is_chosen_by_the_cohort(sample):
    assert choose_split(sample) == LEAVE_ONE_CASE_OUT
    assert choose_split(replace(sample, folds=("train",) * 20 + ("test",) * 4)) == OWN_SPLIT
    assert choose_split(replace(sample, cases=tuple(f"c{i}" for i in range(24)))) == LEAVE_ONE_CASE_OUT
    many = replace(sample, bag_paths=sample.bag_paths * 3, cases=tuple(f"c{i}" for i in range(72)))
    assert choose_split(many) == CASE_FOLDS


@pytest.mark.parametrize("split", [LEAVE_ONE_CASE_OUT, CASE_FOLDS, LEAVE_SITE_OUT])
def test_no_split_ever_tears_a_case(sample, split):
    for fold in make_folds(sample, split, 0):
        assert not {sample.cases[i] for i in fold.train} & {sample.cases[i] for i in fold.test}


def test_unknown_split_is_refused(sample):
    with pytest.raises(ValueError, match="'by-slide' is none of"):
        make_folds(sample, "by-slide", 0)


def never(*_, **__):
    pytest.fail("something was trained")


def test_fold_that_shows_one_label_only_is_refused_before_anything_is_trained(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "cross_validate", never)
    one_case = relabel(sample, [1 if case == "case-003" else 0 for case in sample.cases])
    with pytest.raises(CohortError, match=r"malignant: with .* left out, the other slides show one label only"):
        train_head(one_case, replace(PLAN, split=LEAVE_ONE_CASE_OUT), tmp_path)
    judged_alike = replace(sample, folds=tuple("test" if label else "train" for label in sample.labels["malignant"]))
    with pytest.raises(CohortError, match="the slides to be judged show one label only"):
        train_head(judged_alike, replace(PLAN, split=OWN_SPLIT), tmp_path)
    by_site = replace(sample, facts={"site": tuple("ab"[label] for label in sample.labels["malignant"])})
    with pytest.raises(CohortError, match="show one label only"):
        train_head(by_site, replace(PLAN, split=LEAVE_SITE_OUT), tmp_path)
    assert not any(tmp_path.iterdir())


def test_child_that_no_slide_teaches_below_its_parent_is_refused(sample):
    parent = TaskQuestion("neoplastic", "Neoplastic?", Kind.BINARY, ("no", "yes"))
    child = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"), parent="neoplastic")
    malignant = sample.labels["malignant"]
    unasked = replace(
        sample,
        questions=(parent, child),
        labels={"neoplastic": np.where(malignant == 1, -1, np.arange(24) // 2 % 4 // 2), "malignant": malignant},
    )
    taught = np.where((malignant == 0) & (unasked.labels["neoplastic"] == 1), -1, malignant)
    unasked = replace(unasked, labels={**unasked.labels, "malignant": taught})
    with pytest.raises(CohortError, match="none whose neoplastic is yes"):
        require_learnable(unasked, make_folds(unasked, LEAVE_ONE_CASE_OUT, 0))


@pytest.mark.parametrize("wrong", [{"head_id": "Not An Id"}, {"title": " "}, {"min_tiles": 0}, {"limits": ("",)}])
def test_words_that_cannot_stand_on_a_card_are_refused_before_anything_is_trained(sample, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(train, "cross_validate", never)
    with pytest.raises(WrongUseError, match="nothing was trained"):
        train_head(sample, replace(FAST, **wrong), tmp_path)
    assert not any(tmp_path.iterdir())


def test_case_of_two_sites_costs_the_leave_site_out_figures_and_nothing_else(sample, tmp_path):
    torn = replace(sample, facts={"site": tuple("ab"[i % 2] for i in range(24))})
    result = train_head(torn, FAST, tmp_path)
    assert result.evaluation["leave_site_out"] is None
    assert load_head(result.card)


def test_own_split_is_judged_on_its_test_alone(sample, tmp_path):
    folds = tuple("test" if i >= 16 else "train" for i in range(24))
    result = train_head(replace(sample, folds=folds), replace(FAST, split=""), tmp_path)
    assert (result.evaluation["split"], result.evaluation["tasks"][0]["slides"]) == (OWN_SPLIT, 8)
    assert sum(load_head(result.card).certainty["malignant"].conformal.cases) == 8


def test_known_case_is_the_mean_of_the_tissue_its_tiles_stand_for(tmp_path):
    random = np.random.default_rng(0)
    rows, weight = [], np.array([9] + [1] * 9, np.float32)
    for number in range(10):
        vectors = random.normal(size=(10, 8)) + 3 * (number % 2)
        sampling = Sampling(np.full(10, 3, np.uint8), weight)
        write_toy_bag(tmp_path / f"{number}.bag", make_toy_bag(vectors, sampling=sampling))
        rows.append((f"{number}.bag", f"case-{number}", ("no", "yes")[number % 2]))
    with (tmp_path / "cohort.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("slide", "case", "malignant"), *rows])
    cohort = read_cohort(tmp_path / "cohort.csv")
    sample = gather_sample(cohort, select_tasks(cohort, ["malignant"]), [row.path for row in cohort.rows])
    (tmp_path / "head").mkdir()
    head = load_head(train_head(sample, FAST, tmp_path / "head").card)
    projected = head.network.projection(sample.bag(4).vectors)
    np.testing.assert_allclose(head.known.means[4], np.average(projected, axis=0, weights=weight), rtol=1e-3, atol=1e-3)
