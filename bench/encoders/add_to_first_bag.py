"""From a checkpoint file on disk to the first bag: `slideway models add`, then `slideway read`, as a user types them.

    python bench/encoders/add_to_first_bag.py [--slot kaiko-vits16] [--slide SLIDE] [--cores 2] [--json FILE]

The checkpoint has the slot's real form and size and random numbers, once pickled and once as safetensors (time does not
depend on what the numbers are). Without --slide a generated one of 2048 x 1536 px is read. Needs the `train` extra.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from slideway.encoders.engines import describe_processor
from slideway.encoders.instructions import name_instruction_set
from slideway.encoders.slots import Slot, find_slot
from slideway.testing.slides import write_pyramid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slot", default="kaiko-vits16")
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--mpp", type=float, help="for a slide that states none")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "small.tif"
        if not args.slide:
            write_pyramid(slide, width_px=2048, height_px=1536, mpp=0.5)
        files = write_checkpoints(find_slot(args.slot), Path(folder))
        figures = {file.suffix: measure(file, args.slot, slide, args.mpp, Path(folder)) for file in files}
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    told = {"processor": describe_processor(), "isa": name_instruction_set(), "cores": args.cores, "load": load}
    print(json.dumps({**told, "slot": args.slot, **figures}, indent=1))
    if args.json:
        args.json.write_text(json.dumps({**told, "slot": args.slot, **figures}, indent=1))


def write_checkpoints(slot: Slot, folder: Path) -> list[Path]:
    import torch
    from safetensors.numpy import save_file

    random = np.random.default_rng(20)
    weights = {}
    for name, shape in slot.network.tensor_shapes().items():
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.02
        weights[name] = (random.standard_normal(shape) * scale + ("norm" in name)).astype(np.float32)
    pickled, plain = folder / "model.pth", folder / "model.safetensors"
    torch.save({"model": {name: torch.from_numpy(value) for name, value in weights.items()}}, pickled)
    save_file(weights, plain)
    return [pickled, plain]


def measure(checkpoint: Path, slot: str, slide: Path, mpp: float | None, folder: Path) -> dict[str, object]:
    name = f"bench-{checkpoint.suffix[1:]}"
    surroundings = {**os.environ, "SLIDEWAY_MODELS": str(folder / "models"), "SLIDEWAY_CACHE": str(folder / "cache")}
    add = ["models", "add", str(checkpoint), "--slot", slot, "--id", name]
    read = ["read", str(slide), "--encoder", name, "--out", str(folder / f"out-{name}"), "--json"]
    read += ["--mpp", str(mpp)] if mpp else []
    seconds, answers, cpu = [], [], cpu_of_children()
    for command in (add, read):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "slideway", *command], env=surroundings, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        seconds.append(round(time.perf_counter() - began, 1))
        answers.append(done.stdout)
    answer = json.loads(answers[1])
    return {
        "checkpoint_mb": round(checkpoint.stat().st_size / 1e6, 1),
        "add_s": seconds[0],
        "read_s": seconds[1],
        "add_to_first_bag_s": round(sum(seconds), 1),
        "cpu_s": round(cpu_of_children() - cpu, 1),
        "tiles": answer["grid"]["tiles"],
        "process_to_first_tile_s": answer.get("process_to_first_tile_s"),
        "bag_mb": round(answer["bag"]["bytes"] / 1e6, 2),
    }


def cpu_of_children() -> float:
    """CPU seconds of all processes that this one started and that have ended: what other work does not lengthen."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
