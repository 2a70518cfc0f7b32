"""A head's file: everything comes back as it was, and what does not belong together is not loaded."""

import hashlib
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from slideway.core.errors import FingerprintMismatchError, UntrustedHeadError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.calibration import Scaling
from slideway.heads.conformal import calibrate
from slideway.heads.head import (
    FORMAT,
    Head,
    KnownCases,
    TaskCertainty,
    load_head,
    require_bag_fits,
    save_head,
)
from slideway.registry.head_card import write_head_card
from slideway.testing.heads import TOY_QUESTIONS, make_toy_bag, make_toy_head, write_toy_head


@pytest.fixture
def card(tmp_path):
    return write_toy_head(tmp_path / "head")


def read_file(card):
    with safe_open(card.weights_path, "numpy") as file:
        facts = json.loads(file.metadata()[FORMAT])
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118


def restamp(card, **changes):
    """The card with the hash of what now lies there, as someone would write who wants it to pass."""
    content = card.weights_path.read_bytes()
    weights = replace(card.weights, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    return replace(card, weights=weights, **changes)


def rewrite(card, arrays, facts):
    save_file(arrays, card.weights_path, metadata={FORMAT: json.dumps(facts)})
    return restamp(card)


@pytest.mark.parametrize(("form", "questions"), [("abmil", TOY_QUESTIONS), ("instance", TOY_QUESTIONS[:2])])
def test_head_comes_back_as_it_was_saved(tmp_path, form, questions):
    card = write_toy_head(tmp_path / form, form=form, questions=questions)
    head, saved = load_head(card), make_toy_head(questions, form=form)
    bag = make_toy_bag(np.random.default_rng(0).normal(size=(50, 8)))
    ours, theirs = head.score(bag), saved.score(bag)
    for question in questions:
        assert np.array_equal(ours.logits[question.id], theirs.logits[question.id])
    assert np.array_equal(ours.attention, theirs.attention)
    assert head.questions == questions
    assert head.known.names == saved.known.names
    assert head.known.labels == saved.known.labels
    assert np.array_equal(head.golden, saved.golden)
    for name, part in saved.typicality.to_arrays().items():
        assert np.array_equal(head.typicality.to_arrays()[name], part)


def test_temperature_bias_and_conformal_scores_are_stored_exactly(tmp_path):
    card, toy = write_toy_head(tmp_path / "head"), make_toy_head()
    random = np.random.default_rng(3)
    certainty = {}
    for question in TOY_QUESTIONS:
        count = len(question.labels)
        shares = random.dirichlet(np.ones(count), 50)
        labels, sites = random.integers(0, count, 50), random.integers(0, 3, 50).tolist()
        scaling = Scaling(1 / 3 + random.random(), tuple(random.normal(size=count).tolist()))
        certainty[question.id] = TaskCertainty(scaling, calibrate(shares, labels, sites))
    save_head(card.weights_path, replace(toy, certainty=certainty, typicality=None))
    loaded = load_head(restamp(card))
    for task, own in certainty.items():
        assert loaded.certainty[task].scaling == own.scaling
        assert loaded.certainty[task].conformal.sites == own.conformal.sites
        for left, right in zip(loaded.certainty[task].conformal.scores, own.conformal.scores, strict=True):
            assert np.array_equal(left, right)
    assert loaded.typicality is None


def test_same_head_gives_the_same_file_to_the_byte(tmp_path):
    for name in "abcd":
        save_head(tmp_path / name, make_toy_head())
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1


def test_label_that_no_calibration_case_has_survives(tmp_path):
    card, toy = write_toy_head(tmp_path / "head"), make_toy_head()
    shares, labels = np.full((6, 3), 1 / 3), np.array([0, 0, 0, 2, 2, 0])
    own = {**toy.certainty, "organ": TaskCertainty(Scaling(), calibrate(shares, labels))}
    save_head(card.weights_path, replace(toy, certainty=own))
    assert load_head(restamp(card)).certainty["organ"].conformal.cases == (4, 0, 2)


@pytest.mark.parametrize("place", [0.001, 0.3, 0.7, 0.9999])
def test_one_flipped_bit_in_the_weights_is_refused(card, place):
    content = bytearray(card.weights_path.read_bytes())
    content[int(place * len(content))] ^= 4
    card.weights_path.write_bytes(content)
    with pytest.raises(UntrustedHeadError, match="not the file its card names"):
        load_head(card)


def test_missing_weights_are_named(card):
    card.weights_path.unlink()
    with pytest.raises(UntrustedHeadError, match=r"head\.safetensors cannot be read"):
        load_head(card)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file of weights was executed",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not tensors",
        pickle.dumps(Bomb()),
        b"PK\x03\x04" + bytes(200),
        (2**62).to_bytes(8, "little") + b"{}",
        (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20),
    ],
)
def test_garbage_with_the_right_hash_is_refused_and_never_run(card, content):
    card.weights_path.write_bytes(content)
    with pytest.raises(UntrustedHeadError, match="does not hold what its card promises"):
        load_head(restamp(card))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_file_with_the_right_hash_is_refused(card, share):
    content = card.weights_path.read_bytes()
    card.weights_path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UntrustedHeadError, match="does not hold what its card promises"):
        load_head(restamp(card))


def change_question(card, number, **changes):
    tasks = list(card.tasks)
    tasks[number] = replace(tasks[number], question=replace(tasks[number].question, **changes))
    return replace(card, tasks=tuple(tasks))


@pytest.mark.parametrize(
    "changed",
    [
        lambda card: change_question(card, 3, labels=("kidney", "colon", "liver")),
        lambda card: change_question(card, 3, labels=("colon", "kidney", "breast")),
        lambda card: change_question(card, 2, labels=("G3", "G2", "G1")),
        lambda card: change_question(card, 3, labels=("colon", "kidney")),
        lambda card: change_question(card, 2, kind=Kind.CLASSES),
        lambda card: change_question(card, 1, parent=""),
        lambda card: change_question(card, 0, id="malign"),
        lambda card: replace(card, tasks=(card.tasks[0], card.tasks[3], *card.tasks[1:3])),
        lambda card: replace(card, tasks=card.tasks[:3]),
        lambda card: replace(
            card, tasks=(*card.tasks, replace(card.tasks[0], question=replace(TOY_QUESTIONS[0], id="extra")))
        ),
    ],
    ids=["labels swapped", "label renamed", "steps turned", "label left out", "kind", "parent", "id", "reordered",
         "task left out", "task added"],
)  # fmt: skip
def test_card_with_other_tasks_or_labels_than_were_learnt_is_refused(card, changed):
    load_head(card)
    with pytest.raises(UntrustedHeadError, match="does not hold what its card promises"):
        load_head(changed(card))


def test_words_of_a_task_may_be_changed(card):
    load_head(change_question(card, 3, title="Tissue of origin", sites=("colon",)))


def test_card_that_names_another_encoder_is_refused(card):
    with pytest.raises(UntrustedHeadError, match="made for bags of encoder ffffffffffff"):
        load_head(replace(card, input=replace(card.input, encoder_fingerprint="a" * 64)))


def test_card_of_another_width_is_refused(card):
    with pytest.raises(UntrustedHeadError, match="vectors of 8 instead of 9"):
        load_head(replace(card, input=replace(card.input, width=9)))


def test_card_of_another_form_is_refused(card):
    with pytest.raises(UntrustedHeadError, match=r"instance\.task"):
        load_head(replace(card, weights=replace(card.weights, form="instance")))


@pytest.mark.parametrize("task", [question.id for question in TOY_QUESTIONS])
@pytest.mark.parametrize("wrong", [0.05, np.nan])
def test_golden_bag_that_gives_other_numbers_is_refused_whichever_task_it_shows_in(card, task, wrong):
    arrays, facts = read_file(card)
    arrays[f"golden.{task}"] = arrays[f"golden.{task}"] + np.float32(wrong)
    with pytest.raises(UntrustedHeadError, match="golden bag gives other numbers"):
        load_head(rewrite(card, arrays, facts))


def test_golden_bag_may_differ_in_the_last_bits(card):
    arrays, facts = read_file(card)
    arrays["golden.organ"] = arrays["golden.organ"] + np.float32(0.001)
    load_head(rewrite(card, arrays, facts))


def test_weights_changed_together_with_the_hash_are_seen_by_the_golden_bag(card):
    arrays, facts = read_file(card)
    arrays["member.0.task.organ.weight"] = arrays["member.0.task.organ.weight"][:, ::-1].copy()
    with pytest.raises(UntrustedHeadError, match="golden bag gives other numbers"):
        load_head(rewrite(card, arrays, facts))


def test_weights_that_are_not_numbers_are_refused(card):
    arrays, facts = read_file(card)
    arrays["member.0.hidden.bias"] = arrays["member.0.hidden.bias"] * np.nan
    with pytest.raises(UntrustedHeadError, match="golden bag gives other numbers"):
        load_head(rewrite(card, arrays, facts))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays, facts: arrays.pop("golden.vectors"),
        lambda arrays, facts: arrays.pop("golden.organ"),
        lambda arrays, facts: arrays.pop("member.0.gate.bias"),
        lambda arrays, facts: arrays.pop("conformal.organ.scores"),
        lambda arrays, facts: arrays.pop("typicality.bank"),
        lambda arrays, facts: arrays.pop("known.means"),
        lambda arrays, facts: arrays.update({"known.means": arrays["known.means"][:3].copy()}),
        lambda arrays, facts: arrays.update({"known.means": arrays["known.means"][:, :5].copy()}),
        lambda arrays, facts: arrays.update({"golden.vectors": arrays["golden.vectors"][:0].copy()}),
        lambda arrays, facts: arrays.update({"golden.vectors": arrays["golden.vectors"][:, :5].copy()}),
        lambda arrays, facts: arrays.update({"projection.axes": np.zeros((), np.float32)}),
        lambda arrays, facts: arrays.update({"member.0.task.organ.bias": np.zeros(4, np.float32)}),
        lambda arrays, facts: arrays.update({"member.0.score": np.zeros(3, np.float32)}),
        lambda arrays, facts: arrays.update({"conformal.organ.cases": np.array([40, 1, 1])}),
        lambda arrays, facts: arrays.update({"conformal.organ.cases": np.array([18, 18]),
                                             "conformal.organ.sites": np.array([0, 0])}),
        lambda arrays, facts: facts.pop("questions"),
        lambda arrays, facts: facts.update(version="2.0"),
        lambda arrays, facts: facts.update(version=None),
        lambda arrays, facts: facts.update(scalings=[]),
        lambda arrays, facts: facts["scalings"].update(organ={"temperature": 1000.0, "bias": []}),
        lambda arrays, facts: facts["scalings"].update(organ={"temperature": 1.0, "bias": [1.0]}),
        lambda arrays, facts: facts["known"].update(labels=[1, 2]),
        lambda arrays, facts: facts["known"]["labels"].pop("grade"),
        lambda arrays, facts: facts["known"]["labels"]["grade"].pop(),
        lambda arrays, facts: facts["known"]["names"].pop(),
    ],
)  # fmt: skip
def test_file_whose_parts_do_not_belong_together_is_refused(card, spoil):
    arrays, facts = read_file(card)
    spoil(arrays, facts)
    with pytest.raises(UntrustedHeadError, match="install the head again"):
        load_head(rewrite(card, arrays, facts))


def test_file_whose_facts_are_nested_without_end_is_refused(card):
    arrays, _ = read_file(card)
    save_file(arrays, card.weights_path, metadata={FORMAT: "[" * 100_000})
    with pytest.raises(UntrustedHeadError, match=r"RecursionError|JSONDecodeError"):
        load_head(restamp(card))


def test_safetensors_file_of_something_else_is_refused(card):
    save_file({"weights": np.zeros(3, np.float32)}, card.weights_path, metadata={"format": "pt"})
    with pytest.raises(UntrustedHeadError, match="not a head's file"):
        load_head(restamp(card))


def test_bag_of_another_encoder_is_refused(card):
    require_bag_fits(card, make_toy_bag(np.zeros((3, 8))))
    with pytest.raises(FingerprintMismatchError):
        require_bag_fits(card, make_toy_bag(np.zeros((3, 8)), fingerprint="a" * 64))


def test_known_cases_have_one_name_one_vector_and_one_label_each():
    with pytest.raises(ValueError, match="one name, one vector and one label"):
        KnownCases(("a", "b"), np.zeros((2, 3), np.float32), {"organ": ("colon",)})


def test_task_with_a_dot_in_its_id_is_stored_and_read_back(tmp_path):
    questions = (
        TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes")),
        TaskQuestion("kidney.grade", "Grade", Kind.ORDINAL, ("G1", "G2"), parent="malignant", sites=("kidney",)),
    )
    assert load_head(write_toy_head(tmp_path / "head", questions=questions)).questions == questions


def test_card_written_again_still_opens_its_head(card):
    write_head_card(replace(card, state="shadow"))
    assert isinstance(load_head(replace(card, state="shadow")), Head)
