"""Two opinions become one only where they may; a contradiction goes to a person."""

from __future__ import annotations

import numpy as np
import pytest

from slideway.core.opinion import Answer, Finding, Kind, TaskQuestion
from slideway.core.tissue import Reason
from slideway.heads.discordance import WHY, choose_tiles_to_ask, compare_findings

TASK = TaskQuestion("kidney.subtype", "Which subtype?", Kind.CLASSES, ("a", "b", "c", "d"))


def say(
    answer: Answer, *labels: str, code: str = "several-labels", share: float = 0.7, in_force: bool = True
) -> Finding:
    reasons = () if answer is Answer.ANSWER else (Reason(code, "Because."),)
    return Finding(TASK, answer, labels, {"a": share, "b": 1 - share}, reasons, in_force=in_force)


ANSWER, SET, REFER, UNREADABLE = Answer.ANSWER, Answer.SET, Answer.REFER, Answer.NOT_READABLE
STRANGE = say(REFER, code="unlike-training")


@pytest.mark.parametrize(
    ("edge", "cloud", "agreement", "answer", "labels", "code"),
    [
        (say(ANSWER, "a"), say(ANSWER, "a"), "same", ANSWER, ("a",), ""),
        (say(ANSWER, "a"), say(ANSWER, "b"), "contradiction", REFER, ("a", "b"), "opinions-contradict"),
        (say(SET, "a", "b"), say(ANSWER, "b"), "resolved", ANSWER, ("b",), "opinion-resolved"),
        (say(REFER, "a", "b", "c", "d"), say(ANSWER, "d"), "resolved", ANSWER, ("d",), "opinion-resolved"),
        (STRANGE, say(ANSWER, "a"), "resolved", ANSWER, ("a",), "opinion-resolved"),
        (say(SET, "a", "b"), say(ANSWER, "c"), "contradiction", REFER, ("a", "b", "c"), "opinions-contradict"),
        (say(REFER, code="other-stain"), say(ANSWER, "a"), "one-unsure", REFER, (), "doubt-in-slide"),
        (say(REFER, code="scale-estimated"), say(ANSWER, "a"), "one-unsure", REFER, (), "doubt-in-slide"),
        (say(UNREADABLE, code="slide-to-rescan"), say(ANSWER, "a"), "one-unsure", REFER, (), "doubt-in-slide"),
        (say(ANSWER, "a"), say(SET, "a", "b"), "one-unsure", SET, ("a", "b"), "one-opinion-unsure"),
        (say(ANSWER, "a"), say(SET, "b", "c"), "contradiction", REFER, ("a", "b", "c"), "opinions-contradict"),
        (say(ANSWER, "a"), STRANGE, "one-unsure", REFER, (), "one-opinion-unsure"),
        (say(ANSWER, "a"), say(UNREADABLE, code="too-few-tiles"), "one-unsure", REFER, (), "one-opinion-unsure"),
        (say(SET, "a", "b"), say(SET, "a", "b"), "same", SET, ("a", "b"), "several-labels"),
        (say(SET, "a", "b", "c"), say(SET, "c", "b"), "narrowed", SET, ("c", "b"), "opinions-narrow"),
        (say(SET, "a", "b"), say(SET, "b", "c"), "narrowed", SET, ("b", "c"), "opinions-narrow"),
        (say(SET, "a", "b"), say(SET, "c", "d"), "contradiction", REFER, ("a", "b", "c", "d"), "opinions-contradict"),
        (say(REFER, "a", "b", "c", "d"), say(SET, "a", "b"), "narrowed", SET, ("a", "b"), "opinions-narrow"),
        (STRANGE, say(SET, "a", "b"), "one-unsure", REFER, (), "both-opinions-unsure"),
        (STRANGE, STRANGE, "same", REFER, (), "both-opinions-unsure"),
        (say(SET, "a", "b"), STRANGE, "one-unsure", REFER, (), "both-opinions-unsure"),
        (say(UNREADABLE, code="x"), say(UNREADABLE, code="y"), "same", UNREADABLE, (), "y"),
    ],
)
def test_two_opinions_give_what_may_be_said_of_both(edge, cloud, agreement, answer, labels, code):
    found = compare_findings(edge, cloud)
    assert (found.agreement, found.combined.answer, found.combined.labels) == (agreement, answer, labels)
    assert (found.reasons[0].code if found.reasons else "") == code


def test_no_pair_of_opinions_turns_two_unsure_ones_into_an_answer():
    kinds = [say(SET, "a", "b"), say(SET, "b", "c"), say(REFER, "a", "b", "c", "d"), STRANGE, say(UNREADABLE, code="x")]
    assert all(compare_findings(one, two).combined.answer is not ANSWER for one in kinds for two in kinds)


def test_combined_finding_keeps_the_numbers_of_the_second_opinion():
    found = compare_findings(say(ANSWER, "a", share=0.8), say(ANSWER, "a", share=0.95))
    assert found.combined.probabilities == {"a": 0.95, "b": pytest.approx(0.05)}


@pytest.mark.parametrize(("edge", "cloud"), [(True, False), (False, True)])
def test_research_starter_that_is_off_does_not_come_into_force_by_a_second_opinion(edge, cloud):
    found = compare_findings(say(ANSWER, "a", in_force=edge), say(ANSWER, "a", in_force=cloud))
    assert not found.combined.in_force
    assert compare_findings(say(ANSWER, "a"), say(ANSWER, "a")).combined.in_force


def test_contradiction_names_what_each_says():
    text = compare_findings(say(SET, "a", "b"), say(ANSWER, "c")).reasons[0].text
    assert text.endswith("the first cannot exclude a or b, the second says c.")


def test_doubt_about_the_slide_is_told_with_its_own_reason():
    found = compare_findings(say(REFER, code="other-stain"), say(ANSWER, "a"))
    assert [reason.code for reason in found.reasons] == ["doubt-in-slide", "other-stain"]


def test_findings_to_two_questions_are_refused():
    other = TaskQuestion("grade", "Which grade?", Kind.CLASSES, ("a", "b", "c", "d"))
    with pytest.raises(ValueError, match=r"kidney\.subtype and grade"):
        compare_findings(say(ANSWER, "a"), Finding(other, ANSWER, ("a",), {"a": 1.0}))


def lay(side: int) -> np.ndarray:
    return np.stack([np.arange(side * side) % side, np.arange(side * side) // side], axis=1)


def test_asked_tiles_are_looked_at_novel_and_random_each_once():
    random = np.random.default_rng(0)
    attention, novelty = random.random(400), random.random(400) * 100
    asked = choose_tiles_to_ask(attention, novelty, lay(20), count=16, seed=1)
    assert len(set(asked.tiles.tolist())) == 16
    assert np.bincount(asked.why, minlength=3).tolist() == [8, 4, 4]
    assert asked.tiles[0] == attention.argmax()
    assert asked.tiles[asked.why == WHY.index("novelty")][0] == novelty.argmax()
    assert set(asked.why[:4].tolist()) == {0, 1, 2}


def test_asked_tiles_of_one_kind_are_no_neighbours():
    columns_rows = lay(20)
    peak = -np.linalg.norm(columns_rows - [10, 10], axis=1)
    asked = choose_tiles_to_ask(peak, None, columns_rows, count=24, seed=1)
    places = columns_rows[asked.tiles[asked.why == 0]]
    apart = np.abs(places[:, None] - places[None]).max(axis=2)[np.triu_indices(len(places), 1)]
    assert len(places) == 18
    assert apart.min() >= 2


def test_small_slide_is_asked_for_whole_neighbours_too():
    asked = choose_tiles_to_ask(np.arange(9.0), np.arange(9.0), lay(3), count=50, seed=1)
    assert sorted(asked.tiles.tolist()) == list(range(9))


def test_fewer_tiles_asked_for_are_the_first_of_more():
    random = np.random.default_rng(3)
    attention, novelty = random.random(100), random.random(100)
    few, many = (choose_tiles_to_ask(attention, novelty, lay(10), count=n, seed=5).tiles.tolist() for n in (5, 12))
    assert few == many[:5]


def test_seed_decides_the_random_tiles_alone():
    attention = np.random.default_rng(4).random(400)
    first, same, other = (choose_tiles_to_ask(attention, None, lay(20), count=12, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.tiles, same.tiles)
    assert not np.array_equal(first.tiles, other.tiles)
    assert first.tiles[0] == other.tiles[0]


def test_attention_that_is_not_a_number_is_asked_for_last():
    attention = np.array([np.nan, 0.1, 0.9, np.nan])
    asked = choose_tiles_to_ask(attention, None, np.arange(8).reshape(4, 2) * 5, count=2, seed=0)
    assert asked.tiles.tolist() == [2, 1]


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_to_ask_for_is_an_answer(count):
    asked = choose_tiles_to_ask(np.empty(0), None, np.empty((0, 2)), count=count, seed=0)
    assert (asked.tiles.shape, asked.why.shape) == ((0,), (0,))
