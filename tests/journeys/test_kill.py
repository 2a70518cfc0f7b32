"""Nodes, readers, cloud and database killed again and again: nothing lost, nothing twice, each slide with one end.

`SLIDEWAY_KILL_SEED=7 pytest tests/journeys/test_kill.py` draws another plan; a failure prints its seed. CI runs the
form of 200 kills and more (`-m slow`) for at most `SLIDEWAY_KILL_SECONDS`, and fails when they were not reached by
then. The long form is `python bench/reliability/kill.py`; docs/reliability.md says what all of them found.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import pytest

from slideway.testing import postgres

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, and killed by SIGKILL"),
    pytest.mark.skipif(postgres.find_postgres() is None, reason=postgres.WHY_NOT),
]
KILLS = 200


def _seed() -> int:
    return int(os.environ.get("SLIDEWAY_KILL_SEED", "") or secrets.randbelow(10**6))


def _run(folder: Path, *, kills: int, seconds: float, all_points: bool) -> None:
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    from tests.journeys._kills import run_campaign

    seed = _seed()
    told: list[str] = []
    outcome = run_campaign(folder, seed=seed, kills=kills, seconds=seconds, all_points=all_points, tell=told.append)
    print("\n".join([*told, *outcome.lines()]))  # noqa: T201  # shown when it fails
    again = f"SLIDEWAY_KILL_SEED={seed} draws the same plan"
    assert not outcome.findings.wrong, f"{outcome.findings.wrong}; {again}"
    assert outcome.kills >= kills, f"only {outcome.kills} kills in time; {again}"
    assert outcome.slides >= 3, again
    assert outcome.findings.counted["receipts"] > 0, again
    if all_points:
        for end in ("reported", "referred", "rejected"):
            assert outcome.findings.counted[f"ended {end}"] > 0, f"no slide was {end}; {again}"
        assert not outcome.missed, f"never killed at {sorted(outcome.missed)}; {again}"


def test_some_kills_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    _run(tmp_path, kills=20, seconds=60, all_points=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_kills_at_every_named_place_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    seconds = float(os.environ.get("SLIDEWAY_KILL_SECONDS", "") or 900)
    _run(tmp_path, kills=KILLS, seconds=seconds, all_points=True)
