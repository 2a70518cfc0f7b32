"""Every slot is what its publisher built: sizes without torch, numbers against timm and transformers."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slideway.core.errors import UnreadableCheckpointError, WrongUseError
from slideway.encoders.naming import find_style, match_names, source_names
from slideway.encoders.slots import find_slot, find_slot_for_hub, list_slots
from slideway.registry.card import PERMISSIONS

ROOT = Path(__file__).parents[2]
SLOTS = {slot.id: slot for slot in list_slots()}
WIDTHS = {
    "vit-s16": 384, "kaiko-vits16": 384, "kaiko-vits8": 384, "kaiko-vitb16": 768, "kaiko-vitb8": 768,
    "kaiko-vitl14": 1024, "phikon": 768, "phikon-v2": 1024, "hibou-b": 768, "virchow": 2560, "virchow2": 2560,
    "uni2-h": 1536, "h-optimus-0": 1536, "prov-gigapath": 1536, "midnight-12k": 3072, "ruipath": 1024,
}  # fmt: skip
TOKENS = {"virchow": 257, "virchow2": 261, "uni2-h": 265, "h-optimus-0": 261, "prov-gigapath": 197, "ruipath": 201,
          "midnight-12k": 257, "kaiko-vits8": 785, "kaiko-vitl14": 261, "hibou-b": 261}  # fmt: skip


def test_every_published_model_has_a_slot_of_its_width():
    assert {slot.id: slot.width for slot in list_slots()} == WIDTHS


@pytest.mark.parametrize("slot", list_slots(), ids=lambda slot: slot.id)
def test_parameters_are_those_published_within_one_percent(slot):
    assert slot.network.count_parameters() == pytest.approx(slot.parameters, rel=0.01)


def test_tokens_and_pooling():
    assert {name: SLOTS[name].network.prefix + SLOTS[name].network.patches for name in TOKENS} == TOKENS
    assert "from token 1)" in SLOTS["virchow"].pooling_words
    assert "from token 5)" in SLOTS["virchow2"].pooling_words
    assert SLOTS["prov-gigapath"].tile_px == 256
    assert SLOTS["prov-gigapath"].network.image_px == 224


@pytest.mark.parametrize("slot", list_slots(), ids=lambda slot: slot.id)
def test_licence_is_in_words_and_for_machines(slot):
    assert set(slot.licence.permits) <= set(PERMISSIONS)
    assert slot.licence.note.endswith(".")
    assert slot.unverified
    assert 0 < min(slot.std) <= max(slot.mean) < 1
    free = slot.licence.id in {"Apache-2.0", "MIT"}
    assert ("commercial" in slot.licence.permits) is free


def test_slots_are_found_by_id_and_by_hub_name_whatever_its_case():
    assert find_slot("hibou-b").title.startswith("Hibou-B")
    assert find_slot_for_hub("HistAI/Hibou-B") is SLOTS["hibou-b"]
    assert find_slot_for_hub("") is None
    assert find_slot_for_hub("nobody/nothing") is None
    with pytest.raises(WrongUseError, match="kaiko-vits16"):
        find_slot("uni3")


def test_the_page_about_encoders_names_every_slot():
    page = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    for slot in list_slots():
        row = re.search(rf"^\| `{re.escape(slot.id)}` \|(.*)\|$", page, re.MULTILINE)
        assert row, slot.id
        assert f"{slot.width}" in row[1]
        assert f"{slot.tile_px}" in row[1]
        assert slot.licence.id in row[1]


def names_of(slot, style=None, prefix=""):
    sources = source_names(style or slot.styles[0], slot.network)
    return [prefix + name for group in sources.values() for name in group]


@pytest.mark.parametrize("slot", list_slots(), ids=lambda slot: slot.id)
@pytest.mark.parametrize("prefix", ["", "state_dict.", "teacher.backbone."])
def test_a_checkpoint_of_the_slots_form_is_matched_whatever_it_is_wrapped_in(slot, prefix):
    for style in slot.styles:
        names = [*names_of(slot, style, prefix), "optimizer.step"]
        if not prefix:
            names.pop()
        assert find_style(slot.styles, slot.network, names) == (style, prefix)
        assert set(match_names(style, prefix, slot.network, names)) == set(slot.network.tensor_shapes())


def test_of_student_and_teacher_the_teacher_is_taken_and_two_equals_are_refused():
    slot = SLOTS["ruipath"]
    both = [*names_of(slot, prefix="student.backbone."), *names_of(slot, prefix="teacher.backbone.")]
    assert find_style(slot.styles, slot.network, both)[1] == "teacher.backbone."
    with pytest.raises(UnreadableCheckpointError, match="several encoders"):
        find_style(slot.styles, slot.network, [*names_of(slot, prefix="a."), *names_of(slot, prefix="b.")])


def test_missing_and_surplus_tensors_are_named():
    slot = SLOTS["kaiko-vits16"]
    names = names_of(slot)
    names.remove("blocks.3.attn.qkv.bias")
    with pytest.raises(UnreadableCheckpointError, match=r"missing blocks\.3\.attn\.qkv\.bias.*surplus head\.weight"):
        match_names("timm", "", slot.network, [*names, "head.weight"])
    with pytest.raises(UnreadableCheckpointError, match="no class token"):
        find_style(slot.styles, slot.network, ["features.0.weight"])


def test_the_checkpoint_of_another_slot_is_refused():
    small, large = SLOTS["kaiko-vits16"], SLOTS["kaiko-vitl14"]
    with pytest.raises(UnreadableCheckpointError, match="surplus"):
        match_names("timm", "", small.network, names_of(large))


def tiny(slot):
    """The slot with the same form and few numbers."""
    network = replace(slot.network, width=32, depth=2, heads=2, hidden=48, image_px=4 * slot.network.patch_px)
    return replace(slot, network=network, tile_px=slot.tile_px - slot.network.image_px + network.image_px)


@pytest.mark.parametrize("slot", list_slots(), ids=lambda slot: slot.id)
def test_the_reference_gives_the_slots_width_and_tokens_on_the_meta_device(slot):
    torch = pytest.importorskip("torch", reason="torch is not installed: the reference network cannot be laid")
    from slideway.encoders.reference import encode_tokens, pool_tokens

    thin = replace(slot.network, depth=1)  # every block is like the first
    weights = {name: torch.empty(shape, device="meta") for name, shape in thin.tensor_shapes().items()}
    edge = slot.network.image_px
    if slot.network.positions == "rotary":
        pytest.skip("rotary angles are numbers, not shapes: held against transformers below")
    tokens = encode_tokens(thin, weights, torch.empty((2, 3, edge, edge), device="meta"))
    assert tokens.shape == (2, slot.network.prefix + slot.network.patches, slot.network.width)
    assert pool_tokens(slot, tokens).shape == (2, slot.width)


@pytest.mark.parametrize("slot", list_slots(), ids=lambda slot: slot.id)
def test_the_graph_computes_what_the_reference_computes(slot, random_weights, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed: nothing to hold the graph against")
    pytest.importorskip("onnx", reason="onnx is not installed: no graph can be written")
    import onnxruntime

    from slideway.encoders.graph import write_graph
    from slideway.encoders.reference import encode_with_torch

    small = tiny(slot)
    weights = random_weights(small)
    tiles = np.random.default_rng(5).integers(0, 256, (3, small.tile_px, small.tile_px, 3), np.uint8)
    write_graph(small, weights, tmp_path / "weights.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "weights.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(["vectors"], {"tiles": tiles})[0]
    assert got.shape == (3, small.width)
    np.testing.assert_allclose(got, encode_with_torch(small, weights, tiles), atol=2e-5)


def test_tensors_over_the_limit_go_to_a_second_file(random_weights, tmp_path, monkeypatch):
    pytest.importorskip("onnx", reason="onnx is not installed: no graph can be written")
    import onnxruntime

    from slideway.encoders.graph import write_graph
    from slideway.registry.onnx_file import list_external_files

    slot = tiny(SLOTS["virchow2"])
    weights = random_weights(slot)
    tiles = np.random.default_rng(5).integers(0, 256, (2, slot.tile_px, slot.tile_px, 3), np.uint8)
    vectors = []
    for name, limit in (("one.onnx", 10**9), ("two.onnx", 1000)):
        monkeypatch.setattr("slideway.encoders.graph.INLINE_LIMIT_BYTES", limit)
        write_graph(slot, weights, tmp_path / name)
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        vectors.append(session.run(["vectors"], {"tiles": tiles})[0])
    np.testing.assert_array_equal(*vectors)
    assert list_external_files(tmp_path / "one.onnx") == set()
    assert list_external_files(tmp_path / "two.onnx") == {"two.onnx.data"}
    assert (tmp_path / "one.onnx").stat().st_size > (tmp_path / "two.onnx.data").stat().st_size


def test_the_same_tensors_always_give_the_same_file(random_weights, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed: no graph can be written")
    from slideway.encoders.graph import write_graph

    slot = tiny(SLOTS["hibou-b"])
    for name in ("a.onnx", "b.onnx"):
        write_graph(slot, random_weights(slot), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
