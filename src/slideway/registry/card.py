"""What a model is, what it may be used for and how its files are recognised: the card beside its weights."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from slideway.core.errors import UntrustedEncoderError

CARD_FILE = "card.toml"
SCHEMA_MAJOR = 1
STATES = ("active", "candidate", "retired")


@dataclass(frozen=True)
class CardInput:
    """What the model expects of a tile.

    Attributes:
        tile_px: Edge of a tile in pixels.
        mpp: Microns per pixel of a tile.
        colour: What the three channels are, in words.
        mean: Mean of each channel that is subtracted, for pixels in [0, 1].
        std: What each channel is divided by afterwards.
        resize: How a finer level is brought to `mpp`: `area`, `bilinear` or `bicubic`.
    """

    tile_px: int
    mpp: float
    colour: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str


@dataclass(frozen=True)
class CardOutput:
    """What the model gives for a tile.

    Attributes:
        width: Length of the vector.
        pooling: How a tile's activations become one vector, in words.
        dtype: Number type of the vector.
    """

    width: int
    pooling: str
    dtype: str


@dataclass(frozen=True)
class CardWeights:
    """The file of weights.

    Attributes:
        file: Its name, in the card's folder.
        sha256: Its hash.
        bytes: Its size.
        precision: Number type of the computation; another precision is another encoder.
        parameters: How many numbers were learnt.
        data_sha256: Hash of `<file>.data`, for models that keep their tensors in a second file; else empty.
    """

    file: str
    sha256: str
    bytes: int
    precision: str
    parameters: int
    data_sha256: str = ""


@dataclass(frozen=True)
class CardGolden:
    """Golden tiles with the vectors they must give, and how near is near enough.

    Attributes:
        file: Name of the safetensors file: `tiles` (n, tile_px, tile_px, 3) uint8, `vectors` (n, width) float32.
        sha256: Its hash.
        min_cosine: Lowest cosine between expected and computed vector.
        max_abs_difference: Largest difference of any number in any vector.
    """

    file: str
    sha256: str
    min_cosine: float
    max_abs_difference: float


@dataclass(frozen=True)
class CardLicence:
    """What the licence permits.

    Attributes:
        id: SPDX identifier.
        file: Name of the licence text, in the card's folder.
        note: What it permits and who is credited, in words.
    """

    id: str
    file: str
    note: str


@dataclass(frozen=True)
class CardUse:
    """What the model is for, in words.

    Attributes:
        intended: What it is for.
        not_intended: What it must not be used for.
    """

    intended: str
    not_intended: str


@dataclass(frozen=True)
class CardTraining:
    """Where the model's knowledge comes from, in words.

    Attributes:
        data: What it was trained on.
        note: By whom, and what was changed since.
    """

    data: str
    note: str


@dataclass(frozen=True)
class ModelCard:
    """A model as its card describes it; nothing of it is believed before `verify_files`.

    Attributes:
        folder: Where card, weights, golden tiles and licence lie.
        id: Stable short name.
        title: Name for a person.
        version: Version of this packaging.
        state: `active`, `candidate` or `retired`.
        input: What it expects of a tile.
        output: What it gives for a tile.
        weights: The file of weights.
        golden: Golden tiles.
        licence: What the licence permits.
        use: What it is for.
        training: Where its knowledge comes from.
        limits: Plain sentences about what it cannot do.
        metrics: What was measured, with the command that measured it.
    """

    folder: Path
    id: str
    title: str
    version: str
    state: str
    input: CardInput
    output: CardOutput
    weights: CardWeights
    golden: CardGolden
    licence: CardLicence
    use: CardUse
    training: CardTraining
    limits: tuple[str, ...]
    metrics: Mapping[str, Any]

    @property
    def weights_path(self) -> Path:
        """File of weights."""
        return self.folder / self.weights.file

    @property
    def golden_path(self) -> Path:
        """File of golden tiles."""
        return self.folder / self.golden.file

    @property
    def fingerprint(self) -> str:
        """See `fingerprint_card`."""
        return fingerprint_card(self)


def fingerprint_card(card: ModelCard) -> str:
    """Sha256 in hex of everything that decides what the numbers of an embedding mean.

    The engine is not part of it (golden tiles prove that engines agree), nor are words, limits and licence.
    """
    weights = card.weights
    facts = {
        "weights": f"{weights.sha256}+{weights.data_sha256}" if weights.data_sha256 else weights.sha256,
        "tile_px": card.input.tile_px,
        "mpp": card.input.mpp,
        "mean": list(card.input.mean),
        "std": list(card.input.std),
        "resize": card.input.resize,
        "pooling": card.output.pooling,
        "precision": weights.precision,
        "width": card.output.width,
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_card(folder: Path) -> ModelCard:
    """Read the card in a model's folder.

    Raises:
        UntrustedEncoderError: No card is there, it is of a newer major version, or an entry is missing or impossible.
    """
    try:
        content = tomllib.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise UntrustedEncoderError(
            f"{folder.name}: no readable {CARD_FILE} in this folder ({type(error).__name__}); "
            "a model is a folder with card.toml, weights and golden tiles"
        ) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UntrustedEncoderError(
            f"{folder.name}: {CARD_FILE} is not valid TOML ({error}); mend or replace it"
        ) from error
    _require_known_schema(folder, content)
    return _build_card(folder, content)


def verify_files(card: ModelCard) -> None:
    """Hash weights and golden tiles, and see that the golden tiles were made for this very card.

    Raises:
        UntrustedEncoderError: A file is missing, changed, or belongs to another card.
    """
    _require_hash(card, card.weights_path, card.weights.sha256)
    second_file = card.weights_path.with_name(card.weights.file + ".data")
    if card.weights.data_sha256 or second_file.exists():
        _require_hash(card, second_file, card.weights.data_sha256)
    _require_hash(card, card.golden_path, card.golden.sha256)
    _require_golden_fits(card)


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
    return ModelCard(
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
        licence=CardLicence(licence.text("id"), licence.file_name("file"), licence.text("note")),
        use=CardUse(use.text("intended"), use.text("not_intended")),
        training=CardTraining(training.text("data"), training.text("note")),
        limits=_Table(folder, "limits", content.get("limits")).sentences("plain"),
        metrics=_Table(folder, "metrics", content.get("metrics")).entries,
    )


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

    def file_name(self, key: str) -> str:
        # A name and no path: a card must not point at files outside its folder.
        return self.text(key, pattern=r"[A-Za-z0-9_][A-Za-z0-9._-]*")

    def count(self, key: str) -> int:
        value = self.entries.get(key)
        if type(value) is not int or value <= 0:
            raise self.refuse(key, "a whole number above 0")
        return value

    def number(self, key: str) -> float:
        value = self.entries.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refuse(key, "a number above 0")
        return float(value)

    def three_numbers(self, key: str, *, least: float = 0.0) -> tuple[float, float, float]:
        value = self.entries.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise self.refuse(key, "three numbers, one for each of red, green and blue")
        red, green, blue = (float(v) for v in value)
        if not all(least <= v < math.inf for v in (red, green, blue)):
            raise self.refuse(key, f"three finite numbers, none below {least:g}")
        return red, green, blue

    def sentences(self, key: str) -> tuple[str, ...]:
        value = self.entries.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.refuse(key, "a list of sentences: every model has limits")
        return tuple(value)


def _require_hash(card: ModelCard, path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UntrustedEncoderError(
            f"{card.id}: {path.name} cannot be read ({type(error).__name__}); install the encoder again"
        ) from error
    if found != sha256:
        raise UntrustedEncoderError(
            f"{card.id}: {path.name} is not the file its card names (sha256 {found[:12]} instead of "
            f"{sha256[:12] or 'none'}); it was changed or damaged: install the encoder again"
        )


def _require_golden_fits(card: ModelCard) -> None:
    edge, width = card.input.tile_px, card.output.width
    try:
        with safe_open(card.golden_path, "numpy") as golden:
            made_for = (golden.metadata() or {}).get("fingerprint")
            tiles, vectors = golden.get_slice("tiles"), golden.get_slice("vectors")
            shapes = (tuple(tiles.get_shape()), tuple(vectors.get_shape()))
    except SafetensorError as error:
        raise UntrustedEncoderError(f"{card.id}: {card.golden.file} holds no golden tiles ({error})") from error
    n = shapes[0][0] if shapes[0] else 0
    if n == 0 or shapes != ((n, edge, edge, 3), (n, width)):
        raise UntrustedEncoderError(
            f"{card.id}: golden tiles of shape {shapes[0]} with vectors of shape {shapes[1]} do not fit the card "
            f"(tile_px {edge}, width {width}); card and files do not belong together"
        )
    if made_for is not None and made_for != card.fingerprint:
        raise UntrustedEncoderError(
            f"{card.id}: the golden tiles were made for fingerprint {made_for[:12]}, the card gives "
            f"{card.fingerprint[:12]}; the card's input, pooling or precision was changed: install the encoder again"
        )
