"""Kill nodes, readers, cloud and database over and over, and count what was lost or done twice.

    python bench/reliability/kill.py --kills 2000 --round 200 --seed 1

Rounds of `--round` kills, each with stores and a seed of its own; the first round that finds something wrong keeps its
folder and ends with exit code 1. `--seed N --rounds 1` draws the same plan again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.journeys._kills import run_campaign


def main() -> int:
    """Run rounds; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2000, help="of all rounds together")
    parser.add_argument("--round", type=int, default=200, help="kills of one round")
    parser.add_argument("--rounds", type=int, default=0, help="at most so many rounds; 0 for any")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--pause", type=float, default=0.5, help="mean seconds between kills at random moments")
    parser.add_argument("--keep-going", action="store_true", help="go on after a round that found something")
    asked = parser.parse_args()
    at_points, at_random, relay, counted = Counter(), Counter(), Counter(), Counter()
    began, done, rounds, bad = time.monotonic(), 0, 0, 0
    while done < asked.kills and (not asked.rounds or rounds < asked.rounds):
        seed = asked.seed + rounds
        folder = Path(tempfile.mkdtemp(prefix=f"slideway-kills-{seed}-"))
        wanted = min(asked.round, asked.kills - done)
        outcome = run_campaign(
            folder, seed=seed, kills=wanted, seconds=asked.round * 6.0, tell=_say, pause_seconds=asked.pause
        )
        for line in outcome.lines():
            _say(line)
        rounds, done = rounds + 1, done + outcome.kills
        at_points += outcome.at_points
        at_random += outcome.at_random
        relay += outcome.repeated
        counted += outcome.findings.counted
        counted["slides"] += outcome.slides
        _say(f"-- after {rounds} rounds and {time.monotonic() - began:.0f} s: {done} kills of {asked.kills}")
        if outcome.findings.wrong:
            bad += 1
            _say(f"round with seed {seed} found something; its folder is {folder}")
            if not asked.keep_going:
                break
    _say(f"total: {done} kills in {rounds} rounds and {time.monotonic() - began:.0f} s, {bad} rounds found something")
    tables = {"at named places": at_points, "at random moments": at_random, "relay": relay, "counted": counted}
    for title, table in tables.items():
        _say(title if table is counted else f"{title}: {sum(table.values())}")
        for key, count in sorted(table.items()):
            _say(f"  {key}: {count}")
    return int(bad > 0)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
