"""Forms are kept only when they are still the same encoder, and say what they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slideway.core.errors import WrongUseError
from slideway.encoders import load_encoder
from slideway.encoders.equivalence import Gate
from slideway.encoders.forms import NothingToOptimiseError, Source, group_nodes, quantise_while_running
from slideway.encoders.instructions import name_instruction_set
from slideway.encoders.optimise import optimise_encoder
from slideway.encoders.slots import find_slot
from slideway.registry import DEFAULT_ENCODER, find_encoder

ALL = Gate(-1, -1, 0, 1, repeat_of_spread=10)
NONE = Gate(cosine_p01=1.1)


def tissue(count, edge):
    """Tiles cut, turned and tinted from the golden tissue tiles."""
    random = np.random.default_rng(6)
    base = load_file(find_encoder(DEFAULT_ENCODER).golden_path)["tiles"][:5]
    tiles = []
    for _ in range(count):
        tile = np.rot90(base[random.integers(5)], random.integers(4))
        x, y = random.integers(0, 224 - edge + 1, 2)
        tiles.append(np.clip(tile[y : y + edge, x : x + edge] * random.uniform(0.8, 1.1), 0, 255).astype(np.uint8))
    return np.stack(tiles)


def test_too_few_tiles_other_sizes_and_unknown_forms_are_wrong_use(tmp_path):
    card = find_encoder(DEFAULT_ENCODER)
    tiles = np.zeros((64, 224, 224, 3), np.uint8)
    for wrong, words in (
        ({"tiles": tiles[:63]}, "63 tiles are too few"),
        ({"tiles": tiles[:, :100]}, "224 x 224"),
        ({"tiles": tiles, "forms": ["int2"]}, "int8-dynamic"),
        ({"tiles": tiles, "labels": np.zeros(3, np.int64)}, "one label each"),
    ):
        with pytest.raises(WrongUseError, match=words):
            optimise_encoder(card, tmp_path, **wrong)


def test_a_form_is_not_optimised_again(tmp_path):
    card = find_encoder(DEFAULT_ENCODER)
    form = replace(card, weights=replace(card.weights, precision="int8"))
    with pytest.raises(WrongUseError, match="optimise its fp32 encoder"):
        optimise_encoder(form, tmp_path, tiles=np.zeros((64, 224, 224, 3), np.uint8))


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WrongUseError, match=r"slideway\[train\]"):
        optimise_encoder(find_encoder(DEFAULT_ENCODER), tmp_path, tiles=np.zeros((64, 224, 224, 3), np.uint8))


def test_nodes_of_one_kind_and_depth_are_grouped():
    names = [f"blocks.{i}.{part}" for i in range(12) for part in ("qkv", "fc1")]
    groups = group_nodes(names, 8)
    assert len(groups) == 8
    assert groups[0] == ["blocks.0.qkv", "blocks.1.qkv", "blocks.2.qkv"]
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert group_nodes([]) == []


def test_the_instruction_set_has_a_name():
    assert name_instruction_set()


@pytest.fixture(scope="module")
def onnx():
    return pytest.importorskip("onnx", reason="onnx is not installed: no form can be made")


@pytest.fixture(scope="module")
def vit(onnx, random_weights, tmp_path_factory):
    """A vision transformer of few numbers, built from a checkpoint."""
    pytest.importorskip("torch", reason="torch is not installed: nothing can be built")
    from slideway.encoders.build import build_encoder

    whole = find_slot("kaiko-vits16")
    network = replace(whole.network, width=64, depth=2, heads=2, hidden=256, image_px=64)
    slot = replace(whole, network=network, tile_px=64)
    folder = tmp_path_factory.mktemp("vit")
    save_file(random_weights(slot), folder / "vit.safetensors")
    return build_encoder(slot, folder / "vit.safetensors", folder / "vit", id="vit", source="vit.safetensors")


def test_a_kept_form_is_an_encoder_of_its_own(vit, tmp_path):
    steps = []
    tiles = tissue(80, 64)
    forms = ("fp16-weights", "int8-dynamic", "int8-static", "mixed")
    trials = optimise_encoder(vit, tmp_path, tiles=tiles, forms=forms, gate=ALL, command="c", progress=steps.append)
    assert [trial.form for trial in trials] == list(forms)
    assert any("part 1 of" in step for step in steps)
    fingerprints = {vit.fingerprint}
    for trial in trials:
        assert trial.kept, (trial.form, trial.reason)
        card = trial.card
        assert card.id == f"vit-{trial.form}"
        assert load_encoder(card, engine="onnxruntime").encode(tiles[:3]).shape == (3, 64)
        assert card.equivalence.of == vit.fingerprint
        assert card.equivalence.form == trial.form
        (machine,) = card.equivalence.machines
        assert (machine.isa, machine.command, machine.passed) == (name_instruction_set(), "c", True)
        assert machine.cosine_min == pytest.approx(trial.equivalence.cosine_min, abs=1e-6)
        assert card.weights.precision != "fp32"
        assert card.weights.bytes == (card.folder / "weights.onnx").stat().st_size < vit.weights.bytes
        assert (card.folder / "LICENSE").exists()
        assert card.licence == vit.licence
        fingerprints.add(card.fingerprint)
    assert len(fingerprints) == 5
    assert len(list(tmp_path.iterdir())) == 4


def test_a_refused_form_leaves_nothing_and_says_why(vit, tmp_path):
    trials = optimise_encoder(vit, tmp_path / "out", tiles=tissue(64, 64), forms=("fp16-weights", "mixed"), gate=NONE)
    assert [trial.kept for trial in trials] == [False, False]
    assert "first percentile" in trials[0].reason
    assert "does not bear int8" in trials[1].reason
    assert trials[0].card is None
    assert not (tmp_path / "out").exists()


def test_half_weights_pass_the_strict_gate_and_int8_forms_are_told_apart(vit, tmp_path):
    (half,) = optimise_encoder(vit, tmp_path, tiles=tissue(96, 64), forms=("fp16-weights",))
    assert half.kept, half.reason
    assert half.equivalence.cosine_p01 > 0.9999
    assert half.bytes < 0.6 * vit.weights.bytes


def test_int8_dynamic_has_nothing_to_gain_from_convolutions_alone(onnx, tmp_path):
    whole = find_encoder(DEFAULT_ENCODER).weights_path
    bare = tmp_path / "convolutions.onnx"
    pytest.importorskip("onnx.utils").extract_model(str(whole), str(bare), ["tiles"], ["pools.centred"])
    with pytest.raises(NothingToOptimiseError, match="convolutions gain nothing"):
        quantise_while_running(Source(bare, tissue(64, 224), is_large=False), tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.slow
def test_the_packaged_encoder_is_too_small_for_int8(onnx, tmp_path):
    card = find_encoder(DEFAULT_ENCODER)
    tiles = tissue(96, 224)
    dynamic, static = optimise_encoder(card, tmp_path, tiles=tiles, forms=("int8-dynamic", "int8-static"))
    assert not dynamic.kept
    assert "neither faster" in dynamic.reason  # all but its last matrix are convolutions
    assert not static.kept
    assert static.equivalence.cosine_p01 < 0.99


def test_the_command_prints_a_table_and_installs_what_is_kept(vit, small_slide, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from slideway.cli.optimise import optimise

    monkeypatch.setenv("SLIDEWAY_MODELS", str(tmp_path / "models"))
    arguments = [str(vit.folder), "--slide", str(small_slide), "--count", "96", "--form", "fp16-weights"]
    shown = CliRunner().invoke(optimise, arguments, catch_exceptions=False)
    assert "kept as" in shown.output
    assert find_encoder("vit-fp16-weights").equivalence.of == vit.fingerprint
    again = CliRunner().invoke(optimise, arguments)
    assert "--replace" in str(again.exception)
    told = CliRunner().invoke(optimise, [*arguments, "--json", "--out", str(tmp_path / "o")], catch_exceptions=False)
    answer = json.loads(told.stdout)
    assert answer["kept"] == ["vit-fp16-weights"]
    assert answer["forms"][0]["equivalence"]["cosine_median"] > 0.999


def test_the_command_asks_for_tiles_of_one_kind(vit):
    from click.testing import CliRunner

    from slideway.cli.optimise import optimise

    told = CliRunner().invoke(optimise, [str(vit.folder)])
    assert isinstance(told.exception, WrongUseError)
    assert CliRunner().invoke(optimise, ["--help"]).exit_code == 0
