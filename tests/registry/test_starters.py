"""The heads that ship: their cards say what the benchmark's output says, they run here, and all are off."""

import json
from pathlib import Path

import pytest

from slideway.heads.head import load_head
from slideway.registry import DEFAULT_ENCODER, find_encoder
from slideway.registry.encoder_page import write_encoder_page
from slideway.registry.head_page import write_head_page
from slideway.registry.heads import find_head, is_packaged_head

ROOT = Path(__file__).parents[2]
STARTERS = ("slideway-atlas", "slideway-nodes", "slideway-oral")


def read_evidence(head_id: str) -> dict:
    return json.loads((ROOT / "bench/heads/starters" / f"{head_id}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("head_id", STARTERS)
def test_a_starter_computes_here_what_it_did_when_it_was_made(head_id):
    card = find_head(head_id)
    assert is_packaged_head(card)
    assert load_head(card).questions == tuple(task.question for task in card.tasks)
    assert card.input.encoder_fingerprint == find_encoder(DEFAULT_ENCODER).fingerprint


@pytest.mark.parametrize("head_id", STARTERS)
def test_card_and_docs_say_what_the_benchmark_said(head_id):
    card, evidence = find_head(head_id), read_evidence(head_id)
    page = (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    for task, figures in zip(card.tasks, evidence["tasks"], strict=True):
        told = figures["methods"][figures["method"]][figures["measure"]]
        assert task.evidence is not None
        assert vars(task.evidence.value) == told
        assert task.evidence.split == evidence["split"]
        assert card.metrics["tasks"][task.question.id]["methods"] == figures["methods"]
        for method in figures["methods"].values():
            value = method[figures["measure"]]
            assert f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})" in page


@pytest.mark.parametrize("head_id", STARTERS)
def test_a_starter_that_does_not_beat_its_baselines_is_off(head_id):
    card = find_head(head_id)
    for task in card.tasks:
        assert task.evidence is not None
        may_speak = task.evidence.beats_baseline and task.evidence.split != "tiles"
        assert card.is_in_force(task) is may_speak
        assert bool(task.off_because) is not may_speak


@pytest.mark.parametrize("head_id", STARTERS)
def test_a_starter_has_a_page_made_of_its_card(head_id):
    page = (ROOT / "docs/models" / f"{head_id}.md").read_text(encoding="utf-8")
    assert page == write_head_page(find_head(head_id))


def test_the_encoder_has_a_page_made_of_its_card():
    page = (ROOT / "docs/models" / f"{DEFAULT_ENCODER}.md").read_text(encoding="utf-8")
    assert page == write_encoder_page(find_encoder(DEFAULT_ENCODER))
