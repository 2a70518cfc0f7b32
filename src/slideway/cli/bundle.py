"""`slideway bundle`: what a case bundle holds, what of it may leave, and what came from others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slideway.bundles.explain import NO_DIAGNOSIS, Explanation, explain_bundle, tell_tier
from slideway.bundles.policy import EXAMPLE, Policy, load_policy, policy_path
from slideway.bundles.read import CaseBundle, read_bundle
from slideway.bundles.release import ReleaseReport, release_bundle
from slideway.bundles.unpack import write_files
from slideway.core.errors import UntrustedBundleError, WrongUseError
from slideway.core.files import write_whole
from slideway.pipeline.output import OutputFolder
from slideway.registry.keys import TrustedKey, in_groups, list_trusted, make_signing_key
from slideway.registry.receivers import (
    ReceiverKey,
    add_receiver,
    find_receiver,
    list_receivers,
    load_receiving_key,
    make_receiving_key,
    receiving_key_path,
)
from slideway.registry.staging import write_fence

if TYPE_CHECKING:
    from rich.console import Console

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group("bundle")
def command() -> None:
    """What a case bundle holds, what of it may leave, and to whom.

    `slideway read` writes bundle.swb, unsigned, for this laboratory. Only `release` makes of it what may travel: the
    policy file decides what is in it, this node signs it, the receiver's key opens it.

    \b
    Examples:
      slideway bundle explain slideway-out/biopsy/bundle.swb       in words: what is in it, what is not
      slideway bundle policy --example > policy.toml               write down who may have what, and why
      slideway bundle key --public county.pub                      at the receiver: the key to lock bundles to
      slideway bundle receivers add county-hospital county.pub     at the sender
      slideway bundle release slideway-out/biopsy/bundle.swb --to county-hospital
      slideway bundle unpack bundle-county-hospital.swb received   at the receiver

    docs/policy.md says more.
    """


@command.command("explain")
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--key", "key_file", type=_FILE, metavar="FILE",
              help="Private key that opens it; default: this node's receiving key.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(file: Path, *, key_file: Path | None, as_json: bool) -> int:
    """Say in words what a bundle holds and what it does not hold.

    A bundle that is locked to somebody else is told by its list of parts alone.
    """
    names = {key.raw: key.name for key in list_trusted()}
    told = explain_bundle(file, trusted=names, key=load_receiving_key(key_file))
    if as_json:
        click.echo(json.dumps(_explain_as_json(told), indent=2, ensure_ascii=False))
    else:
        _print_explanation(file.name, told)
    return 0


@command.command("release", short_help="Make what may leave for a receiver: signed, locked.")
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--to", "receiver", required=True, metavar="RECEIVER", help="Its name in the policy file.")
@click.option("--policy", "policy_file", type=_FILE, metavar="FILE",
              help="Policy file; default: SLIDEWAY_POLICY, else the one of this installation.")  # fmt: skip
@click.option("--key", "key_file", type=_FILE, metavar="FILE",
              help="Public key of the receiver; default: the one of `slideway bundle receivers add`.")  # fmt: skip
@click.option("-o", "--out", type=_FILE, metavar="OUT", help="File to write; default: beside FILE, FILE-RECEIVER.swb.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def release(
    file: Path, *, receiver: str, policy_file: Path | None, key_file: Path | None, out: Path | None, as_json: bool
) -> int:
    """Make of FILE what may leave for a receiver: of what the policy names, signed, and locked to them.

    Nothing is sent. Ends with 4 when the policy does not let it leave.

    \b
    Example:
      slideway bundle release slideway-out/biopsy/bundle.swb --to county-hospital -o /media/usb/1.swb
    """
    from slideway.registry.receivers import read_receiver_key

    policy = load_policy(policy_file)
    key = read_receiver_key(key_file) if key_file else find_receiver(receiver)
    made, report = release_bundle(
        file, policy, receiver, signer=make_signing_key(), receiver_key=key.public if key else None
    )
    out = out or file.with_name(f"{file.stem}-{receiver}{file.suffix}")
    if out.exists() and out.samefile(file):
        raise WrongUseError(f"{out.name}: is the bundle itself; write to another file with -o")
    _write_whole(out, made)
    facts = {**asdict(report), "file": str(out)}
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _say_release(out, report))
    return 0


@command.command("unpack", short_help="Check, open and write out a bundle that came.")
@click.argument("file", type=_FILE, metavar="FILE")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--unsigned", is_flag=True, help="Take it also when nobody that is trusted here signed it.")
@click.option("--trust", multiple=True, type=_FILE, metavar="FILE", help="Also believe this public key, this once.")
@click.option("--key", "key_file", type=_FILE, metavar="FILE",
              help="Private key that opens it; default: this node's receiving key.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def unpack(
    file: Path, out: Path, *, unsigned: bool, trust: tuple[Path, ...], key_file: Path | None, as_json: bool
) -> int:
    """Check a bundle that came, open it with this node's key, and write what is in it into the new folder OUT.

    Writes summary.json and, as far as they came, opinion.json, thumbnail.webp and bag.safetensors. Of a bundle that was
    cut off on the way, what came is given and what is missing is said. The signer must be trusted here:
    `slideway models key --trust FILE`, after comparing fingerprints by telephone.
    """
    case = read_bundle(file, key=load_receiving_key(key_file))
    signer = None if unsigned else _require_signed(case, list_trusted(*trust))
    if out.exists():
        raise WrongUseError(f"{out}: is there already; name a new folder")
    with OutputFolder(out.parent, out.name) as output:
        names = write_files(case, output.path)
        folder = output.commit()
    facts = {
        "folder": str(folder),
        "files": list(names),
        "signer": None if signer is None else signer.name,
        "whole": case.is_whole,
        "missing": list(case.missing),
    }
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _say_unpacked(folder, names, case))
    return 0


@command.command("policy")
@click.argument("file", type=_FILE, metavar="[FILE]", required=False)
@click.option("--example", is_flag=True, help="Print a commented example to start from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def policy(file: Path | None, *, example: bool, as_json: bool) -> int:
    """Check the policy file and show who may have what.

    FILE is by default SLIDEWAY_POLICY, else the one of this installation. Ends with 4 when there is none or it is not
    understood; then nothing leaves.
    """
    if example:
        click.echo(EXAMPLE, nl=False)
        return 0
    found = load_policy(file)
    if as_json:
        rules = [{**asdict(rule), "level": rule.level.word} for rule in found.receivers.values()]
        click.echo(json.dumps({"file": str(file or policy_path()), "receivers": rules}, indent=2, ensure_ascii=False))
    else:
        _print_policy(file or policy_path(), found)
    return 0


@command.command("key", short_help="Show the key that others lock bundles to.")
@click.option("--public", type=_FILE, metavar="FILE", help="Write this node's public key to a file, to hand out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def key(*, public: Path | None, as_json: bool) -> int:
    """Show this node's receiving key (made on first use): others lock bundles to it.

    Read its fingerprint out to the sender, by telephone or face to face; they write it into their policy file. Keep a
    backup of the private key: without it, nothing that was locked to it can be opened.
    """
    own = ReceiverKey("this node", make_receiving_key().public_key())
    if public is not None:
        _write_whole(public, own.pem)
    if as_json:
        click.echo(json.dumps({"fingerprint": own.fingerprint, "file": str(receiving_key_path())}, indent=2))
        return 0
    click.echo(f"this node    {in_groups(own.fingerprint)}\n             {receiving_key_path()} (never hand this out)")
    if public is not None:
        click.echo(f"give {public} to the sender, and read the fingerprint out to them")
    return 0


@command.group("receivers")
def receivers() -> None:
    """Keys of those who receive bundles. Having a key here gives nobody anything: the policy file does."""


@receivers.command("add", short_help="Keep a receiver's public key.")
@click.argument("name", metavar="NAME")
@click.argument("file", type=_FILE, metavar="PUBFILE")
def add(name: str, file: Path) -> int:
    """Keep the public key of the receiver NAME, as `slideway bundle key --public` wrote it there.

    \b
    Example:
      slideway bundle receivers add county-hospital county.pub
    """
    kept = add_receiver(name, file)
    click.echo(f"{kept.name}: {in_groups(kept.fingerprint)}")
    click.echo("compare this with the receiver by telephone, then write it into the policy file:")
    click.echo(f'  [receiver.{kept.name}]\n  key = "{in_groups(kept.fingerprint)}"')
    return 0


@receivers.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_keys(*, as_json: bool) -> int:
    """List the receivers' keys that are kept here."""
    rows = [{"name": kept.name, "fingerprint": kept.fingerprint} for kept in list_receivers()]
    if as_json:
        click.echo(json.dumps({"receivers": rows}, indent=2))
        return 0
    for row in rows:
        click.echo(f"{row['name']:24} {in_groups(row['fingerprint'])}")
    if not rows:
        click.echo("no receiver's key is kept yet: slideway bundle receivers add NAME PUBFILE")
    return 0


def _require_signed(case: CaseBundle, trusted: tuple[TrustedKey, ...]) -> TrustedKey:
    """The trusted key that signed it."""
    if case.head.signer is None:
        raise UntrustedBundleError(
            f"{case.name}: nobody signed it; ask the sender to release it (`slideway bundle release`), or take it as "
            "it is with --unsigned"
        )
    for known in trusted:
        if known.raw == case.head.signer:
            return known
    signer = in_groups(TrustedKey("sender", case.head.signer).fingerprint)
    raise UntrustedBundleError(
        f"{case.name}: signed with key {signer}, which is not trusted here. Ask the sender, by telephone, to read out "
        "their key's fingerprint (`slideway models key`); if it is the same, save their public key and run `slideway "
        "models key --trust FILE`, then unpack again"
    )


def _write_whole(path: Path, content: bytes) -> None:
    with write_fence(path):
        write_whole(path, content)


def _say_release(out: Path, report: ReleaseReport) -> str:
    lines = [
        f"{out}: {report.n_bytes:,} bytes for {report.receiver} ({report.level})",
        f"  because    {report.reason}",
        f"  holds      {', '.join(report.parts)}",
        f"  stays here {', '.join(report.left_behind) or 'nothing of the bundle'}",
        f"  signed     {in_groups(report.signer)}",
        f"  locked to  {in_groups(report.locked_to) if report.locked_to else 'nobody: whoever gets it can read it'}",
    ]
    return "\n".join(lines)


def _say_unpacked(folder: Path, names: tuple[str, ...], case: CaseBundle) -> str:
    lines = [f"{folder}: {', '.join(names)}"]
    if not case.is_whole:
        lines.append(f"  ! cut off on the way, missing: {', '.join(case.missing)}; what follows from it is provisional")
    return "\n".join(lines)


def _explain_as_json(told: Explanation) -> dict[str, Any]:
    facts = asdict(told)
    return {**facts, "whole": told.is_whole, "tier_bytes": list(told.tier_bytes), "note": NO_DIAGNOSIS}


def _make_console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=False)


def _print_explanation(name: str, told: Explanation) -> None:
    from rich.table import Table

    console = _make_console()
    table = Table(show_header=False, box=None, pad_edge=False)
    came = "" if told.is_whole else f", of which {told.n_bytes:,} came: CUT OFF"
    table.add_row("bundle", f"{name}, format {told.version}, {told.total_bytes:,} bytes{came}")
    table.add_row("id", told.id)
    table.add_row("signed", _say_signer(told))
    table.add_row("locked", _say_lock(told))
    if (summary := told.summary) is not None:
        table.add_row("slide", summary.slide_sha256)
        table.add_row("case", summary.case or "not given")
        table.add_row("quality", ", ".join([summary.verdict, *summary.reasons]))
        table.add_row("tissue", f"{summary.tissue_mm2:,.1f} mm², {summary.tiles:,} tiles, {summary.encoder_id}")
    console.print(table)
    _print_parts(console, told)
    for title, sentences in (
        ("It holds", told.holds),
        ("It does not hold", told.lacks),
        ("Provisional findings", told.findings),
        ("Mind", told.warnings),
    ):
        if sentences:
            _print_list(console, title, sentences)
    console.print(f"\n{NO_DIAGNOSIS}", style="italic")


def _print_parts(console: Console, told: Explanation) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("tier", "part"):
        table.add_column(title)
    table.add_column("bytes", justify="right")
    table.add_column("what it is")
    head_bytes = told.total_bytes - sum(part.n_bytes for part in told.parts)
    table.add_row(f"0 {tell_tier(0)}", "(list)", f"{head_bytes:,}", "what the parts are, their hashes, the signature")
    shown = 0
    for part in told.parts:
        tier = f"{part.tier} {tell_tier(part.tier)}" if part.tier != shown else ""
        shown = part.tier
        words = part.words if part.is_here else f"{part.words}: DID NOT COME"
        table.add_row(tier, part.name, f"{part.n_bytes:,}", words)
    console.print()
    console.print(table)


def _print_list(console: Console, title: str, sentences: tuple[str, ...]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for sentence in sentences:
        table.add_row(" -", sentence)
    console.print(f"\n{title}", style="bold")
    console.print(table)


def _say_signer(told: Explanation) -> str:
    if not told.signer:
        return "by nobody"
    return f"{in_groups(told.signer)} ({told.signer_name or 'NOT TRUSTED HERE'})"


def _say_lock(told: Explanation) -> str:
    if not told.locked_to:
        return "no: whoever has it can read it"
    here = "opened with this key" if told.is_open else "its key is not here: told by the list of parts alone"
    return f"to the key {told.locked_to[:8]} {told.locked_to[8:]}…, {here}"


def _print_policy(file: Path, found: Policy) -> None:
    from rich.table import Table

    console = _make_console()
    console.print(f"{file}: whoever is not named here gets nothing")
    for rule in found.receivers.values():
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_row("  may have", rule.level.word + (", and a picture of the tissue" if rule.thumbnail else ""))
        table.add_row("  because", rule.reason)
        table.add_row("  locked to", in_groups(rule.key) or "nobody: whoever gets it can read it")
        if rule.sites:
            table.add_row("  only sites", ", ".join(rule.sites))
        if rule.max_bytes:
            table.add_row("  at most", f"{rule.max_bytes:,} bytes a slide")
        console.print(f"\n{rule.name}", style="bold")
        console.print(table)
