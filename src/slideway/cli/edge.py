"""`slideway edge`: make a node, enrol it, serve it, and say how it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from slideway.cli.edge_stick import export, import_folder

CONFIG_OPTION = click.option(
    "--config", "config", metavar="FILE", default=Path("edge.toml"), show_default=True,
    type=click.Path(path_type=Path, dir_okay=False), help="Settings that `slideway edge init` wrote.",
)  # fmt: skip


@click.group("edge")
def command() -> None:
    """Make and run the node beside a scanner: it reads slides, and sends what the policy lets leave.

    \b
    A node in four commands:
      slideway edge init node --watch /scans
      slideway edge enrol https://cloud.example:8443 CODE --config node/edge.toml
      slideway edge serve --config node/edge.toml
      slideway edge status --config node/edge.toml
    """


@command.command("init", short_help="Make FOLDER: edge.toml, keys, the store.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--watch", "watch", multiple=True, metavar="FOLDER",
              help="Folder that a scanner writes into; may be repeated. Without it: FOLDER/scans.")  # fmt: skip
@click.option("--policy", type=click.Choice(["opinions", "features", "regions"]),
              help="Also write a policy that lets so much leave once enrolled. Without it nothing leaves.")  # fmt: skip
@click.option("--receiver", default="cloud", show_default=True, help="What the policy calls the cloud.")
def init(folder: Path, *, watch: tuple[str, ...], policy: str | None, receiver: str) -> int:
    """Make FOLDER with edge.toml, an example of a policy, keys and the store; what is there stays.

    \b
    Examples:
      slideway edge init node --watch /mnt/scanner
      slideway edge init node --policy features
    """
    from slideway.edge.init import init_edge

    done = init_edge(folder, watch=watch, policy=policy, receiver=receiver)
    click.echo(f"{folder}: made {', '.join(done.made)}" if done.made else f"{folder}: all of it is there already")
    click.echo(f"  watched: {', '.join(str(place) for place in done.folders)}")
    if policy is None:
        click.echo(f"  nothing leaves until {folder / 'policy.toml'} says so; policy.example.toml shows how")
    else:
        click.echo(
            f"  {folder / 'policy.toml'} lets {policy} leave once the node is enrolled; write your reason into it"
        )
    config = folder / "edge.toml"
    click.echo(f"  next: slideway edge enrol URL CODE --config {config}, or without a cloud:")
    click.echo(f"        slideway edge serve --config {config}")
    return 0


# A code may begin with a hyphen: it is no option.
@command.command(
    "enrol", short_help="Join the cloud at URL with its CODE, once.", context_settings={"ignore_unknown_options": True}
)
@click.argument("words", nargs=-1, required=True, metavar="[URL] CODE")
@click.option("--name", default="", help="Name of this node for the people at the cloud.")
@click.option("--from-folder", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Without a line: FOLDER with the invitation that the cloud wrote; give CODE only.")  # fmt: skip
@CONFIG_OPTION
def enrol(words: tuple[str, ...], *, name: str, folder: Path | None, config: Path) -> int:
    """Enrol with the cloud at URL; CODE is the line that `slideway cloud invite` printed. It works once.

    \b
    Examples:
      slideway edge enrol https://cloud.example:8443 J3v…kQ.5f0a…91 --config node/edge.toml
      slideway edge enrol J3v…kQ.77c2…08 --from-folder /media/stick --config node/edge.toml
    """
    from slideway.edge.enrol import enrol_edge
    from slideway.edge.init import pin_receiver
    from slideway.edge.settings import read_settings
    from slideway.edge.stick import enrol_from_folder
    from slideway.sync.identity import load_keys

    if len(words) != (2 if folder is None else 1):
        raise click.UsageError("give URL and CODE, or CODE with --from-folder FOLDER")
    settings = read_settings(config)
    places = settings.places
    keys, code = load_keys(places.keys), words[-1]
    if folder is None:
        endpoint = enrol_edge(words[0], code, keys, places.endpoint, name=name, proxy=settings.cloud.proxy)
        click.echo(f"enrolled as {endpoint.tenant}/{endpoint.node} with {endpoint.url}")
    else:
        endpoint = enrol_from_folder(folder, code, keys, places.endpoint)
        click.echo(
            f"enrolled as {endpoint.tenant}/{endpoint.node}, without a line; the cloud hears of it from {folder}"
        )
    pinned = pin_receiver(settings.policy_file, settings.policy.receiver, endpoint.cloud_receiving_key)
    name_of = settings.policy_file.name
    told = {
        "pinned": f"{name_of}: the cloud's key is pinned in it",
        "already": f"{name_of}: the cloud's key is pinned in it already",
        "other": f"{name_of}: ANOTHER key is pinned for {settings.policy.receiver!r}, so nothing leaves; compare the "
        "fingerprints with the cloud's operator",
        "missing": f"{name_of}: names no {settings.policy.receiver!r}, so nothing leaves; see policy.example.toml",
    }
    click.echo(f"  {told[pinned]}")
    click.echo(f"  next: slideway edge serve --config {config} (if it serves already, stop it and start it again)")
    return 0


@command.command("serve", short_help="Watch, read, send and show until Ctrl-C.")
@CONFIG_OPTION
def serve(config: Path) -> int:
    """Serve until SIGTERM or Ctrl-C: watch, read, send, and show the pages. What is in hand then is given back.

    \b
    Example:
      slideway edge serve --config node/edge.toml
    """
    from slideway.core.errors import SlidewayError
    from slideway.edge.app import open_edge
    from slideway.edge.logs import log, set_up_logs
    from slideway.edge.serve import serve_edge
    from slideway.edge.settings import read_settings

    settings = read_settings(config)
    set_up_logs(form=settings.edge.log)
    try:
        edge = open_edge(settings)
    except SlidewayError as error:
        log("not-started", level=logging.ERROR, code=error.code)
        raise
    return serve_edge(edge, on_ready=lambda url: click.echo(f"slideway edge: {url}", err=True))


@command.command("status", short_help="Say what waits and why, serving or not.")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(config: Path, *, as_json: bool) -> int:
    """Say in plain words what waits and why, whether the node serves or not.

    \b
    Example:
      slideway edge status --config node/edge.toml
    """
    from slideway.edge.settings import read_settings
    from slideway.edge.status import ask_status, describe, read_status

    found = ask_status(read_settings(config))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return 0
    for sentence in describe(read_status(found)):
        click.echo(sentence)
    return 0


@command.command("ask", short_help="Ask a specialist about SLIDE.")
@click.argument("slide")
@click.option("--organ", required=True, metavar="SITE", help="Specialists for what; `slideway coverage` lists sites.")
@click.option("--question", required=True, metavar="TEXT", help="In your own words, without any patient's name.")
@click.option("--urgent", is_flag=True, help="Before other questions.")
@CONFIG_OPTION
def ask(slide: str, *, organ: str, question: str, urgent: bool, config: Path) -> int:
    """Ask a specialist about SLIDE: the beginning of its hash, its file, or the file's name.

    The question leaves the hospital where the policy lets opinions leave (docs/edge.md). The answer is shown on the
    slide's page.

    \b
    Example:
      slideway edge ask 4be1f0c2 --organ lung --question "Adenocarcinoma or squamous?" --config node/edge.toml
    """
    from slideway.edge import act
    from slideway.edge.settings import read_settings

    click.echo(act.ask(read_settings(config), slide, organ=organ, question=question, is_urgent=urgent))
    return 0


@command.command("urgent", short_help="Put SLIDE before all others.")
@click.argument("slide")
@CONFIG_OPTION
def urgent(slide: str, *, config: Path) -> int:
    """Put SLIDE before all others, here and at the cloud: the beginning of its hash, its file, or the file's name.

    \b
    Example:
      slideway edge urgent 4be1f0c2 --config node/edge.toml
    """
    from slideway.edge import act
    from slideway.edge.settings import read_settings

    click.echo(act.make_urgent(read_settings(config), slide))
    return 0


for _stick in (export, import_folder):
    command.add_command(_stick)
