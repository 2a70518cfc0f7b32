"""A small network that draws a tile from its vector: what somebody who gets only the features can train in minutes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

PICTURE_PX = 64
BATCH = 64
CHANNELS = (192, 128, 96, 64)  # at 4, 8, 16 and 32 px
COARSE_PX = 16  # drawn by a line from the vector; the transposed convolutions add what a line cannot
RIDGE = 1000.0
BASE_RATE, LAST_RATE = 1e-3, 1e-5
GRADIENT_WEIGHT = 0.1  # L1 alone draws smooth colour; with half its weight a decoder gave up and drew the mean
NOISE = 0.15  # of a dimension's spread; a few thousand tiles are learnt by heart without it

Array = NDArray[Any]


class Decoder(nn.Module):
    """Vector (n, width) float32 -> picture (n, 3, 64, 64), RGB, 1 is white."""

    def __init__(self, mean: Array, spread: Array) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("spread", torch.as_tensor(spread))
        first = CHANNELS[0]
        layers: list[nn.Module] = [nn.Linear(len(mean), first * 16), nn.Unflatten(1, (first, 4, 4)), *settle(first)]
        for before, after in itertools.pairwise(CHANNELS):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), *settle(after)]
        last = nn.ConvTranspose2d(CHANNELS[-1], 3, 4, 2, 1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, last)
        self.coarse = nn.Linear(len(mean), 3 * COARSE_PX**2)

    def forward(self, vectors: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        scaled = (vectors - self.mean) / self.spread
        scaled = scaled + noise * torch.randn_like(scaled)
        coarse = self.coarse(scaled).unflatten(1, (3, COARSE_PX, COARSE_PX)).float()
        smooth = functional.interpolate(coarse, size=PICTURE_PX, mode="bilinear")
        pictures: torch.Tensor = smooth + self.layers(scaled).float()
        return pictures


def settle(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)]


def make_decoder(vectors: Array, pictures: Array, seed: int) -> Decoder:
    """A decoder that starts from the ridge regression of small pictures; `pictures` (n, 64, 64, 3) uint8."""
    torch.manual_seed(seed)
    exact = vectors.astype(np.float32)
    decoder = Decoder(exact.mean(axis=0), exact.std(axis=0) + 1e-3)
    edge = PICTURE_PX // COARSE_PX
    small = pictures.reshape(-1, COARSE_PX, edge, COARSE_PX, edge, 3).mean(axis=(2, 4), dtype=np.float32) / 255
    weights, centre = fit_line(exact, small.transpose(0, 3, 1, 2).reshape(len(small), -1))
    with torch.no_grad():
        decoder.coarse.weight.copy_(torch.as_tensor(weights.T))
        decoder.coarse.bias.copy_(torch.as_tensor(centre))
    return decoder.to(memory_format=torch.channels_last)


def fit_line(vectors: Array, values: Array) -> tuple[Array, Array]:
    """Ridge regression of values (n, m) on standardised vectors: weights (width, m) and centre (m,)."""
    scaled = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-3)
    centre = values.mean(axis=0)
    inner = (scaled.T @ scaled).astype(np.float64) + RIDGE * np.eye(scaled.shape[1])
    return np.linalg.solve(inner, scaled.T @ (values - centre)).astype(np.float32), centre


def train(
    decoder: Decoder, vectors: Array, pictures: Array, *, steps: int, seed: int, rates: tuple[float, float]
) -> None:
    """Fit in place, the rate falling from the first of `rates` to the second; `pictures` (n, 64, 64, 3) uint8."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=rates[0], weight_decay=1e-3)
    decoder.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rates[1] + (rates[0] - rates[1]) * 0.5 * (1 + np.cos(np.pi * step / steps))
        chosen = random.choice(len(vectors), BATCH, replace=False)
        drawn = run(decoder, torch.as_tensor(vectors[chosen], dtype=torch.float32), noise=NOISE)
        loss = measure_loss(drawn, to_tensor(pictures[chosen]))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()


def run(decoder: Decoder, vectors: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        drawn: torch.Tensor = decoder(vectors, noise)
    return drawn


def measure_loss(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    edges = sum(functional.l1_loss(drawn.diff(dim=axis), true.diff(dim=axis)) for axis in (2, 3))
    return functional.l1_loss(drawn, true) + GRADIENT_WEIGHT * edges


def to_tensor(pictures: Array) -> torch.Tensor:
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def draw(decoder: Decoder, vectors: Array) -> Array:
    """(n, 64, 64, 3) uint8 RGB."""
    decoder.eval()
    parts = []
    for start in range(0, len(vectors), 256):
        drawn = run(decoder, torch.as_tensor(vectors[start : start + 256], dtype=torch.float32))
        parts.append((drawn.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    return np.concatenate(parts)


def continue_training(decoder: Decoder, vectors: Array, pictures: Array, *, steps: int, seed: int) -> Decoder:
    """A copy, trained further on what one codec gives back."""
    further = copy.deepcopy(decoder)
    train(further, vectors, pictures, steps=steps, seed=seed, rates=(BASE_RATE / 2, LAST_RATE))
    return further


def draw_linearly(vectors: Array, pictures: Array, new: Array) -> Array:
    """Pictures by ridge regression from vectors: the attack that takes a second."""
    exact = vectors.astype(np.float32)
    weights, centre = fit_line(exact, pictures.reshape(len(pictures), -1).astype(np.float32))
    drawn = ((new - exact.mean(axis=0)) / (exact.std(axis=0) + 1e-3)) @ weights + centre
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8).reshape(len(new), *pictures.shape[1:])
