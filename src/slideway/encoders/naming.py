"""How published checkpoints name the tensors of a vision transformer, brought to one set of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from slideway.core.errors import UnreadableCheckpointError
from slideway.encoders.architecture import VisionTransformer

Style = Literal["timm", "dinov2", "dinov3", "transformers-vit", "transformers-dinov2"]

# Where each form keeps its class token: what stands before that name is the form's prefix.
CLASS_TOKEN: dict[Style, str] = {
    "timm": "cls_token",
    "dinov2": "cls_token",
    "dinov3": "cls_token",
    "transformers-vit": "embeddings.cls_token",
    "transformers-dinov2": "embeddings.cls_token",
}
# Parts of training that an encoder does not need.
_UNUSED = ("mask_token", "embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
# A self-distillation checkpoint holds student and teacher; its authors use the teacher.
_PREFERRED_PREFIXES = ("teacher.backbone.", "teacher.")
_NAMED_IN_AN_ERROR = 3

_TRANSFORMERS = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_BLOCKS: dict[Style, dict[str, tuple[str, ...]]] = {
    "timm": {},
    "dinov2": {},
    "dinov3": {},
    "transformers-vit": {
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
    },
    "transformers-dinov2": {"ls1.gamma": ("layer_scale1.lambda1",), "ls2.gamma": ("layer_scale2.lambda1",)},
}
_GATED: dict[Style, dict[str, tuple[str, ...]]] = {
    "dinov2": {"mlp.fc1": ("mlp.w12",), "mlp.fc2": ("mlp.w3",)},
    "transformers-dinov2": {"mlp.fc1": ("mlp.weights_in",), "mlp.fc2": ("mlp.weights_out",)},
}
_ATTENTION = {
    "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn.proj": ("attention.output.dense",),
}


def source_names(style: Style, network: VisionTransformer) -> dict[str, tuple[str, ...]]:
    """Name, or names to be laid one under the other, of every tensor of the network in a checkpoint of this form."""
    return {name: _sources_of(style, name, network.gated) for name in network.tensor_shapes()}


def _sources_of(style: Style, name: str, gated: bool) -> tuple[str, ...]:
    is_transformers = style.startswith("transformers")
    if not name.startswith("blocks."):
        renamed = _TRANSFORMERS if is_transformers else {}
        if name == "reg_token" and not is_transformers:
            renamed = {"reg_token": {"dinov2": "register_tokens", "dinov3": "storage_tokens"}.get(style, name)}
        return tuple(_rename(name, {key: (value,) for key, value in renamed.items()}))
    _, index, rest = name.split(".", 2)
    table = _BLOCKS[style] | (_ATTENTION if is_transformers else {}) | (_GATED.get(style, {}) if gated else {})
    block = f"encoder.layer.{index}." if is_transformers else f"blocks.{index}."
    return tuple(block + source for source in _rename(rest, table))


def _rename(name: str, table: Mapping[str, Sequence[str]]) -> list[str]:
    if name in table:
        return list(table[name])
    stem, _, leaf = name.rpartition(".")
    return [f"{source}.{leaf}" for source in table[stem]] if stem in table else [name]


def find_style(styles: Sequence[Style], network: VisionTransformer, names: Sequence[str]) -> tuple[Style, str]:
    """Which of the forms this checkpoint has, and the prefix under which the encoder lies.

    Raises:
        UnreadableCheckpointError: No form, or several encoders of which none is the teacher.
    """
    best: tuple[int, Style, str] | None = None
    present = set(names)
    for style in styles:
        anchor = CLASS_TOKEN[style]
        prefixes = sorted({name.removesuffix(anchor) for name in names if _ends_with_part(name, anchor)})
        if not prefixes:
            continue
        prefix = _choose_prefix(prefixes)
        wanted = {prefix + source for sources in source_names(style, network).values() for source in sources}
        found = len(wanted & present)
        if best is None or found > best[0]:
            best = (found, style, prefix)
    if best is None:
        some = ", ".join(sorted(names)[:_NAMED_IN_AN_ERROR]) or "nothing"
        raise UnreadableCheckpointError(
            f"no class token in this checkpoint (it holds {some} …), so it is no vision transformer of a known form; "
            "give the file that the model's authors published, or another --slot"
        )
    return best[1], best[2]


def _ends_with_part(name: str, anchor: str) -> bool:
    return name == anchor or name.endswith("." + anchor)


def _choose_prefix(prefixes: list[str]) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    for preferred in _PREFERRED_PREFIXES:
        if preferred in prefixes:
            return preferred
    raise UnreadableCheckpointError(
        f"this checkpoint holds several encoders ({', '.join(repr(p) for p in prefixes)}) and none is the teacher; "
        "save the one that you want into a file of its own"
    )


def match_names(
    style: Style, prefix: str, network: VisionTransformer, names: Sequence[str], *, ignored: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Full names in the checkpoint for every tensor of the network, nothing missing and nothing left over.

    Raises:
        UnreadableCheckpointError: Names the first missing and surplus tensors.
    """
    wanted = {
        name: tuple(prefix + source for source in sources) for name, sources in source_names(style, network).items()
    }
    needed = {source for sources in wanted.values() for source in sources}
    spare = {prefix + name for name in (*_UNUSED, *ignored)}
    spare |= {name for name in names if name.endswith((".attn.qkv.bias_mask", "rope_embed.periods"))}
    present = {name for name in names if name.startswith(prefix)}
    missing, surplus = sorted(needed - present), sorted(present - needed - spare)
    if missing or surplus:
        raise UnreadableCheckpointError(
            "this checkpoint is not of the slot's form: "
            + "; ".join(_list(words, group) for words, group in (("missing", missing), ("surplus", surplus)) if group)
            + "; choose the slot of this very model, or give the file that its authors published"
        )
    return wanted


def _list(words: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_IN_AN_ERROR} more" if len(names) > _NAMED_IN_AN_ERROR else ""
    return f"{words} {', '.join(names[:_NAMED_IN_AN_ERROR])}{more}"
