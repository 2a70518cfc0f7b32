"""`slideway models`: which models are here, whether they are what they say, and how they come and go."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import click

from slideway.cli.model_heads import (
    describe_head_card,
    find_head_or_none,
    print_heads,
    say_force,
    say_head,
    summarise_head,
    verify_head,
)
from slideway.core.errors import SlidewayError, WrongUseError
from slideway.registry.card import STATES, ModelCard
from slideway.registry.head_card import is_head_folder
from slideway.registry.head_records import HeadCard
from slideway.registry.heads import list_broken_heads, list_heads, remove_head, set_head_state
from slideway.registry.store import (
    find_model,
    is_packaged,
    list_broken,
    list_encoders,
    models_folder,
    remove_model,
    set_state,
)

NO_PROOF = 2  # exit code when an encoder is refused, as UntrustedEncoderError's


class _Commands(click.Group):
    """Imports the modules of larger subcommands only when they are called."""

    elsewhere: ClassVar[dict[str, tuple[str, str]]] = {
        "add": ("slideway.cli.model_add", "add"),
        "export": ("slideway.cli.model_package", "export_package"),
        "import": ("slideway.cli.model_package", "import_package"),
        "key": ("slideway.cli.model_package", "key"),
        "optimise": ("slideway.cli.optimise", "optimise"),
        "task": ("slideway.cli.model_heads", "switch"),
    }
    order = ("list", "show", "add", "verify", "bench", "optimise", "state", "task", "remove", "export", "import", "key")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.order)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        module, name = self.elsewhere[cmd_name]
        found: click.Command = getattr(import_module(module), name)
        return found


@click.group("models", cls=_Commands)
def command() -> None:
    """Encoders and heads: list, add, verify, measure, optimise, switch, carry, remove.

    \b
    Examples:
      slideway models list
      slideway models add hub:owner/name                    from a model hub, or from its cache when offline
      slideway models add model.safetensors --slot hibou-b  a file you already have
      slideway models verify --all                          hashes and golden tiles, on each engine here
      slideway models export hibou-b hibou-b.swm            one signed file for a node without a network
      slideway read SLIDE --encoder hibou-b
      slideway models add slideway-heads/county-1           a head that `slideway train` made
      slideway models state county-1 active                 from now on it speaks of every slide

    A model of yours lies in the models' folder (SLIDEWAY_MODELS moves it); docs/models.md says more.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(*, as_json: bool) -> int:
    """List all encoders (state, vector width, pixel size, licence, size, fingerprint) and all heads."""
    rows, broken = [_summarise(card) for card in list_encoders()], list_broken()
    if as_json:
        heads, broken = [summarise_head(card) for card in list_heads()], {**broken, **list_broken_heads()}
        facts = {"folder": str(models_folder()), "models": rows, "heads": heads, "broken": broken}
        click.echo(json.dumps(facts, indent=2))
        return 0
    _print_table(rows)
    print_heads()
    for reason in broken.values():
        click.echo(f"! {reason}")
    return 0


@command.command("show")
@click.argument("model_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the whole card.")
def show(model_id: str, *, as_json: bool) -> int:
    """Show what a model is, is for, cannot do, and was measured at: its card in words.

    ID is an installed encoder or head, or a folder with a model card.
    """
    if (head := _find_head(model_id)) is not None:
        shown = describe_head_card(head)
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False, default=str) if as_json else say_head(head))
        return 0
    card = find_model(model_id)
    click.echo(
        json.dumps(describe_card(card), indent=2, ensure_ascii=False, default=str) if as_json else _in_words(card)
    )
    return 0


@command.command("verify")
@click.argument("model_id", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Verify all encoders and heads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(model_id: str | None, *, every: bool, as_json: bool) -> int:
    """Verify a model: hashes of its files, then its golden tiles on each engine installed here, or its golden bag.

    The same is done, on one engine, every time slides are read. Ends with 2 when anything is refused.

    \b
    Examples:
      slideway models verify hibou-b
      slideway models verify --all --json
    """
    if (model_id is None) != every:
        raise WrongUseError("name one model to verify, or give --all")
    head = None if model_id is None else _find_head(model_id)
    heads = list_heads() if every else () if head is None else (head,)
    cards = list_encoders() if model_id is None else () if heads else (find_model(model_id),)
    rows = [row for card in cards for row in _verify(card)] + [verify_head(card) for card in heads]
    if every:
        broken = {**list_broken(), **list_broken_heads()}
        rows += [{"id": name, "engine": "", "refused": reason} for name, reason in broken.items()]
    if as_json:
        click.echo(json.dumps({"verified": rows}, indent=2))
    else:
        for row in rows:
            told = f"refused: {row['refused']}" if row["refused"] else "files and golden data agree"
            click.echo(f"{row['id']:32} {row['engine']:12} {told}")
    return NO_PROOF if any(row["refused"] for row in rows) else 0


@command.command("bench")
@click.argument("model_id", metavar="ID")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=2.0, show_default=True, help="Time for each engine.")
@click.option("--threads", type=click.IntRange(1), help="Cores to use; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(model_id: str, *, seconds: float, threads: int | None, as_json: bool) -> int:
    """Measure an encoder's speed on each engine installed here.

    Nothing is remembered; `slideway doctor --encoder ID` also chooses the engine for reading.
    """
    from slideway.encoders import measure_engines
    from slideway.encoders.engines import describe_processor
    from slideway.pipeline.machine import count_cores

    card, cores = find_model(model_id), threads or count_cores()
    speeds = measure_engines(card, threads=cores, seconds=seconds)
    rows = [
        {
            "engine": speed.engine,
            "version": speed.words,
            "tiles_per_s": round(speed.tiles_per_s, 2),
            "load_s": round(speed.load_s, 3),
            "refused": speed.refused,
        }
        for speed in speeds
    ]
    facts = {"id": card.id, "fingerprint": card.fingerprint, "processor": describe_processor(), "threads": cores}
    if as_json:
        click.echo(json.dumps({**facts, "engines": rows}, indent=2))
    else:
        click.echo(f"{card.id} ({card.fingerprint[:12]}) on {facts['processor']}, {cores} threads")
        for row in rows:
            told = f"refused: {row['refused']}" if row["refused"] else f"ready in {row['load_s']:.2f} s"
            click.echo(f"  {row['version']:34} {row['tiles_per_s']:8.1f} tiles/s   {told}")
    return 0 if any(not row["refused"] for row in rows) else NO_PROOF


@command.command("state")
@click.argument("model_id", metavar="ID")
@click.argument("state", type=click.Choice(STATES))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def change_state(model_id: str, state: str, *, as_json: bool) -> int:
    """Change a model's state: candidate, shadow, active, retired.

    \b
      candidate  new here; read with it by name, rely on nothing
      shadow     read with it beside the active one, to compare
      active     relied on
      retired    no slide is read with it any more; its bags stay readable
    \b
    Of a head, only `active` lets its questions speak of every slide, and only those that are switched on
    (`slideway models task`).
    """
    if _find_head(model_id) is not None:
        head = set_head_state(model_id, state)
        force = "; ".join(f"{task.question.title} {say_force(head, task)}" for task in head.tasks)
        said = json.dumps(summarise_head(head), indent=2) if as_json else f"{head.id} is {head.state} now: {force}"
        click.echo(said)
        return 0
    card = set_state(model_id, state)
    click.echo(json.dumps(_summarise(card), indent=2) if as_json else f"{card.id} is {card.state} now")
    return 0


@command.command("remove")
@click.argument("model_id", metavar="ID")
def remove(model_id: str) -> int:
    """Remove a model of yours; of an encoder its weights, too, unless another one shares them.

    Bags it made stay readable; new slides can no longer be compared with them. To keep it for later use
    `slideway models state ID retired`.
    """
    if _find_head(model_id) is not None:
        remove_head(model_id)
    else:
        remove_model(model_id)
    click.echo(f"{model_id} is removed")
    return 0


def _find_head(name: str) -> HeadCard | None:
    """The head of that name, unless an encoder has it."""
    if any(card.id == name for card in list_encoders()) or (
        any(m in name for m in "/\\") and not is_head_folder(Path(name))
    ):
        return None
    return find_head_or_none(name)


def describe_card(card: ModelCard) -> dict[str, Any]:
    """The whole card for JSON, with fingerprint and where it comes from."""
    from dataclasses import asdict

    content = {key: value for key, value in asdict(card).items() if key != "folder"}
    return {**content, "fingerprint": card.fingerprint, "packaged": is_packaged(card), "folder": str(card.folder)}


def _summarise(card: ModelCard) -> dict[str, Any]:
    paths = [card.weights_path, *([card.data_path] if card.data_path else [])]
    return {
        "id": card.id,
        "state": card.state,
        "title": card.title,
        "width": card.output.width,
        "tile_px": card.input.tile_px,
        "mpp": card.input.mpp,
        "precision": card.weights.precision,
        "licence": card.licence.id,
        "permits": list(card.licence.permits),
        "bytes": sum(path.stat().st_size for path in paths if path.exists()),
        "fingerprint": card.fingerprint,
        "packaged": is_packaged(card),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    lines = [("id", "state", "width", "µm/px", "licence", "MB", "fingerprint", "from")]
    lines += [
        (
            row["id"],
            row["state"],
            str(row["width"]),
            f"{row['mpp']:g}",
            row["licence"],
            f"{row['bytes'] / 1e6:,.1f}",
            row["fingerprint"][:12],
            "Slideway" if row["packaged"] else "yours",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _verify(card: ModelCard) -> list[dict[str, str]]:
    from slideway.encoders import available_engines, load_encoder

    rows = []
    for engine in available_engines():
        try:
            load_encoder(card, engine=engine)
            refused = ""
        except SlidewayError as error:
            refused = str(error)
        rows.append({"id": card.id, "engine": engine, "fingerprint": card.fingerprint, "refused": refused})
    return rows


def _in_words(card: ModelCard) -> str:
    given, weights = card.input, card.weights
    permits = f" Permits: {', '.join(card.licence.permits)}." if card.licence.permits else ""
    rows = {
        "state": f"{card.state}, version {card.version}",
        "fingerprint": card.fingerprint,
        "from": "Slideway" if is_packaged(card) else str(card.folder),
        "takes": f"tiles of {given.tile_px} px at {given.mpp:g} µm/px, {given.colour}, brought there by {given.resize}",
        "normalised": f"mean {_numbers(given.mean)}, std {_numbers(given.std)}",
        "gives": f"{card.output.width} numbers ({card.output.dtype}): {card.output.pooling}",
        "weights": f"{weights.parameters / 1e6:,.1f} M parameters, {weights.precision}, {weights.bytes / 1e6:,.1f} MB",
        "licence": f"{card.licence.id}: {card.licence.note}{permits}",
        "for": card.use.intended,
        "not for": card.use.not_intended,
        "trained on": f"{card.training.data} {card.training.note}",
        **_origin(card),
    }
    lines = [f"{card.id}: {card.title}", *(f"  {name:12} {value}" for name, value in rows.items())]
    lines += ["  limits", *(f"    - {limit}" for limit in card.limits)]
    lines += ["  measured", *_measured(card.metrics.items(), "    ")]
    return "\n".join(lines)


def _origin(card: ModelCard) -> dict[str, str]:
    rows: dict[str, str] = {}
    if (origin := card.origin) is not None:
        rows["built from"] = f"{origin.source} {origin.revision}".strip() + f" (slot {origin.slot})"
    if (form := card.equivalence) is not None:
        passed = sum(machine.passed for machine in form.machines)
        rows["form"] = f"{form.form} of {form.of[:12]}; gate: {form.gate}"
        rows["form passed"] = f"on {passed} of {len(form.machines)} kinds of processor: " + "; ".join(
            f"{m.isa} cosine {m.cosine_median:.4f} (lowest {m.cosine_min:.4f}), {m.speedup:.2f} times as fast"
            for m in form.machines
        )
    return rows


def _measured(entries: Iterable[tuple[str, Any]], indent: str) -> list[str]:
    lines = []
    for name, value in entries:
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            lines.append(f"{indent}{name}")
            lines += [f"{indent}  " + ", ".join(f"{k} {v}" for k, v in row.items()) for row in value]
        elif isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
            lines.append(f"{indent}{name}: {value['value']} ({value['low']} to {value['high']})")
        elif isinstance(value, dict):
            lines += [f"{indent}{name}", *_measured(value.items(), indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
