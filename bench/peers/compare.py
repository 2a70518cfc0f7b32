r"""Run every reader at hand on one slide with the same weights, interleaved and repeated, and print one table.

    python compare.py --slide SLIDE --weights DIR --out DIR \
        --reader lazyslide=VENV/bin/python --reader slideway=VENV/bin/python ... --floor VENV/bin/python

Each reader runs in its own process under each condition, `--rounds` times; the median counts.
Raw results go to DIR/raw, the summary to DIR/compare.json and DIR/compare.md. Needs psutil, numpy and opencv.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
# Small networks on torch lose half their time to page faults: glibc gives every large activation back to the kernel.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
# Environment and arguments of each condition: the library's own batch, the batch found best for it, and that with glibc
# tuned as well.
CONDITIONS: dict[str, tuple[dict[str, str], list[str]]] = {
    "defaults": ({}, ["--default-batch"]),
    "installed": ({}, []),
    "tuned": (TUNED, []),
}
# Not inherited by any run: they would tune one library and not another.
UNSET = (
    *TUNED,
    *("GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONPATH"),
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
MEDIANS = (
    *("tiles_per_s", "import_s", "startup_s", "startup_cpu_s", "whole_cpu_s", "whole_wall_s"),
    *("peak_rss_mb", "install_mb", "others_busy_cores"),
)
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


@dataclass(frozen=True)
class Trial:
    """One run to make."""

    reader: str
    encoder: str
    condition: str
    threads: int
    round_number: int

    @property
    def file_name(self) -> str:
        return f"{self.encoder}-{self.reader}-{self.condition}-t{self.threads}-r{self.round_number}.json"


def environment(extra: dict[str, str]) -> dict[str, str]:
    """The environment of a run: ours without any tuning, plus what the run asks for."""
    return {name: value for name, value in os.environ.items() if name not in UNSET} | {"HF_HUB_OFFLINE": "1"} | extra


def run_measured(command: list[str], extra: dict[str, str], log: Path) -> dict[str, float] | None:
    """Run one command; return how busy the machine was with other work meanwhile, or None when the command failed."""
    before, start = psutil.cpu_times(), time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = psutil.Popen(command, env=environment(extra), stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    wall_s, after = time.perf_counter() - start, psutil.cpu_times()
    busy_s = sum(getattr(after, kind) - getattr(before, kind) for kind in ("user", "system", "nice"))
    others_s = max(0.0, busy_s - usage.ru_utime - usage.ru_stime)
    if status:
        return None
    return {"run_wall_s": wall_s, "others_busy_cores": others_s / wall_s}


def run_trial(trial: Trial, arguments: argparse.Namespace, readers: dict[str, str]) -> dict[str, Any] | None:
    """Run one reader once; a failure is printed and left out of the medians."""
    out = arguments.out / "raw" / trial.file_name
    command = [readers[trial.reader], str(HERE / f"run_{trial.reader}.py"), "--slide", str(arguments.slide)]
    command += ["--encoder", trial.encoder, "--weights", str(arguments.weights), "--out", str(out)]
    command += ["--threads", str(trial.threads), "--mpp", str(arguments.mpp)]
    extra, options = CONDITIONS[trial.condition]
    load = run_measured([*command, *options], extra, out.with_suffix(".log"))
    if load is None:
        print(f"{trial.file_name}: failed, see {out.with_suffix('.log')}", flush=True)
        return None
    result = json.loads(out.read_text(encoding="utf-8")) | load
    out.write_text(json.dumps(result), encoding="utf-8")
    print(
        f"{trial.file_name}: {result['cpu_ms_per_tile']:.1f} CPU ms/tile, {result['tiles_per_s']:.1f} tiles/s, "
        f"{result['tiles']} tiles, others kept {load['others_busy_cores']:.1f} cores busy",
        flush=True,
    )
    return result


def plan_trials(arguments: argparse.Namespace, readers: list[str]) -> Iterator[Trial]:
    """Every reader after every other, in another order each round, so that a slow minute hits no one alone."""
    for round_number in range(arguments.rounds):
        for encoder in arguments.encoder:
            turned = readers[round_number % len(readers) :] + readers[: round_number % len(readers)]
            for condition, threads, reader in itertools.product(arguments.condition, arguments.threads, turned):
                yield Trial(reader, encoder, condition, threads, round_number)


def run_floor(arguments: argparse.Namespace, encoder: str, tiles: Path, round_number: int) -> dict[str, float]:
    """Bare decoding, bare inference and, for ViT-S, bare matrix products; CPU ms a tile."""
    parts = ["decode", "inference"] + (["matrices"] if encoder == "vit_small" else [])
    found: dict[str, float] = {}
    for part in parts:
        out = arguments.out / "raw" / f"{encoder}-floor-{part}-r{round_number}.json"
        command = [arguments.floor, str(HERE / "run_floor.py"), "--part", part, "--out", str(out)]
        if part != "matrices":
            model = arguments.weights / encoder / f"{encoder}.onnx"
            command += ["--slide", str(arguments.slide), "--tiles", str(tiles), "--model", str(model)]
        if run_measured(command, ONE_THREAD, out.with_suffix(".log")) is None:
            print(f"floor, {part}: failed, see {out.with_suffix('.log')}", flush=True)
            continue
        found[part] = json.loads(out.read_text(encoding="utf-8"))["cpu_ms_per_tile"]
        print(f"{encoder} floor, {part}: {found[part]:.2f} CPU ms/tile", flush=True)
    return found


def median(results: list[dict[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def summarise(results: dict[Trial, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a reader, encoder, condition and thread count: medians, and the spread of the CPU time."""
    rows = []
    keys = sorted({(trial.encoder, trial.reader, trial.condition, trial.threads) for trial in results})
    for encoder, reader, condition, threads in keys:
        runs = [
            result
            for trial, result in results.items()
            if (trial.encoder, trial.reader, trial.condition, trial.threads) == (encoder, reader, condition, threads)
        ]
        cpu = [run["cpu_ms_per_tile"] for run in runs]
        rows.append(
            {
                "encoder": encoder,
                "reader": reader,
                "peer": runs[0]["peer"],
                "version": runs[0]["version"],
                "condition": condition,
                "threads": threads,
                "runs": len(runs),
                "tiles": runs[0]["tiles"],
                "cpu_ms_per_tile": statistics.median(cpu),
                "cpu_ms_per_tile_range": [min(cpu), max(cpu)],
                "tissue_s": statistics.median(run["stages"]["tissue"]["wall_s"] for run in runs),
                **{key: median(runs, key) for key in MEDIANS},
            }
        )
    return rows


def best(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    """The row with the least CPU among those that match: each reader shows at the thread count that suits it."""
    matching = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return min(matching, key=lambda row: row["cpu_ms_per_tile"], default=None)


def speed_table(rows: list[dict[str, Any]], floors: dict[str, dict[str, float]]) -> str:
    """Markdown: one line a reader, one block an encoder."""
    lines = [
        "| encoder | reader | CPU ms/tile, its own batch | best batch | and glibc tuned | threads | tiles | tiles/s "
        "| import s | start-up CPU s | peak MB | installed MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for encoder in sorted({row["encoder"] for row in rows}):
        for reader in sorted({row["reader"] for row in rows if row["encoder"] == encoder}):
            found = [best(rows, encoder=encoder, reader=reader, condition=condition) for condition in CONDITIONS]
            shown = next(row for row in (found[1], found[2], found[0]) if row)
            cells = " | ".join(f"{row['cpu_ms_per_tile']:.1f}" if row else "–" for row in found)
            threads = "/".join(str(row["threads"]) if row else "–" for row in found)
            lines.append(
                f"| {encoder} | {shown['peer']} {shown['version']} | {cells} | {threads} "
                f"| {shown['tiles']} | {shown['tiles_per_s']:.1f} | {shown['import_s']:.1f} "
                f"| {shown['startup_cpu_s']:.1f} | {shown['peak_rss_mb']:.0f} | {shown['install_mb']:.0f} |"
            )
        for part, value in floors.get(encoder, {}).items():
            lines.append(f"| {encoder} | floor: {part} | – | {value:.2f} | – | 1 | – | – | – | – | – | – |")
    return "\n".join(lines)


def kept_share(result: dict[str, Any], mask: np.ndarray, value: int, cell_px: int) -> tuple[int, int]:
    """Kept tiles that lie at least half on one planted artefact, and how many such tiles a full grid would have."""
    edge = max(1, round(result["tile_level0_px"] / cell_px))
    covered = (mask == value).astype(np.uint32)
    total = np.pad(np.cumsum(np.cumsum(covered, axis=0), axis=1), ((1, 0), (1, 0)))

    def count(corners: np.ndarray) -> int:
        x = np.clip(corners[:, 0], 0, mask.shape[1] - edge)
        y = np.clip(corners[:, 1], 0, mask.shape[0] - edge)
        inside = total[y + edge, x + edge] - total[y, x + edge] - total[y + edge, x] + total[y, x]
        return int((inside * 2 >= edge * edge).sum())

    rows, columns = np.mgrid[0 : mask.shape[0] - edge : edge, 0 : mask.shape[1] - edge : edge]
    kept = np.array(result["coordinates_level0"]).reshape(-1, 2)
    return count(np.round(kept / cell_px).astype(int)), count(np.stack([columns.ravel(), rows.ravel()], axis=1))


def run_artefacts(arguments: argparse.Namespace, readers: dict[str, str]) -> list[dict[str, Any]]:
    """Ask every reader which tiles of the artefact slide it keeps."""
    planted = json.loads(arguments.artefacts.with_suffix(".json").read_text(encoding="utf-8"))
    mask = cv2.imread(str(arguments.artefacts.with_name(planted["mask"])), cv2.IMREAD_GRAYSCALE)
    rows = []
    for reader, python in readers.items():
        out = arguments.out / "raw" / f"artefacts-{reader}.json"
        command = [python, str(HERE / f"run_{reader}.py"), "--slide", str(arguments.artefacts), "--tissue-only"]
        command += ["--encoder", arguments.encoder[0], "--weights", str(arguments.weights), "--out", str(out)]
        command += ["--mpp", str(arguments.mpp)]
        if run_measured(command, {}, out.with_suffix(".log")) is None:
            print(f"artefacts, {reader}: failed, see {out.with_suffix('.log')}", flush=True)
            continue
        result = json.loads(out.read_text(encoding="utf-8"))
        row = {"reader": reader, "peer": result["peer"], "tiles": result["tiles"]}
        if not result["own_tissue"]:
            print(f"artefacts, {reader}: its own tissue detection did not run ({result['notes']})", flush=True)
            continue
        row["tissue_s"] = result["stages"]["tissue"]["wall_s"]
        for kind, values in planted["mask_values"].items():
            shares = {
                name: kept_share(result, mask, value, planted["mask_cell_level0_px"]) for name, value in values.items()
            }
            row[kind] = shares
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def describe_shares(shares: dict[str, tuple[int, int]]) -> str:
    """`12 of 90 (blue 12 of 30, green 0 of 30, black 0 of 30)`."""
    parts = ", ".join(f"{name} {kept} of {possible}" for name, (kept, possible) in shares.items())
    total = " of ".join(str(sum(pair[end] for pair in shares.values())) for end in (0, 1))
    return f"{total} ({parts})" if len(shares) > 1 else total


def artefact_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: of the tiles at least half on an artefact, how many each reader keeps."""
    lines = [
        "| reader | tiles kept | tissue s | ink over glass | ink over tissue | defocused tissue |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        kinds = ("ink_over_glass", "ink_over_tissue", "defocus_over_tissue")
        shares = [describe_shares(row[kind]) for kind in kinds]
        lines.append(f"| {row['peer']} | {row['tiles']} | {row['tissue_s']:.1f} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def describe_machine() -> dict[str, Any]:
    """CPU, cores, memory and what of its instruction sets matters here."""
    model, flags = platform.processor(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        model, flags = fields.get("model name", model), set(fields.get("flags", "").split())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--mpp", type=float, default=0.5, help="pixel size of level 0, for readers that ask")
    parser.add_argument("--weights", type=Path, required=True, help="the folder that make_encoders.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reader", action="append", default=[], metavar="NAME=PYTHON",
                        help="run_NAME.py is run with that interpreter; repeatable")  # fmt: skip
    parser.add_argument("--floor", metavar="PYTHON", help="interpreter for run_floor.py; left out, no floor")
    parser.add_argument("--encoder", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--condition", nargs="+", choices=list(CONDITIONS), default=["installed", "tuned"])
    parser.add_argument("--artefacts", type=Path, help="a slide of make_slide.py --artefacts, with its .json beside it")
    arguments = parser.parse_args()
    if unknown := [text for text in arguments.reader if not (HERE / f"run_{text.split('=')[0]}.py").exists()]:
        runners = ", ".join(sorted(path.name for path in HERE.glob("run_*.py")))
        parser.error(f"no runner for {', '.join(unknown)}; there are {runners}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    readers = dict(text.split("=", 1) for text in arguments.reader)
    (arguments.out / "raw").mkdir(parents=True, exist_ok=True)
    results: dict[Trial, dict[str, Any]] = {}
    floors: dict[str, list[dict[str, float]]] = {}
    last = None
    for trial in plan_trials(arguments, list(readers)):
        if arguments.floor and last and (last.encoder, last.round_number) != (trial.encoder, trial.round_number):
            floors.setdefault(last.encoder, []).append(floor_after(arguments, last, results))
        if result := run_trial(trial, arguments, readers):
            results[trial] = result
        last = trial
    if arguments.floor and last:
        floors.setdefault(last.encoder, []).append(floor_after(arguments, last, results))
    medians = {
        encoder: {part: statistics.median(found[part] for found in rounds if part in found) for part in rounds[-1]}
        for encoder, rounds in floors.items()
    }
    rows = summarise(results)
    planted = run_artefacts(arguments, readers) if arguments.artefacts else []
    write_summary(arguments, rows, medians, planted)


def floor_after(arguments: argparse.Namespace, last: Trial, results: dict[Trial, dict[str, Any]]) -> dict[str, float]:
    """Measure the floor on the tiles of the last run that worked."""
    done = [trial for trial in results if (trial.encoder, trial.round_number) == (last.encoder, last.round_number)]
    if not done:
        return {}
    return run_floor(arguments, last.encoder, arguments.out / "raw" / done[-1].file_name, last.round_number)


def write_summary(
    arguments: argparse.Namespace,
    rows: list[dict[str, Any]],
    floors: dict[str, dict[str, float]],
    planted: list[dict[str, Any]],
) -> None:
    """Write compare.json and compare.md and print the tables."""
    machine = describe_machine()
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    summary = {
        "date": date,
        "machine": machine,
        "slide": arguments.slide.name,
        "mpp": arguments.mpp,
        "tuned": TUNED,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "rows": rows,
        "floor_cpu_ms_per_tile": floors,
        "artefacts": planted,
    }
    (arguments.out / "compare.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    sets = ", ".join(machine["instruction_sets"])
    text = f"{date} · {machine['cpu']}, {machine['cores']} cores ({sets}) · {arguments.slide.name}\n\n"
    text += speed_table(rows, floors)
    if planted:
        text += "\n\n" + artefact_table(planted)
    (arguments.out / "compare.md").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
