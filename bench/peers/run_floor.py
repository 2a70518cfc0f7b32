"""Measure the floor under every reader: bare decoding and bare inference of the tiles that one run kept.

    python run_floor.py --part decode    ...   each stored JPEG tile under a kept tile decoded once, one thread
    python run_floor.py --part inference ...   ONNX Runtime, one thread, on tiles already in memory
    python run_floor.py --part matrices  ...   only the matrix products of ViT-S, with the fastest library found

Needs numpy, tifffile and imagecodecs; inference needs onnxruntime; matrices take numpy, torch and onnxruntime if there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from encoder_modules import TILE_PX
from numpy.typing import NDArray

BATCHES = (1, 2, 4, 8, 16, 32)
# ViT-S/16 at 224 px: 196 patches and one class token, 12 blocks of width 384 with 6 heads.
TOKENS, PATCHES, WIDTH, HEADS, BLOCKS = 197, 196, 384, 6, 12


def cpu_s_of(work: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def stored_tiles(page: tifffile.TiffPage, corners: NDArray[np.float64], edge: float) -> list[int]:
    """Numbers of the stored tiles that the kept tiles touch, each once."""
    across = -(-page.imagewidth // page.tilewidth)
    touched: set[int] = set()
    for x, y in corners:
        columns = range(int(x) // page.tilewidth, min(across - 1, int(x + edge - 1) // page.tilewidth) + 1)
        last_row = -(-page.imagelength // page.tilelength) - 1
        rows = range(int(y) // page.tilelength, min(last_row, int(y + edge - 1) // page.tilelength) + 1)
        touched.update(row * across + column for row in rows for column in columns)
    return sorted(touched)


def measure_decode(slide: Path, corners: NDArray[np.float64], edge: float) -> dict[str, Any]:
    """Decode with libjpeg-turbo, from bytes already in memory."""
    import imagecodecs

    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        numbers = stored_tiles(page, corners, edge)
        stored = [bytes(segment) for segment, _ in tiff.filehandle.read_segments(
            [page.dataoffsets[n] for n in numbers], [page.databytecounts[n] for n in numbers]
        )]  # fmt: skip
        tables = page.jpegtables
        in_space = "YCbCr" if page.photometric == tifffile.PHOTOMETRIC.YCBCR else "RGB"

    def decode() -> None:
        for segment in stored:
            imagecodecs.jpeg8_decode(segment, tables=tables, colorspace=in_space, outcolorspace="RGB")

    decode()
    cpu_s, wall_s = cpu_s_of(decode)
    return {"cpu_s": cpu_s, "wall_s": wall_s, "stored_tiles": len(stored)}


def read_tiles(slide: Path, corners: NDArray[np.float64], edge: float) -> NDArray[np.uint8]:
    """Cut the kept tiles out of level 0; where the stored pixel size differs, nearest pixels will do for timing."""
    with tifffile.TiffFile(slide) as tiff:
        pixels = tiff.pages[0].asarray()
    steps = (np.arange(TILE_PX) * edge / TILE_PX).astype(int)
    tiles = np.full((len(corners), TILE_PX, TILE_PX, 3), 255, np.uint8)
    for tile, (x, y) in zip(tiles, corners.astype(int), strict=True):
        rows, columns = steps + y, steps + x
        rows, columns = rows[rows < pixels.shape[0]], columns[columns < pixels.shape[1]]
        tile[: len(rows), : len(columns)] = pixels[np.ix_(rows, columns)]
    return tiles


def measure_inference(model: Path, tiles: NDArray[np.uint8]) -> dict[str, Any]:
    """Run ONNX Runtime on one thread, with the batch that a short trial found best."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def infer(batch: int, count: int) -> None:
        for start in range(0, count, batch):
            session.run(None, {"tiles": tiles[start : min(start + batch, count)]})

    trial: dict[int, float] = {}
    for batch in BATCHES:
        infer(batch, batch)
        trial[batch] = cpu_s_of(lambda batch=batch: infer(batch, 64))[0]
    best = min(trial, key=lambda batch: trial[batch])
    cpu_s, wall_s = cpu_s_of(lambda: infer(best, len(tiles)))
    return {"cpu_s": cpu_s, "wall_s": wall_s, "batch": best, "trial_cpu_s_of_64": trial}


def vit_products(batch: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Times a pass, left shape and right shape of every matrix product of ViT-S."""
    rows, head = batch * TOKENS, WIDTH // HEADS
    return [
        (1, (batch * PATCHES, 3 * 16 * 16), (3 * 16 * 16, WIDTH)),  # patch embedding
        (BLOCKS, (rows, WIDTH), (WIDTH, 3 * WIDTH)),  # query, key, value
        (BLOCKS, (batch * HEADS, TOKENS, head), (batch * HEADS, head, TOKENS)),  # attention scores
        (BLOCKS, (batch * HEADS, TOKENS, TOKENS), (batch * HEADS, TOKENS, head)),  # weighted values
        (BLOCKS, (rows, WIDTH), (WIDTH, WIDTH)),  # projection
        (BLOCKS, (rows, WIDTH), (WIDTH, 4 * WIDTH)),
        (BLOCKS, (rows, 4 * WIDTH), (4 * WIDTH, WIDTH)),
    ]


def multipliers() -> dict[str, Callable[..., Callable[[], object]]]:
    """Matrix products of the libraries at hand: name to (left, right) to a call that multiplies them on one thread."""

    def with_numpy(left: NDArray[np.float32], right: NDArray[np.float32]) -> Callable[[], object]:
        out = np.empty((*left.shape[:-1], right.shape[-1]), np.float32)
        return lambda: np.matmul(left, right, out=out)

    found: dict[str, Callable[..., Callable[[], object]]] = {"numpy": with_numpy}
    try:
        import torch

        torch.set_num_threads(1)

        def with_torch(left: NDArray[np.float32], right: NDArray[np.float32]) -> Callable[[], object]:
            a, b = torch.from_numpy(left), torch.from_numpy(right)
            out = torch.empty((*left.shape[:-1], right.shape[-1]))
            return lambda: torch.matmul(a, b, out=out)

        found["torch"] = with_torch
    except ImportError:
        pass
    try:
        import onnx
        import onnxruntime

        def with_onnxruntime(left: NDArray[np.float32], right: NDArray[np.float32]) -> Callable[[], object]:
            kind = onnx.TensorProto.FLOAT
            # A constant right side, as weights are, lets the library pack it once.
            constant = [onnx.numpy_helper.from_array(right, "b")] if right.ndim == 2 else []
            inputs = [onnx.helper.make_tensor_value_info("a", kind, left.shape)]
            if not constant:
                inputs.append(onnx.helper.make_tensor_value_info("b", kind, right.shape))
            output = onnx.helper.make_tensor_value_info("c", kind, (*left.shape[:-1], right.shape[-1]))
            node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
            graph = onnx.helper.make_graph([node], "product", inputs, [output], initializer=constant)
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            binding = session.io_binding()
            binding.bind_cpu_input("a", left)
            if not constant:
                binding.bind_cpu_input("b", right)
            binding.bind_output("c")
            return lambda: session.run_with_iobinding(binding)

        found["onnxruntime"] = with_onnxruntime
    except ImportError:
        pass
    return found


def measure_matrices(*, repeats: int = 5) -> dict[str, Any]:
    """Sum the time of ViT-S's matrix products, each with the library that is fastest at it, at the best batch."""
    generator = np.random.default_rng(20)
    libraries = multipliers()
    by_batch: dict[int, dict[str, Any]] = {}
    for batch in (1, 4, 8, 16, 32):
        total, multiplications, chosen = 0.0, 0, []
        for times, left_shape, right_shape in vit_products(batch):
            left = generator.standard_normal(left_shape, dtype=np.float32)
            right = generator.standard_normal(right_shape, dtype=np.float32)
            seconds = {}
            for name, multiply in libraries.items():
                product = multiply(left, right)
                product()
                # CPU, not wall: a library that takes a second thread gains nothing by it here.
                seconds[name] = min(cpu_s_of(product)[0] for _ in range(repeats))
            fastest = min(seconds, key=lambda name: seconds[name])
            chosen.append(fastest)
            total += times * seconds[fastest]
            multiplications += times * int(np.prod(left_shape)) * right_shape[-1]
        by_batch[batch] = {
            "ms_per_tile": 1000 * total / batch,
            "gflop_per_s": 2 * multiplications / total / 1e9,
            "fastest": chosen,
        }
    best = min(by_batch, key=lambda batch: by_batch[batch]["ms_per_tile"])
    return {"batch": best, "cpu_ms_per_tile": by_batch[best]["ms_per_tile"], "by_batch": by_batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["decode", "inference", "matrices"], required=True)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--tiles", type=Path, help="JSON of a run; its coordinates are used")
    parser.add_argument("--model", type=Path, help="ONNX file")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.part == "matrices":
        result = measure_matrices()
    else:
        run = json.loads(arguments.tiles.read_text(encoding="utf-8"))
        corners, edge = np.array(run["coordinates_level0"]), float(run["tile_level0_px"])
        if arguments.part == "decode":
            result = measure_decode(arguments.slide, corners, edge)
        else:
            result = measure_inference(arguments.model, read_tiles(arguments.slide, corners, edge))
        result |= {"tiles": len(corners), "cpu_ms_per_tile": 1000 * result["cpu_s"] / len(corners)}
    arguments.out.write_text(json.dumps({"part": arguments.part, **result}), encoding="utf-8")
    print(json.dumps({"part": arguments.part, **result}, indent=1))


if __name__ == "__main__":
    main()
