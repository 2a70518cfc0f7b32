"""Measure one peer in its own process: CPU and wall seconds by stage, peak memory of the process tree, install size."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MEMORY_EVERY_S = 0.5


@dataclass(frozen=True)
class Stage:
    """What one stage took; CPU is user + system of this process and its children, living and ended."""

    wall_s: float
    cpu_s: float


def tree_cpu_s() -> float:
    """CPU seconds so far of this process, its ended children and its living descendants."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def tree_memory_bytes(process: psutil.Process) -> int:
    """Memory of a process tree; with children the shared pages are divided among them (PSS), not counted twice."""
    children = process.children(recursive=True)
    if not children:
        return int(process.memory_info().rss)
    total = 0
    for member in [process, *children]:
        with contextlib.suppress(psutil.Error):
            total += int(member.memory_full_info().pss)
    return total


@dataclass
class Meter:
    """Collect the stages of one run and the highest memory seen; a context manager."""

    stages: dict[str, Stage] = field(default_factory=dict)
    peak_bytes: int = 0
    whole: Stage | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Meter:
        self._thread = threading.Thread(target=self._watch_memory, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        # From the start of the interpreter, so that nothing a user waits for is left out.
        self.whole = Stage(time.time() - psutil.Process().create_time(), tree_cpu_s())
        # The kernel's own high-water mark catches what falls between two samples.
        own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.peak_bytes = max(self.peak_bytes, own_peak)

    def _watch_memory(self) -> None:
        process = psutil.Process()
        while not self._done.wait(MEMORY_EVERY_S):
            with contextlib.suppress(psutil.Error):
                self.peak_bytes = max(self.peak_bytes, tree_memory_bytes(process))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        wall, cpu = time.perf_counter(), tree_cpu_s()
        yield
        self.stages[name] = Stage(time.perf_counter() - wall, tree_cpu_s() - cpu)


def install_mb() -> float:
    """Size of this environment's site-packages in MB (10^6 bytes)."""
    packages = Path(sysconfig.get_paths()["purelib"])
    files = (Path(folder) / name for folder, _, names in os.walk(packages) for name in names)
    return round(sum(file.lstat().st_size for file in files) / 1e6, 1)


def parse_arguments(description: str, *, batch: int, default_batch: int, workers: int) -> argparse.Namespace:
    """Read the command line that all runners share; `batch` was found best, `default_batch` is the library's own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the folder that make_encoders.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--workers", type=int, default=workers, help="data loading processes")
    parser.add_argument("--tissue-only", action="store_true", help="stop after the tile grid")
    parser.add_argument("--mpp", type=float, help="pixel size of level 0, for a reader that asks for it")
    parser.add_argument("--default-batch", action="store_true", help="the batch size that the library takes by itself")
    arguments = parser.parse_args()
    if arguments.default_batch:
        arguments.batch = default_batch
    return arguments


def version_of(package: str) -> str:
    """Return an installed package's version, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write_result(
    arguments: argparse.Namespace,
    meter: Meter,
    *,
    peer: str,
    package: str,
    coordinates_level0: Sequence[Sequence[float]],
    tile_level0_px: float,
    vectors: Any = None,
    notes: str = "",
    own_tissue: bool = True,
) -> None:
    """Write one run as JSON. Stages are named `import`, `model`, `tissue` and `embedding`.

    `own_tissue` is False where the reader's own tissue detection did not run; nothing is then said about it.
    """
    n_tiles = len(coordinates_level0)
    stages = {name: {"wall_s": stage.wall_s, "cpu_s": stage.cpu_s} for name, stage in meter.stages.items()}
    start_up = [meter.stages[name] for name in ("import", "model") if name in meter.stages]
    result: dict[str, Any] = {
        "peer": peer,
        "version": version_of(package),
        "torch": version_of("torch"),
        "encoder": arguments.encoder,
        "settings": {"threads": arguments.threads, "batch": arguments.batch, "workers": arguments.workers},
        "tiles": n_tiles,
        "import_s": meter.stages["import"].wall_s,
        "startup_s": sum(stage.wall_s for stage in start_up),
        "startup_cpu_s": sum(stage.cpu_s for stage in start_up),
        "stages": stages,
        "whole_cpu_s": meter.whole.cpu_s,
        "whole_wall_s": meter.whole.wall_s,
        "peak_rss_mb": round(meter.peak_bytes / 1e6, 1),
        "install_mb": install_mb(),
        "notes": notes,
        "own_tissue": own_tissue,
    }
    embedding = meter.stages.get("embedding")
    if embedding and n_tiles:
        if len(vectors) != n_tiles:
            raise SystemExit(f"{peer}: {n_tiles} tiles but {len(vectors)} vectors; the run does not count")
        result |= {
            "cpu_s": embedding.cpu_s,
            "wall_s": embedding.wall_s,
            "cpu_ms_per_tile": 1000 * embedding.cpu_s / n_tiles,
            "tiles_per_s": n_tiles / embedding.wall_s,
            "mean_vector": [round(float(value), 5) for value in vectors.mean(axis=0)[:8]],
        }
    result["tile_level0_px"] = tile_level0_px
    result["coordinates_level0"] = [[float(x), float(y)] for x, y in coordinates_level0]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result), encoding="utf-8")
    summary = {key: value for key, value in result.items() if key not in {"coordinates_level0", "mean_vector"}}
    print(json.dumps(summary, indent=1))
