"""Parents before children: a child's yes is never more likely than its parent's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slideway.core.opinion import Kind, TaskQuestion
from slideway.heads.abmil import to_probabilities
from slideway.heads.calibration import Scaling
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.testing.heads import TOY_QUESTIONS

LOGITS = st.fixed_dictionaries(
    {
        "neoplastic": arrays(np.float32, (3, 1), elements=st.floats(-40, 40, width=32)),
        "malignant": arrays(np.float32, (3, 1), elements=st.floats(-40, 40, width=32)),
        "grade": arrays(np.float32, (3, 2), elements=st.floats(-40, 40, width=32)),
        "organ": arrays(np.float32, (3, 3), elements=st.floats(-40, 40, width=32)),
    }
)
SCALINGS = st.fixed_dictionaries(
    {
        "neoplastic": st.builds(Scaling, st.floats(0.05, 20)),
        "malignant": st.builds(Scaling, st.floats(0.05, 20), st.sampled_from([(), (1.5, -1.5), (-2.0, 2.0)])),
        "organ": st.builds(Scaling, st.floats(0.05, 20)),
    }
)


@settings(max_examples=100, deadline=None)
@given(LOGITS, SCALINGS)
def test_malignant_is_never_more_likely_than_neoplastic_and_all_sum_to_one(logits, scalings):
    answers = calibrate_questions(TOY_QUESTIONS, join_questions(TOY_QUESTIONS, logits), scalings)
    assert (answers["malignant"][:, 1] <= answers["neoplastic"][:, 1]).all()
    for own in answers.values():
        assert ((own >= 0) & (own <= 1)).all()
        np.testing.assert_allclose(own.sum(axis=1), 1)


def test_before_calibration_yes_of_the_child_is_the_product_of_both():
    logits = {task: np.array([[1.0]]) for task in ("neoplastic", "malignant")}
    joined = join_questions(TOY_QUESTIONS[:2], logits)
    share = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(np.exp(joined["malignant"]), [[1 - share**2, share**2]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(joined["neoplastic"]), [[1 - share, share]], rtol=1e-6)


def test_grade_and_classes_below_a_parent_are_given_as_they_are():
    organ = TaskQuestion("organ", "Organ", Kind.CLASSES, ("a", "b", "c"), parent="neoplastic")
    logits = {"neoplastic": np.array([[-5.0]]), "organ": np.array([[0.0, 2.0, 1.0]])}
    joined = join_questions((TOY_QUESTIONS[0], organ), logits)
    np.testing.assert_allclose(np.exp(joined["organ"]), to_probabilities(organ, logits["organ"]), rtol=1e-6)


def test_child_whose_parent_is_not_asked_stands_for_itself():
    child = TOY_QUESTIONS[1]
    joined = join_questions((child,), {"malignant": np.array([[0.0]])})
    np.testing.assert_allclose(np.exp(joined["malignant"]), [[0.5, 0.5]])


def test_certain_no_of_the_parent_leaves_the_child_no_chance():
    logits = {"neoplastic": np.array([[-40.0]]), "malignant": np.array([[40.0]])}
    answers = calibrate_questions(TOY_QUESTIONS[:2], join_questions(TOY_QUESTIONS[:2], logits), {})
    assert answers["malignant"][0, 1] == pytest.approx(0, abs=1e-8)


def test_without_a_scaling_nothing_changes():
    logits = {"organ": np.array([[0.3, -1.0, 2.0]])}
    joined = join_questions(TOY_QUESTIONS[3:], logits)
    answers = calibrate_questions(TOY_QUESTIONS[3:], joined, {})
    np.testing.assert_allclose(answers["organ"], np.exp(joined["organ"]))
