"""The one family of networks behind every pathology foundation model that plugs in: the vision transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Positions = Literal["prefix", "class", "patches", "rotary"]


@dataclass(frozen=True)
class VisionTransformer:
    """Everything that decides a vision transformer's tensors and what they compute.

    Attributes:
        patch_px: Edge of a patch; one patch is one token.
        width: Length of a token.
        depth: Number of blocks.
        heads: Attention heads of a block.
        hidden: Inner width of the feed-forward layer; of each half when `gated`.
        gated: The feed-forward layer is SwiGLU instead of GELU.
        registers: Extra tokens that stand between the class token and the patches.
        positions: Which tokens have a learnt position: all, class and patches, patches only, or none (rotary).
        layer_scale: Each branch of a block has a learnt gain.
        norm_epsilon: Added to the variance in every layer norm.
        image_px: Edge of the picture that the network sees.
    """

    patch_px: int
    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool = False
    registers: int = 0
    positions: Positions = "class"
    layer_scale: bool = False
    norm_epsilon: float = 1e-6
    image_px: int = 224

    @property
    def grid(self) -> int:
        """Patches along one edge."""
        return self.image_px // self.patch_px

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid**2

    @property
    def prefix(self) -> int:
        """Tokens before the first patch: the class token and the registers."""
        return 1 + self.registers

    @property
    def head_width(self) -> int:
        """Length of one head's query."""
        return self.width // self.heads

    @property
    def position_prefix(self) -> int:
        """How many of the prefix tokens have a learnt position."""
        return {"prefix": self.prefix, "class": 1, "patches": 0, "rotary": 0}[self.positions]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name (timm's names); nothing may be missing and nothing may be left over.

        `rope_periods` and `bias_mask`, which are not learnt, are not among them.
        """
        shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, self.width)}
        if self.registers:
            shapes["reg_token"] = (1, self.registers, self.width)
        if self.positions != "rotary":
            shapes["pos_embed"] = (1, self.position_prefix + self.patches, self.width)
        shapes["patch_embed.proj.weight"] = (self.width, 3, self.patch_px, self.patch_px)
        shapes["patch_embed.proj.bias"] = (self.width,)
        for index in range(self.depth):
            shapes |= {f"blocks.{index}.{name}": shape for name, shape in self.block_shapes().items()}
        return shapes | {"norm.weight": (self.width,), "norm.bias": (self.width,)}

    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of one block."""
        wide, inner = self.width, self.hidden * (2 if self.gated else 1)
        gains = {"ls1.gamma": (wide,), "ls2.gamma": (wide,)} if self.layer_scale else {}
        return {
            "norm1.weight": (wide,),
            "norm1.bias": (wide,),
            "attn.qkv.weight": (3 * wide, wide),
            "attn.qkv.bias": (3 * wide,),
            "attn.proj.weight": (wide, wide),
            "attn.proj.bias": (wide,),
            "norm2.weight": (wide,),
            "norm2.bias": (wide,),
            "mlp.fc1.weight": (inner, wide),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (wide, self.hidden),
            "mlp.fc2.bias": (wide,),
            **gains,
        }

    def count_parameters(self) -> int:
        """Numbers that were learnt."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())
