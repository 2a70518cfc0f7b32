"""Measure a node that has nothing to do: seconds until its pages answer, memory, and processor time.

python bench/edge/idle.py [--seconds 60]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from slideway.edge.init import init_edge


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--starts", type=int, default=5)
    own = parser.parse_args()
    starts = [measure(0)[0] for _ in range(own.starts)]
    start, memory, share = measure(own.seconds)
    starts.append(start)
    print(
        f"| machine | {psutil.cpu_count()} cores, Python {sys.version.split()[0]}, load {psutil.getloadavg()[0]:.1f} |"
    )
    median = sorted(starts)[len(starts) // 2]
    print(f"| start until the pages answer, {len(starts)} starts | median {median:.2f} s, worst {max(starts):.2f} s |")
    print(f"| memory (RSS) after {own.seconds:.0f} s idle | {memory / 1e6:.0f} MB |")
    print(f"| processor time in those {own.seconds:.0f} s | {100 * share:.2f} % of one core |")


def measure(seconds: float) -> tuple[float, float, float]:
    """Seconds to start, bytes of memory, share of a core."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "node"
        init_edge(root)
        (root / "edge.toml").write_text("[web]\nport = 0\n[disk]\nreserve_mb = 0\n", encoding="utf-8")
        command = [sys.executable, "-m", "slideway", "edge", "serve", "--config", str(root / "edge.toml")]
        began = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            place = root / "state" / "serving.json"
            while not _answers(place):
                time.sleep(0.01)
            start = time.perf_counter() - began
            if not seconds:
                return start, 0, 0
            time.sleep(10)  # what is loaded after the pages are up
            probe = psutil.Process(process.pid)
            before = sum(probe.cpu_times()[:2])
            time.sleep(seconds)
            return start, probe.memory_info().rss, (sum(probe.cpu_times()[:2]) - before) / seconds
        finally:
            process.terminate()
            process.wait(30)


def _answers(place: Path) -> bool:
    try:
        url = json.loads(place.read_text(encoding="utf-8"))["url"]
        with urllib.request.urlopen(f"{url}/api/status", timeout=2) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    main()
