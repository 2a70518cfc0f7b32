"""Peak memory and disk of `slideway read` on a generated 100,000 × 100,000 px pyramid.

    python bench/memory/measure.py [--side 100000] [--encoder ID] [--out DIR]

Prints Markdown and writes JSON: peak resident memory of the whole process tree (proportional set size where the system
has it, so that shared libraries are not counted twice), peak size of the output folder while reading, and of the bag.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from slideway.encoders.engines import describe_processor
from slideway.registry import DEFAULT_ENCODER
from slideway.testing.slides import write_huge_pyramid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--slide", type=Path, help="a slide of your own instead of a generated one")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slide = args.slide or Path(folder) / "huge.tif"
        if not args.slide:
            write_huge_pyramid(slide, args.side)
        figures = measure(slide, Path(folder) / "out", args.encoder)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


def measure(slide: Path, out: Path, encoder: str) -> dict[str, object]:
    command = [sys.executable, "-m", "slideway", "read", str(slide), "--out", str(out), "--encoder", encoder, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    peak_memory = peak_disk = 0
    began = time.perf_counter()
    while process.poll() is None:
        peak_memory = max(peak_memory, tree_memory(watched))
        peak_disk = max(peak_disk, folder_bytes(out))
        time.sleep(0.05)
    assert process.stdout is not None
    answer = json.loads(process.stdout.read())
    return {
        "processor": describe_processor(),
        "date": time.strftime("%Y-%m-%d"),
        "slide_px": [answer["slide"]["width_px"], answer["slide"]["height_px"]],
        "slide_mb": round(answer["slide"]["bytes"] / 1e6, 1),
        "tiles": answer["grid"]["tiles"],
        "wall_s": round(time.perf_counter() - began, 1),
        "tiles_per_s": answer["timing"]["tiles_per_s"],
        "process_to_first_tile_s": answer.get("process_to_first_tile_s"),
        "peak_memory_mb": round(peak_memory / 1e6, 1),
        "peak_output_mb": round(peak_disk / 1e6, 1),
        "bag_mb": round(answer["bag"]["bytes"] / 1e6, 1),
    }


def tree_memory(process: psutil.Process) -> int:
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            try:
                full = member.memory_full_info()
                total += getattr(full, "pss", 0) or full.uss
            except psutil.Error:
                continue
    except psutil.Error:
        return total
    return total


def folder_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*") if folder.exists() else ():
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total


if __name__ == "__main__":
    main()
