"""Small encoders for everyone's tests: a real ONNX file, golden tiles and a card, made from numpy alone."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from slideway.registry.card import (
    CardGolden,
    CardInput,
    CardLicence,
    CardOutput,
    CardTraining,
    CardUse,
    CardWeights,
    ModelCard,
    write_card,
)

GRAY = (0.5, 0.5, 0.5)
_FLOAT, _UINT8, _INT64 = 1, 2, 7  # TensorProto.DataType
_UNDEFINED_SHA256 = "0" * 64


@dataclass(frozen=True)
class ToyGraph:
    """What the toy's ONNX file computes: vectors = pool((tiles / 255 - mean) / std) @ weights.

    A card may say something else: that is what mutation tests are about.

    Attributes:
        tile_px: Edge of a tile.
        width: Length of a vector.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        pooling: `mean` or `max` over the tile.
        seed: Other seeds give other weights.
    """

    tile_px: int = 16
    width: int = 8
    mean: tuple[float, float, float] = GRAY
    std: tuple[float, float, float] = GRAY
    pooling: str = "mean"
    seed: int = 0

    @property
    def weights(self) -> NDArray[np.float32]:
        """(3, width) float32."""
        return np.random.default_rng(self.seed).normal(size=(3, self.width)).astype(np.float32)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the graph gives for (n, tile_px, tile_px, 3) tiles, in numpy."""
        normal = (tiles.astype(np.float32) / 255 - _floats(self.mean)) / _floats(self.std)
        pooled = normal.max(axis=(1, 2)) if self.pooling == "max" else normal.mean(axis=(1, 2))
        vectors: NDArray[np.float32] = pooled @ self.weights
        return vectors


def write_toy_encoder(
    folder: Path,
    *,
    encoder_id: str = "toy",
    graph: ToyGraph | None = None,
    state: str = "active",
    external: str | None = None,
) -> ModelCard:
    """Write a complete model folder in which everything agrees; returns its card.

    Args:
        folder: Where; made when missing.
        encoder_id: Id on the card.
        graph: What the weights compute.
        state: State on the card.
        external: Name of a second file for the tensors; None keeps all in one file.
    """
    graph = graph or ToyGraph()
    folder.mkdir(parents=True, exist_ok=True)
    weights = make_toy_onnx(graph, external=external)
    (folder / "weights.onnx").write_bytes(weights)
    if external is not None:
        (folder / external).write_bytes(graph.weights.tobytes())
    (folder / "LICENSE").write_text("Made for tests; use it as you like.\n", encoding="utf-8")
    card = _describe(folder, encoder_id, graph, state, weights, external)
    golden = make_golden(graph, card.fingerprint)
    (folder / "golden.safetensors").write_bytes(golden)
    card = replace_golden_hash(card, golden)
    write_card(card)
    return card


def make_golden(graph: ToyGraph, fingerprint: str) -> bytes:
    """Golden tiles of a toy as a safetensors file, stamped with a fingerprint."""
    edge = graph.tile_px
    tiles = np.random.default_rng(7).integers(0, 256, (4, edge, edge, 3)).astype(np.uint8)
    content: bytes = save({"tiles": tiles, "vectors": graph.encode(tiles)}, metadata={"fingerprint": fingerprint})
    return content


def replace_golden_hash(card: ModelCard, golden: bytes) -> ModelCard:
    """The card with the hash of new golden tiles."""
    return replace(card, golden=replace(card.golden, sha256=hashlib.sha256(golden).hexdigest()))


def _describe(folder: Path, id_: str, graph: ToyGraph, state: str, weights: bytes, external: str | None) -> ModelCard:
    is_named = external == "weights.onnx.data"
    return ModelCard(
        folder=folder,
        id=id_,
        title="Toy for tests",
        version="1.0.0",
        state=state,
        input=CardInput(graph.tile_px, 0.5, "RGB as stored, no ICC", graph.mean, graph.std, "area"),
        output=CardOutput(graph.width, f"{graph.pooling} of colours", "float32"),
        weights=CardWeights(
            "weights.onnx",
            hashlib.sha256(weights).hexdigest(),
            len(weights),
            "fp32",
            3 * graph.width,
            hashlib.sha256(graph.weights.tobytes()).hexdigest() if is_named else "",
        ),
        golden=CardGolden("golden.safetensors", _UNDEFINED_SHA256, 0.99999, 0.001),
        licence=CardLicence("CC0-1.0", "LICENSE", "Made for tests.", ("use", "redistribute")),
        use=CardUse("Tests.", "Any diagnosis."),
        training=CardTraining("None.", "Random numbers."),
        limits=("It knows nothing.",),
        metrics={"speed": "not measured"},
    )


def make_toy_onnx(graph: ToyGraph, *, external: str | None = None) -> bytes:
    """The bytes of a toy's ONNX file (opset 13), its weights in the file or in the file named `external`."""
    pool = "ReduceMax" if graph.pooling == "max" else "ReduceMean"
    axes = _message(1, b"axes") + _packed(8, [1, 2]) + _number(20, 7)
    flat = _message(1, b"keepdims") + _number(3, 0) + _number(20, 2)
    nodes = [
        _node("Cast", ["tiles"], "floats", _message(1, b"to") + _number(3, _FLOAT) + _number(20, 2)),
        _node("Div", ["floats", "full"], "scaled"),
        _node("Sub", ["scaled", "mean"], "centred"),
        _node("Div", ["centred", "std"], "normal"),
        _node(pool, ["normal"], "pooled", axes, flat),
        _node("MatMul", ["pooled", "weights"], "vectors"),
    ]
    tensors = [
        _tensor("full", _floats((255.0,))),
        _tensor("mean", _floats(graph.mean)),
        _tensor("std", _floats(graph.std)),
        _tensor("weights", graph.weights, external),
    ]
    content = b"".join(_message(1, node) for node in nodes) + _message(2, b"toy")
    content += b"".join(_message(5, tensor) for tensor in tensors)
    content += _message(11, _value("tiles", _UINT8, ["n", graph.tile_px, graph.tile_px, 3]))
    content += _message(12, _value("vectors", _FLOAT, ["n", graph.width]))
    return _number(1, 7) + _message(7, content) + _message(8, _message(1, b"") + _number(2, 13))


def _floats(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _node(operator: str, inputs: list[str], output: str, *attributes: bytes) -> bytes:
    named = b"".join(_message(1, name.encode()) for name in inputs) + _message(2, output.encode())
    return named + _message(4, operator.encode()) + b"".join(_message(5, attribute) for attribute in attributes)


def _tensor(name: str, values: NDArray[np.float32], external: str | None = None) -> bytes:
    head = b"".join(_number(1, size) for size in values.shape) + _number(2, _FLOAT) + _message(8, name.encode())
    if external is None:
        return head + _message(9, values.tobytes())
    location = _message(1, b"location") + _message(2, external.encode())
    return head + _message(13, location) + _number(14, 1)


def _value(name: str, kind: int, shape: list[str | int]) -> bytes:
    sizes = [_message(2, size.encode()) if isinstance(size, str) else _number(1, size) for size in shape]
    tensor = _number(1, kind) + _message(2, b"".join(_message(1, size) for size in sizes))
    return _message(1, name.encode()) + _message(2, _message(1, tensor))


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _packed(number: int, values: list[int]) -> bytes:
    return b"".join(_number(number, value) for value in values)


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(content) + struct.pack("B", value)
