"""`slideway cloud`: make and run a cloud, and say who may call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

CONFIG_OPTION = click.option(
    "--config", "config", metavar="FILE", default=Path("cloud.toml"), show_default=True,
    type=click.Path(path_type=Path, dir_okay=False), help="Settings that `slideway cloud init` wrote.",
)  # fmt: skip


@click.group("cloud")
def command() -> None:
    """Make and run the cloud that many nodes send to.

    \b
    A cloud in five commands:
      slideway cloud init cloud --host cloud.example
      slideway cloud tenant add north --config cloud/cloud.toml
      slideway cloud invite north lab-1 --config cloud/cloud.toml
      slideway cloud serve --config cloud/cloud.toml
      slideway cloud fleet --config cloud/cloud.toml
    """


@command.command("init", short_help="Make FOLDER: authority, certificate, keys, cloud.toml.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--host", "hosts", multiple=True, metavar="NAME",
              help="Name or address under which nodes reach it; may be repeated. Default: this computer.")  # fmt: skip
@click.option("--renew", is_flag=True, help="Make a new server certificate; nodes notice nothing.")
def init(folder: Path, hosts: tuple[str, ...], *, renew: bool) -> int:
    """Make FOLDER with authority, certificate, keys, an operator's token and cloud.toml; what is there stays.

    \b
    Examples:
      slideway cloud init cloud
      slideway cloud init cloud --host cloud.example --host 10.0.0.5
    """
    from slideway.cloud.init import CONFIG, OPERATOR, init_cloud
    from slideway.cloud.pki import choose_host

    done = init_cloud(folder, hosts=hosts, renew=renew)
    if not done.made:
        click.echo(f"{folder}: all of it is there already; nothing was changed")
        return 0
    click.echo(f"{folder}: made {', '.join(done.made)}")
    click.echo(f"  the certificate is for {', '.join(done.hosts)}; its authority begins {done.pin}")
    click.echo(f"  nodes will reach it at https://{choose_host(done.hosts)}:8443, unless cloud.toml says another port")
    click.echo(
        f"  the operator's token lies in {folder / OPERATOR}; keep a backup of the folder, it cannot be made again"
    )
    click.echo(f"  next: slideway cloud tenant add NAME --config {folder / CONFIG}")
    return 0


@command.command("serve", short_help="Serve until SIGTERM or Ctrl-C.")
@CONFIG_OPTION
@click.option("--role", type=click.Choice(["api", "worker", "all"]), default="all", show_default=True,
              help="What this process does; with SQLite only `all`.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65_535), help="Instead of the one in the settings, e.g. for a worker.")
@click.option(
    "--have-backup", is_flag=True, help="Migrate PostgreSQL when it is of an older version: I have a pg_dump."
)
def serve(config: Path, *, role: str, port: int | None, have_backup: bool) -> int:
    """Serve until SIGTERM or Ctrl-C; then requests and jobs in hand are finished or given back.

    \b
    Examples:
      slideway cloud serve --config cloud/cloud.toml
      slideway cloud serve --config cloud/cloud.toml --role worker --port 8444
    """
    from dataclasses import replace

    from slideway.cloud.logs import set_up_logs
    from slideway.cloud.serve import open_patiently, serve_cloud
    from slideway.cloud.settings import read_settings

    settings = read_settings(config)
    if port is not None:
        settings = replace(settings, server=replace(settings.server, port=port))
    set_up_logs()
    cloud = open_patiently(settings, allow_without_backup=have_backup)
    return serve_cloud(cloud, role=role, on_ready=lambda address: click.echo(f"slideway cloud: {address}", err=True))


@command.group("tenant")
def tenant() -> None:
    """Tenants: hospitals, each by itself."""


@tenant.command("add")
@click.argument("tenant_id", metavar="TENANT")
@click.option("--name", default="", help="For people to read.")
@CONFIG_OPTION
def tenant_add(tenant_id: str, *, name: str, config: Path) -> int:
    """Add a tenant; one that is there stays as it is.

    \b
    Example:
      slideway cloud tenant add north --name "North hospital"
    """
    _do(
        config,
        lambda store, _: store.add_tenant(tenant_id, name=name),
        "POST", "/v1/tenants", {"tenant": tenant_id, "name": name},
    )  # fmt: skip
    click.echo(f"tenant {tenant_id} is there; next: slideway cloud invite {tenant_id} NODE --config {config}")
    return 0


@command.command("invite", short_help="Print the code that lets a node enrol, once.")
@click.argument("tenant_id", metavar="TENANT")
@click.argument("node")
@click.option("--name", default="", help="Name of the node for people to read.")
@click.option("--hours", type=click.FloatRange(0.01, 24 * 90), default=72.0, show_default=True,
              help="How long the code works.")  # fmt: skip
@click.option("--to-folder", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="For a node without a line: write its invitation into FOLDER, as on a stick.")  # fmt: skip
@CONFIG_OPTION
def invite(tenant_id: str, node: str, *, name: str, hours: float, folder: Path | None, config: Path) -> int:
    """Invite NODE: prints the code that its operator types, once; also for a node that lost its key or was revoked.

    With --to-folder the code goes to the node on another way than the folder: it proves that nobody changed it.

    \b
    Examples:
      slideway cloud invite north lab-1
      slideway cloud invite north lab-1 --to-folder /media/stick
    """
    from slideway.cloud.enrolment import invite_node

    made = _do(
        config,
        lambda store, folder: {
            "code": invite_node(store, tenant_id, node, ca_pem=folder.ca_pem, name=name, hours=hours)
        },
        "POST", f"/v1/tenants/{tenant_id}/nodes/{node}/invitation", {"name": name, "hours": hours},
    )  # fmt: skip
    code = made["code"]
    if folder is not None:
        from slideway.cloud.stick import write_invitation

        code, path = write_invitation(folder, _read(config)[1], tenant=tenant_id, node=node, code=code)
        click.echo(
            f"{path}: written; at the node: slideway edge enrol CODE --from-folder FOLDER, and CODE is", err=True
        )
    click.echo(code)
    return 0


@command.command("revoke")
@click.argument("tenant_id", metavar="TENANT")
@click.argument("node")
@click.option("--reason", required=True, help="Why, in a line.")
@CONFIG_OPTION
def revoke(tenant_id: str, node: str, *, reason: str, config: Path) -> int:
    """Let NODE do nothing any more, from its next request on.

    \b
    Example:
      slideway cloud revoke north lab-1 --reason stolen
    """
    from slideway.cloud.enrolment import revoke_node

    _do(
        config,
        lambda store, _: revoke_node(store, tenant_id, node, reason=reason),
        "POST", f"/v1/tenants/{tenant_id}/nodes/{node}/revocation", {"reason": reason},
    )  # fmt: skip
    click.echo(f"{tenant_id}/{node} may do nothing any more")
    return 0


@command.command("command", short_help="Tell NODE to pause, to resume, or to take one slide first.")
@click.argument("tenant_id", metavar="TENANT")
@click.argument("node")
@click.argument("order", metavar="ORDER", type=click.Choice(["pause", "resume", "priority"]))
@click.option("--slide", default="", metavar="SHA256", help="For priority: hash of the slide, 64 hex digits.")
@click.option("--urgent/--not-urgent", "is_urgent", default=True, show_default=True,
              help="For priority: before all others, or back among them.")  # fmt: skip
@CONFIG_OPTION
def give_command(tenant_id: str, node: str, order: str, *, slide: str, is_urgent: bool, config: Path) -> int:
    """Tell NODE to `pause` reading slides, to `resume`, or to give one slide `priority`; it knows no other order.

    It takes the order when it next asks for messages, also when that is days from now.

    \b
    Examples:
      slideway cloud command north lab-1 pause
      slideway cloud command north lab-1 priority --slide 3f0a...
    """
    from slideway.cloud.commands import Command, command_node, make_id

    said = Command(make_id(), order, slide.lower(), is_urgent)
    _do(
        config,
        lambda store, _: command_node(store, tenant_id, node, said, actor="operator"),
        "POST", f"/v1/tenants/{tenant_id}/nodes/{node}/commands",
        {"id": said.id, "do": order, "slide": said.slide, "urgent": is_urgent},
    )  # fmt: skip
    click.echo(f"{tenant_id}/{node} is told to {order}" + (f" slide {said.slide[:12]}" if slide else ""))
    return 0


@command.group("user", short_help="People: specialists and operators.")
def user() -> None:
    """People: specialists who answer consultations, operators who run the fleet."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(["specialist", "operator"]), required=True)
@click.option("--organs", default="", help="Of a specialist: sites as `slideway coverage` lists them, or * for all.")
@click.option("--centre", default="", help="Centre that a specialist answers for.")
@CONFIG_OPTION
def user_add(name: str, *, role: str, organs: str, centre: str, config: Path) -> int:
    """Add a person and print their token, once; of a person who is there the old token ends.

    \b
    Examples:
      slideway cloud user add dr-weber --role specialist --organs lung,kidney
      slideway cloud user add ops --role operator
    """
    people = _read(config)[1].people
    click.echo(
        people.add(name, role, organs=[word.strip() for word in organs.split(",") if word.strip()], centre=centre)
    )
    return 0


@user.command("remove")
@click.argument("name")
@CONFIG_OPTION
def user_remove(name: str, *, config: Path) -> int:
    """Let a person do nothing any more."""
    is_gone = _read(config)[1].people.remove(name)
    click.echo(f"{name} may do nothing any more" if is_gone else f"there is nobody named {name}")
    return 0


@command.command("fleet", short_help="Each node: when heard of, what waits, what came.")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def fleet(config: Path, *, as_json: bool) -> int:
    """Say of each node how long ago it was heard of, what waits, and what came."""
    from dataclasses import asdict

    from slideway.cloud.fleet import view_fleet
    from slideway.store.database import open_store

    settings, _ = _read(config)
    with open_store(settings.store_url, read_only=True) as store:
        seen = view_fleet(store)
    if as_json:
        click.echo(json.dumps(asdict(seen), ensure_ascii=False))
        return 0
    for line in seen.nodes:
        heard = "never" if line.seen_seconds is None else f"{line.seen_seconds:.0f} s ago"
        click.echo(f"{line.tenant}/{line.node}  {line.state}  {line.version or '-'}  heard of {heard}  "
                   f"{line.waiting} messages wait  {line.bytes_in:,} bytes came")  # fmt: skip
    click.echo("jobs: " + ", ".join(f"{count} {state}" for state, count in seen.jobs.items()))
    return 0


@command.command("import", short_help="Take in what nodes without a line brought on a stick.")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@CONFIG_OPTION
def import_folder(folder: Path, *, config: Path) -> int:
    """Take in what nodes without a line brought in FOLDER, as on a stick; receipts and opinions are put beside it.

    Twice, half-copied and out of order are harmless. With SQLite, stop `cloud serve` first.

    \b
    Example:
      slideway cloud import /media/stick --config cloud/cloud.toml
    """
    from slideway.cloud.app import import_packets, open_cloud
    from slideway.cloud.settings import read_settings

    cloud = open_cloud(read_settings(config))
    try:
        done = import_packets(cloud, folder)
    finally:
        cloud.close()
    for name in done.enrolled:
        click.echo(f"{name}: enrolled")
    click.echo(f"{folder}: {len(done.taken)} packets taken; take the folder back to its node for the receipts")
    for name, reason in done.refused.items():
        click.echo(f"  not taken: {name}: {reason}", err=True)
    return 5 if done.refused else 0


def _read(config: Path) -> tuple[Any, Any]:
    from slideway.cloud.init import open_folder
    from slideway.cloud.settings import read_settings

    settings = read_settings(config)
    return settings, open_folder(settings.folder)


def _do(config: Path, here: Callable[[Any, Any], Any], method: str, path: str, content: dict[str, Any]) -> Any:
    """Do something in the store; where a running cloud has it, ask that one over HTTP, as operator."""
    from slideway.cloud.client import ask_cloud
    from slideway.core.errors import LockedStoreError
    from slideway.store.database import open_store

    settings, folder = _read(config)
    try:
        store = open_store(settings.store_url)
    except LockedStoreError:
        return ask_cloud(settings, folder, method, path, content)
    with store:
        return here(store, folder)
