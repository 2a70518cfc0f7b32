"""Make an optimised form of an encoder's graph: half-precision weights, int8 while running, int8 calibrated, mixed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.encoders.encoder import TILES_PER_PASS
from slideway.encoders.instructions import cuts_off_sums

# Another precision is another encoder: these words enter its fingerprint.
PRECISIONS = {
    "fp16-weights": "fp32, weights stored in fp16",
    "int8-dynamic": "int8 matrices, activations quantised while running, the rest fp32",
    "int8-static": "int8, activations quantised in fixed ranges (QDQ), the rest fp32",
    "mixed": "int8 where harmless, the rest fp32",
}
FORMS = tuple(PRECISIONS)

_WORTH_HALVING_NUMBERS = 1024  # smaller constants are biases, norms and shapes: nothing to gain
_LARGEST_HALF = 65504.0
MAX_GROUPS = 24


@dataclass(frozen=True)
class Source:
    """A graph that forms are made of.

    Attributes:
        path: The fp32 ONNX file.
        calibration: (n, tile_px, tile_px, 3) uint8 tiles that ranges are measured on.
        is_large: Tensors lie in a second file, and must again.
    """

    path: Path
    calibration: NDArray[np.uint8]
    is_large: bool

    @property
    def is_transformer(self) -> bool:
        """Layer norms give it away."""
        import onnx

        graph = onnx.load(str(self.path), load_external_data=False).graph
        return any(node.op_type == "LayerNormalization" for node in graph.node)


class NothingToOptimiseError(Exception):
    """The graph has nothing that this form changes; never leaves this room."""


def store_halved(source: Source, target: Path) -> None:
    """Write the graph with its large tensors as half floats that are widened when the engine loads them.

    Raises:
        NothingToOptimiseError: A weight is too large for a half float.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source.path))
    kept, widened = [], []
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or value.size < _WORTH_HALVING_NUMBERS:
            kept.append(tensor)
            continue
        if np.abs(value).max() > _LARGEST_HALF:
            raise NothingToOptimiseError(f"weight {tensor.name} is too large for a half float")
        kept.append(numpy_helper.from_array(value.astype(np.float16), f"{tensor.name}.half"))
        widened.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    if source.is_large and model.ByteSize() > 1_900_000_000:
        place = {"save_as_external_data": True, "location": f"{target.name}.data"}
        onnx.save_model(model, str(target), all_tensors_to_one_file=True, **place)
    else:
        onnx.save_model(model, str(target))


def quantise_while_running(source: Source, target: Path, *, only: Sequence[str] | None = None) -> None:
    """Write the graph with int8 matrices; the range of what they are multiplied with is found anew in every pass."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not list_nodes(source.path, ("MatMul",)):
        raise NothingToOptimiseError("no matrix product with constant weights: convolutions gain nothing this way")
    with _quiet():
        quantize_dynamic(
            str(source.path),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=cuts_off_sums(),
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(only) if only is not None else None,
            use_external_data_format=source.is_large,
        )


def quantise_calibrated(source: Source, target: Path, *, only: Sequence[str] | None = None) -> None:
    """Write the graph with int8 weights and activations, their ranges measured on the calibration tiles."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # A transformer's norms, softmax and sums lose more in int8 than they gain; a convolutional net gains by staying in
    # int8 from layer to layer. Measured: docs/encoders.md.
    operators = ["MatMul", "Conv", "Gemm"] if source.is_transformer else None
    with _quiet():
        quantize_static(
            str(source.path),
            str(target),
            _reader(source.calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            reduce_range=cuts_off_sums(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(only) if only is not None else None,
            use_external_data_format=source.is_large,
            calibrate_method=CalibrationMethod.MinMax,
        )


def _reader(tiles: NDArray[np.uint8]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Tiles(CalibrationDataReader):  # type: ignore[misc]  # an untyped base
        def __init__(self) -> None:
            self._starts = iter(range(0, len(tiles), TILES_PER_PASS))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            start = next(self._starts, None)
            return None if start is None else {"tiles": tiles[start : start + TILES_PER_PASS]}

    return Tiles()


def list_nodes(path: Path, operators: Sequence[str]) -> list[str]:
    """Names of the nodes of these kinds that multiply with constant weights, in the order of the graph."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type in operators and set(node.input[1:2]) & constants]


def group_nodes(names: Sequence[str], max_groups: int = MAX_GROUPS) -> list[list[str]]:
    """Put like nodes of neighbouring depth together: what is told apart by its number only is of one kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "", name), []).append(name)
    pieces = max(1, max_groups // max(1, len(kinds)))
    groups = []
    for members in kinds.values():
        size = -(-len(members) // min(pieces, len(members)))
        groups += [members[start : start + size] for start in range(0, len(members), size)]
    return groups


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice about its own options; whoever asked for a table need not read it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
