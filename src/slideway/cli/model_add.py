"""`slideway models add`: install a head from its folder, or an encoder from a folder, a checkpoint or a model hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slideway.cli.model_heads import add_head
from slideway.cli.progress import Bytes
from slideway.core.errors import WrongUseError
from slideway.registry.card import CARD_FILE, ModelCard
from slideway.registry.head_card import is_head_folder
from slideway.registry.staging import scratch_folder
from slideway.registry.store import install_model, models_folder

if TYPE_CHECKING:
    from slideway.encoders.slots import Slot

HUB = "hub:"
CHECKPOINTS = (".safetensors", ".onnx", ".pth", ".pt", ".bin", ".ckpt")


@click.command("add")
@click.argument("source")
@click.option("--slot", "slot_id", metavar="SLOT", help="Which published model a bare file is, e.g. hibou-b.")
@click.option("--id", "model_id", metavar="ID", help="Id to install it under; default: its card's, or the slot's.")
@click.option("--revision", metavar="REV", help="With hub: branch, tag or commit.")
@click.option("--replace", is_flag=True, help="Let it take the place of another model of the same id.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def add(
    source: str, *, slot_id: str | None, model_id: str | None, revision: str | None, replace: bool, as_json: bool
) -> int:
    """Install an encoder or a head. Weights stay yours: Slideway ships none but its own.

    SOURCE is a head's folder (as `slideway train` makes it), an encoder's folder (with card.toml), a file of weights
    with --slot, or hub:OWNER/NAME. A checkpoint is never run: tensors are read out of it and put into a graph of our
    own, and what it computes is frozen in golden tiles. It is put in its place only after they reproduce here.

    \b
    Examples:
      slideway models add hub:histai/hibou-b
      slideway models add hub:owner/name --revision v1.1 --slot hibou-b
      slideway models add pytorch_model.bin --slot uni2-h --id uni2
      slideway models add ~/encoders/ours/                      a folder with card.toml
      slideway models add slideway-heads/county-1               a head; --replace for a newer one of the same id
    \b
    The hub's own settings hold: HF_TOKEN for gated models, HF_ENDPOINT for a mirror, HF_HOME for its cache,
    HF_HUB_OFFLINE=1 to use the cache alone.
    """
    if revision is not None and not source.startswith(HUB):
        raise WrongUseError("--revision goes with hub:OWNER/NAME; a folder or file has none")
    folder = Path(source).expanduser()
    if not source.startswith(HUB) and is_head_folder(folder):
        if slot_id is not None:
            raise WrongUseError(f"{folder.name}: a head has its own card; --slot goes with a file of weights")
        return add_head(folder, model_id, replace_it=replace, as_json=as_json)
    if source.startswith(HUB):
        card = _add_from_hub(source.removeprefix(HUB), slot_id, model_id, revision, replace=replace)
    else:
        card = _add_from_disk(folder, slot_id, model_id, replace=replace)
    say_installed(card, as_json=as_json)
    return 0


def say_installed(card: ModelCard, *, as_json: bool) -> None:
    """Say what is installed now, its fingerprint, and what to do next."""
    following = f"slideway read SLIDE --encoder {card.id}"
    if as_json:
        facts = {"id": card.id, "state": card.state, "fingerprint": card.fingerprint, "folder": str(card.folder)}
        click.echo(json.dumps({**facts, "next": following}, indent=2))
        return
    click.echo(f"{card.id} is installed ({card.state}) and verified\n  fingerprint {card.fingerprint}")
    click.echo(f"  licence     {card.licence.id}: {card.licence.note}")
    click.echo(f"  next        {following}")


def _add_from_hub(
    repo_id: str, slot_id: str | None, model_id: str | None, revision: str | None, *, replace: bool
) -> ModelCard:
    from slideway.registry.hub import fetch_model, find_checkpoint

    slot = None if slot_id is None else _find_slot(slot_id)
    click.echo(f"fetching {repo_id} ...", err=True)
    folder = fetch_model(repo_id, revision=revision)
    if (folder / CARD_FILE).exists():
        return _install(folder, model_id, replace=replace)
    slot = slot or _guess_slot(repo_id)
    # The client's folder is named by the commit, which says more than the name of a branch.
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision or ""
    return _build(slot, find_checkpoint(folder), model_id, repo_id, revision=commit, replace=replace)


def _add_from_disk(source: Path, slot_id: str | None, model_id: str | None, *, replace: bool) -> ModelCard:
    if source.is_dir():
        if slot_id is not None:
            raise WrongUseError(f"{source.name}: a model folder has its own card; --slot goes with a file of weights")
        return _install(source, model_id, replace=replace)
    if not source.is_file():
        raise WrongUseError(f"{source}: no such folder or file; a model at a hub is written hub:OWNER/NAME")
    if source.suffix.lower() == ".swm":
        raise WrongUseError(f"{source.name}: this is a signed package; run: slideway models import {source.name}")
    if source.suffix.lower() not in CHECKPOINTS:
        raise WrongUseError(f"{source.name}: not a file of weights; known are {', '.join(CHECKPOINTS)}")
    if slot_id is None:
        raise WrongUseError(
            f"{source.name}: weights alone do not say what they expect of a tile. Give their folder with a "
            f"card.toml, or say with --slot which published model they are: {_slots_in_words()}"
        )
    return _build(_find_slot(slot_id), source, model_id, source.name, revision="", replace=replace)


def _find_slot(slot_id: str) -> Slot:
    from slideway.encoders.slots import find_slot

    return find_slot(slot_id)


def _guess_slot(repo_id: str) -> Slot:
    from slideway.encoders.slots import find_slot_for_hub

    if (slot := find_slot_for_hub(repo_id)) is None:
        raise WrongUseError(
            f"{repo_id}: it holds no card.toml and no slot is known for it; say with --slot which published model it "
            f"is: {_slots_in_words()}"
        )
    return slot


def _slots_in_words() -> str:
    from slideway.encoders.slots import list_slots

    return ", ".join(slot.id for slot in list_slots())


def _build(
    slot: Slot, checkpoint: Path, model_id: str | None, source: str, *, revision: str, replace: bool
) -> ModelCard:
    """Make a model folder from a checkpoint in a scratch folder beside the models, and install it from there."""
    click.echo(f"building {model_id or slot.id} from {checkpoint.name} ...", err=True)
    with scratch_folder(models_folder()) as scratch:
        out = scratch / "model"
        _make_folder(slot, checkpoint, out, model_id or slot.id, source, revision)
        return _install(out, None, replace=replace, move=True)


def _make_folder(slot: Slot, checkpoint: Path, out: Path, model_id: str, source: str, revision: str) -> None:
    if checkpoint.suffix.lower() == ".onnx":
        from slideway.encoders.adopt import adopt_onnx

        adopt_onnx(slot, checkpoint, out, id=model_id, source=source, revision=revision)
        return
    from slideway.encoders.build import build_encoder

    build_encoder(slot, checkpoint, out, id=model_id, source=source, revision=revision, progress=_say_step)


def _say_step(step: str) -> None:
    click.echo(f"  {step} ...", err=True)


def _install(folder: Path, model_id: str | None, *, replace: bool, move: bool = False) -> ModelCard:
    from slideway.encoders import load_encoder

    with Bytes("installing") as bar:
        return install_model(
            folder, replace=replace, model_id=model_id, move=move, check=load_encoder, progress=bar.on_bytes
        )
