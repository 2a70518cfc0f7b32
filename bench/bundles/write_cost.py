"""What writing the bundle adds to the reading of each slide, from the timings of `result.json`.

    slideway read SLIDES --out DIR --again
    python bench/bundles/write_cost.py DIR [DIR ...]

Prints a Markdown table: seconds of the step `bundle` and of the whole reading, and what the bundle adds to the rest; on
the wall clock and in CPU time, since other jobs on a machine disturb the first.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slideway.encoders.engines import describe_processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="output folders of `slideway read`, or their parent")
    options = parser.parse_args()
    results = [
        json.loads(path.read_text()) for folder in options.folders for path in sorted(folder.rglob("result.json"))
    ]
    timed = [result for result in results if "bundle" in result.get("timing", {}).get("steps_s", {})]
    if not timed:
        parser.error("no result.json with a step `bundle` there; read the slides again with `slideway read --again`")
    print(f"{describe_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| slide | tiles | bundle, bytes | codec | bundle, s | of, s | adds | bundle, CPU s | of, CPU s | adds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for result in timed:
        name, said = Path(result["slide"]["name"]).stem, result["bytes"]
        cells = f"| {name} | {result['grid']['tiles']:,} | {said['bundle']:,} | {said['codec']} "
        print(cells + relate(find_seconds(result)))
    sums = [sum(column) for column in zip(*map(find_seconds, timed), strict=True)]
    print(f"| **all** | | | {relate(sums)}")


def find_seconds(result: dict[str, Any]) -> list[float]:
    """Bundle and whole reading on the wall clock, then both in CPU time."""
    timing = result["timing"]
    cpu = timing["steps_cpu_s"]
    return [timing["steps_s"]["bundle"], timing["total_s"], cpu["bundle"], sum(cpu.values())]


def relate(seconds: Sequence[float]) -> str:
    """Six cells: seconds, seconds, and what the bundle adds to the rest; twice."""
    cells = ""
    for bundle, total in (seconds[:2], seconds[2:]):
        cells += f"| {bundle:.2f} | {total:.1f} | {bundle / (total - bundle):.1%} "
    return cells + "|"


if __name__ == "__main__":
    main()
