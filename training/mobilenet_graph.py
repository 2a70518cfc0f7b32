"""MobileNetV2 as an ONNX graph, batch-norm folded, several stages pooled.

The graph is laid by hand, operator by operator, so that nothing depends on a tracer's version:
the same tensors always give the same nodes, in operators of the ONNX standard only.
As a program it writes the network with the pool of every block as one output each, for choosing the stages
(bench/heads/probe_stages.py): python training/mobilenet_graph.py mobilenet_v2-b0353104.pth FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from atlas import read_atlas
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
TILE_PX = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
BATCH_NORM_EPSILON = 1e-5
# (expansion, output channels, repeats, first stride): table 2 of the MobileNetV2 paper, arXiv 1801.04381
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

# Three linear bottlenecks, at 16, 16 and 32 px stride; chosen with bench/heads/probe_stages.py
POOLED_STAGES = {"block7": 64, "block14": 160, "block17": 320}
GOLDEN_SLIDES = (
    "giardia__HE",
    "BS3__HE",
    "lung-squamous-cell-carcinoma__HE1",
    "anthracosis__HE",
    "myxoidliposarcoma__HE",
)
GOLDEN_TILE = 40

Array = NDArray[Any]


@dataclass
class Graph:
    """Nodes and constants, in the order they are laid."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def load_checkpoint(path: Path) -> dict[str, Array]:
    """Read a checkpoint's tensors, never its code."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def fold_batch_norm(state: dict[str, Array], conv: str, norm: str) -> tuple[Array, Array]:
    """Weight and bias of a convolution that includes the batch normalisation behind it, computed in float64."""
    gain = state[f"{norm}.weight"].astype(np.float64) / np.sqrt(
        state[f"{norm}.running_var"].astype(np.float64) + BATCH_NORM_EPSILON
    )
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    return state[f"{conv}.weight"] * gain[:, None, None, None], bias


def lay_convolution(graph: Graph, state: dict[str, Array], source: str, conv: str, norm: str, **shape: Any) -> str:
    """Convolution with folded normalisation; `clip` adds ReLU6, `scale` divides each input channel."""
    weight, bias = fold_batch_norm(state, conv, norm)
    weight = weight / np.asarray(shape.pop("scale", [1.0])).reshape(1, -1, 1, 1)
    clip, kernel = shape.pop("clip"), weight.shape[2]
    inputs = [
        source,
        graph.constant(f"{conv}.weight", weight.astype(np.float32)),
        graph.constant(f"{conv}.bias", bias.astype(np.float32)),
    ]
    out = graph.add("Conv", inputs, f"{conv}.out", kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, **shape)
    return graph.add("Clip", [out, "zero", "six"], f"{conv}.relu6") if clip else out


def lay_block(
    graph: Graph, state: dict[str, Array], source: str, index: int, expansion: int, stride: int
) -> tuple[str, str]:
    """One inverted residual; returns the names of its output and of its depthwise (widest) activation."""
    prefix, inner = f"features.{index}.conv", source
    if expansion > 1:
        inner = lay_convolution(graph, state, inner, f"{prefix}.0.0", f"{prefix}.0.1", clip=True)
    wide = 1 if expansion > 1 else 0
    channels = state[f"{prefix}.{wide}.0.weight"].shape[0]
    inner = lay_convolution(
        graph, state, inner, f"{prefix}.{wide}.0", f"{prefix}.{wide}.1", clip=True, group=channels, strides=[stride] * 2
    )
    out = lay_convolution(graph, state, inner, f"{prefix}.{wide + 1}", f"{prefix}.{wide + 2}", clip=False)
    return out, inner


def lay_network(graph: Graph, state: dict[str, Array], last_block: int, with_top: bool) -> dict[str, str]:
    """Lay input and blocks up to `last_block`; returns the activation of every stage by name."""
    graph.constant("zero", np.float32(0)), graph.constant("six", np.float32(6))
    graph.constant("mean_255", (np.float32(255) * np.float32(MEAN)).reshape(1, 3, 1, 1))
    # Transposed as bytes, before the cast: a quarter of the memory traffic.
    planes = graph.add("Transpose", ["tiles"], "tiles.nchw", perm=[0, 3, 1, 2])
    pixels = graph.add("Cast", [planes], "tiles.float", to=TensorProto.FLOAT)
    # The mean is taken off here and not in the first convolution: its border is padded with zeros, which must stay
    # "mean colour". The standard deviation can and does go into the weights.
    centred = graph.add("Sub", [pixels, "mean_255"], "tiles.centred")
    source = lay_convolution(
        graph, state, centred, "features.0.0", "features.0.1", clip=True, strides=[2, 2], scale=255 * np.array(STD)
    )
    stages, index = {"stem": source}, 1
    for expansion, _, repeats, first_stride in BLOCKS:
        for repeat in range(repeats):
            if index > last_block:
                return stages
            out, wide = lay_block(graph, state, source, index, expansion, first_stride if repeat == 0 else 1)
            source = out if repeat == 0 else graph.add("Add", [source, out], f"features.{index}.sum")
            stages[f"block{index}"], stages[f"wide{index}"] = source, wide
            index += 1
    if with_top:
        stages["top"] = lay_convolution(graph, state, source, "features.18.0", "features.18.1", clip=True)
    return stages


def lay_pools(graph: Graph, stages: dict[str, str], names: list[str]) -> dict[str, str]:
    """Average each named stage over the tile: (n, channels) each."""
    return {
        name: graph.add("Flatten", [graph.add("GlobalAveragePool", [stages[name]], f"{name}.mean")], f"{name}.pool")
        for name in names
    }


def build_model(graph: Graph, outputs: dict[str, int | str]) -> onnx.ModelProto:
    """Wrap the nodes as a checked model with one uint8 input and float32 outputs of the given widths."""
    tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", TILE_PX, TILE_PX, 3])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in outputs.items()]
    body = helper.make_graph(graph.nodes, "mobilenetv2", [tiles], results, initializer=graph.constants)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="slideway"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def build_probe(state: dict[str, Array]) -> onnx.ModelProto:
    """Model with every stage's pool as an output."""
    graph = Graph()
    stages = lay_network(graph, state, last_block=17, with_top=True)
    pools = lay_pools(graph, stages, list(stages))
    return build_model(graph, {name: f"{key}_width" for key, name in pools.items()})


def build_encoder(state: dict[str, Array]) -> onnx.ModelProto:
    """Model with one output, `vectors`: the chosen stages' pools side by side, as they are."""
    graph = Graph()
    stages = lay_network(graph, state, last_block=17, with_top=False)
    graph.add("Concat", list(lay_pools(graph, stages, list(POOLED_STAGES)).values()), "vectors", axis=1)
    return build_model(graph, {"vectors": sum(POOLED_STAGES.values())})


def choose_golden_tiles(atlas: Path) -> Array:
    """Five tissue tiles of five organs, then blank, black and noise (seeded)."""
    tissue = {slide.name: slide.tiles[GOLDEN_TILE] for slide in read_atlas(atlas) if slide.name in GOLDEN_SLIDES}
    made = [np.full((TILE_PX, TILE_PX, 3), level, np.uint8) for level in (243, 0)]
    noise = np.random.default_rng(20).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)
    return np.stack([*(tissue[name] for name in GOLDEN_SLIDES), *made, noise])


def hash_bytes(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'


def stamp_card(folder: Path, stamped_section: str, **stamps: object) -> None:
    """Replace entries of one section of an existing card; everything else in it is written by hand."""
    card, section, lines = folder / "card.toml", "", []
    for line in card.read_text(encoding="utf-8").splitlines():
        section = line if line.startswith("[") else section
        key = line.split(" = ")[0]
        lines.append(f"{key} = {stamps[key]}" if section == stamped_section and key in stamps else line)
    card.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="mobilenet_v2-b0353104.pth")
    parser.add_argument("folder", type=Path, help="where probe.onnx is written")
    options = parser.parse_args()
    onnx.save(build_probe(load_checkpoint(options.checkpoint)), options.folder / "probe.onnx")


if __name__ == "__main__":
    main()
