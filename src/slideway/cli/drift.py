"""`slideway drift`: do the slides that arrive still look like those a head learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from slideway.heads.drift import MIN_WINDOW
from slideway.heads.head import load_head
from slideway.pipeline.drift import ORDERS, describe_drift, say_drift, watch_library
from slideway.pipeline.slide_library import open_library
from slideway.registry.heads import find_head


@click.command("drift")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--head", "head_name", required=True, metavar="ID",
              help="The head whose known cases are the reference, or its folder.")  # fmt: skip
@click.option("--window", type=click.IntRange(MIN_WINDOW, 1000), default=20, show_default=True,
              help="Slides in a window: fewer are quick, more notice smaller changes.")  # fmt: skip
@click.option("--false-alarms", type=click.FloatRange(0, 0.5, min_open=True, max_open=True), default=0.01,
              show_default=True, help="Share of windows of ordinary slides that may raise an alarm.")  # fmt: skip
@click.option("--by", type=click.Choice(ORDERS), default="time", show_default=True,
              help="Order of the slides: when they were read, or the names of their folders.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print every window as JSON.")
def command(folder: Path, *, head_name: str, window: int, false_alarms: float, by: str, as_json: bool) -> int:
    """Hold the slides in FOLDER, answers of `slideway read`, against the cases that a head learnt from.

    A window rolls over the slides in the order in which they were read. For each it prints Hotelling's T² of its mean,
    the maximum mean discrepancy, and ALARM where one is above its threshold. An alarm says that slides changed, not
    that the head got worse. The exit code is 0 with and without alarms; scripts look at `alarm_now` of --json.

    \b
    Examples:
      slideway drift slideway-out --head county-1
      slideway drift slideway-out --head county-1 --window 50 --json | jq .alarm_now
    """
    library, card = open_library(folder), find_head(head_name)
    told = watch_library(library, card, load_head(card), window=window, false_alarms=false_alarms, by=by)
    result = describe_drift(told, library, card)
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else say_drift(result))
    return 0
