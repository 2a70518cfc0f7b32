"""An opinion: the planted lesion is what speaks for the answer, and doubts end in a referral, never in an answer."""

import re
from dataclasses import replace

import numpy as np
import pytest

from slideway.core.bag import Sampling
from slideway.core.errors import FingerprintMismatchError
from slideway.core.opinion import Answer, Kind, TaskQuestion
from slideway.core.tissue import QualityGrade, Reason, Verdict
from slideway.heads.diagnose import SlideFacts, answer_bag, form_opinion, say_evidence
from slideway.heads.head import KnownCases, load_head
from slideway.heads.referral import ReferralPolicy
from slideway.testing.heads import TOY_QUESTIONS, light, make_toy_bag, write_toy_head

HE = SlideFacts(stain="H&E")
LESION = [30, 33, 36, 60, 63, 66, 90, 93, 96, 99]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return write_toy_head(tmp_path_factory.mktemp("heads") / "toy")


@pytest.fixture(scope="module")
def head(card):
    return load_head(card)


def make_slide(*, seed=0, tiles=100, at=LESION, **labels):
    """A slide of noise with tiles lit for some labels."""
    vectors = np.random.default_rng(seed).normal(size=(tiles, 8))
    for task, label in labels.items():
        vectors[at] += light(TOY_QUESTIONS, task, label)
    return vectors


def ask(card, head, vectors, facts=HE, **kwargs):
    opinion = form_opinion(card, head, make_toy_bag(vectors), facts, **kwargs)
    return opinion, {finding.task.id: finding for finding in opinion.findings}


def codes(finding):
    return [reason.code for reason in finding.reasons]


def test_lesion_slide_is_answered_yes_and_its_tiles_are_hottest(card, head):
    opinion, found = ask(card, head, make_slide(neoplastic="yes", organ="colon"))
    assert (found["neoplastic"].answer, found["neoplastic"].labels) == (Answer.ANSWER, ("yes",))
    assert (found["organ"].answer, found["organ"].labels) == (Answer.ANSWER, ("colon",))
    assert sorted(np.argsort(opinion.attention.weight)[-10:]) == LESION
    assert opinion.attention.weight.sum() == pytest.approx(1, abs=1e-5)
    assert (opinion.attention.push[LESION] > 0).all()
    assert sorted(np.argsort(opinion.attention.push)[-10:]) == LESION
    assert set(found["neoplastic"].evidence.for_tiles) <= set(LESION)
    assert opinion.head_sha256 == card.weights.sha256


def test_push_is_towards_the_leading_label_so_that_the_same_tiles_speak_against_a_no(card, head):
    slide = make_slide(malignant="no", organ="liver")
    slide[50] += 0.7 * light(TOY_QUESTIONS, "neoplastic", "yes")  # one tile, too weak to turn the slide
    opinion, found = ask(card, head, slide)
    assert found["neoplastic"].leading == "no"
    assert opinion.attention.push[50] == opinion.attention.push.min() < 0
    assert found["neoplastic"].evidence.against_tiles[0] == 50


@pytest.mark.parametrize("label", ["colon", "kidney", "liver"])
def test_tiles_of_the_leading_class_speak_for_it_and_those_of_another_against_it(card, head, label):
    other = {"colon": "kidney", "kidney": "liver", "liver": "colon"}[label]
    slide = make_slide(organ=label)
    slide[50] += light(TOY_QUESTIONS, "organ", other)
    _, found = ask(card, head, slide)
    assert found["organ"].leading == label
    assert set(found["organ"].evidence.for_tiles) <= set(LESION)
    assert found["organ"].evidence.against_tiles[0] == 50


def test_malignant_is_never_more_likely_than_neoplastic(card, head):
    for seed in range(5):
        _, found = ask(card, head, make_slide(seed=seed, malignant="yes"))
        assert found["malignant"].probabilities["yes"] <= found["neoplastic"].probabilities["yes"]
    assert found["malignant"].leading == "no"


def test_grade_is_asked_of_what_is_malignant_alone(card, head):
    _, benign = ask(card, head, make_slide(neoplastic="yes"))
    _, malignant = ask(card, head, make_slide(neoplastic="yes", malignant="yes", grade="G3"))
    assert "grade" not in benign
    assert list(malignant) == ["neoplastic", "malignant", "grade", "organ"]
    assert malignant["grade"].leading == "G3"


def test_probabilities_of_every_finding_sum_to_one_and_are_those_of_the_bag(card, head):
    slide = make_slide(neoplastic="yes", malignant="yes", grade="G2")
    _, found = ask(card, head, slide)
    answers = answer_bag(head, make_toy_bag(slide))
    for task, finding in found.items():
        assert sum(finding.probabilities.values()) == pytest.approx(1)
        np.testing.assert_allclose(list(finding.probabilities.values()), answers[task])


def test_order_of_tiles_changes_no_answer(card, head):
    slide, order = make_slide(neoplastic="yes", organ="colon"), np.random.default_rng(1).permutation(100)
    one, first = ask(card, head, slide)
    two, second = ask(card, head, slide[order])
    for task, finding in first.items():
        assert finding.answer is second[task].answer
        for label, share in finding.probabilities.items():
            assert share == pytest.approx(second[task].probabilities[label], abs=1e-5)
    np.testing.assert_allclose(one.attention.weight[order], two.attention.weight, atol=1e-6)
    assert one.strangeness == pytest.approx(two.strangeness, abs=0.1)


def test_slide_unlike_all_known_cases_is_referred_with_the_reason(card, head):
    _, found = ask(card, head, 40 + make_slide(neoplastic="yes"))
    assert {finding.answer for finding in found.values()} == {Answer.REFER}
    assert all("unlike-training" in codes(finding) for finding in found.values())


def test_strangeness_is_told_and_a_head_without_known_cases_refers(card, head):
    opinion, _ = ask(card, head, make_slide(neoplastic="yes"))
    assert 0 <= opinion.strangeness <= 1
    blind = replace(head, typicality=None)
    opinion, found = ask(card, blind, make_slide(neoplastic="yes"))
    assert opinion.strangeness is None
    assert codes(found["neoplastic"]) == ["strangeness-unknown"]


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (SlideFacts(stain="Ki-67"), "other-stain"),
        (SlideFacts(stain="H&E", is_resolution_estimated=True), "scale-estimated"),
        (SlideFacts(stain="H&E", resolution_doubt="nuclei are twice as large"), "scale-doubtful"),
    ],
)
def test_doubt_about_the_slide_refers_whatever_the_numbers(card, head, facts, code):
    _, found = ask(card, head, make_slide(neoplastic="yes"), facts)
    assert {finding.answer for finding in found.values()} == {Answer.REFER}
    assert code in codes(found["neoplastic"])


def test_task_of_one_site_is_referred_for_tissue_of_another(tmp_path):
    question = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"), sites=("kidney",))
    card = write_toy_head(tmp_path / "kidney", questions=(question,))
    head, slide = load_head(card), np.random.default_rng(0).normal(size=(60, 8))
    slide[:4] += light((question,), "malignant", "yes")
    for site, wanted in (("kidney", []), ("liver", ["other-site"]), ("", ["site-unknown"])):
        _, found = ask(card, head, slide, replace(HE, site=site))
        assert codes(found["malignant"]) == wanted


@pytest.mark.parametrize("verdict", [Verdict.NO_TISSUE, Verdict.RESCAN])
def test_slide_that_cannot_be_read_gets_no_numbers_and_no_map(card, head, verdict):
    facts = replace(HE, quality=QualityGrade(verdict, (Reason("blurred", "It is blurred."),)))
    opinion, found = ask(card, head, make_slide(neoplastic="yes"), facts)
    assert {finding.answer for finding in found.values()} == {Answer.NOT_READABLE}
    assert not any(finding.probabilities or finding.labels for finding in found.values())
    assert (opinion.attention, opinion.strangeness) == (None, None)
    assert list(found) == [question.id for question in TOY_QUESTIONS]


def test_empty_bag_is_not_readable(card, head):
    _, found = ask(card, head, np.empty((0, 8)))
    assert codes(found["organ"]) == ["too-few-tiles"]


def test_slide_of_fewer_tiles_than_the_head_needs_is_not_readable(card, head):
    strict = replace(card, input=replace(card.input, min_tiles=101))
    _, found = ask(strict, head, make_slide())
    assert codes(found["organ"]) == ["too-few-tiles"]


def test_bag_of_one_tile_gets_an_opinion(card, head):
    opinion, found = ask(card, head, make_slide(tiles=1, at=[0], neoplastic="yes"))
    np.testing.assert_allclose(opinion.attention.weight, [1])
    assert found["neoplastic"].evidence.change


def test_tiles_without_a_finite_vector_do_not_poison_the_others(card, head):
    slide = make_slide(neoplastic="yes", organ="colon")
    spoilt = slide.copy()
    spoilt[[0, 1, 2]] = np.nan
    spoilt[[4, 5], 0] = np.inf, -np.inf
    opinion, found = ask(card, head, spoilt)
    assert (found["neoplastic"].answer, found["neoplastic"].labels) == (Answer.ANSWER, ("yes",))
    assert np.isfinite(opinion.attention.weight).all()
    assert np.isfinite(opinion.attention.push).all()


def test_slide_of_tiles_without_a_finite_vector_is_not_readable_instead_of_ordinary(card, head):
    strict = replace(card, input=replace(card.input, min_tiles=20))
    slide = make_slide(neoplastic="yes")
    slide[:81] = np.nan
    opinion, found = ask(strict, head, slide)
    assert {finding.answer for finding in found.values()} == {Answer.NOT_READABLE}
    assert found["organ"].reasons[0].text.startswith("19 tiles")
    assert opinion.attention is None


def test_tile_that_stands_for_many_counts_for_them(card, head):
    slide = make_slide(at=[50], neoplastic="yes")
    alone = form_opinion(card, head, make_toy_bag(slide), HE)
    weight = np.ones(100, np.float32)
    weight[50] = 40
    sampled = make_toy_bag(slide, sampling=Sampling(np.full(100, 3, np.uint8), weight))
    weighed = form_opinion(card, head, sampled, HE)
    assert weighed.findings[0].probabilities["yes"] > alone.findings[0].probabilities["yes"] + 0.2
    assert weighed.attention.weight[50] > 5 * alone.attention.weight[50]


def test_bag_of_another_encoder_is_refused(card, head):
    with pytest.raises(FingerprintMismatchError):
        form_opinion(card, head, make_toy_bag(make_slide(), fingerprint="a" * 64), HE)


def test_answer_that_hangs_on_one_tile_says_so(card, head):
    _, found = ask(card, head, make_slide(at=[50], neoplastic="yes", organ="liver"))
    assert found["organ"].leading == "liver"
    change = found["organ"].evidence.change
    assert re.fullmatch(r"Without its most telling tile \(of 100\) it would be (colon|kidney)\.", change)


def test_answer_that_the_whole_slide_speaks_for_says_so(card, head):
    _, found = ask(card, head, make_slide(at=slice(None), organ="liver"))
    assert found["organ"].evidence.change.startswith("It rests on much of the slide")


def test_shown_tiles_lie_apart(card, head):
    slide = make_slide(at=[44, 45, 46, 54, 55, 56, 64, 65, 66, 0], neoplastic="yes")
    _, found = ask(card, head, slide)
    tiles = found["neoplastic"].evidence.for_tiles
    places = make_toy_bag(slide).grid.column_row[list(tiles)]
    gaps = np.abs(places[:, None] - places[None]).max(axis=2)
    assert (gaps + 9 * np.eye(len(tiles)) > 1).all()
    assert len(tiles) >= 2


def test_nearest_known_cases_come_with_their_labels_nearest_first(card, head):
    known = head.known
    centre = known.means.mean(axis=0)
    slide = np.repeat(known.means[[7]] + 3 * (known.means[7] - centre), 30, axis=0)
    _, found = ask(card, head, slide)
    nearest = found["organ"].evidence.known
    assert nearest[0].case == "case-07"
    assert nearest[0].label == known.labels["organ"][7]
    cosines = [case.cosine for case in nearest]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(1, abs=1e-3)


def test_head_that_names_no_cases_shows_none(card, head):
    nobody = replace(
        head, known=KnownCases((), np.empty((0, 8), np.float32), {question.id: () for question in TOY_QUESTIONS})
    )
    _, found = ask(card, nobody, make_slide(neoplastic="yes"))
    assert found["neoplastic"].evidence.known == ()


def test_without_explaining_the_answers_are_the_same(card, head):
    slide = make_slide(neoplastic="yes", organ="colon")
    _, short = ask(card, head, slide, explain=False)
    _, long = ask(card, head, slide)
    for task, finding in long.items():
        assert finding.probabilities == short[task].probabilities
        assert not short[task].evidence.for_tiles


def test_finding_is_in_force_only_when_task_and_head_are(card, head):
    off = replace(card, tasks=(replace(card.tasks[0], in_force=False, off_because="why"), *card.tasks[1:]))
    _, found = ask(off, head, make_slide(neoplastic="yes"))
    assert (found["neoplastic"].in_force, found["organ"].in_force) == (False, True)
    _, found = ask(replace(card, state="candidate"), head, make_slide(neoplastic="yes"))
    assert not any(finding.in_force for finding in found.values())


def test_stricter_policy_answers_less(card, head):
    slide = make_slide(organ="liver", at=LESION[:2])
    _, usual = ask(card, head, slide)
    _, strict = ask(card, head, slide, policy=ReferralPolicy(alpha=0.01))
    assert usual["organ"].answer is Answer.ANSWER
    assert strict["organ"].answer is Answer.REFER


def test_instance_head_only_points_at_tiles_of_a_slide(tmp_path):
    card = write_toy_head(tmp_path / "tiles", questions=TOY_QUESTIONS[:2], form="instance")
    slide = make_slide(neoplastic="yes")
    opinion, found = ask(card, load_head(card), slide)
    assert "tiles-only" in codes(found["neoplastic"])
    assert set(np.flatnonzero(opinion.attention.weight)) <= set(LESION)
    assert (opinion.attention.push[LESION] > 0).all()


def test_evidence_is_told_with_its_interval_cases_and_baseline(card):
    words = say_evidence(card)
    assert "Neoplastic? AUROC 0.95 (0.90–0.99) on 24 unseen cases, best baseline 0.70" in words
    unknown = replace(card, tasks=(replace(card.tasks[0], evidence=None),))
    assert say_evidence(unknown) == "Neoplastic? was not evaluated on unseen cases."
