"""`slideway edge export` and `slideway edge import`: a node without a line sends and hears by a folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from slideway.cli.progress import Bytes

FOLDER = click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
CONFIG = click.option(
    "--config", "config", metavar="FILE", default=Path("edge.toml"), show_default=True,
    type=click.Path(path_type=Path, dir_okay=False), help="Settings that `slideway edge init` wrote.",
)  # fmt: skip
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
SOME_FAILED, COULD_NOT_FINISH = 5, 6


@click.command("export", short_help="Write what waits for the cloud into FOLDER, as on a stick.")
@FOLDER
@CONFIG
@AS_JSON
def export(folder: Path, *, config: Path, as_json: bool) -> int:
    """Write what waits for the cloud into FOLDER, as on a stick: signed, and sealed so that only the cloud reads it.

    Most pressing first; what is there already stays. Nothing counts as sent until the cloud's receipts were brought
    back with `slideway edge import`. The node may serve meanwhile.

    \b
    Example:
      slideway edge export /media/stick --config node/edge.toml
    """
    from slideway.edge.settings import read_settings
    from slideway.edge.stick import export_stick
    from slideway.edge.words import say_bytes

    with Bytes("writing packets") as bar:
        done = export_stick(read_settings(config), folder, on_bytes=bar.on_bytes)
    if as_json:
        said = {**asdict(done), "packets": len(done.packets), "written_bytes": done.n_bytes}
        said.pop("n_bytes")
        click.echo(json.dumps(said))
    elif not done.packets and not done.left and not done.missing:
        click.echo(f"{folder}: nothing waits for the cloud")
    else:
        click.echo(
            f"{folder}: {_count(len(done.packets), 'packet')} for the cloud, {say_bytes(done.n_bytes)} written now"
        )
        click.echo("  next, at the cloud: slideway cloud import FOLDER")
        click.echo(f"  then back here: slideway edge import {folder}")
    if done.missing:
        click.echo(f"  not written: bytes of {_count(done.missing, 'file')} are not here any more", err=True)
    if done.left:
        click.echo(
            f"  the folder is full: {_count(done.left, 'packet')} more ({say_bytes(done.left_bytes)}) found no room. "
            "Bring this folder to the cloud first, or make room; then export again",
            err=True,
        )
        return COULD_NOT_FINISH
    return SOME_FAILED if done.missing else 0


@click.command("import", short_help="Take in what the cloud wrote into FOLDER.")
@FOLDER
@CONFIG
@AS_JSON
def import_folder(folder: Path, *, config: Path, as_json: bool) -> int:
    """Take in receipts and opinions that `slideway cloud import` wrote into FOLDER; the node may serve meanwhile.

    Twice, half-copied and out of order are harmless. Packets that were taken in are removed from FOLDER.

    \b
    Example:
      slideway edge import /media/stick --config node/edge.toml
    """
    from slideway.edge.settings import read_settings
    from slideway.edge.stick import import_stick

    done = import_stick(read_settings(config), folder)
    if as_json:
        click.echo(json.dumps({**asdict(done), "packets": len(done.packets)}))
    elif done.is_pending:
        click.echo("the node that serves has them and takes them in later; `slideway edge status` says when")
    else:
        click.echo(
            f"{folder}: {_count(len(done.packets), 'packet')} taken in, {_count(done.receipts, 'receipt')}, "
            f"{_count(done.messages, 'message')}"
        )
        if not done.packets and not done.refused:
            click.echo("  nothing from the cloud for this node; at the cloud: slideway cloud import FOLDER")
    for name, reason in done.refused.items():
        click.echo(f"  not taken: {name}: {reason}", err=True)
    if done.foreign and not as_json:
        click.echo(f"  {_count(done.foreign, 'packet')} for other nodes were left alone")
    return SOME_FAILED if done.refused else 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
