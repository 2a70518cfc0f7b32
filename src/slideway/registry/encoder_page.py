"""Write an encoder's page for the documentation from its card alone: Markdown, the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from slideway.registry.head_page import (
    draw_table,
    escape,
    join_blocks,
    list_facts,
    list_points,
    show_code,
    show_command,
)
from slideway.registry.records import CardEquivalence, ModelCard


def write_encoder_page(card: ModelCard) -> str:
    """One page on an encoder: what it reads and gives, evidence, limits, licence, how to use it, fingerprint.

    Every text of the card is escaped, so that it is shown and never taken for Markdown or HTML.
    """
    return join_blocks(
        f"# {escape(card.title)}",
        "<!-- Written from the encoder's card; change the card, not this page. -->",
        "An encoder turns tiles into vectors and names nothing. It is no medical device, and nothing in it has been "
        "clinically validated.",
        list_facts(
            ("Id", f"`{card.id}`, version {escape(card.version)}, {card.state}"),
            ("Reads", _say_input(card)),
            (
                "Gives",
                f"{card.output.width} numbers a tile ({escape(card.output.dtype)}): {escape(card.output.pooling)}",
            ),
            ("Network", f"{card.weights.parameters:,} parameters, {escape(card.weights.precision)}"),
            ("Licence", _say_licence(card)),
            *_say_origin(card),
        ),
        "## For, and not for",
        f"**For:** {escape(card.use.intended)}",
        f"**Not for:** {escape(card.use.not_intended)}",
        "## Evidence",
        draw_table(("figure", "value", "95 % interval"), rows)
        if (rows := list(_list_figures(card.metrics)))
        else "The card states no figure.",
        *show_command(card.metrics.get("command")),
        *_show_subgroups(card.metrics.get("subgroups")),
        *_show_equivalence(card.equivalence),
        "## Limits",
        list_points(card.limits),
        "## Training",
        f"**Data:** {escape(card.training.data)}",
        f"**How:** {escape(card.training.note)}",
        "## How to use it",
        show_code(f"slideway read SLIDE --encoder {card.id}"),
        "## Fingerprints",
        list_facts(
            ("Encoder", f"`{card.fingerprint}`; bags of different fingerprints never meet"),
            ("Weights (sha256)", f"`{card.weights.sha256}`, {card.weights.bytes:,} bytes"),
            ("Golden tiles (sha256)", f"`{card.golden.sha256}`"),
        ),
    )


def _say_input(card: ModelCard) -> str:
    given = card.input
    return (
        f"tiles of {given.tile_px} px at {given.mpp:g} µm/px, {escape(given.colour)}; resized by {escape(given.resize)}"
    )


def _say_licence(card: ModelCard) -> str:
    permits = f" Permits: {escape(', '.join(card.licence.permits))}." if card.licence.permits else ""
    return f"{escape(card.licence.id)}. {escape(card.licence.note)}{permits}"


def _say_origin(card: ModelCard) -> Iterator[tuple[str, str]]:
    if card.origin is not None:
        revision = f", revision {escape(card.origin.revision)}" if card.origin.revision else ""
        yield "Built from", f"{escape(card.origin.source)}{revision} (slot {escape(card.origin.slot)})"


def _list_figures(entries: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """Every number of the metrics, those within tables under both names, in the card's order."""
    for key, value in entries.items():
        name = f"{above} / {key}" if above else key
        if isinstance(value, Mapping):
            if isinstance(value.get("value"), int | float):
                yield escape(name), _say_number(value["value"]), _say_interval(value)
            else:
                yield from _list_figures(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield escape(name), _say_number(value), "–"


def _say_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _say_interval(figure: Mapping[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    if isinstance(low, int | float) and isinstance(high, int | float):
        return f"{_say_number(low)}–{_say_number(high)}"
    return "–"


def _show_subgroups(rows: object) -> Iterator[str]:
    tables = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list | tuple) else []
    if tables:
        columns = list(dict.fromkeys(key for row in tables for key in row))
        yield "By subgroup:"
        yield draw_table(
            [escape(column) for column in columns],
            [[escape(str(row.get(column, "–"))) for column in columns] for row in tables],
        )


def _show_equivalence(equivalence: CardEquivalence | None) -> Iterator[str]:
    if equivalence is None:
        return
    yield "## An optimised form"
    yield f"Form {escape(equivalence.form)} of {escape(equivalence.of)}. Gate: {escape(equivalence.gate)}"
    if equivalence.machines:
        yield draw_table(
            ("processor", "median cosine", "lowest cosine", "speed-up", "tiles/s", "passed", "command"),
            [
                (
                    escape(one.isa),
                    f"{one.cosine_median:.5f}",
                    f"{one.cosine_min:.5f}",
                    f"{one.speedup:.2f}",
                    f"{one.tiles_per_s:.1f}",
                    "yes" if one.passed else "no",
                    escape(one.command),
                )
                for one in equivalence.machines
            ],
        )
