"""The head side of `slideway models`: what a head is in words, and installing one from its folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from slideway.core.errors import SlidewayError, UnknownHeadError
from slideway.registry.head_card import read_head_card
from slideway.registry.head_records import HeadCard, HeadTask
from slideway.registry.heads import (
    find_head,
    install_head,
    is_packaged_head,
    list_broken_heads,
    list_heads,
    switch_task,
)


def find_head_or_none(name: str) -> HeadCard | None:
    """The head of that id or in that folder; None when there is none."""
    try:
        return find_head(name)
    except UnknownHeadError:
        return None


def add_head(source: Path, head_id: str | None, *, replace_it: bool, as_json: bool) -> int:
    """Install a head: its files are verified and its golden bag must reproduce here."""
    from slideway.heads.head import load_head

    load_head(read_head_card(source))  # computes here what it should, before anything is written
    card = install_head(source, replace_it=replace_it, head_id=head_id)
    following = [f"slideway read SLIDE --head {card.id}", f"slideway models state {card.id} active"]
    if as_json:
        click.echo(json.dumps({**summarise_head(card), "folder": str(card.folder), "next": following}, indent=2))
        return 0
    click.echo(f"{card.id} is installed ({card.state}) and verified: a head for {card.input.encoder_id}")
    for task in card.tasks:
        click.echo(f"  {task.question.title} {say_force(card, task)}")
    click.echo(f"  try         {following[0]}\n  rely on it  {following[1]}")
    return 0


def say_force(card: HeadCard, task: HeadTask) -> str:
    """Whether a question is answered by default, in words."""
    if card.is_in_force(task):
        return "in force"
    if task.in_force:
        return f"in force once the head is active (it is {card.state})"
    return f"off: {task.off_because}"


def summarise_head(card: HeadCard) -> dict[str, Any]:
    """One row of `slideway models list`, for JSON."""
    return {
        "id": card.id,
        "kind": "head",
        "state": card.state,
        "title": card.title,
        "encoder": card.input.encoder_id,
        "encoder_fingerprint": card.input.encoder_fingerprint,
        "tasks": {task.question.id: card.is_in_force(task) for task in card.tasks},
        "licence": card.licence.id,
        "bytes": card.weights.bytes,
        "fingerprint": card.fingerprint,
        "packaged": is_packaged_head(card),
    }


def print_heads() -> None:
    """The heads, one a line, below the encoders."""
    cards = list_heads()
    if cards:
        click.echo("\nheads")
    for card in cards:
        force = ", ".join(f"{task.question.id} {'on' if card.is_in_force(task) else 'off'}" for task in card.tasks)
        origin = "Slideway" if is_packaged_head(card) else "yours"
        facts = (card.id, card.state, f"for {card.input.encoder_id}", card.fingerprint[:12], origin, f"[{force}]")
        click.echo("  ".join(facts))
    for reason in list_broken_heads().values():
        click.echo(f"! {reason}")


def describe_head_card(card: HeadCard) -> dict[str, Any]:
    """The whole card for JSON."""
    content = {key: value for key, value in asdict(card).items() if key != "folder"}
    return {**content, "fingerprint": card.fingerprint, "packaged": is_packaged_head(card), "folder": str(card.folder)}


def say_head(card: HeadCard) -> str:
    """A head's card in words: its page without the Markdown."""
    from slideway.registry.head_page import write_head_page

    return write_head_page(card)


def verify_head(card: HeadCard) -> dict[str, str]:
    """One row of `slideway models verify`."""
    from slideway.heads.head import load_head

    try:
        load_head(card)
        refused = ""
    except SlidewayError as error:
        refused = str(error)
    return {"id": card.id, "engine": "numpy", "fingerprint": card.fingerprint, "refused": refused}


@click.command("task")
@click.argument("head_id", metavar="HEAD")
@click.argument("task_id", metavar="TASK")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option("--because", default="", help="Why it is switched off; stands on the card.")
def switch(head_id: str, task_id: str, *, switch: str, because: str) -> int:
    """Switch one question of a head on or off, by a person's decision that the card keeps.

    A question that does not beat its baselines is off after training. Switching it on says that you know better.

    \b
    Example:
      slideway models task county-1 malignant on
    """
    card = switch_task(head_id, task_id, on=switch == "on", reason=because)
    for task in card.tasks:
        click.echo(f"{card.id}: {task.question.title} {say_force(card, task)}")
    return 0
