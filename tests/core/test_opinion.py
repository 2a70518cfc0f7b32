"""Records of an opinion hold together, or are not made."""

import numpy as np
import pytest

from slideway.core.opinion import Answer, AttentionMap, Finding, Kind, TaskQuestion
from slideway.core.tissue import Reason

MALIGNANT = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
WHY = (Reason("several-labels", "They cannot be told apart."),)


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "a")])
def test_task_of_too_few_or_repeated_labels_is_refused(labels):
    with pytest.raises(ValueError, match="at least two labels, each once"):
        TaskQuestion("organ", "Organ", Kind.CLASSES, labels)


@pytest.mark.parametrize("labels", [("yes", "no"), ("benign", "malignant"), ("no", "yes", "maybe")])
def test_binary_task_has_no_and_yes_in_this_order(labels):
    with pytest.raises(ValueError, match="labels of a binary task are no, yes"):
        TaskQuestion("malignant", "Malignant?", Kind.BINARY, labels)


def test_plain_answer_has_no_reasons_and_everything_else_has_some():
    with pytest.raises(ValueError, match="reasons exactly when"):
        Finding(MALIGNANT, Answer.ANSWER, ("yes",), {"no": 0.1, "yes": 0.9}, WHY)
    for answer in (Answer.SET, Answer.REFER, Answer.NOT_READABLE):
        with pytest.raises(ValueError, match="reasons exactly when"):
            Finding(MALIGNANT, answer, ("no", "yes"), {"no": 0.4, "yes": 0.6})


@pytest.mark.parametrize("labels", [(), ("no", "yes")])
def test_plain_answer_is_exactly_one_label(labels):
    with pytest.raises(ValueError, match="exactly one label"):
        Finding(MALIGNANT, Answer.ANSWER, labels, {"no": 0.1, "yes": 0.9})


def test_leading_label_is_the_most_probable_the_first_of_two_alike_and_none_when_nothing_was_read():
    assert Finding(MALIGNANT, Answer.ANSWER, ("yes",), {"no": 0.1, "yes": 0.9}).leading == "yes"
    assert Finding(MALIGNANT, Answer.REFER, (), {"no": 0.5, "yes": 0.5}, WHY).leading == "no"
    assert Finding(MALIGNANT, Answer.NOT_READABLE, (), {}, WHY).leading == ""


@pytest.mark.parametrize(("weight", "push"), [((3,), (2,)), ((3, 1), (3, 1))])
def test_attention_map_holds_one_weight_and_one_push_for_each_tile(weight, push):
    with pytest.raises(ValueError, match="one weight and one push for each tile"):
        AttentionMap(np.ones(weight, np.float32), np.ones(push, np.float32))


def test_finding_is_off_unless_somebody_switched_it_on():
    assert not Finding(MALIGNANT, Answer.ANSWER, ("yes",), {"no": 0.1, "yes": 0.9}).in_force
