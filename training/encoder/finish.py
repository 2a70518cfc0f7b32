"""Make the shipped encoder of a training run: fit the last linear map, write ONNX, golden tiles and the card's hashes.

    python training/encoder/finish.py ATLAS run/average-700.pt src/slideway/registry/models/slideway-s

The last map turns the 544 pooled channels into `--width` numbers. It is fitted, not trained: the widest directions of
all tiles are kept, then turned by a fixed random rotation, so that no number is a faint axis (a probe that standardises
each number would blow that up) and one scale fits all when they are quantised. With `--calm`, directions in which a
tile differs from its own restained, rescanned, blurred and compressed views are shrunk first; docs/encoder.md says what
that gains and loses. The graph is laid by hand like the ImageNet encoder's, so the same weights give the same file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from network import Backbone
from numpy.typing import NDArray
from safetensors.numpy import save
from views import Strength, make_view, measure_colours

sys.path.insert(0, str(Path(__file__).parents[1]))
from atlas import read_atlas, read_stored_tiles
from mobilenet_graph import (
    POOLED_STAGES,
    TILE_PX,
    Graph,
    build_model,
    choose_golden_tiles,
    hash_bytes,
    lay_network,
    lay_pools,
    stamp_card,
)

Array = NDArray[Any]
VIEWS = 3
VIEWED_EVERY = 3  # every third tile is seen in other views: 1,700 tiles settle a covariance of 544 channels


def load_network(weights: Path) -> Backbone:
    """The averaged weights of a run; tensors only."""
    network = Backbone()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def pool(network: Backbone, tiles: Array) -> Array:
    """(n, 544) means of the three bottlenecks, in PyTorch."""
    parts = []
    for start in range(0, len(tiles), 8):
        batch = torch.from_numpy(np.ascontiguousarray(tiles[start : start + 8]))
        parts.append(network(batch.permute(0, 3, 1, 2).float() / 255))
    return torch.cat(parts).numpy()


def pool_clean(network: Backbone, atlas: Path) -> Array:
    """Pools of every clean tile, (n, 544)."""
    return np.concatenate([pool(network, slide.tiles) for slide in read_atlas(atlas)])


def pool_views(network: Backbone, atlas: Path, seed: int) -> Array:
    """Pools of every third tile as it is and in three other views, (4, m, 544)."""
    how, rng = Strength(zoom=1.2, grey=0.0), np.random.default_rng(seed)
    stored = list(read_stored_tiles(atlas))
    wardrobe = np.stack([measure_colours(slide.tiles[:32]) for slide in stored])
    seen = []
    for slide, same, colours in zip(read_atlas(atlas), stored, wardrobe, strict=True):
        chosen = same.tiles[::VIEWED_EVERY]
        views = [
            pool(network, np.stack([make_view(t, same.mpp, colours, wardrobe, TILE_PX, how, rng) for t in chosen]))
            for _ in range(VIEWS)
        ]
        seen.append(np.stack([pool(network, slide.tiles[::VIEWED_EVERY]), *views]))
    return np.concatenate(seen, axis=1)


def fit_map(clean: Array, seen: Array | None, width: int, calm: float) -> tuple[Array, Array]:
    """Shift (544,) and map (544, width), float64: vectors are (pools - shift) @ map, of mean variance 1.

    Args:
        clean: (n, 544) pools of clean tiles.
        seen: (views, m, 544) pools of some tiles in several views; None shrinks nothing.
        width: Numbers to keep.
        calm: Share of the mean variance within views that is added to every direction before it is whitened.
    """
    shift, deviation = clean.mean(0), clean.std(0) + 1e-6
    scaled = (clean - shift) / deviation
    undo = np.eye(scaled.shape[1])
    if seen is not None:
        viewed = (seen - shift) / deviation
        strays = (viewed - viewed.mean(0)).reshape(-1, viewed.shape[2])
        within = strays.T @ strays / (viewed.shape[1] * (len(viewed) - 1))
        lengths, axes = np.linalg.eigh(within + calm * np.trace(within) / len(within) * np.eye(len(within)))
        undo = axes / np.sqrt(lengths) @ axes.T
    spread, directions = np.linalg.eigh(undo @ np.cov(scaled.T) @ undo)
    widest = np.argsort(-spread)[:width]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    turn = undo @ directions[:, widest] @ rotation / np.sqrt(spread[widest].mean())
    return shift, turn / deviation[:, None]


def build_encoder(network: Backbone, shift: Array, turn: Array) -> onnx.ModelProto:
    """Tiles to vectors: the network with batch norm folded, three pools, one matrix."""
    graph = Graph()
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    stages = lay_network(graph, state, last_block=17, with_top=False)
    joined = graph.add("Concat", list(lay_pools(graph, stages, list(POOLED_STAGES)).values()), "pools", axis=1)
    centred = graph.add("Sub", [joined, graph.constant("channel_mean", shift.astype(np.float32))], "pools.centred")
    graph.add("MatMul", [centred, graph.constant("turn", turn.astype(np.float32))], "vectors")
    model = build_model(graph, {"vectors": turn.shape[1]})
    model.graph.name = "slideway-s"
    return model


def write_encoder(options: argparse.Namespace) -> None:
    """Write weights and golden tiles; expected vectors come from PyTorch, not from the file they test."""
    from slideway.registry.card import read_card

    network = load_network(options.weights)
    clean = pool_clean(network, options.atlas).astype(np.float64)
    seen = pool_views(network, options.atlas, options.seed).astype(np.float64) if options.calm else None
    shift, turn = fit_map(clean, seen, options.width, options.calm)
    model = build_encoder(network, shift, turn)
    options.folder.mkdir(parents=True, exist_ok=True)
    weights = model.SerializeToString(deterministic=True)
    (options.folder / "weights.onnx").write_bytes(weights)
    if not (options.folder / "card.toml").exists():
        print(f"{options.folder}: no card.toml yet; only weights were written")
        return
    learnt = sum(int(np.prod(c.dims)) for c in model.graph.initializer if c.name.startswith("features")) + turn.size
    stamp_card(options.folder, "[weights]", sha256=hash_bytes(weights), bytes=len(weights), parameters=learnt)
    stamp_card(options.folder, "[output]", width=turn.shape[1])
    tiles = choose_golden_tiles(options.atlas)
    expected = ((pool(network, tiles).astype(np.float64) - shift) @ turn).astype(np.float32)
    golden = save(
        {"tiles": tiles, "vectors": expected}, metadata={"fingerprint": read_card(options.folder).fingerprint}
    )
    (options.folder / "golden.safetensors").write_bytes(golden)
    stamp_card(options.folder, "[golden]", sha256=hash_bytes(golden))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", type=Path, help="folder of the atlas tiles")
    parser.add_argument("weights", type=Path, help="average-NNN.pt of a run")
    parser.add_argument("folder", type=Path, help="where card.toml is; weights and golden tiles are written beside it")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--calm", type=float, default=0.0, help="shrink what views change; 0.3 strongly, 4 a little")
    parser.add_argument("--seed", type=int, default=0)
    write_encoder(parser.parse_args())


if __name__ == "__main__":
    main()
