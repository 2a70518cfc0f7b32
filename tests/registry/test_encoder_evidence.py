"""The shipped encoder's card says what the benchmark's output says, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from slideway.registry import DEFAULT_ENCODER, find_encoder

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "bench" / "encoders" / "evidence.json"
BASELINE = "MobileNetV2 ImageNet, three stages"


@pytest.fixture(scope="module")
def evidence() -> dict:
    return json.loads(EVIDENCE.read_text(encoding="utf-8"))


def test_card_metrics_equal_the_benchmarks_output(evidence):
    stamped = dict(find_encoder(DEFAULT_ENCODER).metrics)
    assert DEFAULT_ENCODER in stamped.pop("command")
    assert stamped == {name: value for name, value in evidence[DEFAULT_ENCODER].items() if name != "tiles_per_s"}


def test_table_in_the_docs_shows_the_same_figures(evidence):
    page = (ROOT / "docs" / "encoder.md").read_text(encoding="utf-8")
    for name, figures in evidence.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        for key in ("organ_r1", "organ_map", "diagnosis_map", "neoplastic_tile_auc", "pcam_auc", "oscc_auc"):
            assert f"{figures[key]['value']:.3f}" in row, f"{name}: {key}"


@pytest.mark.parametrize("key", ["organ_r1", "organ_map", "neoplastic_tile_auc", "pcam_auc", "oscc_auc"])
def test_shipped_encoder_is_above_its_imagenet_start(evidence, key):
    assert evidence[DEFAULT_ENCODER][key]["value"] > evidence[BASELINE][key]["value"]


def test_shipped_encoder_is_steadier_than_its_imagenet_start(evidence):
    ours, start = (evidence[name]["robustness"] for name in (DEFAULT_ENCODER, BASELINE))
    assert ours["cosine_mean"]["value"] > start["cosine_mean"]["value"]
    assert ours["organ_r1_kept"] >= start["organ_r1_kept"]


def test_card_names_subgroups_with_their_cases(evidence):
    groups = find_encoder(DEFAULT_ENCODER).metrics["subgroups"]
    assert len(groups) >= 5
    assert all(group["cases"] >= 2 and re.fullmatch(r"[A-Z].+", group["organ"]) for group in groups)
