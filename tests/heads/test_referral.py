"""One rule decides between answer, set, referral and not readable, and says why in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import slideway.heads.discordance
import slideway.heads.referral
from slideway.core.opinion import Answer, Finding, Kind, TaskQuestion
from slideway.core.tissue import QualityGrade, Reason, Verdict
from slideway.heads.referral import Certainty, Circumstances, Decision, ReferralPolicy, decide

MALIGNANT = TaskQuestion("malignant", "Is it malignant?", Kind.BINARY, ("no", "yes"))
ORGAN = TaskQuestion("organ", "Which organ?", Kind.CLASSES, ("breast", "colon", "kidney", "liver", "lung"))
SUBTYPE = TaskQuestion(
    "kidney.subtype", "Which subtype?", Kind.CLASSES, ("clear-cell", "papillary", "x"), "", ("kidney",)
)
GRADE = TaskQuestion("grade", "Which grade?", Kind.ORDINAL, ("1", "2", "3", "4"))
GOOD = Circumstances(
    tiles=500,
    min_tiles=20,
    quality=QualityGrade(Verdict.READABLE),
    strangeness=0.4,
    p_value=0.6,
    known_cases=60,
    stain="H&E",
    head_stain="H&E",
)
POLICY = ReferralPolicy()


def certain(probabilities: list[float], p_values: list[float], cases: list[int] | None = None) -> Certainty:
    return Certainty(np.array(probabilities), np.array(p_values), cases or [50] * len(probabilities))


SURE = certain([0.03, 0.97], [0.02, 0.7])


def judge(certainty: Certainty = SURE, question: TaskQuestion = MALIGNANT, **changes: object) -> Decision:
    return decide(question, certainty, replace(GOOD, **changes), POLICY)


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


def test_one_label_on_an_ordinary_slide_is_an_answer():
    decision = judge()
    assert (decision.answer, decision.labels, decision.reasons, decision.cautions) == (Answer.ANSWER, ("yes",), (), ())


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"quality": QualityGrade(Verdict.NO_TISSUE)}, "slide-without-tissue", "no tissue"),
        (
            {"quality": QualityGrade(Verdict.RESCAN, (Reason("blurred", "70% of the tiles are out of focus."),))},
            "slide-to-rescan",
            "70% of the tiles are out of focus",
        ),
        ({"tiles": 19}, "too-few-tiles", "19 tiles of tissue were read; this head needs at least 20"),
    ],
)
def test_slide_that_cannot_be_read_gets_no_label(changes, code, words):
    decision = judge(**changes)
    assert (decision.answer, decision.labels, codes(decision)) == (Answer.NOT_READABLE, (), [code])
    assert words in decision.reasons[0].text


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"p_value": 1 / 61, "strangeness": 1.0}, "unlike-training", "stranger than 100% of its 60 cases"),
        ({"p_value": None}, "strangeness-unknown", "was not measured"),
        ({"known_cases": 19}, "strangeness-unknown", "19 cases; at least 20 are needed"),
        ({"stain": "Ki-67"}, "other-stain", "stained Ki-67; the head learnt from H&E only"),
        ({"is_resolution_estimated": True}, "scale-estimated", "were estimated"),
        ({"resolution_doubt": "nuclei look twice too large"}, "scale-doubtful", "nuclei look twice too large"),
        ({"tiles_only": True}, "tiles-only", "only points at tiles"),
        ({"discordance": Reason("opinions-contradict", "They differ.")}, "opinions-contradict", "They differ"),
    ],
)
def test_doubt_about_the_slide_refers_it_whatever_the_numbers_say(changes, code, words):
    decision = judge(**changes)
    assert (decision.answer, decision.labels, codes(decision)) == (Answer.REFER, (), [code])
    assert words in decision.reasons[0].text


def test_strangeness_at_the_level_is_not_yet_strange():
    assert judge(p_value=0.05).answer is Answer.ANSWER
    assert judge(p_value=0.0499).answer is Answer.REFER
    assert judge(known_cases=20).answer is Answer.ANSWER


def test_all_doubts_are_told_at_once():
    decision = judge(p_value=0.01, stain="PAS", is_resolution_estimated=True)
    assert codes(decision) == ["unlike-training", "other-stain", "scale-estimated"]


@pytest.mark.parametrize(("site", "expected"), [("kidney", []), ("lung", ["other-site"]), ("", ["site-unknown"])])
def test_head_of_one_organ_is_not_asked_about_another(site, expected):
    decision = judge(certain([0.9, 0.05, 0.05], [0.6, 0.01, 0.01]), SUBTYPE, site=site)
    assert codes(decision) == expected
    assert (decision.answer is Answer.ANSWER) == (not expected)
    assert judge(site=site).answer is Answer.ANSWER  # a head that is tied to no site does not ask


@pytest.mark.parametrize(
    ("probabilities", "p_values", "answer", "labels", "code", "words"),
    [
        ([0.6, 0.4, 0, 0, 0], [0.5, 0.3, 0, 0, 0], Answer.SET, ("breast", "colon"), "several-labels", "(60%)"),
        ([0.2, 0.5, 0.3, 0, 0], [0.2, 0.4, 0.2, 0, 0], Answer.SET, ("colon", "kidney", "breast"), "several-labels", ""),
        ([0.4, 0.2, 0.2, 0.2, 0], [0.5] * 4 + [0], Answer.REFER, None, "too-many-labels", "4 of 5 labels"),
        ([0.2] * 5, [0.5] * 5, Answer.REFER, None, "cannot-tell", "None of"),
        ([0.3, 0.3, 0.2, 0.1, 0.1], [0.1, 0.05, 0, 0, 0], Answer.REFER, (), "fits-no-label", "every label"),
        ([0.7, 0.3, 0, 0, 0], [0.05, 0.4, 0, 0, 0], Answer.REFER, ("colon",), "leading-excluded", "breast (70%) leads"),
    ],
)
def test_number_of_labels_left_decides_between_answer_set_and_referral(
    probabilities, p_values, answer, labels, code, words
):
    decision = judge(certain(probabilities, p_values), ORGAN)
    assert (decision.answer, codes(decision)) == (answer, [code])
    assert words in decision.reasons[0].text
    if labels is not None:
        assert decision.labels == labels


def test_yes_and_no_together_are_a_referral_never_a_set():
    decision = judge(certain([0.45, 0.55], [0.4, 0.5]))
    assert (decision.answer, decision.labels, codes(decision)) == (Answer.REFER, ("yes", "no"), ["cannot-tell"])
    assert decision.reasons[0].text == "Neither yes (55%) nor no (45%) can be excluded at 90% certainty."


def test_label_with_too_few_known_cases_cannot_be_excluded_and_says_so():
    decision = judge(certain([0.9, 0.1, 0, 0, 0], [0.6, 0.125, 0, 0, 0], [50, 7, 50, 50, 50]), ORGAN)
    assert (decision.answer, decision.labels) == (Answer.SET, ("breast", "colon"))
    assert codes(decision) == ["several-labels", "too-few-known"]
    assert decision.reasons[1].text == "Too few cases of colon to exclude it: 7 are known, 9 are needed."


def test_binary_task_with_too_few_positive_cases_is_referred():
    decision = judge(certain([0.97, 0.03], [0.7, 0.2], [50, 4]))
    assert decision.answer is Answer.REFER
    assert codes(decision) == ["cannot-tell", "too-few-known"]


def test_label_left_only_because_few_of_its_cases_are_known_is_no_answer():
    decision = judge(certain([0.4, 0.6, 0, 0, 0], [0.02, 0.2, 0, 0, 0], [50, 4, 50, 50, 50]), ORGAN)
    assert (decision.answer, decision.labels, codes(decision)) == (Answer.REFER, ("colon",), ["too-few-known"])


def test_grades_on_both_sides_keep_the_one_between():
    decision = judge(certain([0.5, 0.1, 0.4, 0], [0.5, 0.05, 0.4, 0]), GRADE)
    assert (decision.answer, decision.labels) == (Answer.SET, ("1", "3", "2"))


def test_limited_quality_is_a_caution_and_leaves_the_answer():
    quality = QualityGrade(Verdict.LIMITED, (Reason("folded", "12% of the tissue looks folded."),))
    decision = judge(quality=quality)
    assert decision.answer is Answer.ANSWER
    assert [reason.code for reason in decision.cautions] == ["quality-limited"]
    assert "12% of the tissue looks folded" in decision.cautions[0].text


def test_unknown_stain_and_ungraded_quality_are_cautions():
    decision = judge(stain="", quality=None)
    assert decision.answer is Answer.ANSWER
    assert [reason.code for reason in decision.cautions] == ["quality-unknown", "stain-unknown"]


def test_surer_policy_leaves_more_labels():
    certainty = certain([0.05, 0.95], [0.07, 0.6])
    assert decide(MALIGNANT, certainty, GOOD, ReferralPolicy(alpha=0.1)).answer is Answer.ANSWER
    assert decide(MALIGNANT, certainty, GOOD, ReferralPolicy(alpha=0.05)).answer is Answer.REFER


@pytest.mark.parametrize("seed", range(30))
def test_every_decision_can_become_a_finding(seed):
    random = np.random.default_rng(seed)
    question = (MALIGNANT, ORGAN, SUBTYPE, GRADE)[seed % 4]
    width = len(question.labels)
    certainty = certain(
        random.dirichlet(np.ones(width)).tolist(), random.random(width).tolist(), random.integers(0, 30, width).tolist()
    )
    decision = judge(certainty, question, tiles=int(random.integers(10, 90)), site="kidney", p_value=random.random())
    finding = Finding(question, decision.answer, decision.labels, {}, decision.reasons)
    assert set(finding.labels) <= set(question.labels)


def test_numbers_of_another_question_are_refused():
    with pytest.raises(ValueError, match="2 labels"):
        judge(certain([0.2, 0.3, 0.5], [0.1, 0.2, 0.3]))


@pytest.mark.parametrize("change", [{"alpha": 0.0}, {"alpha_ood": 0.6}, {"max_set": 1}])
def test_policy_that_decides_nothing_is_refused(change):
    with pytest.raises(ValueError, match="alpha and alpha_ood"):
        ReferralPolicy(**change)


def test_every_reason_code_is_documented():
    modules = (slideway.heads.referral, slideway.heads.discordance)
    sources = " ".join(Path(module.__file__).read_text(encoding="utf-8") for module in modules)
    in_source = set(re.findall(r'Reason\(\s*"([a-z-]+)"', sources))
    page = (Path(__file__).parents[2] / "docs" / "certainty.md").read_text(encoding="utf-8")
    table = page.split("## The reasons")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.MULTILINE))
    assert len(in_source) >= 20
    assert in_source == documented
