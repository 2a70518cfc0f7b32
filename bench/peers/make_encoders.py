"""Write the benchmark's encoders: the same fixed-seed weights as safetensors for the peers and as ONNX for Slideway.

    python make_encoders.py OUT_DIR [--encoder NAME ...]

Needs torch, torchvision, timm, safetensors, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from encoder_modules import IMAGENET_MEAN, IMAGENET_STD, TILE_MPP, TILE_PX, WIDTHS, build_module
from safetensors.torch import save_file

SEED = 20
N_GOLDEN = 5
CARD = """schema = "1.0"
id = "{id}"
title = "{encoder}, fixed-seed random weights, for timing only"
version = "1.0.0"
state = "active"

[input]
tile_px = {tile_px}
mpp = {mpp}
colour = "RGB as stored, no ICC"
mean = {mean}
std = {std}
resize = "area"

[output]
width = {width}
pooling = "the architecture's own: global mean, or the class token of a transformer"
dtype = "float32"

[weights]
file = "{encoder}.onnx"
sha256 = "{sha256}"
bytes = {bytes}
precision = "fp32"
parameters = {parameters}

[golden]
file = "golden.safetensors"
sha256 = "{golden_sha256}"
min_cosine = 0.99999
max_abs_difference = 0.001

[licence]
id = "CC0-1.0"
file = "LICENSE"
note = "Random numbers; nobody's work."

[use]
intended = "Measuring how fast readers are with the same network."
not_intended = "Anything else: it has learnt nothing."

[training]
data = "None."
note = "Weights drawn with seed {seed}; batch norm settled on noise."

[limits]
plain = ["It has learnt nothing; its vectors mean nothing."]

[metrics]
"""


class TileEncoder(torch.nn.Module):
    """Take tiles as they are read (uint8, channels last), normalise them inside the graph, return vectors."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        # (pixel / 255 - mean) / std as one multiply and one add
        std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.encoder(tiles.permute(0, 3, 1, 2).float() * self.scale + self.shift)


def smooth_noise(n_tiles: int, generator: torch.Generator) -> torch.Tensor:
    """Make tiles with structure at several scales, in the range of a stained slide."""
    tiles = torch.zeros(n_tiles, 3, TILE_PX, TILE_PX)
    for grid_px in (4, 14, 56, 224):
        noise = torch.rand(n_tiles, 3, grid_px, grid_px, generator=generator)
        tiles += torch.nn.functional.interpolate(noise, TILE_PX, mode="bilinear") / 4
    return (tiles.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def settle_batch_norm(encoder: TileEncoder, generator: torch.Generator) -> None:
    """Set the running statistics of batch norm from tiles.

    Random weights with untouched statistics shrink the signal layer by layer; comparing vectors of 1e-9 proves nothing.
    """
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative average
        norm.reset_running_stats()
    if norms:
        encoder.train()
        with torch.no_grad():
            for _ in range(4):
                encoder(smooth_noise(16, generator))
    encoder.eval()


def export_onnx(encoder: TileEncoder, path: Path) -> None:
    """Export with N dynamic, input `tiles`, output `vectors`."""
    example = torch.zeros(2, TILE_PX, TILE_PX, 3, dtype=torch.uint8)
    torch.onnx.export(
        encoder,
        (example,),
        path,
        input_names=["tiles"],
        output_names=["vectors"],
        dynamic_shapes={"tiles": {0: torch.export.Dim("n", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    # The exporter notes stack traces, with paths of this machine; without them the same weights give the same file.
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]
    onnx.save(model, path)


def make_golden(encoder: TileEncoder, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tiles with the vectors that torch computes from them."""
    tiles = smooth_noise(N_GOLDEN, generator).contiguous()
    with torch.no_grad():
        return {"tiles": tiles, "vectors": encoder(tiles).contiguous()}


def worst_difference(golden: dict[str, torch.Tensor], path: Path) -> float:
    """Largest absolute difference between ONNX Runtime and torch; two batch sizes, or a frozen N would pass."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tiles, expected = golden["tiles"].numpy(), golden["vectors"].numpy()
    one, many = (session.run(["vectors"], {"tiles": tiles[:count]})[0] for count in (1, N_GOLDEN))
    return float(max(np.abs(one - expected[:1]).max(), np.abs(many - expected).max()))


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_encoder(name: str, out_dir: Path) -> None:
    """Write `<out_dir>/<name>/`: weights, ONNX, golden tiles and card; fail if ONNX and torch differ by 1e-4."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    encoder = TileEncoder(build_module(name))
    settle_batch_norm(encoder, generator)
    folder = out_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(encoder.encoder.state_dict(), folder / f"{name}.safetensors")
    onnx_path, golden_path = folder / f"{name}.onnx", folder / "golden.safetensors"
    export_onnx(encoder, onnx_path)
    golden = make_golden(encoder, generator)
    save_file(golden, golden_path)
    worst, largest = worst_difference(golden, onnx_path), float(golden["vectors"].abs().max())
    if worst > 1e-4:
        raise SystemExit(f"{name}: ONNX differs from torch by {worst:.1e}; nothing measured with it would count")
    card = CARD.format(
        id=name.replace("_", "-"),
        encoder=name,
        width=WIDTHS[name],
        tile_px=TILE_PX,
        mpp=TILE_MPP,
        mean=list(IMAGENET_MEAN),
        std=list(IMAGENET_STD),
        sha256=hash_file(onnx_path),
        bytes=onnx_path.stat().st_size,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        golden_sha256=hash_file(golden_path),
        seed=SEED,
    )
    (folder / "card.toml").write_text(card, encoding="utf-8")
    (folder / "LICENSE").write_text("CC0 1.0: random numbers, no rights reserved.\n", encoding="utf-8")
    print(f"{name}: width {WIDTHS[name]}, largest value {largest:.2f}, ONNX against torch {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--encoder", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    arguments = parser.parse_args()
    for name in arguments.encoder:
        write_encoder(name, arguments.out_dir)


if __name__ == "__main__":
    main()
