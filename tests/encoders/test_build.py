"""A checkpoint becomes a complete, verified model folder, or nothing at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from slideway.core.errors import UnreadableCheckpointError, UntrustedEncoderError, WrongUseError
from slideway.encoders import load_encoder
from slideway.encoders.build import build_encoder, golden_tiles, measure_difference
from slideway.encoders.slots import find_slot
from slideway.registry.card import read_card, verify_files


def test_without_torch_building_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WrongUseError, match=r"slideway\[train\]"):
        build_encoder(find_slot("vit-s16"), tmp_path / "x.safetensors", tmp_path / "m", id="m", source="x")


def test_golden_tiles_fit_the_slot():
    assert golden_tiles(224).shape == (8, 224, 224, 3)
    larger = golden_tiles(256)
    assert (larger.shape, larger.dtype) == ((8, 256, 256, 3), np.uint8)
    assert larger[:5].std() > 15


def test_the_difference_is_measured_against_the_spread():
    vectors = np.random.default_rng(2).normal(0, 2, (8, 32)).astype(np.float32)
    difference = measure_difference(vectors + np.float32(0.01), vectors)
    assert difference.largest == pytest.approx(0.01, rel=1e-3)
    assert difference.spread == pytest.approx(2, rel=0.1)


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("onnx", reason="onnx is not installed: no graph can be written")
    return pytest.importorskip("torch", reason="torch is not installed: nothing can be built")


@pytest.fixture(scope="module")
def slot():
    """The form of Virchow2 at few numbers: gated, registers, both pools."""
    whole = find_slot("virchow2")
    network = replace(whole.network, width=48, depth=2, heads=3, hidden=64, image_px=56)
    return replace(whole, network=network, tile_px=64)


@pytest.fixture(scope="module")
def checkpoint(torch, slot, random_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(random_weights(slot), path)
    return path


@pytest.fixture(scope="module")
def card(slot, checkpoint, tmp_path_factory):
    steps = []
    out = tmp_path_factory.mktemp("models") / "mine"
    card = build_encoder(slot, checkpoint, out, id="mine", source="owner/name", revision="abc", progress=steps.append)
    assert steps == [
        "opening the checkpoint",
        "holding its tensors against the slot",
        "writing the graph",
        "computing the golden vectors with torch",
        "comparing with torch",
    ]
    return card


def test_a_built_encoder_is_complete_and_loads(slot, card):
    assert sorted(file.name for file in card.folder.iterdir()) == [
        "LICENSE", "card.toml", "golden.safetensors", "weights.onnx",
    ]  # fmt: skip
    verify_files(card)
    encoder = load_encoder(card, engine="onnxruntime")
    assert encoder.encode(golden_tiles(64)).shape == (8, 96)
    assert card == read_card(card.folder)
    assert (card.origin.slot, card.origin.source, card.origin.revision) == ("virchow2", "owner/name", "abc")
    assert card.state == "candidate"
    assert card.licence.permits == ("research",)
    assert card.weights.parameters == slot.network.count_parameters()
    assert "from token 5" in card.output.pooling
    assert "no commercial model" in (card.folder / "LICENSE").read_text(encoding="utf-8")


def test_golden_vectors_are_torchs_and_carry_the_fingerprint(slot, card, random_weights):
    from slideway.encoders.reference import encode_with_torch

    golden = load_file(card.golden_path)
    np.testing.assert_array_equal(golden["vectors"], encode_with_torch(slot, random_weights(slot), golden["tiles"]))
    with safe_open(card.golden_path, "numpy") as file:
        assert file.metadata()["fingerprint"] == card.fingerprint


def test_golden_tiles_see_bfloat16_and_a_wrong_mean(card):
    golden = load_file(card.golden_path)
    rounded = (golden["vectors"].view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.abs(rounded - golden["vectors"]).max() > card.golden.max_abs_difference
    encoder = load_encoder(card, engine="onnxruntime")
    darker = np.clip(golden["tiles"].astype(np.int16) - 2, 0, 255).astype(np.uint8)
    assert np.abs(encoder.encode(darker) - golden["vectors"]).max() > card.golden.max_abs_difference


def test_the_pickled_file_gives_the_same_encoder(torch, slot, card, random_weights, tmp_path):
    state = {name: torch.from_numpy(value) for name, value in random_weights(slot).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth")
    other = build_encoder(slot, tmp_path / "model.pth", tmp_path / "mine", id="mine", source="model.pth")
    assert other.fingerprint == card.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model.pth"]


def test_a_build_that_fails_leaves_nothing(slot, checkpoint, random_weights, tmp_path, monkeypatch):
    weights = random_weights(slot)
    del weights["blocks.1.norm2.bias"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(UnreadableCheckpointError, match=r"missing blocks\.1\.norm2\.bias"):
        build_encoder(slot, tmp_path / "cut.safetensors", tmp_path / "models" / "m", id="m", source="x")
    monkeypatch.setattr(
        "slideway.encoders.build.encode_with_torch",
        lambda slot, weights, tiles: np.random.default_rng(1).normal(size=(8, 96)).astype(np.float32),
    )
    with pytest.raises(UntrustedEncoderError, match="does not give the vectors that torch computes"):
        build_encoder(slot, checkpoint, tmp_path / "models" / "m", id="m", source="x")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_a_real_vit_s_is_built_and_reads_a_slide(torch, random_weights, small_slide, tmp_path):
    from slideway.pipeline.read import read_slide

    slot = find_slot("kaiko-vits16")
    save_file(random_weights(slot), tmp_path / "s16.safetensors")
    card = build_encoder(slot, tmp_path / "s16.safetensors", tmp_path / "s16", id="s16", source="s16.safetensors")
    assert card.weights.parameters == 21_665_664
    reading = read_slide(small_slide, out=tmp_path / "out", encoder=str(card.folder))
    assert reading.bag.width == 384
    assert reading.bag.fingerprint == card.fingerprint
