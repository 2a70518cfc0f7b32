"""Train Slideway's own encoder by self-supervision on real tiles: on a GPU where there is one, else on all cores.

    python training/encoder/train.py ATLAS mobilenet_v2-b0353104.pth run/ --steps 900

Two losses. *Contrast* (NT-Xent, Chen et al. 2020, arXiv 2002.05709): two views of a tile must find each other among
the views of the batch. A batch holds eight tiles of each of its slides and views wear other slides' colours, so neither
stain nor scanner tells tiles apart: only tissue does. *Anchor*: a linear map of the embedding must still give what the
network knew before (the ImageNet features of the whole clean tile), so that a small set does not make it forget.
The state is written every fifty steps; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from network import POOLED_WIDTH, Backbone, start_from
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from views import Strength, make_view, measure_colours

sys.path.insert(0, str(Path(__file__).parents[1]))
from atlas import read_stored_tiles

TILES_A_SLIDE = 8
TEMPERATURE = 0.2
KEEP_AVERAGE = 0.99  # of the weights, a step
SAVE_EVERY = 50


@dataclass(frozen=True)
class Stock:
    """All tiles in memory, as stored, by slide: `tiles[i]` (n, 256, 256, 3) uint8 at `mpp[i]`."""

    tiles: list[NDArray[np.uint8]]
    mpp: list[float]
    colours: NDArray[np.float32]


class Heads(nn.Module):
    """What is needed only while training: standardisation, the contrast's small network, the anchor's linear map."""

    def __init__(self, anchor_width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(POOLED_WIDTH, affine=False)
        self.contrast = nn.Sequential(
            nn.Linear(POOLED_WIDTH, 1024), nn.BatchNorm1d(1024), nn.ReLU(inplace=True), nn.Linear(1024, 128)
        )
        self.anchor = nn.Linear(POOLED_WIDTH, anchor_width)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.norm(pooled)
        return functional.normalize(self.contrast(embedding), dim=1), self.anchor(embedding)


def load_stock(atlas: Path, leave_out: int | None, folds: int) -> Stock:
    """Read the tiles; with `leave_out`, without the cases of that fold."""
    slides = list(read_stored_tiles(atlas))
    cases = sorted({slide.case for slide in slides})
    kept = [s for s in slides if leave_out is None or cases.index(s.case) % folds != leave_out]
    return Stock(
        [s.tiles for s in kept], [s.mpp for s in kept], np.stack([measure_colours(s.tiles[:32]) for s in kept])
    )


@torch.inference_mode()
def measure_anchor(network: Backbone, stock: Stock, width: int, device: str) -> list[Tensor]:
    """What the untrained network says of each clean tile at 0.5 microns per pixel, on its main axes, whitened."""
    network.eval()
    pools = []
    for tiles, mpp in zip(stock.tiles, stock.mpp, strict=True):
        edge = min(tiles.shape[1], round(224 * 0.5 / mpp))
        start = (tiles.shape[1] - edge) // 2
        cut = tiles[:, start : start + edge, start : start + edge]
        clean = np.stack([cv2.resize(tile, (224, 224), interpolation=cv2.INTER_AREA) for tile in cut])
        pools.append(torch.cat([network(as_tensor(clean[i : i + 32], device)).cpu() for i in range(0, len(clean), 32)]))
    joined = torch.cat(pools).double()
    centred = (joined - joined.mean(0)) / joined.std(0)
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    white = (centred @ axes[:width].T / lengths[:width] * math.sqrt(len(centred))).float()
    return list(torch.split(white, [len(p) for p in pools]))


def as_tensor(tiles: NDArray[np.uint8], device: str) -> Tensor:
    return torch.from_numpy(tiles).to(device).permute(0, 3, 1, 2).float() / 255


def draw_batches(
    stock: Stock, anchors: list[Tensor], options: argparse.Namespace, first_step: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor]]:
    """Yield two views and the anchor of a batch; every step has a seed of its own, so a run can go on."""
    strength = Strength()

    def draw(step: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor]:
        rng = np.random.default_rng((options.seed, step))
        views: tuple[list[Any], list[Any]] = ([], [])
        targets = []
        for slide in rng.choice(len(stock.tiles), options.batch // TILES_A_SLIDE, replace=False):
            tiles = stock.tiles[slide]
            for index in rng.choice(len(tiles), TILES_A_SLIDE, replace=False):
                for side in views:
                    colours = stock.colours
                    side.append(
                        make_view(tiles[index], stock.mpp[slide], colours[slide], colours, options.edge, strength, rng)
                    )
                targets.append(anchors[slide][index])
        return np.stack(views[0]), np.stack(views[1]), torch.stack(targets)

    with ThreadPoolExecutor(options.loaders) as pool:
        ahead = [pool.submit(draw, first_step + i) for i in range(options.loaders + 1)]
        for step in range(first_step, options.steps):
            yield ahead.pop(0).result()
            ahead.append(pool.submit(draw, step + options.loaders + 1))


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent over the 2n views of a batch."""
    both = torch.cat([first, second])
    similarity = both @ both.T / TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    n = len(first)
    partner = torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(both.device)
    return functional.cross_entropy(similarity, partner)


def train(options: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    stock = load_stock(options.atlas, options.leave_out, options.folds)
    network = start_from(options.checkpoint).to(device)
    anchors = measure_anchor(network, stock, options.anchor_width, device)
    if options.start:
        network.load_state_dict(torch.load(options.start, map_location=device, weights_only=True))
    network.freeze(options.freeze)
    heads, average = Heads(options.anchor_width).to(device), copy.deepcopy(network)
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [{"params": learning, "lr": options.lr}, {"params": heads.parameters(), "lr": 2e-3}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps))),
    )
    options.run.mkdir(parents=True, exist_ok=True)
    parts = {"network": network, "heads": heads, "average": average, "optimiser": optimiser, "schedule": schedule}
    first_step = restore(options.run / "state.pt", parts)
    began = time.perf_counter()
    for step, (one, two, target) in enumerate(draw_batches(stock, anchors, options, first_step), first_step):
        network.train(), heads.train()
        first, guess_one = heads(network(as_tensor(one, device)))
        second, guess_two = heads(network(as_tensor(two, device)))
        known = target.to(device)
        pull = contrast(first, second)
        hold = functional.mse_loss(guess_one, known) + functional.mse_loss(guess_two, known)
        loss = pull + options.hold * hold
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step(), schedule.step()
        follow(average, network, min(KEEP_AVERAGE, (step + 1) / (step + 10)))
        if (step + 1) % 10 == 0:
            line = {"step": step + 1, "contrast": round(pull.item(), 4), "anchor": round(hold.item() / 2, 4)}
            line |= {"seconds_a_step": round((time.perf_counter() - began) / (step + 1 - first_step), 2)}
            with (options.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.steps:
            save(options.run / "state.pt", parts, step + 1)
            torch.save(average.state_dict(), options.run / f"average-{(step + 1) // 100 * 100}.pt")


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    """Move the averaged weights and batch statistics a little towards the network."""
    for slow, fast in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - keep)
        else:
            slow.copy_(fast)


def save(path: Path, parts: dict[str, Any], step: int) -> None:
    part = path.with_suffix(".part")
    torch.save({name: thing.state_dict() for name, thing in parts.items()} | {"step": step}, part)
    part.replace(path)


def restore(path: Path, parts: dict[str, Any]) -> int:
    """Go on where a run stopped; returns its step, 0 for a new run."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, thing in parts.items():
        thing.load_state_dict(state[name])
    return int(state["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path, help="folder of the atlas tiles")
    parser.add_argument("checkpoint", type=Path, help="mobilenet_v2-b0353104.pth")
    parser.add_argument("run", type=Path, help="folder for state, log and averaged weights")
    parser.add_argument("--start", type=Path, help="averaged weights of an earlier run to go on from; anchors stay")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=128, help="tiles a step, a multiple of eight")
    parser.add_argument("--edge", type=int, default=128, help="edge of a view in pixels")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--freeze", type=int, default=4, help="first layers that stay as they are")
    parser.add_argument("--hold", type=float, default=1.0, help="weight of the anchor")
    parser.add_argument("--anchor-width", type=int, default=256)
    parser.add_argument("--leave-out", type=int, help="leave out the cases of this fold")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--loaders", type=int, default=1, help="threads that make views")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
