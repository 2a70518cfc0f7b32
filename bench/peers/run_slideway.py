"""Measure Slideway: `python -m slideway read SLIDE`, from the outside, as one child process.

Run it with the interpreter of an environment that has `slideway`. `--weights` holds one encoder folder a name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import Meter, Stage, parse_arguments, write_result

START_UP = """
import sys, time
start, cpu = time.perf_counter(), time.process_time()
from slideway.cli.main import main
from slideway.pipeline.read import load_encoder, find_encoder
imported = time.perf_counter(), time.process_time()
load_encoder(find_encoder(sys.argv[1]), engine=None, threads=int(sys.argv[2]))
print(imported[0] - start, imported[1] - cpu, time.perf_counter() - imported[0], time.process_time() - imported[1])
"""


def measure_start_up(meter: Meter, encoder_dir: Path, threads: int) -> None:
    """Time imports and the loading of the encoder in a process of their own; `read` overlaps them with other work."""
    command = [sys.executable, "-c", START_UP, str(encoder_dir), str(threads)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    numbers = [float(word) for word in printed.split()]
    meter.stages["import"], meter.stages["model"] = Stage(*numbers[:2]), Stage(*numbers[2:])


def read_slide(arguments: argparse.Namespace, out: Path) -> Path:
    """Run the command and return the slide's output folder."""
    command = [sys.executable, "-m", "slideway", "read", str(arguments.slide), "--out", str(out), "--json"]
    command += ["--encoder", str(arguments.weights / arguments.encoder), "--threads", str(arguments.threads)]
    if arguments.mpp:
        command += ["--mpp", str(arguments.mpp)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)}\n{finished.stdout}{finished.stderr}")
    return Path(json.loads(finished.stdout.strip().splitlines()[-1])["folder"])


def encoding_stage(timing: dict[str, Any], whole: Stage) -> tuple[Stage, str]:
    """Return the encoding step; where the command states no CPU seconds for it, those of the whole command count."""
    wall_s = timing["steps_s"]["encode"]
    cpu_s = timing.get("steps_cpu_s", {}).get("encode")
    if cpu_s is None:
        return Stage(wall_s, whole.cpu_s), "cpu_s is that of the whole command: open, tissue, encode, heads, drawing"
    return Stage(wall_s, cpu_s), ""


def main() -> None:
    os.environ.pop("PYTHONPATH", None)
    arguments = parse_arguments(__doc__.splitlines()[0], batch=0, default_batch=0, workers=0)
    # The start-up probe has its own meter: its CPU and memory are no part of the reading.
    probe = Meter()
    measure_start_up(probe, arguments.weights / arguments.encoder, arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        with Meter() as meter, meter.stage("command"):
            folder = read_slide(arguments, Path(scratch) / "out")
        meter.whole = meter.stages.pop("command")
        timing = json.loads((folder / "result.json").read_text(encoding="utf-8"))["timing"]
        from slideway.bundles import read_bag

        bag = read_bag(folder / "bag.safetensors")
        coordinates, tile_level0_px, vectors = bag.grid.xy_level0_px.tolist(), bag.grid.tile_level0_px, bag.vectors[:]
    meter.stages |= probe.stages
    meter.stages["embedding"], notes = encoding_stage(timing, meter.whole)
    tissue_cpu_s = timing.get("steps_cpu_s", {}).get("tissue", float("nan"))
    meter.stages["tissue"] = Stage(timing["steps_s"]["tissue"], tissue_cpu_s)
    write_result(
        arguments,
        meter,
        peer="Slideway",
        package="slideway",
        coordinates_level0=coordinates,
        tile_level0_px=float(tile_level0_px),
        vectors=vectors.astype("float32"),
        notes=notes,
    )


if __name__ == "__main__":
    main()
