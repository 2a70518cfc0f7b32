"""`slideway models export`, `import`, `key`: models as signed files, for nodes without a network."""

from __future__ import annotations

import json
from pathlib import Path

import click

from slideway.cli.progress import Bytes
from slideway.core.errors import WrongUseError
from slideway.registry.keys import (
    TrustedKey,
    in_groups,
    list_trusted,
    make_signing_key,
    signing_key_path,
    trust_key,
    trusted_folder,
)
from slideway.registry.package import SUFFIX, export_model, import_model
from slideway.registry.staging import write_fence
from slideway.registry.store import find_model


@click.command("export")
@click.argument("model_id", metavar="ID")
@click.argument("path", metavar="FILE.swm", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export_package(model_id: str, path: Path, *, as_json: bool) -> int:
    """Write an encoder as one file, signed with this node's key, to carry to a node without a network.

    \b
    Example:
      slideway models export hibou-b /media/usb/hibou-b.swm
      slideway models key                                     read this fingerprint out to the receiver
    """
    if path.suffix.lower() != SUFFIX:
        raise WrongUseError(f"{path.name}: a package's name ends with {SUFFIX}")
    card, signing = find_model(model_id), make_signing_key()
    with Bytes("packing") as bar:
        export_model(card, path, key=signing, progress=bar.on_bytes)
    size, signer = path.stat().st_size, signing.public.fingerprint
    if as_json:
        facts = {"id": card.id, "fingerprint": card.fingerprint, "file": str(path), "bytes": size, "signer": signer}
        click.echo(json.dumps(facts, indent=2))
        return 0
    click.echo(f"{path}: {card.id} ({card.fingerprint[:12]}), {size / 1e6:,.1f} MB\n  signed with {in_groups(signer)}")
    if card.licence.permits and "redistribute" not in card.licence.permits:
        click.echo(f"  ! {card.licence.id} does not permit passing it on: for computers of the licensee only")
    click.echo(f"  there: slideway models import {path.name}")
    return 0


@click.command("import")
@click.argument("path", metavar="FILE.swm", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--trust", "trust", multiple=True, type=click.Path(path_type=Path, dir_okay=False),
              help="Also believe this public key, this once.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Let it take the place of another model of the same id.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_package(path: Path, *, trust: tuple[Path, ...], replace: bool, as_json: bool) -> int:
    """Install an encoder from a signed file.

    The signature is checked before anything is unpacked, every file against the signed list, and the golden tiles on
    this computer before the encoder is put in its place.

    \b
    Example:
      slideway models import hibou-b.swm
    """
    from slideway.cli.model_add import say_installed
    from slideway.encoders import load_encoder

    with Bytes("unpacking") as bar:
        card = import_model(
            path, trusted=list_trusted(*trust), replace=replace, check=load_encoder, progress=bar.on_bytes
        )
    say_installed(card, as_json=as_json)
    return 0


@click.command("key")
@click.option("--public", type=click.Path(path_type=Path, dir_okay=False),
              help="Write this node's public key to a file, to hand out.")  # fmt: skip
@click.option("--trust", type=click.Path(path_type=Path, dir_okay=False),
              help="Believe packages signed with the public key in this file from now on.")  # fmt: skip
@click.option("--name", help="With --trust: whose key it is; default: the file's name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def key(*, public: Path | None, trust: Path | None, name: str | None, as_json: bool) -> int:
    """Show this node's signing key (made on first use) and the keys that are trusted here.

    A key's fingerprint is what sender and receiver compare, by telephone or face to face, before a key is trusted.

    \b
    Examples:
      slideway models key --public county-hospital.pub      give this file to the receiver
      slideway models key --trust county-hospital.pub       at the receiver, after comparing
    """
    if name is not None and trust is None:
        raise WrongUseError("--name says whose key --trust believes; give both")
    if trust is not None:
        trust_key(trust, name=name)
    own = make_signing_key()
    if public is not None:
        with write_fence(public):
            public.write_bytes(own.public.pem)
    others = [k for k in list_trusted() if k.raw != own.public.raw]
    click.echo(_as_json(own.public, others) if as_json else _in_words(own.public, others))
    return 0


def _as_json(own: TrustedKey, others: list[TrustedKey]) -> str:
    trusted = [{"name": k.name, "fingerprint": k.fingerprint} for k in others]
    return json.dumps({"fingerprint": own.fingerprint, "file": str(signing_key_path()), "trusted": trusted}, indent=2)


def _in_words(own: TrustedKey, others: list[TrustedKey]) -> str:
    lines = [f"this node    {in_groups(own.fingerprint)}", f"             {signing_key_path()} (never hand this out)"]
    lines += [f"{k.name:12} {in_groups(k.fingerprint)}" for k in others]
    lines.append(f"trusted keys lie in {trusted_folder()}" if others else "no other key is trusted yet")
    return "\n".join(lines)
