"""Gated attention in numpy: what a bag may hold, and what must not change its scores."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import Abmil, Member, fit_projection, outputs_of, score_bag, to_probabilities
from slideway.testing.heads import TOY_QUESTIONS, make_toy_head

BINARY, _, GRADE, ORGAN = TOY_QUESTIONS
WIDTH = 12


@pytest.fixture(scope="module")
def abmil():
    """Two members of random numbers behind an input layer of rank 6."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32)

    def member():
        tasks = {q.id: (draw(5, outputs_of(q)), draw(outputs_of(q))) for q in TOY_QUESTIONS}
        return Member((draw(6, 5), draw(5)), (draw(5, 4), draw(4)), (draw(5, 4), draw(4)), draw(4), tasks)

    return Abmil(fit_projection(draw(300, WIDTH), rank=6), (member(), member()), TOY_QUESTIONS)


def make_bag(n, seed=1):
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float16)


def assert_same_answer(left, right, atol=1e-5):
    for task in left:
        np.testing.assert_allclose(left[task], right[task], atol=atol)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 99), is_weighted=st.booleans())
def test_attention_is_never_negative_and_sums_to_one_whatever_the_bag(abmil, n, seed, is_weighted):
    weights = np.random.default_rng(seed).uniform(1, 20, n).astype(np.float32) if is_weighted else None
    scores = score_bag(abmil, make_bag(n, seed), weights)
    assert (scores.attention >= 0).all()
    assert scores.attention.sum() == pytest.approx(1, abs=1e-5)
    for question in TOY_QUESTIONS:
        assert scores.push[question.id].shape == (n, outputs_of(question))


@pytest.mark.parametrize("is_weighted", [False, True])
def test_pushes_are_what_each_tile_adds_to_the_logits_of_the_plain_mean_tile(abmil, is_weighted):
    single = Abmil(abmil.projection, abmil.members[:1], abmil.questions)
    bag = make_bag(30)
    weights = np.random.default_rng(2).uniform(1, 9, 30).astype(np.float32) if is_weighted else None
    scores = score_bag(single, bag, weights)
    member = single.members[0]
    hidden = np.maximum(single.projection(bag) @ member.hidden[0] + member.hidden[1], 0)
    each = hidden @ member.tasks["organ"][0] + member.tasks["organ"][1]
    plain = np.average(each, axis=0, weights=weights)
    np.testing.assert_allclose(scores.attention @ each, scores.logits["organ"], atol=1e-4)
    np.testing.assert_allclose(scores.push["organ"], scores.attention[:, None] * (each - plain), atol=1e-4)
    np.testing.assert_allclose(plain + scores.push["organ"].sum(axis=0), scores.logits["organ"], atol=1e-4)


def test_tiles_of_one_lesion_all_push_the_same_way_however_much_attention_they_hold():
    toy = make_toy_head().network
    sharp = replace(toy, members=(replace(toy.members[0], score=4 * toy.members[0].score),))
    tiles = np.zeros((50, 8), np.float32)
    tiles[[3, 20, 41], 0] = 5, 6, 7  # unlike each other, and together nearly all of the attention
    scores = score_bag(sharp, tiles)
    push = scores.push["neoplastic"][:, 0]
    assert scores.attention[[3, 20, 41]].sum() > 0.8
    assert (push[[3, 20, 41]] > 0).all()
    assert sorted(np.argsort(push)[-3:]) == [3, 20, 41]


def test_tile_of_weight_three_counts_like_three_equal_tiles(abmil):
    bag = make_bag(20)
    weights = np.ones(20, np.float32)
    weights[4] = 3
    weighted = score_bag(abmil, bag, weights)
    repeated = score_bag(abmil, np.concatenate([bag, bag[[4, 4]]]))
    assert_same_answer(weighted.logits, repeated.logits)
    assert weighted.attention[4] == pytest.approx(repeated.attention[[4, 20, 21]].sum(), rel=1e-4)
    assert not np.allclose(weighted.logits["organ"], score_bag(abmil, bag).logits["organ"], atol=1e-4)


def test_order_of_tiles_does_not_matter(abmil):
    bag, order = make_bag(5_000), np.random.default_rng(3).permutation(5_000)
    straight, shuffled = score_bag(abmil, bag), score_bag(abmil, bag[order])
    assert_same_answer(straight.logits, shuffled.logits)
    np.testing.assert_allclose(straight.attention[order], shuffled.attention, atol=1e-6)
    np.testing.assert_allclose(straight.push["grade"][order], shuffled.push["grade"], atol=1e-6)


def test_bag_of_one_tile_has_all_attention_on_it_and_no_push(abmil):
    scores = score_bag(abmil, make_bag(1))
    np.testing.assert_allclose(scores.attention, [1])
    assert not scores.push["organ"].any()
    assert all(np.isfinite(logits).all() for logits in scores.logits.values())


@pytest.mark.parametrize("broken", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan, np.inf]])
def test_vectors_that_are_not_finite_do_not_poison_the_others(abmil, broken):
    clean = make_bag(40)
    bag = np.concatenate([clean, np.zeros((1, WIDTH), np.float16)])
    bag[-1, : len(broken)] = broken
    central = np.concatenate([clean, abmil.projection.mean[None]])
    assert_same_answer(score_bag(abmil, bag).logits, score_bag(abmil, central).logits)
    assert not abmil.projection(bag)[-1].any()
    assert np.isnan(bag[-1]).any() or np.isinf(bag[-1]).any(), "the bag itself is left as it was"


def test_single_broken_vectors_of_opposite_sign_in_one_pass_are_found(abmil):
    bag = make_bag(40)
    bag[3, 0], bag[9, 2] = np.inf, -np.inf
    projected = abmil.projection(bag)
    assert np.isfinite(projected).all()
    assert np.flatnonzero(~projected.any(axis=1)).tolist() == [3, 9]


def test_empty_bag_has_an_empty_projection(abmil):
    assert abmil.projection(make_bag(0)).shape == (0, 6)


def test_projection_of_training_tiles_is_centred_with_a_mean_variance_of_one_and_the_same_each_time():
    tiles = np.random.default_rng(5).normal(3, 2, size=(400, WIDTH)) * np.arange(1, WIDTH + 1)
    layer = fit_projection(tiles.astype(np.float32), rank=4)
    seen = layer(tiles.astype(np.float32))
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-3)
    assert seen.var(axis=0).mean() == pytest.approx(1, rel=1e-3)
    assert np.array_equal(layer.axes, fit_projection(tiles.astype(np.float32), rank=4).axes)
    assert (np.take_along_axis(layer.axes, np.abs(layer.axes).argmax(axis=0)[None], axis=0) > 0).all()


@settings(max_examples=50, deadline=None)
@given(first=st.floats(-30, 30), gaps=st.lists(st.floats(0, 20), min_size=1, max_size=5), temperature=st.floats(0.1, 9))
def test_ordered_labels_get_probabilities_that_are_never_negative_and_sum_to_one(first, gaps, temperature):
    question = TaskQuestion("g", "G", Kind.ORDINAL, tuple("abcdefgh"[: len(gaps) + 2]))
    logits = first - np.concatenate([[0], np.cumsum(gaps)])
    own = to_probabilities(question, logits[None], temperature)[0]
    assert (own >= 0).all()
    assert own.sum() == pytest.approx(1)
    above = own[::-1].cumsum()[::-1]
    assert (np.diff(above) <= 1e-12).all()


def test_higher_logits_move_ordered_labels_upwards():
    means = [to_probabilities(GRADE, np.array([[x, x - 2]]))[0] @ np.arange(3) for x in (-4, -1, 0, 2, 5)]
    assert (np.diff(means) > 0).all()


def test_probabilities_of_huge_logits_stay_numbers():
    for question, logits in ((BINARY, [[1e4]]), (ORGAN, [[1e4, -1e4, 0]]), (GRADE, [[1e4, -1e4]])):
        own = to_probabilities(question, np.array(logits, np.float32))
        assert np.isfinite(own).all()
        np.testing.assert_allclose(own.sum(axis=1), 1)


def test_every_kind_of_task_has_its_number_of_outputs():
    assert [outputs_of(question) for question in TOY_QUESTIONS] == [1, 1, 2, 3]


def test_number_of_parameters_is_what_the_arrays_hold(abmil):
    outputs = sum(outputs_of(q) for q in TOY_QUESTIONS)
    of_member = 6 * 5 + 5 + 2 * (5 * 4 + 4) + 4 + 5 * outputs + outputs
    assert abmil.parameters == WIDTH + WIDTH * 6 + 2 * of_member
