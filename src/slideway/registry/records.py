"""What a model is, what it may be used for, and the fingerprint that its embeddings carry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD_FILE = "card.toml"
STATES = ("candidate", "shadow", "active", "retired")
PERMISSIONS = ("use", "research", "commercial", "change", "redistribute")


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
        permits: What it permits, for machines: any of `PERMISSIONS`; empty when the card does not say.
    """

    id: str
    file: str
    note: str
    permits: tuple[str, ...] = ()


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
class CardOrigin:
    """What an encoder was built from.

    Attributes:
        slot: Id of the encoder slot that says how to build it, e.g. `kaiko-vits16`.
        source: Hub id or file name of the checkpoint, never a path.
        revision: Revision at the hub; empty when there is none.
    """

    slot: str
    source: str
    revision: str = ""


@dataclass(frozen=True)
class EquivalenceMachine:
    """How near an optimised form came to its fp32 encoder on one kind of processor.

    Attributes:
        isa: Instruction set that decided, e.g. `avx512_vnni`.
        cosine_median: Median cosine between the two forms' vectors of the same tile.
        cosine_min: Lowest of them.
        speedup: Tiles per second over those of the fp32 encoder.
        tiles_per_s: Tiles per second of this form.
        passed: Whether the gate let it through here.
        command: What measured it.
        neighbour_agreement: Share of nearest neighbours that both forms name, in [0, 1]; None when not measured.
        probe_loss: Accuracy a linear probe loses, in [-1, 1]; None when not measured.
    """

    isa: str
    cosine_median: float
    cosine_min: float
    speedup: float
    tiles_per_s: float
    passed: bool
    command: str
    neighbour_agreement: float | None = None
    probe_loss: float | None = None


@dataclass(frozen=True)
class CardEquivalence:
    """What an optimised form is a form of, and how near it comes: it is an encoder of its own all the same.

    Attributes:
        of: Fingerprint of the fp32 encoder.
        form: `fp16-weights`, `int8-dynamic` or the like.
        gate: What it had to reach, in words.
        machines: What was measured, one row a processor.
    """

    of: str
    form: str
    gate: str
    machines: tuple[EquivalenceMachine, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """A model as its card describes it; nothing of it is believed before `verify_files`.

    Attributes:
        folder: Where card, weights, golden tiles and licence lie.
        id: Stable short name.
        title: Name for a person.
        version: Version of this packaging.
        state: `candidate` (new, not yet relied on), `shadow` (runs beside the active one), `active` or `retired`.
        input: What it expects of a tile.
        output: What it gives for a tile.
        weights: The file of weights.
        golden: Golden tiles.
        licence: What the licence permits.
        use: What it is for.
        training: Where its knowledge comes from.
        limits: Plain sentences about what it cannot do.
        metrics: What was measured, with the command that measured it; may hold `subgroups`, a list of tables.
        origin: What it was built from; None when the card does not say.
        equivalence: What it is an optimised form of; None for an encoder in its own right.
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
    origin: CardOrigin | None = None
    equivalence: CardEquivalence | None = None

    @property
    def weights_path(self) -> Path:
        """File of weights."""
        return self.folder / self.weights.file

    @property
    def data_path(self) -> Path | None:
        """Second file of weights; None when the card names none."""
        return self.folder / f"{self.weights.file}.data" if self.weights.data_sha256 else None

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of all files of the model, the card first."""
        data = (f"{self.weights.file}.data",) if self.weights.data_sha256 else ()
        return (CARD_FILE, self.licence.file, self.golden.file, self.weights.file, *data)

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
