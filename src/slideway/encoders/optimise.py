"""Try smaller and faster forms of an installed encoder, and keep those that are still the same encoder."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from slideway.core.errors import WrongUseError
from slideway.encoders import forms as make
from slideway.encoders.build import (
    WEIGHTS_FILE,
    Difference,
    describe_weights,
    golden_tolerance,
    measure_difference,
    tell_nobody,
    write_golden,
)
from slideway.encoders.encoder import TILES_PER_PASS, Encoder, check_golden_tiles, load_encoder
from slideway.encoders.engines import Engine, OnnxRuntimeEngine
from slideway.encoders.equivalence import MIN_TILES, Equivalence, Gate, measure_equivalence
from slideway.encoders.extras import require_library
from slideway.encoders.forms import FORMS, PRECISIONS, NothingToOptimiseError, Source
from slideway.encoders.instructions import name_instruction_set
from slideway.registry.card import CardEquivalence, EquivalenceMachine, ModelCard, read_card, write_card
from slideway.registry.staging import Staging

# Less is noise, and a further encoder to look after is not worth it.
CLEARLY_FASTER = 1.1
CLEARLY_SMALLER = 0.9
MAX_CALIBRATION_TILES = 64
_SENSITIVITY_TILES = 16
_TIMED_TILES = 16
_ROUNDS = 3
# What the mixed form is chosen with: half of what the gate lets through, since the tiles that decide are others.
_CHOOSING_SHARE = 0.5

Progress = Callable[[str], None]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class FormTrial:
    """What became of one form.

    Attributes:
        form: Its name.
        bytes: Size of its weights; 0 when it could not be made.
        speedup: Tiles per second over those of the fp32 encoder, on one core, in the same run.
        tiles_per_s: On one core.
        equivalence: How near it is; None when it could not be made.
        kept: It is a model of its own now.
        reason: Why it was refused, or why it was kept.
        card: Card of the new model; None when refused.
    """

    form: str
    bytes: int
    speedup: float
    tiles_per_s: float
    equivalence: Equivalence | None
    kept: bool
    reason: str
    card: ModelCard | None = None


def optimise_encoder(
    card: ModelCard,
    out: Path,
    *,
    tiles: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    forms: Sequence[str] = FORMS,
    gate: Gate | None = None,
    command: str = "slideway models optimise",
    progress: Progress | None = None,
) -> list[FormTrial]:
    """Make each form, hold it against the fp32 encoder on real tiles, and keep it only when the gate lets it through.

    Every second tile is for calibration, the others decide. Nothing is written of a form that is refused.

    Args:
        card: The fp32 encoder.
        out: Folder for the new models' folders, one a form that is kept.
        tiles: (n, tile_px, tile_px, 3) uint8 real tiles of the kind that will be read, at least 64.
        labels: (n,) class of each tile, for the probe; None groups the tiles by likeness.
        forms: Any of `FORMS`.
        gate: What a form must reach; None takes the strict default.
        command: For the card: what measured it.
        progress: Told each step in words.

    Returns:
        One trial a form, in their order.

    Raises:
        WrongUseError: Too few tiles, an unknown form, an encoder that is itself a form, or onnx is not installed.
        UntrustedEncoderError: The fp32 encoder does not compute here what its card promises.
        OutputError: The folder cannot be written.
    """
    _require_use(card, tiles, labels, forms)
    require_library("onnx", "optimising an encoder")
    bench = _Bench(card, tiles, labels, gate or Gate(), command, progress or tell_nobody)
    return [bench.try_form(form, out) for form in forms]


def _require_use(
    card: ModelCard, tiles: NDArray[np.uint8], labels: NDArray[np.int64] | None, forms: Sequence[str]
) -> None:
    edge = card.input.tile_px
    if tiles.dtype != np.uint8 or tiles.shape[1:] != (edge, edge, 3):
        raise WrongUseError(f"{card.id} takes tiles of {edge} x {edge} px in RGB, not an array of shape {tiles.shape}")
    if len(tiles) < MIN_TILES:
        raise WrongUseError(
            f"{len(tiles)} tiles are too few to say that a form is equivalent; {MIN_TILES} are needed and 256 are "
            "better: give a slide with more tissue, or several with --slide"
        )
    if labels is not None and labels.shape != (len(tiles),):
        raise WrongUseError(f"{len(tiles)} tiles need one label each, not an array of shape {labels.shape}")
    if unknown := [form for form in forms if form not in FORMS]:
        raise WrongUseError(f"no form {unknown[0]!r}; known are {', '.join(FORMS)}")
    if card.equivalence is not None or card.weights.precision != "fp32":
        raise WrongUseError(
            f"{card.id} is an optimised form already ({card.weights.precision}); optimise its fp32 encoder"
        )


class _Bench:
    """The fp32 encoder, the tiles and the gate that every form is held against."""

    def __init__(
        self,
        card: ModelCard,
        tiles: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        gate: Gate,
        command: str,
        tell: Progress,
    ) -> None:
        self.card, self.gate, self.command, self.tell = card, gate, command, tell
        tell("encoding with the fp32 encoder")
        self.engine = load_encoder(card, engine="onnxruntime").engine
        calibration = np.ascontiguousarray(tiles[::2][:MAX_CALIBRATION_TILES])
        self.deciding, self.calibration = np.ascontiguousarray(tiles[1::2]), calibration
        self.labels = None if labels is None else labels[1::2]
        self.expected = encode_in_passes(self.engine, self.deciding)
        self.source = Source(card.weights_path, calibration, card.data_path is not None)

    def try_form(self, form: str, out: Path) -> FormTrial:
        """Make one form and keep or refuse it."""
        self.tell(f"{form}: making it")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / WEIGHTS_FILE
            try:
                words = self._make(form, path)
            except NothingToOptimiseError as error:
                return FormTrial(form, 0, 0.0, 0.0, None, kept=False, reason=str(error))
            self.tell(f"{form}: measuring it")
            return self._judge(form, path, out, words)

    def _make(self, form: str, path: Path) -> str:
        """Write the form; returns what to say of it beside its name."""
        if form == "fp16-weights":
            make.store_halved(self.source, path)
        elif form == "int8-dynamic":
            make.quantise_while_running(self.source, path)
        elif form == "int8-static":
            make.quantise_calibrated(self.source, path)
        else:
            return _MixedForm(self).write(path)
        return ""

    def _judge(self, form: str, path: Path, out: Path, words: str) -> FormTrial:
        has_data = path.with_name(f"{path.name}.data").exists()
        engine = OnnxRuntimeEngine(path, 1, has_data)
        equivalence = measure_equivalence(self.expected, encode_in_passes(engine, self.deciding), labels=self.labels)
        speedup, tiles_per_s = compare_speed(self.engine, engine, self.deciding)
        n_bytes = describe_weights(path.parent, "", 1).bytes
        trial = FormTrial(form, n_bytes, speedup, tiles_per_s, equivalence, kept=False, reason="")
        reasons = list(equivalence.failures(self.gate))
        smaller = n_bytes / self.card.weights.bytes
        if not reasons and speedup < CLEARLY_FASTER and smaller > CLEARLY_SMALLER:
            reasons.append(f"neither faster ({speedup:.2f} times) nor smaller ({smaller:.0%})")
        spread = self._measure_spread(engine, path, has_data)
        if not reasons and spread.largest > self.gate.repeat_of_spread * spread.spread:
            reasons.append(f"does not repeat itself: the same tile differs by {spread.largest:.2g} from pass to pass")
        if reasons:
            return replace(trial, reason="; ".join(reasons))
        card = self._keep(trial, path, out, engine, spread, words)
        gain = f"{speedup:.2f} times as fast, {smaller:.0%} of the size"
        return replace(trial, kept=True, reason=f"{gain}{f'; {words}' if words else ''}", card=card)

    def _measure_spread(self, engine: Engine, path: Path, has_data: bool) -> Difference:
        """How far the form's own vectors move: tiles alone instead of in pairs, and without the engine's rewriting."""
        tiles = load_file(self.card.golden_path)["tiles"]
        in_pairs = encode_in_passes(engine, tiles)
        alone = np.concatenate([engine.run(tile[None]) for tile in tiles])
        plain = encode_in_passes(_PlainEngine(path, has_data), tiles)
        found = [measure_difference(other, in_pairs) for other in (alone, plain)]
        return Difference(min(d.cosine for d in found), max(d.largest for d in found), found[0].spread)

    def _keep(
        self, trial: FormTrial, path: Path, out: Path, engine: Engine, spread: Difference, words: str
    ) -> ModelCard:
        card_id = f"{self.card.id}-{trial.form}"
        tiles = load_file(self.card.golden_path)["tiles"]
        with Staging(out, card_id) as staging:
            for file in path.parent.iterdir():
                shutil.copyfile(file, staging.path / file.name)
            shutil.copyfile(self.card.folder / self.card.licence.file, staging.path / self.card.licence.file)
            card = self._describe(trial, staging.path, card_id, spread, words)
            card = write_golden(card, tiles, encode_in_passes(engine, tiles))
            write_card(card)
            check_golden_tiles(Encoder(read_card(staging.path), engine, "onnxruntime"))
            final = staging.commit()
        return read_card(final)

    def _describe(self, trial: FormTrial, folder: Path, card_id: str, spread: Difference, words: str) -> ModelCard:
        equivalence = trial.equivalence
        assert equivalence is not None
        machine = EquivalenceMachine(
            isa=name_instruction_set(),
            cosine_median=round(equivalence.cosine_median, 6),
            cosine_min=round(equivalence.cosine_min, 6),
            speedup=round(trial.speedup, 3),
            tiles_per_s=round(trial.tiles_per_s, 3),
            passed=True,
            command=self.command,
            neighbour_agreement=round(equivalence.neighbour_agreement, 4),
            probe_loss=None if equivalence.probe_loss is None else round(equivalence.probe_loss, 4),
        )
        tolerance = golden_tolerance(spread)
        cosine = min(tolerance.min_cosine, 1 - 4 * (1 - spread.cosine))
        precision = f"{PRECISIONS[trial.form]}{f' ({words})' if words else ''}"
        limits = (
            f"A form of {self.card.id}, not that encoder: their embeddings never meet.",
            f"Equivalence was measured on {equivalence.tiles} tiles and on {machine.isa} only; on another processor "
            "the golden tiles decide.",
            f"A tile encoded beside another one differs from the same tile alone by up to {spread.largest:.2g} "
            f"(spread of the numbers: {spread.spread:.3g}).",
        )
        return replace(
            self.card,
            folder=folder,
            id=card_id,
            title=f"{self.card.title}, {trial.form}",
            state="candidate",
            weights=describe_weights(folder, precision, self.card.weights.parameters),
            golden=replace(tolerance, min_cosine=round(cosine, 6)),
            limits=(*limits, *self.card.limits),
            metrics={
                "speed": f"{trial.tiles_per_s:.2f} tiles/s on one core, {trial.speedup:.2f} times the fp32 encoder"
            },
            equivalence=CardEquivalence(self.card.fingerprint, trial.form, self.gate.words, (machine,)),
        )


class _MixedForm:
    """Finds which parts of the graph bear int8, by quantising one group of nodes at a time and measuring."""

    def __init__(self, bench: _Bench) -> None:
        self._bench, self._source = bench, bench.source
        self._is_dynamic = self._source.is_transformer
        operators = ("MatMul",) if self._is_dynamic else ("MatMul", "Conv", "Gemm")
        self._nodes = make.list_nodes(self._source.path, operators)

    def write(self, path: Path) -> str:
        """Write the form with as many nodes in int8 as half of the gate's allowance bears; says how many."""
        groups = self._order_by_harm(make.group_nodes(self._nodes))
        if not groups:
            raise NothingToOptimiseError("no product with constant weights in the graph")
        if (count := self._count_harmless(groups)) == 0:
            raise NothingToOptimiseError("even the least sensitive part does not bear int8")
        chosen = [name for group in groups[:count] for name in group]
        self._quantise(path, chosen)
        return f"{len(chosen)} of {len(self._nodes)} products in int8"

    def _order_by_harm(self, groups: list[list[str]]) -> list[list[str]]:
        tiles = self._bench.calibration[:_SENSITIVITY_TILES]
        expected = encode_in_passes(self._bench.engine, tiles)
        harm = []
        for number, group in enumerate(groups, 1):
            self._bench.tell(f"mixed: measuring part {number} of {len(groups)}")
            got = self._encode_with(group, tiles)
            # For each product that it saves, what the group costs: a large harmless group comes first.
            harm.append(float(np.abs(got - expected).mean()) / len(group))
        return [groups[index] for index in np.argsort(harm, kind="stable")]

    def _count_harmless(self, groups: list[list[str]]) -> int:
        """Largest number of groups, the harmless first, that passes the halved gate; harm grows with each."""
        tiles = self._bench.calibration
        expected = encode_in_passes(self._bench.engine, tiles)
        gate = self._bench.gate.tightened(_CHOOSING_SHARE)
        low, high = 0, len(groups)
        while low < high:
            middle = (low + high + 1) // 2
            self._bench.tell(f"mixed: trying {middle} of {len(groups)} parts in int8")
            got = self._encode_with([name for group in groups[:middle] for name in group], tiles)
            if measure_equivalence(expected, got).failures(gate):
                high = middle - 1
            else:
                low = middle
        return low

    def _encode_with(self, names: list[str], tiles: NDArray[np.uint8]) -> Vectors:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / WEIGHTS_FILE
            self._quantise(path, names)
            return encode_in_passes(OnnxRuntimeEngine(path, 1, self._source.is_large), tiles)

    def _quantise(self, path: Path, names: list[str]) -> None:
        quantise = make.quantise_while_running if self._is_dynamic else make.quantise_calibrated
        quantise(self._source, path, only=names)


class _PlainEngine:
    """ONNX Runtime without any rewriting of the graph: what another engine might compute."""

    words = "onnxruntime without optimisation"

    def __init__(self, weights: Path, has_data_file: bool) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # on Windows; elsewhere slideway/__init__.py has said so
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = str(weights) if has_data_file else weights.read_bytes()
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(self, tiles: NDArray[np.uint8]) -> Vectors:
        """See `Engine.run`."""
        vectors: Vectors = self._session.run(["vectors"], {"tiles": tiles})[0]
        return vectors


def encode_in_passes(engine: Engine, tiles: NDArray[np.uint8]) -> Vectors:
    """Encode as `Encoder.encode` does, so many tiles a pass."""
    starts = range(0, len(tiles), TILES_PER_PASS)
    return np.concatenate([engine.run(tiles[start : start + TILES_PER_PASS]) for start in starts])


def compare_speed(reference: Engine, form: Engine, tiles: NDArray[np.uint8]) -> tuple[float, float]:
    """Speed-up of the form and its tiles per second on one core, the two taking turns.

    Both compute on the calling thread, whose own CPU time is measured: what else this computer does does not count.
    """
    some = tiles[:_TIMED_TILES]
    seconds: dict[str, list[float]] = {"reference": [], "form": []}
    for _ in range(_ROUNDS):
        for name, engine in (("reference", reference), ("form", form)):
            began = time.thread_time()
            encode_in_passes(engine, some)
            seconds[name].append(time.thread_time() - began)
    best = {name: max(min(taken), 1e-9) for name, taken in seconds.items()}
    return best["reference"] / best["form"], len(some) / best["form"]
