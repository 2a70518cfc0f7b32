"""MobileNetV2 in plain PyTorch, with torchvision's names of tensors, cut behind its last bottleneck.

Source: Sandler et al. 2018, arXiv 1801.04381, table 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

# (expansion, output channels, repeats, first stride)
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
POOLED = (7, 14, 17)  # blocks whose global means make the embedding; chosen with bench/heads/probe_stages.py
POOLED_WIDTH = 64 + 160 + 320
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _convolution(width_in: int, width: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))


class Bottleneck(nn.Module):
    """Inverted residual: widen, filter each channel, narrow."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width_in * expansion
        layers: list[nn.Module] = [_convolution(width_in, wide, 1, 1, 1)] if expansion > 1 else []
        layers += [_convolution(wide, wide, 3, stride, wide), nn.Conv2d(wide, width, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(width))
        self.is_residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.is_residual else out


class Backbone(nn.Module):
    """Tiles as (n, 3, h, w) in [0, 1] to (n, 544): global means of three bottlenecks side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = 0
        layers: list[nn.Module] = [_convolution(3, 32, 3, 2, 1)]
        width_in = 32
        for expansion, width, repeats, first_stride in BLOCKS:
            for repeat in range(repeats):
                layers.append(Bottleneck(width_in, width, first_stride if repeat == 0 else 1, expansion))
                width_in = width
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def freeze(self, layers: int) -> None:
        """Keep the first layers as they are: half the cost of a step, at the resolution of edges and dots."""
        self.frozen = layers
        self.features[:layers].requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Batch statistics of frozen layers stay as they are."""
        super().train(mode)
        self.features[: self.frozen].eval()
        return self

    def forward(self, tiles: Tensor) -> Tensor:
        x = ((tiles - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        pools = []
        with torch.no_grad():
            for layer in self.features[: self.frozen]:
                x = layer(x)
        for index, layer in enumerate(self.features[self.frozen :], self.frozen):
            x = layer(x)
            if index in POOLED:
                pools.append(x.mean((2, 3)))
        return torch.cat(pools, 1)


def start_from(checkpoint: Path) -> Backbone:
    """Backbone with torchvision's ImageNet weights; only tensors are read, never code."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("classifier", "features.18"))}
    network = Backbone()
    network.load_state_dict(kept, strict=True)
    return network.to(memory_format=torch.channels_last)
