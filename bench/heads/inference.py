"""Time of a slide head on a bag of 50,000 tiles, on one core: figures of docs/hard.md.

    python bench/heads/inference.py DATA [--keep FOLDER]

Heads of three and of five members are trained for a few passes on the atlas's bags (DATA as for
`training/heads/train_starters.py`): what they learnt does not change how long they take. The bag holds the atlas's
tiles tenfold. Medians of nine runs after one that is not counted; the process is bound to one core and its libraries to
one thread. CPU time is what the work costs; wall time holds what else the machine did meanwhile.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lesions import gather_atlas
from threadpoolctl import threadpool_limits

from slideway.core.bag import EmbeddingBag
from slideway.core.opinion import TaskQuestion
from slideway.core.tissue import TileGrid
from slideway.heads.abmil import score_tiles_together
from slideway.heads.diagnose import SlideFacts, form_opinion
from slideway.heads.fit import Training, fit_abmil
from slideway.heads.head import Head
from slideway.heads.typicality import fit_typicality, score_typicality
from slideway.learning.crossval import HeldOut, group_by_case
from slideway.learning.sample import Sample
from slideway.learning.train import EncoderFacts, KnownCases, make_certain, make_golden
from slideway.registry.head_records import HeadCard, HeadInput, HeadTask, HeadWeights
from slideway.registry.records import CardLicence, CardTraining, CardUse

TILES = 50_000
RUNS = 9


def lay_large_bag(sample: Sample) -> EmbeddingBag:
    every = np.concatenate([sample.bag(i).vectors for i in range(len(sample))])
    vectors = np.ascontiguousarray(np.tile(every, (-(-TILES // len(every)), 1))[:TILES])
    places = np.stack([np.arange(TILES) % 250, np.arange(TILES) // 250], axis=1).astype(np.int32)
    first = sample.bag(0)
    grid = TileGrid(places, 224, 0.5, 0.5)
    return EmbeddingBag(
        vectors, grid, np.full(TILES, 1.8, np.float32), first.encoder_id, first.fingerprint, first.slide_sha256
    )


def make_head(sample: Sample, members: int) -> Head:
    """A head as it ships, but for its training, which is cut short."""
    bags = [sample.bag(i) for i in range(len(sample))]
    network = fit_abmil(
        [bag.vectors for bag in bags],
        sample.labels,
        sample.questions,
        Training(seeds=tuple(range(members)), epochs=2, more_steps=()),
    )
    own = [score_tiles_together(network, network.projection(bag.vectors)) for bag in bags]
    logits = {q.id: np.stack([scores.logits[q.id] for scores in own]) for q in sample.questions}
    nothing = np.full(len(bags), np.nan)
    held = HeldOut(np.ones(len(bags), bool), {"abmil": logits}, nothing, nothing)
    by_case = group_by_case([scores.projected for scores in own], sample.cases)
    names = tuple(dict.fromkeys(sample.cases))
    labels = {question.id: ("",) * len(names) for question in sample.questions}
    known = KnownCases(names, np.stack([tiles.mean(axis=0) for tiles in by_case]), labels)
    return Head(network, make_certain(sample, held), fit_typicality(by_case), known, make_golden(network.projection))


def make_card(questions: tuple[TaskQuestion, ...], facts: EncoderFacts) -> HeadCard:
    return HeadCard(
        folder=Path(),
        id="timed",
        title="Timed",
        version="1.0.0",
        state="active",
        input=HeadInput(facts.encoder_id, facts.fingerprint, facts.width, "H&E", 20),
        tasks=tuple(HeadTask(question, True, "", None) for question in questions),
        weights=HeadWeights("0" * 64, 1, 1, "abmil"),
        licence=CardLicence("Apache-2.0", "LICENSE", "None."),
        use=CardUse("Timing.", "Anything else."),
        training=CardTraining("None.", "None."),
        limits=("None.",),
        metrics={},
    )


def take_time(work: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds on the clock and of the processor."""
    work()
    walls, cpus = [], []
    for _ in range(RUNS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return float(np.median(walls)), float(np.median(cpus))


def report(sample: Sample, bag: EmbeddingBag, members: int) -> None:
    head = make_head(sample, members)
    card = make_card(sample.questions, EncoderFacts(bag.encoder_id, bag.fingerprint, bag.width))
    projected, facts = head.network.projection(bag.vectors), SlideFacts(stain="H&E")
    steps: dict[str, Callable[[], object]] = {
        "input layer alone": lambda: head.network.projection(bag.vectors),
        "networks alone": lambda: score_tiles_together(head.network, projected),
        "typicality alone": lambda: score_typicality(head.typicality, projected),
        "**inference**: input layer and networks": lambda: head.score(bag),
        "opinion without explanation": lambda: form_opinion(card, head, bag, facts, explain=False),
        "opinion with explanation": lambda: form_opinion(card, head, bag, facts, explain=True),
    }
    for name, work in steps.items():
        wall, cpu = take_time(work)
        print(f"| {members} | {name} | {wall:.0f} | {cpu:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="where bags are kept; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tasks = ["organ", "neoplastic", "malignant"]
        sample = gather_atlas(options.data / "atlas", options.keep or Path(scratch), tasks)
        bag = lay_large_bag(sample)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(f"| members | {TILES:,} tiles of {bag.width} numbers | wall ms | CPU ms |\n|---|---|---|---|")
        with threadpool_limits(1):
            for members in (3, 5):
                report(sample, bag, members)


if __name__ == "__main__":
    main()
