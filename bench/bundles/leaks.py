"""Whether reading very many bundles leaks memory or open files.

    python bench/bundles/leaks.py BUNDLE [BUNDLE ...] [--reads 10000]

Reads the bundles in turn, each whole, cut in half, and with its last bit flipped; prints resident memory and open files
along the way, as Markdown. The first tenth warms up; what grows after it would be a leak.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from slideway.bundles import read_bundle
from slideway.core.errors import BrokenBundleError
from slideway.encoders.engines import describe_processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--reads", type=int, default=10_000)
    options = parser.parse_args()
    process = psutil.Process()
    print(f"{describe_processor()}, {os.cpu_count()} cores, {len(options.bundles)} bundles\n")
    print("| reads | resident memory, MB | open files | refused | CPU s |")
    print("|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        files = [file for path in options.bundles for file in spoil(path, Path(folder))]
        refused, step = 0, max(1, options.reads // 10)
        for done in range(options.reads + 1):
            if done % step == 0:
                gc.collect()
                resident = process.memory_info().rss / 1e6
                print(f"| {done:,} | {resident:.1f} | {len(process.open_files())} ", end="")
                print(f"| {refused:,} | {time.process_time():.0f} |", flush=True)
            refused += not read(files[done % len(files)])


def spoil(path: Path, folder: Path) -> list[Path]:
    """The bundle itself, its first half, and one with a flipped bit."""
    content = path.read_bytes()
    names = [folder / f"{len(content)}-{kind}.swb" for kind in ("half", "flipped")]
    names[0].write_bytes(content[: len(content) // 2])
    names[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return [path, *names]


def read(path: Path) -> bool:
    """Whether it is a bundle; its bag is made, too."""
    try:
        bundle = read_bundle(path)
        bundle.bag()
        _ = bundle.opinion
    except BrokenBundleError:
        return False
    return True


if __name__ == "__main__":
    main()
