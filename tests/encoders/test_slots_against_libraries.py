"""The slots' networks give what timm and transformers give for the same tensors; published names are understood."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slideway.core.errors import UnreadableCheckpointError
from slideway.encoders.slots import find_slot, list_slots
from slideway.encoders.weights import read_weights

torch = pytest.importorskip("torch", reason="torch is not installed: no library to hold the slots against")
save_file = pytest.importorskip("safetensors.torch").save_file

# What foreign libraries warn of while they load is not about Slideway.
pytestmark = pytest.mark.filterwarnings("ignore")

# As the publishers' pages give them to timm.create_model.
GATED = {"init_values": 1e-5, "mlp_ratio": 2.66667 * 2}
VIRCHOW = {"init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": ""}
TIMM = {
    "vit-s16": ("vit_small_patch16_224", {}),
    "kaiko-vits16": ("vit_small_patch16_224", {}),
    "kaiko-vits8": ("vit_small_patch8_224", {}),
    "kaiko-vitb16": ("vit_base_patch16_224", {}),
    "kaiko-vitb8": ("vit_base_patch8_224", {}),
    "kaiko-vitl14": ("vit_large_patch14_reg4_dinov2", {}),
    "virchow": ("vit_huge_patch14_224", VIRCHOW),
    "virchow2": ("vit_huge_patch14_224", {**VIRCHOW, "reg_tokens": 4}),
    "uni2-h": (
        "vit_giant_patch14_224",
        {**GATED, "depth": 24, "num_heads": 24, "embed_dim": 1536, "no_embed_class": True, "reg_tokens": 8},
    ),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {}),
    "prov-gigapath": ("vit_giant_patch14_dinov2", {**GATED, "patch_size": 16}),
}


@pytest.fixture(scope="session")
def _torchvision():
    """Let torchvision load beside a torch that it was not built for: its compiled operators are declared, not run.

    There is no CPU build of it for some torch versions, and timm and transformers import it for other purposes.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        pytest.skip("torchvision is not installed: timm and transformers do not load without it")
    from torch import library as torch_library

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        operators = (Path(found.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
        library = torch_library.Library("torchvision", "DEF")
        for name in sorted(set(re.findall(r"torchvision::(\w+)", operators))):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield library
        return
    yield None


@pytest.fixture(scope="session")
def timm(_torchvision):
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(scope="session")
def transformers(_torchvision):
    return pytest.importorskip("transformers", reason="transformers is not installed")


def timm_model(timm, slot, **changes):
    name, arguments = TIMM[slot.id]
    if slot.network.gated:
        arguments = {**arguments, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.create_model(name, **{"img_size": 224, "num_classes": 0, **arguments, **changes}).eval()


def test_every_slot_in_timms_form_is_held_against_timm():
    assert set(TIMM) == {slot.id for slot in list_slots() if slot.styles == ("timm",)}


@pytest.mark.parametrize("name", TIMM)
def test_timm_has_the_same_tensors_of_the_same_shapes(timm, name):
    slot = find_slot(name)
    with torch.device("meta"):
        model = timm_model(timm, slot)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == slot.network.tensor_shapes()


@pytest.mark.parametrize("name", TIMM)
def test_timm_computes_the_same_tokens(timm, name, random_weights):
    from slideway.encoders.reference import encode_tokens

    slot = find_slot(name)
    narrow = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm_model(timm, slot, **narrow)
    hidden = model.blocks[0].mlp.fc2.weight.shape[1]
    small = replace(slot, network=replace(slot.network, width=48, depth=2, heads=3, hidden=hidden))
    weights = {key: torch.from_numpy(value) for key, value in random_weights(small).items()}
    model.load_state_dict(weights, strict=True)
    pixels = torch.randn((2, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(
            encode_tokens(small.network, weights, pixels), model.forward_features(pixels), atol=2e-5, rtol=1e-4
        )


def small_form(slot, hidden, image_px=56):
    network = replace(slot.network, width=32, depth=2, heads=2, hidden=hidden, image_px=image_px)
    return replace(slot, network=network, tile_px=image_px)


def assert_same_tokens(slot, model, folder):
    """Save the model as its library does, read the file through the slot, and compare all tokens."""
    from slideway.encoders.reference import encode_tokens

    with torch.no_grad():
        for parameter in model.parameters():  # fresh models have zeros where trained ones have not
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    weights = {k: torch.from_numpy(v) for k, v in read_weights(slot, folder / "model.safetensors").items()}
    edge = slot.network.image_px
    pixels = torch.randn((2, 3, edge, edge))
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        torch.testing.assert_close(encode_tokens(slot.network, weights, pixels), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["phikon-v2", "hibou-b", "midnight-12k"])
def test_transformers_dinov2_is_understood_by_its_published_names(transformers, name, tmp_path):
    slot = find_slot(name)
    network = slot.network
    form = small_form(slot, 88 if network.gated else 128, 4 * network.patch_px)
    kind = transformers.Dinov2WithRegistersModel if network.registers else transformers.Dinov2Model
    config = kind.config_class(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=form.network.image_px,
        patch_size=network.patch_px,
        use_swiglu_ffn=network.gated,
        **({"num_register_tokens": network.registers} if network.registers else {}),
    )
    assert_same_tokens(form, kind(config), tmp_path)


def test_positions_of_a_larger_picture_are_resized_as_transformers_does(transformers, tmp_path):
    slot = small_form(find_slot("midnight-12k"), 88)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=126, patch_size=14, use_swiglu_ffn=True
    )
    assert_same_tokens(slot, transformers.Dinov2Model(config), tmp_path)


def test_transformers_vit_is_understood_by_its_published_names(transformers, tmp_path):
    slot = small_form(find_slot("phikon"), 64, 64)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
    )
    assert config.layer_norm_eps == slot.network.norm_epsilon
    assert_same_tokens(slot, transformers.ViTModel(config, add_pooling_layer=False), tmp_path)
    assert_same_tokens(slot, transformers.ViTModel(config, add_pooling_layer=True), tmp_path)


DINOV3 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.o_proj": "attn.proj",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}


def as_published_by_dinov3(state):
    """The training code's own names: qkv in one tensor, a bias for the keys that a mask takes out, a teacher."""
    published = {}
    for name, tensor in state.items():
        renamed = re.sub(r"^(model\.)?layer\.", "blocks.", name)
        for old, new in DINOV3.items():
            renamed = renamed.replace(old, new)
        published[renamed] = tensor
    for index in range(2):
        block = f"blocks.{index}.attention"
        parts = [published.pop(f"{block}.{part}_proj.weight") for part in "qkv"]
        query, value = (published.pop(f"{block}.{part}_proj.bias") for part in "qv")
        block = f"blocks.{index}.attn.qkv"
        published[f"{block}.weight"] = torch.cat(parts)
        published[f"{block}.bias"] = torch.cat([query, torch.full_like(query, 7.0), value])
        published[f"{block}.bias_mask"] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
    quarter = 32 // 2 // 4
    published["rope_embed.periods"] = 100.0 ** (torch.arange(quarter) / quarter)
    return {"teacher": {**{f"backbone.{k}": v for k, v in published.items()}, "dino_head.mlp.0.weight": torch.ones(2)}}


def test_a_dinov3_teacher_is_understood_with_rotary_positions_and_masked_key_bias(transformers, tmp_path):
    from slideway.encoders.checkpoint import open_checkpoint
    from slideway.encoders.reference import encode_tokens

    slot = small_form(find_slot("ruipath"), 64, 64)
    config = transformers.DINOv3ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        num_register_tokens=4,
    )
    model = transformers.DINOv3ViTModel(config).eval()
    assert config.layer_norm_eps == slot.network.norm_epsilon
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    torch.save(as_published_by_dinov3(model.state_dict()), tmp_path / "teacher.pth")
    opened = open_checkpoint(tmp_path / "teacher.pth", tmp_path)
    weights = {k: torch.from_numpy(v) for k, v in read_weights(slot, opened.path).items()}
    pixels = torch.randn((2, 3, 64, 64))
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        torch.testing.assert_close(encode_tokens(slot.network, weights, pixels), expected, atol=2e-4, rtol=1e-3)


def test_a_tensor_of_another_shape_or_with_a_number_that_is_not_finite_is_named(random_weights, tmp_path):
    slot = small_form(find_slot("kaiko-vits16"), 64, 64)
    good = {name: torch.from_numpy(value) for name, value in random_weights(slot).items()}
    for name, spoil, words in (
        ("norm.weight", torch.ones(31), r"norm\.weight is \(31,\)"),
        ("blocks.1.mlp.fc1.bias", torch.full((64,), np.nan), "not finite"),
        ("pos_embed", torch.ones(1, 19, 32), "pos_embed"),
    ):
        save_file({**good, name: spoil}, tmp_path / "spoilt.safetensors")
        with pytest.raises(UnreadableCheckpointError, match=words):
            read_weights(slot, tmp_path / "spoilt.safetensors")


def test_half_precision_files_are_read_exactly(random_weights, tmp_path):
    slot = small_form(find_slot("kaiko-vits16"), 64, 64)
    halved = {name: torch.from_numpy(value).bfloat16() for name, value in random_weights(slot).items()}
    save_file(halved, tmp_path / "half.safetensors")
    for name, value in read_weights(slot, tmp_path / "half.safetensors").items():
        np.testing.assert_array_equal(value, halved[name].float().numpy())
