"""Do what README's "Two machines" says, line by line, and print how long each line took.

python bench/two_machines.py SLIDE

Two network namespaces with a cable between them stand for the two machines, and the name cloud.example leads from one
to the other. Each side gets a fresh virtual environment, which is part of the time; pip may use its cache. Of README's
words only CODE, the folder that pip installs from and /scans are replaced. Linux, as root,
with `ip` (iproute2). What it made is removed at the end.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDES = {"cloud": "slideway-cloud", "edge": "slideway-edge"}
ADDRESSES = {"cloud": "10.77.0.1", "edge": "10.77.0.2"}
LONGEST = 600.0
SERVES = re.compile(r"slideway (?:cloud|edge): https?://")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("slide", type=Path)
    slide = parser.parse_args().slide.resolve(strict=True)
    cloud, edge = read_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    place = Path(tempfile.mkdtemp(prefix="slideway-two-machines-"))
    began = time.perf_counter()
    try:
        with two_machines(), Walk(place) as walk:
            for line in cloud:
                walk.do("cloud", line)
            for line in edge[:-1]:
                walk.do("edge", line)
            walk.wait_for_answer(slide, edge[-1])
        print(f"| all | {time.perf_counter() - began:.0f} |")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def read_commands(readme: str) -> tuple[list[str], list[str]]:
    """The lines of both blocks of the section, without their comments."""
    section = readme.partition("## Two machines")[2].partition("\n## ")[0]
    blocks = [block.strip().splitlines() for block in re.findall(r"```\n(.*?)```", section, re.DOTALL)]
    cloud, edge = ([line.partition(" #")[0].rstrip() for line in block] for block in blocks)
    return cloud, edge


@contextmanager
def two_machines() -> Iterator[None]:
    """A network namespace each, a cable between them, and a name for the cloud."""
    hosts = Path("/etc/netns") / SIDES["edge"] / "hosts"
    try:
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(f"127.0.0.1 localhost\n{ADDRESSES['cloud']} cloud.example\n", encoding="utf-8")
        for name in SIDES.values():
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "slw-cloud",
            "netns",
            SIDES["cloud"],
            "type",
            "veth",
            "peer",
            "slw-edge",
            "netns",
            SIDES["edge"],
        )
        for side, name in SIDES.items():
            ip("-n", name, "address", "add", f"{ADDRESSES[side]}/30", "dev", f"slw-{side}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"slw-{side}", "up")
        yield
    finally:
        for name in SIDES.values():
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(hosts.parent, ignore_errors=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Walk:
    """Does a line at a time, on the side it is for."""

    def __init__(self, place: Path) -> None:
        self._place, self._scans, self._code = place, place / "scans", ""
        self._serving: list[subprocess.Popen[str]] = []
        self._scans.mkdir()

    def __enter__(self) -> "Walk":
        print(f"| step (2 sides on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}) | seconds |\n|---|---|")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._serving:
            process.terminate()
        for process in self._serving:
            process.wait(90)

    def do(self, side: str, line: str) -> None:
        """Do it, and print its time; what serves is left running."""
        began = time.perf_counter()
        if line.startswith("pip install"):
            self._install(side, line)
        elif " serve " in line:
            self._serve(side, line)
        elif " invite " in line:
            self._code = self._run(side, line).strip()
        else:
            self._run(side, line)
        print(f"| {side}: `{line}` | {time.perf_counter() - began:.1f} |", flush=True)

    def wait_for_answer(self, slide: Path, status: str) -> None:
        """A slide is put where the scanner would write it; done when it has its end, with the cloud's opinion."""
        began = time.perf_counter()
        shutil.copy(slide, self._scans / slide.name)
        counts: dict[str, int] = {}
        while time.perf_counter() - began < LONGEST and not counts.get("reported", 0) + counts.get("referred", 0):
            time.sleep(1)
            counts = json.loads(self._run("edge", f"{status} --json"))["slides"]
        if not counts.get("reported", 0) + counts.get("referred", 0):
            sys.exit(f"no answer within {LONGEST:.0f} s: {counts}")
        step = "edge: a slide is copied into the scanner's folder; until the cloud's opinion on it is here"
        print(f"| {step} | {time.perf_counter() - began:.1f} |")
        fleet = self._run("cloud", "slideway cloud fleet --config cloud/cloud.toml")
        print(self._run("edge", status), fleet, sep="", file=sys.stderr)

    def _install(self, side: str, line: str) -> None:
        """In the network of this computer, since a cable to nowhere has no package index."""
        subprocess.run([sys.executable, "-m", "venv", self._place / f"venv-{side}"], check=True)
        command = re.sub(r'"?\.(\[cloud\])?"?$', lambda found: f"{ROOT}{found[1] or ''}", line)
        pip = self._place / f"venv-{side}" / "bin" / "pip"
        subprocess.run([pip, *command.split()[1:], "-qq"], check=True)

    def _words(self, side: str, line: str) -> list[str]:
        words = line.replace("CODE", self._code).replace("/scans", str(self._scans)).split()
        program = self._place / f"venv-{side}" / "bin" / words[0]
        return ["ip", "netns", "exec", SIDES[side], str(program), *words[1:]]

    def _run(self, side: str, line: str) -> str:
        done = subprocess.run(self._words(side, line), cwd=self._place, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def _serve(self, side: str, line: str) -> None:
        log = self._place / f"{side}.log"
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(self._words(side, line), cwd=self._place, stdout=out, stderr=out, text=True)
        self._serving.append(process)
        while not SERVES.search(log.read_text(encoding="utf-8")):
            if process.poll() is not None:
                sys.exit(log.read_text(encoding="utf-8"))
            time.sleep(0.05)


if __name__ == "__main__":
    main()
