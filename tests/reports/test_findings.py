from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slideway.core.opinion import Answer, Finding, Kind, TaskQuestion
from slideway.core.tissue import Reason
from slideway.reports.content import ShownFinding, ShownOpinion
from slideway.reports.findings import (
    badge_of,
    chance_text,
    chances_of,
    list_words,
    say_certainty,
    say_condition,
    say_finding,
    say_strangeness,
)

YES_NO = TaskQuestion("met", "Metastasis?", Kind.BINARY, ("no", "yes"))


def refer(text: str, *, in_force: bool = True) -> Finding:
    return Finding(
        YES_NO, Answer.REFER, ("no", "yes"), {"no": 0.5, "yes": 0.5}, (Reason("why", text),), in_force=in_force
    )


@pytest.fixture(scope="module")
def findings(make_opinion: Callable[..., ShownOpinion]) -> tuple[Finding, ...]:
    return make_opinion().opinion.findings


def test_each_kind_of_finding_has_its_line(findings: tuple[Finding, ...]) -> None:
    unread = Finding(YES_NO, Answer.NOT_READABLE, (), {}, (Reason("few", "Only 3 tiles."),), in_force=True)
    assert [say_finding(finding) for finding in (*findings, unread)] == [
        "Neoplastic?: yes, 0.83 (research starter, not validated)",
        "Malignant?: cannot tell: refer to an expert (unlike the cases it learnt from)",
        "Organ: duodenum or colon",
        "Grade: middle, 0.70 (research starter, not validated; off by default)",
        "Metastasis?: not readable (only 3 tiles)",
    ]


def test_what_is_off_says_so_whatever_the_answer(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        assert "off by default" in say_finding(replace(finding, in_force=False))
        assert "off by default" not in say_finding(replace(finding, in_force=True))


@pytest.mark.parametrize("sentence", ["H&E is not its stain.", "Ki-67 is not its stain.", "DAB is not its stain."])
def test_names_keep_their_capital_letters_in_an_aside(sentence: str) -> None:
    assert say_finding(refer(sentence)).endswith(f"({sentence[:-1]})")


def test_a_long_reason_is_cut_at_a_word() -> None:
    line = say_finding(refer("Word " * 60))
    assert len(line) < 150
    assert line.endswith("word …)") or line.endswith("Word …)")


def test_marks_differ_in_shape_and_word_and_only_referral_is_amber(findings: tuple[Finding, ...]) -> None:
    unread = Finding(YES_NO, Answer.NOT_READABLE, (), {}, (Reason("few", "Only 3 tiles."),))
    badges = {finding.answer: badge_of(finding) for finding in (*findings, unread)}
    assert set(badges) == set(Answer)
    assert len({badge.shape for badge in badges.values()}) == len({badge.word for badge in badges.values()}) == 4
    assert [answer for answer, badge in badges.items() if badge.tone == "look"] == [Answer.REFER]
    assert badge_of(findings[2]).word == "One of a set: duodenum or colon"


def test_yes_and_no_look_the_same_but_for_the_word(findings: tuple[Finding, ...]) -> None:
    yes, no = findings[0], replace(findings[0], labels=("no",), probabilities={"no": 0.9, "yes": 0.1})
    assert (badge_of(yes).shape, badge_of(yes).tone) == (badge_of(no).shape, badge_of(no).tone)


def test_probabilities_stand_most_probable_first_and_a_scale_in_its_own_order(findings: tuple[Finding, ...]) -> None:
    assert [(chance.label, chance.is_named) for chance in chances_of(findings[2])] == [
        ("duodenum", True),
        ("colon", True),
        ("liver", False),
    ]
    assert [chance.label for chance in chances_of(findings[3])] == ["low", "middle", "high"]


@pytest.mark.parametrize(("labels", "rows"), [(6, 6), (7, 7), (8, 7), (30, 7)])
def test_small_probabilities_are_summed_up_and_nothing_is_lost(labels: int, rows: int) -> None:
    names = tuple(f"organ {i}" for i in range(labels))
    values = np.arange(labels, 0, -1) / np.arange(1, labels + 1).sum()
    finding = Finding(
        TaskQuestion("organ", "Organ", Kind.CLASSES, names),
        Answer.ANSWER,
        (names[0],),
        dict(zip(names, values.tolist(), strict=True)),
    )
    chances = chances_of(finding)
    assert len(chances) == rows
    assert sum(chance.probability for chance in chances) == pytest.approx(1)


def test_a_label_that_a_finding_names_is_shown_however_improbable() -> None:
    names = tuple(f"organ {i}" for i in range(30))
    finding = Finding(
        TaskQuestion("organ", "Organ", Kind.CLASSES, names),
        Answer.SET,
        (names[0], names[29]),
        {name: (30 - i) / 465 for i, name in enumerate(names)},
        (Reason("set", "Two."),),
    )
    assert {chance.label for chance in chances_of(finding) if chance.is_named} == {names[0], names[29]}
    assert "23 others together" in [chance.label for chance in chances_of(finding)]


def test_only_an_answer_or_a_set_has_a_probability(findings: tuple[Finding, ...]) -> None:
    assert [say_certainty(finding) for finding in findings] == ["0.83", "", "0.97", "0.70"]


def test_a_grade_says_on_which_answer_it_rests(make_opinion: Callable[..., ShownOpinion]) -> None:
    opinion = make_opinion().opinion
    assert [say_condition(finding, opinion) for finding in opinion.findings] == [
        "",
        "",
        "",
        "It holds only if the answer to “Neoplastic?” is yes.",
    ]
    assert say_condition(opinion.findings[3], replace(opinion, findings=opinion.findings[3:])) == ""


def test_no_probability_and_no_share_is_rounded_to_certainty() -> None:
    assert [chance_text(p) for p in (0.0, 0.001, 0.004999, 0.005, 0.9949, 0.996, 1.0)] == [
        "0.00",
        "< 0.01",
        "< 0.01",
        "0.01",
        "0.99",
        "> 0.99",
        "1.00",
    ]
    assert "stranger than 99 %" in say_strangeness(0.999)
    assert "stranger than 1 %" in say_strangeness(0.0001)
    assert "every case" in say_strangeness(1.0)
    assert "No case" in say_strangeness(0.0)


def test_lists_read_as_alternatives_and_are_cut() -> None:
    assert [list_words(words) for words in ((), ("a",), ("a", "b"), tuple("abcd"), tuple("abcde"))] == [
        "",
        "a",
        "a or b",
        "a, b, c or d",
        "a, b, c or 2 others",
    ]


def test_a_finding_that_the_head_did_not_give_is_the_callers_mistake(make_opinion: Callable[..., ShownOpinion]) -> None:
    opinion = make_opinion().opinion
    with pytest.raises(ValueError, match="slideway-atlas was not asked met"):
        ShownOpinion(opinion, (ShownFinding(refer("No.")),))
    assert ShownOpinion(opinion, (ShownFinding(opinion.findings[0]),)).findings
