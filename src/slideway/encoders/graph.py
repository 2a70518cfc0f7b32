"""Lay a vision transformer as an ONNX graph, operator by operator, straight from its tensors.

No tracer stands between: the same tensors always give the same nodes, in operators of the ONNX standard only. What can
be computed once is computed here, in float64: gains go into the matrices behind them, the scale of attention into the
queries. With the class token alone asked for, the last block computes that token only. Tensors are written one at a
time, so that a network of a billion parameters needs no second copy in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from slideway.encoders.slots import Slot
from slideway.encoders.weights import Weights, rotary_angles

OPSET = 20  # the first with Gelu; onnxruntime reads it since 1.17
IR_VERSION = 9
# A protobuf message ends at 2 GB; what is larger keeps its tensors in a second file.
INLINE_LIMIT_BYTES = 1_900_000_000
_SMALL_BYTES = 4096  # shapes and biases of this size stay inline in any case: engines fold them while loading
_PAGE = 4096  # engines map the second file into memory

Array = NDArray[Any]


def write_graph(slot: Slot, weights: Weights, path: Path) -> None:
    """Write `path`, and `<path>.data` when the tensors are too large for one file.

    Args:
        slot: Transform, architecture and pooling.
        weights: As `read_weights` gives them.
        path: Input `tiles` (n, tile_px, tile_px, 3) uint8, output `vectors` (n, width) float32.
    """
    import onnx

    size = sum(tensor.nbytes for tensor in weights.values())
    second_file = path.with_name(path.name + ".data") if size > INLINE_LIMIT_BYTES else None
    with _Graph(second_file) as graph:
        _Layer(slot, weights, graph).lay()
        model = graph.finish(slot)
    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


class _Graph:
    """Nodes and constants in the order they are laid; large constants go to the second file when there is one."""

    def __init__(self, second_file: Path | None) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._second_name = second_file.name if second_file else ""
        self._second: BinaryIO | None = second_file.open("wb") if second_file else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._second is not None:
            self._second.close()

    def constant(self, name: str, value: Array) -> str:
        """Keep a constant under a name, once."""
        from onnx import numpy_helper

        if name not in self._constants:
            value = np.ascontiguousarray(value)
            is_large = self._second is not None and value.nbytes > _SMALL_BYTES
            self._constants[name] = self._store(name, value) if is_large else numpy_helper.from_array(value, name)
        return name

    def whole(self, *numbers: int) -> str:
        """A constant list of whole numbers."""
        return self.constant("whole." + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def _store(self, name: str, value: Array) -> Any:
        from onnx import TensorProto

        assert self._second is not None
        self._second.write(b"\0" * (-self._second.tell() % _PAGE))
        tensor = TensorProto(name=name, dims=value.shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._second_name, "offset": self._second.tell(), "length": value.nbytes}
        for key, entry in place.items():
            tensor.external_data.add(key=key, value=str(entry))
        self._second.write(value.astype("<f4", copy=False).tobytes())
        return tensor

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Lay a node with one output."""
        self.add_split(operator, inputs, [output], **attributes)
        return output

    def add_split(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Lay a node with several outputs."""
        from onnx import helper

        self._nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))

    def finish(self, slot: Slot) -> Any:
        """Wrap everything as a model."""
        from onnx import TensorProto, helper

        edge = slot.tile_px
        tiles = helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", edge, edge, 3])
        vectors = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", slot.width])
        body = helper.make_graph(self._nodes, slot.id, [tiles], [vectors], initializer=list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="slideway")


class _Layer:
    """Lays one network; each method is one of its parts and returns the name of what it computes."""

    def __init__(self, slot: Slot, weights: Weights, graph: _Graph) -> None:
        self._slot, self._network = slot, slot.network
        self._weights, self._graph = weights, graph

    def lay(self) -> None:
        """Lay everything from `tiles` to `vectors`."""
        network, only_class = self._network, self._slot.pooling == "cls"
        tokens = self._lay_tokens(self._lay_patches(self._lay_pixels()))
        for index in range(network.depth):
            is_last = index == network.depth - 1
            tokens = self._lay_block(index, tokens, only_class=only_class and is_last)
        if only_class:
            last = self._lay_norm("norm", "norm", tokens)
            self._graph.add("Squeeze", [last, self._graph.whole(1)], "vectors")
            return
        self._lay_both_pools(self._lay_norm("norm", "norm", tokens))

    def _lay_pixels(self) -> str:
        graph, slot = self._graph, self._slot
        source, edge = "tiles", self._network.image_px
        if slot.tile_px != edge:
            start = (slot.tile_px - edge) // 2
            ends = graph.whole(start + edge, start + edge)
            source = graph.add("Slice", [source, graph.whole(start, start), ends, graph.whole(1, 2)], "tiles.middle")
        # Transposed as bytes, before the cast: a quarter of the memory traffic.
        planes = graph.add("Transpose", [source], "tiles.nchw", perm=[0, 3, 1, 2])
        pixels = graph.add("Cast", [planes], "tiles.float", to=1)
        mean, std = (np.array(numbers, np.float64).reshape(1, 3, 1, 1) for numbers in (slot.mean, slot.std))
        centred = graph.add("Sub", [pixels, graph.constant("mean_255", _single(255 * mean))], "tiles.centred")
        return graph.add("Mul", [centred, graph.constant("gain", _single(1 / (255 * std)))], "tiles.normalised")

    def _lay_patches(self, pixels: str) -> str:
        graph, patch = self._graph, self._network.patch_px
        inputs = [pixels, *(self._given(f"patch_embed.proj.{part}") for part in ("weight", "bias"))]
        planes = graph.add("Conv", inputs, "patches.nchw", kernel_shape=[patch] * 2, strides=[patch] * 2)
        flat = graph.add(
            "Reshape", [planes, graph.whole(0, self._network.width, self._network.patches)], "patches.flat"
        )
        return graph.add("Transpose", [flat], "patches", perm=[0, 2, 1])

    def _lay_tokens(self, patches: str) -> str:
        graph, network = self._graph, self._network
        prefix = [self._weights["cls_token"], *([self._weights["reg_token"]] if network.registers else [])]
        first = np.concatenate(prefix, axis=1).astype(np.float64)
        if network.positions != "rotary":
            positions = self._weights["pos_embed"].astype(np.float64)
            first[:, : network.position_prefix] += positions[:, : network.position_prefix]
            learnt = graph.constant("positions", _single(positions[:, network.position_prefix :]))
            patches = graph.add("Add", [patches, learnt], "patches.placed")
        shape = graph.add("Shape", ["tiles"], "tiles.count", start=0, end=1)
        wanted = graph.add("Concat", [shape, graph.whole(network.prefix, network.width)], "prefix.shape", axis=0)
        expanded = graph.add("Expand", [graph.constant("prefix.tokens", _single(first)), wanted], "prefix")
        return graph.add("Concat", [expanded, patches], "tokens", axis=1)

    def _lay_block(self, index: int, tokens: str, *, only_class: bool) -> str:
        graph, here = self._graph, f"blocks.{index}"
        normed = self._lay_norm(f"{here}.norm1", f"{here}.norm1", tokens)
        asking = normed
        if only_class:  # nobody reads the other tokens after this block
            asking, tokens = self._take_class(normed, f"{here}.asking"), self._take_class(tokens, f"{here}.class")
        mixed = self._lay_attention(here, asking, normed)
        branch = self._lay_linear(mixed, f"{here}.attn.proj", gain=f"{here}.ls1.gamma")
        tokens = graph.add("Add", [tokens, branch], f"{here}.attended")
        inner = self._lay_linear(self._lay_norm(f"{here}.norm2", f"{here}.norm2", tokens), f"{here}.mlp.fc1")
        branch = self._lay_linear(self._lay_activation(here, inner), f"{here}.mlp.fc2", gain=f"{here}.ls2.gamma")
        return graph.add("Add", [tokens, branch], f"{here}.out")

    def _lay_attention(self, here: str, asking: str, asked: str) -> str:
        graph, network = self._graph, self._network
        weight = self._weights[f"{here}.attn.qkv.weight"].astype(np.float64).reshape(3, network.width, network.width)
        bias = self._weights[f"{here}.attn.qkv.bias"].astype(np.float64).reshape(3, network.width)
        scale = np.array([network.head_width**-0.5, 1, 1])
        weight, bias = weight * scale[:, None, None], bias * scale[:, None]
        names = [f"{here}.attn.{part}" for part in ("query", "key", "value")]
        if asking == asked:
            joined = self._multiply(asked, f"{here}.attn.qkv", np.concatenate(list(weight)), bias.ravel())
            graph.add_split("Split", [joined], names, axis=2, num_outputs=3)
        else:
            for name, source, matrix, offset in zip(names, (asking, asked, asked), weight, bias, strict=True):
                self._multiply(source, name, matrix, offset)
        query, key, value = (self._split_heads(name) for name in names)
        if network.positions == "rotary":
            query, key = self._rotate(query, only_class=asking != asked), self._rotate(key, only_class=False)
        turned = graph.add("Transpose", [key], f"{key}.turned", perm=[0, 1, 3, 2])
        scores = graph.add("MatMul", [query, turned], f"{here}.attn.scores")
        shares = graph.add("Softmax", [scores], f"{here}.attn.shares", axis=-1)
        mixed = graph.add("MatMul", [shares, value], f"{here}.attn.mixed")
        back = graph.add("Transpose", [mixed], f"{here}.attn.back", perm=[0, 2, 1, 3])
        return graph.add("Reshape", [back, graph.whole(0, 0, network.width)], f"{here}.attn.joined")

    def _split_heads(self, name: str) -> str:
        graph, network = self._graph, self._network
        shape = graph.whole(0, 0, network.heads, network.head_width)
        return graph.add(
            "Transpose", [graph.add("Reshape", [name, shape], f"{name}.split")], f"{name}.heads", perm=[0, 2, 1, 3]
        )

    def _rotate(self, heads: str, *, only_class: bool) -> str:
        if only_class:
            return heads  # the class token has no place
        graph, network = self._graph, self._network
        angles = np.zeros((network.prefix + network.patches, network.head_width))
        angles[network.prefix :] = rotary_angles(network, self._weights["rope_periods"])
        sign = np.repeat([-1.0, 1.0], network.head_width // 2)
        cosine = graph.constant("rotary.cosine", _single(np.cos(angles)))
        sine = graph.constant("rotary.sine", _single(np.sin(angles) * sign))
        halves = [f"{heads}.first", f"{heads}.second"]
        graph.add_split("Split", [heads], halves, axis=3, num_outputs=2)
        swapped = graph.add("Concat", halves[::-1], f"{heads}.swapped", axis=3)
        straight = graph.add("Mul", [heads, cosine], f"{heads}.straight")
        across = graph.add("Mul", [swapped, sine], f"{heads}.across")
        return graph.add("Add", [straight, across], f"{heads}.rotated")

    def _lay_activation(self, here: str, inner: str) -> str:
        graph = self._graph
        if not self._network.gated:
            return graph.add("Gelu", [inner], f"{here}.mlp.gelu")
        halves = [f"{here}.mlp.gate", f"{here}.mlp.value"]
        graph.add_split("Split", [inner], halves, axis=2, num_outputs=2)
        opened = graph.add("Sigmoid", [halves[0]], f"{here}.mlp.sigmoid")
        gate = graph.add("Mul", [halves[0], opened], f"{here}.mlp.silu")
        return graph.add("Mul", [gate, halves[1]], f"{here}.mlp.gated")

    def _lay_both_pools(self, tokens: str) -> None:
        graph, network = self._graph, self._network
        first = graph.add("Squeeze", [self._take_class(tokens, "class"), graph.whole(1)], "class.flat")
        end = network.prefix + network.patches
        places = [graph.whole(network.prefix), graph.whole(end), graph.whole(1)]
        patches = graph.add("Slice", [tokens, *places], "patches.last")
        mean = graph.add("ReduceMean", [patches, graph.whole(1)], "patches.mean", keepdims=0)
        graph.add("Concat", [first, mean], "vectors", axis=1)

    def _take_class(self, tokens: str, name: str) -> str:
        graph = self._graph
        return graph.add("Slice", [tokens, graph.whole(0), graph.whole(1), graph.whole(1)], name)

    def _lay_norm(self, source: str, name: str, tokens: str) -> str:
        inputs = [tokens, self._given(f"{source}.weight"), self._given(f"{source}.bias")]
        epsilon = self._network.norm_epsilon
        return self._graph.add("LayerNormalization", inputs, f"{name}.out", axis=-1, epsilon=epsilon)

    def _lay_linear(self, source: str, name: str, *, gain: str = "") -> str:
        weight, bias = (self._weights[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        if gain in self._weights:
            learnt = self._weights[gain].astype(np.float64)
            weight, bias = weight * learnt[:, None], bias * learnt
        return self._multiply(source, name, weight, bias)

    def _multiply(self, source: str, name: str, weight: Array, bias: Array) -> str:
        graph = self._graph
        product = graph.add("MatMul", [source, graph.constant(f"{name}.weight", _single(weight.T))], f"{name}.product")
        return graph.add("Add", [product, graph.constant(f"{name}.bias", _single(bias))], name)

    def _given(self, name: str) -> str:
        return self._graph.constant(name, self._weights[name])


def _single(value: Array) -> NDArray[np.float32]:
    return np.ascontiguousarray(value, np.float32)
