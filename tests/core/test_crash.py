"""Crash points: each stands in the code once, and kills at the count that is asked for."""

import re
import subprocess
import sys
from pathlib import Path

import slideway
from slideway.core.crash import CRASH_POINTS

SOURCE = Path(slideway.__file__).parent


def test_each_crash_point_stands_in_the_code_exactly_once():
    found = [
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"crash_here\(\"([a-z.-]+)\"\)", path.read_text(encoding="utf-8"))
        if path.name != "crash.py"
    ]
    assert sorted(found) == sorted(CRASH_POINTS)


def test_process_dies_at_the_named_place_at_the_count_that_is_asked_for():
    code = (
        "import os; from slideway.core.crash import crash_here\n"
        "for i in range(5):\n    print(i, flush=True); crash_here('sync.after-answer'); crash_here('tus.after-write')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"SLIDEWAY_CRASH_AT": "sync.after-answer:3", "PYTHONPATH": str(SOURCE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (-9, 137)
    assert done.stdout.split() == ["0", "1", "2"]
