"""`slideway edge`: make a node, enrol it, serve it, and say how it is."""

from __future__ import annotations

import json
from pathlib import Path

import click

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
@click.argument("url")
@click.argument("code")
@click.option("--name", default="", help="Name of this node for the people at the cloud.")
@CONFIG_OPTION
def enrol(url: str, code: str, *, name: str, config: Path) -> int:
    """Enrol with the cloud at URL; CODE is the line that `slideway cloud invite` printed. It works once.

    \b
    Example:
      slideway edge enrol https://cloud.example:8443 J3v…kQ.5f0a…91 --config node/edge.toml
    """
    from slideway.edge.enrol import enrol_edge
    from slideway.edge.init import pin_receiver
    from slideway.edge.settings import read_settings
    from slideway.sync.identity import load_keys

    settings = read_settings(config)
    places = settings.places
    endpoint = enrol_edge(url, code, load_keys(places.keys), places.endpoint, name=name)
    click.echo(f"enrolled as {endpoint.tenant}/{endpoint.node} with {endpoint.url}")
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
    from slideway.edge.app import open_edge
    from slideway.edge.logs import set_up_logs
    from slideway.edge.serve import serve_edge
    from slideway.edge.settings import read_settings

    set_up_logs()
    edge = open_edge(read_settings(config))
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
