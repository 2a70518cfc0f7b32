"""The card beside a model's weights: read strictly, written all at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from slideway.core.errors import UntrustedEncoderError
from slideway.registry.card_file import (
    CardTable,
    load_card_file,
    require_known_schema,
    without_empty,
    write_card_file,
)
from slideway.registry.records import (
    CARD_FILE,
    PERMISSIONS,
    STATES,
    CardEquivalence,
    CardGolden,
    CardInput,
    CardLicence,
    CardOrigin,
    CardOutput,
    CardTraining,
    CardUse,
    CardWeights,
    EquivalenceMachine,
    ModelCard,
    fingerprint_card,
)
from slideway.registry.verify import verify_files

__all__ = [
    "CARD_FILE",
    "PERMISSIONS",
    "STATES",
    "CardEquivalence",
    "CardGolden",
    "CardInput",
    "CardLicence",
    "CardOrigin",
    "CardOutput",
    "CardTraining",
    "CardUse",
    "CardWeights",
    "EquivalenceMachine",
    "ModelCard",
    "change_card",
    "fingerprint_card",
    "read_card",
    "verify_files",
    "write_card",
]

SCHEMA = "1.1"
SCHEMA_MAJOR = 1


def read_card(folder: Path) -> ModelCard:
    """Read the card in a model's folder.

    Raises:
        UntrustedEncoderError: No card is there, it is of a newer major version, or an entry is missing or impossible.
    """
    content = load_card_file(folder, UntrustedEncoderError)
    require_known_schema(folder, content, SCHEMA_MAJOR, UntrustedEncoderError)
    return _build_card(folder, content)


def write_card(card: ModelCard) -> None:
    """Write `card.folder/card.toml`, all or nothing; `read_card` gives the same card back.

    Raises:
        ValueError: The card holds something that a card file cannot: an impossible entry, `None` or a number that is
            not finite among the metrics.
        OSError: The folder cannot be written.
    """
    try:
        text = tomli_w.dumps(_as_toml(card), multiline_strings=False)
        is_kept = _build_card(card.folder, tomllib.loads(text)) == card
    except (TypeError, UntrustedEncoderError) as error:
        raise ValueError(f"{card.id}: this card cannot be written ({error})") from error
    if not is_kept:
        raise ValueError(f"{card.id}: this card would not be read back as it is (tuples or numbers in its metrics?)")
    write_card_file(card.folder / CARD_FILE, text)


def change_card(folder: Path, *, state: str | None = None, model_id: str | None = None) -> ModelCard:
    """Change state or id on the card in a folder, and nothing else of its entries; returns the new card.

    Neither is part of the fingerprint. Entries that a newer Slideway wrote are kept.

    Raises:
        UntrustedEncoderError: The card cannot be read.
        ValueError: No card can hold that.
        OSError: The folder cannot be written.
    """
    read_card(folder)  # refuses before anything is touched
    content = load_card_file(folder, UntrustedEncoderError)
    content |= {key: value for key, value in (("state", state), ("id", model_id)) if value is not None}
    try:
        card = _build_card(folder, content)
    except UntrustedEncoderError as error:
        raise ValueError(str(error)) from error
    write_card_file(folder / CARD_FILE, tomli_w.dumps(content))
    return card


def _as_toml(card: ModelCard) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": SCHEMA}
    content |= {key: getattr(card, key) for key in ("id", "title", "version", "state")}
    for section in ("input", "output", "weights", "golden", "licence", "use", "training"):
        content[section] = without_empty(asdict(getattr(card, section)))
    if card.origin is not None:
        content["origin"] = without_empty(asdict(card.origin))
    if card.equivalence is not None:
        rows = [without_empty(asdict(row)) for row in card.equivalence.machines]
        content["equivalence"] = {**asdict(card.equivalence), "machines": rows}
    content["limits"] = {"plain": list(card.limits)}
    content["metrics"] = dict(card.metrics)
    return content


def _build_card(folder: Path, content: Mapping[str, Any]) -> ModelCard:
    top, given = _table(folder, "", content), _table(folder, "input", content.get("input"))
    out, weights = _table(folder, "output", content.get("output")), _table(folder, "weights", content.get("weights"))
    golden, licence = _table(folder, "golden", content.get("golden")), _table(folder, "licence", content.get("licence"))
    use, training = _table(folder, "use", content.get("use")), _table(folder, "training", content.get("training"))
    card = ModelCard(
        folder=folder,
        id=top.text("id", pattern=r"[a-z0-9][a-z0-9._-]{0,63}"),
        title=top.text("title"),
        version=top.text("version"),
        state=top.text("state", pattern="|".join(STATES)),
        input=CardInput(
            tile_px=given.count("tile_px"),
            mpp=given.number("mpp"),
            colour=given.text("colour"),
            mean=given.three_numbers("mean"),
            std=given.three_numbers("std", least=1e-6),
            resize=given.text("resize", pattern="area|bilinear|bicubic"),
        ),
        output=CardOutput(out.count("width"), out.text("pooling"), out.text("dtype")),
        weights=CardWeights(
            file=weights.file_name("file"),
            sha256=weights.text("sha256", pattern="[0-9a-f]{64}"),
            bytes=weights.count("bytes"),
            precision=weights.text("precision"),
            parameters=weights.count("parameters"),
            data_sha256=weights.text("data_sha256", pattern="[0-9a-f]{64}") if "data_sha256" in weights.entries else "",
        ),
        golden=CardGolden(
            file=golden.file_name("file"),
            sha256=golden.text("sha256", pattern="[0-9a-f]{64}"),
            min_cosine=golden.number("min_cosine"),
            max_abs_difference=golden.number("max_abs_difference"),
        ),
        licence=CardLicence(
            licence.text("id"), licence.file_name("file"), licence.text("note"), licence.permissions("permits")
        ),
        use=CardUse(use.text("intended"), use.text("not_intended")),
        training=CardTraining(training.text("data"), training.text("note")),
        limits=_table(folder, "limits", content.get("limits")).sentences("plain"),
        metrics=_table(folder, "metrics", content.get("metrics")).entries,
        origin=_build_origin(folder, content["origin"]) if "origin" in content else None,
        equivalence=_build_equivalence(folder, content["equivalence"]) if "equivalence" in content else None,
    )
    _require_different_files(card)
    return card


def _require_different_files(card: ModelCard) -> None:
    names = [name.casefold() for name in (*card.file_names, f"{card.weights.file}.data")]
    if len(set(names)) < len(card.file_names) + (not card.weights.data_sha256):
        raise UntrustedEncoderError(
            f"{card.folder.name}: {CARD_FILE} gives one file name to two things; "
            "card, weights, golden tiles and licence are files of their own"
        )


def _build_origin(folder: Path, entries: object) -> CardOrigin:
    table = _table(folder, "origin", entries)
    source = table.text("source", pattern=r"(?!.*\.\.)\w[^\\:\n]*")
    return CardOrigin(table.text("slot"), source, table.optional_text("revision"))


def _build_equivalence(folder: Path, entries: object) -> CardEquivalence:
    table = _table(folder, "equivalence", entries)
    rows = table.entries.get("machines", [])
    if not isinstance(rows, list):
        raise table.refuse("machines", "a list of tables")
    machines = tuple(_build_machine(_table(folder, "equivalence.machines", row)) for row in rows)
    return CardEquivalence(table.text("of", pattern="[0-9a-f]{64}"), table.text("form"), table.text("gate"), machines)


def _build_machine(row: CardTable) -> EquivalenceMachine:
    return EquivalenceMachine(
        isa=row.text("isa"),
        cosine_median=row.measured("cosine_median"),
        cosine_min=row.measured("cosine_min"),
        speedup=row.number("speedup"),
        tiles_per_s=row.number("tiles_per_s"),
        passed=row.truth("passed"),
        command=row.text("command"),
        neighbour_agreement=row.measured("neighbour_agreement") if "neighbour_agreement" in row.entries else None,
        probe_loss=row.measured("probe_loss") if "probe_loss" in row.entries else None,
    )


def _table(folder: Path, section: str, entries: object) -> CardTable:
    return CardTable(folder, section, entries, UntrustedEncoderError)
