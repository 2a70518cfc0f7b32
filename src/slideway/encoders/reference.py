"""The independent reference: the same network computed by torch, from which golden vectors come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slideway.encoders.architecture import VisionTransformer
from slideway.encoders.slots import Slot
from slideway.encoders.weights import Weights, rotary_angles

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]

# torch's threads wait for each other by spinning, which costs more than it gains beside other work: eight tiles of a
# ViT-S took up to 17 s on two threads of a busy machine. Small networks are computed on one.
_WORTH_THREADS = 200_000_000


def encode_with_torch(slot: Slot, weights: Weights, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode tiles one by one with torch in float32.

    Nothing of the ONNX graph is used: normalisation, attention and gains are computed the way the papers write them.

    Args:
        slot: Transform, architecture and pooling.
        weights: As `read_weights` gives them.
        tiles: (n, tile_px, tile_px, 3) uint8 RGB.

    Returns:
        (n, width) vectors.
    """
    import torch

    tensors = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
    threads = torch.get_num_threads()
    if slot.network.count_parameters() < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            vectors = [
                pool_tokens(slot, encode_tokens(slot.network, tensors, prepare_pixels(slot, tile[None])))
                for tile in tiles
            ]
    finally:
        torch.set_num_threads(threads)
    encoded: NDArray[np.float32] = torch.cat(vectors).numpy()
    return encoded


def prepare_pixels(slot: Slot, tiles: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels as the network wants them, (n, 3, image_px, image_px): the middle of the tile, normalised."""
    import torch

    edge = slot.network.image_px
    margin = (slot.tile_px - edge) // 2
    middle = np.ascontiguousarray(tiles[:, margin : margin + edge, margin : margin + edge])
    pixels = torch.from_numpy(middle).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (slot.mean, slot.std))
    return (pixels - mean) / std


def encode_tokens(network: VisionTransformer, weights: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """All tokens after the last norm, (n, prefix + patches, width)."""
    from torch.nn.functional import layer_norm

    tokens = _embed(network, weights, pixels)
    for index in range(network.depth):
        block = {name: weights[f"blocks.{index}.{name}"] for name in network.block_shapes()}
        tokens = _apply_block(network, block, tokens, weights.get("rope_periods"))
    return layer_norm(tokens, (network.width,), weights["norm.weight"], weights["norm.bias"], network.norm_epsilon)


def pool_tokens(slot: Slot, tokens: torch.Tensor) -> torch.Tensor:
    """One vector a tile, (n, slot.width)."""
    import torch

    first = tokens[:, 0]
    if slot.pooling == "cls":
        return first
    return torch.cat([first, tokens[:, slot.network.prefix :].mean(1)], dim=1)


def _embed(network: VisionTransformer, weights: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import conv2d

    weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    patches = conv2d(pixels, weight, bias, stride=network.patch_px).flatten(2).transpose(1, 2)
    n = len(patches)
    prefix = [weights["cls_token"].expand(n, -1, -1)]
    if network.registers:
        prefix.append(weights["reg_token"].expand(n, -1, -1))
    if network.positions == "rotary":
        return torch.cat([*prefix, patches], dim=1)
    positions = weights["pos_embed"]
    if network.positions == "patches":
        return torch.cat([*prefix, patches + positions], dim=1)
    if network.positions == "prefix":
        return torch.cat([*prefix, patches], dim=1) + positions
    with_class = torch.cat([prefix[0], patches], dim=1) + positions
    return torch.cat([with_class[:, :1], *prefix[1:], with_class[:, 1:]], dim=1)


def _apply_block(
    network: VisionTransformer, block: Tensors, tokens: torch.Tensor, periods: torch.Tensor | None
) -> torch.Tensor:
    from torch.nn.functional import gelu, layer_norm, linear, silu

    def norm(name: str) -> torch.Tensor:
        weight, bias = block[f"{name}.weight"], block[f"{name}.bias"]
        return layer_norm(tokens, (network.width,), weight, bias, network.norm_epsilon)

    branch = _attend(network, block, norm("norm1"), periods)
    tokens = tokens + (branch * block["ls1.gamma"] if network.layer_scale else branch)
    inner = linear(norm("norm2"), block["mlp.fc1.weight"], block["mlp.fc1.bias"])
    if network.gated:
        gate, value = inner.chunk(2, dim=-1)
        inner = silu(gate) * value
    else:
        inner = gelu(inner)
    branch = linear(inner, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return tokens + (branch * block["ls2.gamma"] if network.layer_scale else branch)


def _attend(
    network: VisionTransformer, block: Tensors, tokens: torch.Tensor, periods: torch.Tensor | None
) -> torch.Tensor:
    from torch.nn.functional import linear, scaled_dot_product_attention

    n, length, width = tokens.shape
    joined = linear(tokens, block["attn.qkv.weight"], block["attn.qkv.bias"])
    query, key, value = joined.reshape(n, length, 3, network.heads, network.head_width).permute(2, 0, 3, 1, 4)
    if periods is not None:
        query, key = (_rotate(network, part, periods) for part in (query, key))
    mixed = scaled_dot_product_attention(query, key, value)
    return linear(mixed.transpose(1, 2).reshape(n, length, width), block["attn.proj.weight"], block["attn.proj.bias"])


def _rotate(network: VisionTransformer, heads: torch.Tensor, periods: torch.Tensor) -> torch.Tensor:
    """Turn the patches' queries or keys by their place; class token and registers stay."""
    import torch

    angles = torch.from_numpy(rotary_angles(network, periods.numpy())).float()
    prefix, patches = heads[:, :, : network.prefix], heads[:, :, network.prefix :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return torch.cat([prefix, turned], dim=2)
