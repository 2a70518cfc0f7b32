"""The card beside a model's weights: read strictly, written all at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from slideway.core.errors import UntrustedEncoderError
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
_MAX_CARD_BYTES = 1_000_000


def read_card(folder: Path) -> ModelCard:
    """Read the card in a model's folder.

    Raises:
        UntrustedEncoderError: No card is there, it is of a newer major version, or an entry is missing or impossible.
    """
    content = _load(folder)
    _require_known_schema(folder, content)
    return _build_card(folder, content)


def _load(folder: Path) -> dict[str, Any]:
    try:
        with (folder / CARD_FILE).open("rb") as file:
            content = file.read(_MAX_CARD_BYTES + 1)
        if len(content) > _MAX_CARD_BYTES:
            raise ValueError(f"over {_MAX_CARD_BYTES // 1_000_000} MB")
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise UntrustedEncoderError(
            f"{folder.name}: no readable {CARD_FILE} in this folder ({type(error).__name__}); "
            "a model is a folder with card.toml, weights and golden tiles"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise UntrustedEncoderError(
            f"{folder.name}: {CARD_FILE} is not valid TOML ({error}); mend or replace it"
        ) from error


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
    _write_text(card.folder / CARD_FILE, text)


def change_card(folder: Path, *, state: str | None = None, model_id: str | None = None) -> ModelCard:
    """Change state or id on the card in a folder, and nothing else of its entries; returns the new card.

    Neither is part of the fingerprint. Entries that a newer Slideway wrote are kept.

    Raises:
        UntrustedEncoderError: The card cannot be read.
        ValueError: No card can hold that.
        OSError: The folder cannot be written.
    """
    read_card(folder)  # refuses before anything is touched
    content = _load(folder)
    content |= {key: value for key, value in (("state", state), ("id", model_id)) if value is not None}
    try:
        card = _build_card(folder, content)
    except UntrustedEncoderError as error:
        raise ValueError(str(error)) from error
    _write_text(folder / CARD_FILE, tomli_w.dumps(content))
    return card


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _as_toml(card: ModelCard) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": SCHEMA}
    content |= {key: getattr(card, key) for key in ("id", "title", "version", "state")}
    for section in ("input", "output", "weights", "golden", "licence", "use", "training"):
        content[section] = _without_empty(asdict(getattr(card, section)))
    if card.origin is not None:
        content["origin"] = _without_empty(asdict(card.origin))
    if card.equivalence is not None:
        rows = [_without_empty(asdict(row)) for row in card.equivalence.machines]
        content["equivalence"] = {**asdict(card.equivalence), "machines": rows}
    content["limits"] = {"plain": list(card.limits)}
    content["metrics"] = dict(card.metrics)
    return content


def _without_empty(entries: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not said: entries that are None, an empty text or an empty tuple."""
    return {key: value for key, value in entries.items() if value is not None and value not in ("", ())}


def _require_known_schema(folder: Path, content: Mapping[str, Any]) -> None:
    schema = content.get("schema")
    parts = re.fullmatch(r"(\d+)\.(\d+)", schema) if isinstance(schema, str) else None
    if parts is None:
        raise UntrustedEncoderError(f'{folder.name}: {CARD_FILE} has no schema; the first line must be schema = "1.0"')
    if int(parts[1]) != SCHEMA_MAJOR:
        raise UntrustedEncoderError(
            f"{folder.name}: {CARD_FILE} is of schema {schema}, this Slideway reads {SCHEMA_MAJOR}.x; update Slideway"
        )


def _build_card(folder: Path, content: Mapping[str, Any]) -> ModelCard:
    top, given = _Table(folder, "", content), _Table(folder, "input", content.get("input"))
    out, weights = _Table(folder, "output", content.get("output")), _Table(folder, "weights", content.get("weights"))
    golden, licence = _Table(folder, "golden", content.get("golden")), _Table(folder, "licence", content.get("licence"))
    use, training = _Table(folder, "use", content.get("use")), _Table(folder, "training", content.get("training"))
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
        limits=_Table(folder, "limits", content.get("limits")).sentences("plain"),
        metrics=_Table(folder, "metrics", content.get("metrics")).entries,
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
    table = _Table(folder, "origin", entries)
    source = table.text("source", pattern=r"(?!.*\.\.)\w[^\\:\n]*")
    return CardOrigin(table.text("slot"), source, table.optional_text("revision"))


def _build_equivalence(folder: Path, entries: object) -> CardEquivalence:
    table = _Table(folder, "equivalence", entries)
    rows = table.entries.get("machines", [])
    if not isinstance(rows, list):
        raise table.refuse("machines", "a list of tables")
    machines = tuple(_build_machine(_Table(folder, "equivalence.machines", row)) for row in rows)
    return CardEquivalence(table.text("of", pattern="[0-9a-f]{64}"), table.text("form"), table.text("gate"), machines)


def _build_machine(row: _Table) -> EquivalenceMachine:
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


# TOML's whole numbers have no end, Python's floats do.
_LARGEST_NUMBER = 1e300
_LARGEST_COUNT = 2**63


class _Table:
    """One section of a card; each getter gives a checked value or names the entry that is wrong."""

    def __init__(self, folder: Path, section: str, entries: object) -> None:
        self.folder, self.section = folder, section
        if not isinstance(entries, dict):
            raise UntrustedEncoderError(f"{folder.name}: {CARD_FILE} has no section [{section}]")
        self.entries: dict[str, Any] = entries

    def refuse(self, key: str, wanted: str) -> UntrustedEncoderError:
        where = f"[{self.section}] {key}" if self.section else key
        return UntrustedEncoderError(f"{self.folder.name}: {CARD_FILE}: {where} must be {wanted}")

    def text(self, key: str, *, pattern: str = r"(?s).*\S.*") -> str:
        value = self.entries.get(key)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.refuse(key, "a text" if "S" in pattern else f"a text of the form {pattern}")
        return value

    def optional_text(self, key: str) -> str:
        return self.text(key) if key in self.entries else ""

    def file_name(self, key: str) -> str:
        # A name and no path: a card must not point at files outside its folder. A package holds names up to 100 bytes.
        return self.text(key, pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]{0,94}")

    def permissions(self, key: str) -> tuple[str, ...]:
        value = self.entries.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v in PERMISSIONS for v in value):
            raise self.refuse(key, f"a list of any of {', '.join(PERMISSIONS)}")
        return tuple(value)

    def truth(self, key: str) -> bool:
        value = self.entries.get(key)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def measured(self, key: str) -> float:
        value = self.entries.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1.0 <= value <= 1.0:
            raise self.refuse(key, "a number between -1 and 1")
        return float(value)

    def count(self, key: str) -> int:
        value = self.entries.get(key)
        if type(value) is not int or not 0 < value < _LARGEST_COUNT:
            raise self.refuse(key, "a whole number above 0")
        return value

    def number(self, key: str) -> float:
        value = self.entries.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST_NUMBER:
            raise self.refuse(key, "a number above 0")
        return float(value)

    def three_numbers(self, key: str, *, least: float = 0.0) -> tuple[float, float, float]:
        value = self.entries.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise self.refuse(key, "three numbers, one for each of red, green and blue")
        if not all(least <= v < _LARGEST_NUMBER for v in value):
            raise self.refuse(key, f"three finite numbers, none below {least:g}")
        red, green, blue = (float(v) for v in value)
        return red, green, blue

    def sentences(self, key: str) -> tuple[str, ...]:
        value = self.entries.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.refuse(key, "a list of sentences: every model has limits")
        return tuple(value)
