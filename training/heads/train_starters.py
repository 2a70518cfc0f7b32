"""Train the heads that ship, judge them on unseen cases with their baselines, and print the whole table.

    python training/heads/train_starters.py DATA [--only atlas|nodes|oral] [--ship]

DATA holds `atlas/` (slides.csv, tiles/) and `labelled/` (labels.csv, pcam1000.tar, oscc.tar). Everything is seeded; the
same machine gives the same numbers. Without --ship the heads go to a temporary folder and only the table is printed;
with it they replace the packaged ones, their evidence in bench/heads/starters and their pages in docs/models.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from atlas import CREDIT, name_organ, read_rows

from slideway.cli.progress import Steps
from slideway.cli.train_tiles import encode_table
from slideway.encoders import Encoder, load_encoder
from slideway.heads.fit import Training
from slideway.learning.cohort import read_cohort
from slideway.learning.questions import select_tasks
from slideway.learning.report import write_evaluation_page
from slideway.learning.sample import gather_sample
from slideway.learning.tile_heads import train_tile_head
from slideway.learning.tile_table import read_tile_table
from slideway.learning.train import EVALUATION, EncoderFacts, Plan, TrainedHead, train_head
from slideway.pipeline.tile_archive import encode_tile_archive
from slideway.registry.head_card import write_head_card
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "src/slideway/registry/heads_packaged"
EVIDENCE = ROOT / "bench/heads/starters"
PAGES = ROOT / "docs/models"
THREADS = 2
COMMAND = "python training/heads/train_starters.py DATA"
LICENCE = "Apache-2.0"
ATLAS_LIMITS = (
    "Organ, stain, laboratory and diagnosis are confounded in this set, and labels are a teaching atlas's: no accuracy "
    "claim can rest on it.",
    "A tile does not inherit its slide's label: many tiles of malignant slides are benign tissue.",
    "The encoder has seen these very tiles, without labels; 96 tiles a slide, chosen full of tissue, at estimated "
    "pixel sizes.",
)
PCAM_LIMITS = (
    "993 tiles of lymph nodes of breast cancer patients (PatchCamelyon, from CAMELYON16), 96 px at 0.97 µm/px, "
    "enlarged; the encoder reads tiles at 0.5 µm/px from real slides, which look sharper.",
)
OSCC_LIMITS = (
    "1,208 images of oral mucosa of mixed magnification, squeezed in one direction, with label noise; the set names no "
    "patients.",
    "The images' pixel size is not known: they are taken as they are.",
)


def licence_text(note: str) -> str:
    return f"Licensed under the Apache License, Version 2.0 (the LICENSE file of Slideway).\nTrained on: {note}\n"


def train_atlas(data: Path, encoder: Encoder, folder: Path, bags: Path, steps: Steps) -> TrainedHead:
    """Organ, neoplastic, malignant on the atlas's slides, one case left out at a time."""
    table = write_atlas_cohort(data / "atlas", encoder, bags, steps)
    cohort = read_cohort(table)
    questions = select_tasks(cohort, ["organ", "neoplastic", "malignant"])
    plan = Plan(
        head_id="slideway-atlas",
        title="Atlas starter: organ, neoplastic, malignant",
        training=Training(),
        processes=THREADS,
        command=COMMAND,
        data=f"Histopathology Atlas, H&E, slide-level labels of a teaching atlas ({CREDIT}).",
        licence=(LICENCE, f"Credit: {CREDIT}.", licence_text(CREDIT)),
        limits=ATLAS_LIMITS,
    )
    sample = gather_sample(cohort, questions, [row.path for row in cohort.rows])
    return train_head(sample, plan, folder, tell=steps.on_step)


def write_atlas_cohort(atlas: Path, encoder: Encoder, bags: Path, steps: Steps) -> Path:
    """Encode every slide's tiles once, and write the cohort file of their bags."""
    path, rows = bags / "atlas.csv", read_rows(atlas)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("slide", "case", "organ", "neoplastic", "malignant"))
        for number, row in enumerate(rows, start=1):
            bag = encode_tile_archive(
                atlas / row["tiles_file"],
                mpp=float(row["tile_mpp_estimated"]),
                encoder=encoder,
                out=bags,
                threads=THREADS,
            )
            behaviour = row["behaviour"]
            labels = ("no" if behaviour == "non-neoplastic" else "yes", "yes" if behaviour == "malignant" else "no")
            table.writerow((bag.relative_to(bags), row["patient_group"].replace("/", "_"), name_organ(row), *labels))
            steps.on_step("encoding the atlas", number, len(rows))
    return path


def train_labelled(
    data: Path,
    encoder: Encoder,
    folder: Path,
    work: Path,
    steps: Steps,
    *,
    name: str,
    plan: Plan,
    task: str,
    mpp: float,
) -> TrainedHead:
    """A tile head on one of the labelled sets."""
    path = work / f"{name}.csv"
    positive = {"1", "OSCC"}
    with (data / "labelled/labels.csv").open(newline="", encoding="utf-8") as source:
        rows = [row for row in csv.DictReader(source) if row["set"] == name]
    link = work / f"{name}.tar"
    if not link.exists():
        link.symlink_to((data / "labelled" / f"{name}.tar").resolve())
    has_split = all(row["split"] for row in rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("tile", "mpp", task, *(("fold",) if has_split else ())))
        for row in rows:
            # The set's validation tiles are judged with its test tiles: nothing was chosen on them.
            fold = "train" if row["split"] == "train" else "test"
            label = "yes" if row["label"] in positive else "no"
            table.writerow((f"{name}.tar::{row['file']}", mpp, label, *((fold,) if has_split else ())))
    tiles = read_tile_table(path)
    (question,) = select_tasks(tiles, [task])
    vectors = encode_table(tiles, encoder, steps)
    facts = EncoderFacts(encoder.card.id, encoder.card.fingerprint, encoder.width)
    return train_tile_head(tiles, vectors, question, facts, plan, folder, tell=steps.on_step)


def train_nodes(data: Path, encoder: Encoder, folder: Path, bags: Path, steps: Steps) -> TrainedHead:
    credit = "PatchCamelyon (CC0), from CAMELYON16; a subset of 993 tiles."
    plan = Plan(
        head_id="slideway-nodes",
        title="Lymph-node metastasis, tile starter",
        command=COMMAND,
        data=credit,
        licence=(LICENCE, f"Credit: {credit}", licence_text(credit)),
        limits=PCAM_LIMITS,
    )
    return train_labelled(data, encoder, folder, bags, steps, name="pcam1000", plan=plan, task="metastasis", mpp=0.97)


def train_oral(data: Path, encoder: Encoder, folder: Path, bags: Path, steps: Steps) -> TrainedHead:
    credit = "Oral squamous cell carcinoma images, stated CC0."
    plan = Plan(
        head_id="slideway-oral",
        title="Oral squamous cell carcinoma, tile starter",
        command=COMMAND,
        data=credit,
        licence=(LICENCE, f"Credit: {credit}", licence_text(credit)),
        limits=OSCC_LIMITS,
    )
    return train_labelled(data, encoder, folder, bags, steps, name="oscc", plan=plan, task="oral-carcinoma", mpp=0.5)


STARTERS = {"atlas": train_atlas, "nodes": train_nodes, "oral": train_oral}


def write_table(evaluations: list[dict[str, Any]]) -> str:
    """The whole table: every question of every starter, the head and its baselines on the same folds."""
    lines = [
        "| head | question | unseen | method | figure (95 %) | sensitivity at specificity .90 | ECE | Brier | AURC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for evaluation in evaluations:
        for figures in evaluation["tasks"]:
            unit = f"{figures['cases']} cases" if evaluation["of"] == "slides" else f"{figures['slides']} tiles"
            for name, own in figures["methods"].items():
                at = own.get("sensitivity_at_specificity_90")
                cells = (
                    evaluation["head"],
                    figures["title"],
                    f"{unit}, {evaluation['split']}",
                    f"**{name}**" if name == figures["method"] else name,
                    f"{figures['measure']} {say(own[figures['measure']])}",
                    "" if at is None else say(at),
                    f"{own['ece']:.3f}",
                    f"{own['brier']:.3f}",
                    f"{own['aurc']:.3f}",
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *say_answers(evaluations)])


def say_answers(evaluations: list[dict[str, Any]]) -> list[str]:
    """How far the findings went, and what got through."""
    lines = [
        "| head | question | answer | set | refer | promised coverage | coverage | mean set | missed of unreferred "
        "positives (below, 95 %) | in force |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for evaluation in evaluations:
        for figures in evaluation["tasks"]:
            sets, told = figures["sets"], figures["answers"]
            missed = figures.get("missed")
            through = "" if missed is None else f"{missed['missed']:.0f} (≤ {missed['of_positive_below']:.2f})"
            cells = (
                evaluation["head"],
                figures["title"],
                *(str(told[kind]) for kind in ("answer", "set", "refer")),
                f"{sets['promised']:.2f}",
                say(sets["coverage"]),
                f"{sets['mean_size']:.2f}",
                through,
                "no" if figures["off_because"] else "yes",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def say(bounds: dict[str, float]) -> str:
    return f"{bounds['value']:.3f} ({bounds['low']:.3f}–{bounds['high']:.3f})"


def ship(trained: TrainedHead, folder: Path) -> None:
    """Put a head into the package, its evidence beside the benchmarks and its page into the docs."""
    from slideway.registry.head_page import write_head_page

    card = dataclasses.replace(trained.card, state="active")  # its tasks are off by themselves, one by one
    write_head_card(card)
    target = PACKAGED / card.id
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in card.file_names:
        shutil.copyfile(folder / name, target / name)
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / EVALUATION, EVIDENCE / f"{card.id}.json")
    PAGES.mkdir(parents=True, exist_ok=True)
    page = write_head_page(dataclasses.replace(card, folder=target))
    (PAGES / f"{card.id}.md").write_text(page, encoding="utf-8", newline="\n")


def ship_table(evaluations: list[dict[str, Any]], encoder: Encoder) -> None:
    """Put the whole table and the encoder's page into the docs."""
    from slideway.registry.encoder_page import write_encoder_page

    page = ROOT / "docs/findings.md"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- starters -->\n")
    _, _, after = rest.partition("<!-- /starters -->")
    table = write_table(evaluations)
    page.write_text(f"{before}<!-- starters -->\n{table}\n<!-- /starters -->{after}", encoding="utf-8", newline="\n")
    encoder_page = write_encoder_page(encoder.card)
    (PAGES / f"{encoder.card.id}.md").write_text(encoder_page, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=STARTERS, action="append")
    parser.add_argument("--ship", action="store_true", help="replace the packaged heads, evidence and pages")
    parser.add_argument("--keep", type=Path, help="where bags and heads are kept; default: a temporary folder")
    options = parser.parse_args()
    encoder = load_encoder(find_encoder(DEFAULT_ENCODER), engine="onnxruntime", threads=THREADS)
    evaluations, began = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, Steps() as steps:
        work = options.keep or Path(scratch)
        (work / "bags").mkdir(parents=True, exist_ok=True)
        for name in options.only or STARTERS:
            folder = work / name
            folder.mkdir(exist_ok=True)
            trained = STARTERS[name](options.data, encoder, folder, work / "bags", steps)
            write_evaluation_page(folder, card=trained.card, evaluation=trained.evaluation, judged=trained.judged)
            evaluations.append(json.loads((folder / EVALUATION).read_text(encoding="utf-8")))
            if options.ship:
                ship(trained, folder)
    if options.ship and not options.only:
        ship_table(evaluations, encoder)
    print(write_table(evaluations))
    print(f"\n{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
