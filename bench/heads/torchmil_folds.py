"""Our gated attention beside torchmil's on the same folds and bags: figures of docs/hard.md.

    pip install torchmil                     # Apache-2.0, in a scratch environment: it is no dependency of ours
    python bench/heads/torchmil_folds.py DATA [--keep FOLDER] [--repeats 1]

DATA as for `training/heads/train_starters.py`. Slides of the atlas in five case folds, dealt anew each time: every
slide is judged by models that never saw its case, and its numbers are averaged over repeats. Each method gets the same
bags. torchmil's ABMIL learns each question by itself, as the baselines do; its seeds are averaged as ours are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lesions import gather_atlas
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader
from torchmil.data import collate_fn
from torchmil.models import ABMIL
from torchmil.utils import Trainer

from slideway.heads.abmil import score_bag
from slideway.heads.fit import Training, fit_abmil
from slideway.heads.hierarchy import join_questions
from slideway.heads.metrics import measure_auroc
from slideway.learning.baselines import judge_by_mean, judge_by_neighbours
from slideway.learning.sample import Sample
from slideway.learning.splits import Fold
from slideway.learning.train import CASE_FOLDS, make_folds

Array = NDArray[Any]
Told = dict[str, tuple[dict[str, Array], float]]  # of each method: its numbers by task, and CPU seconds
SEEDS = (0, 1, 2)
TASKS = ("neoplastic", "malignant")


@dataclass(frozen=True)
class Recipe:
    """How torchmil's network is trained.

    Attributes:
        batch: Bags a step.
        rate: Learning rate.
        epochs: Passes.
        is_adamw: AdamW with our weight decay; else plain Adam.
        is_whitened: Vectors are first brought to unit variance by the training tiles' mean and deviation.
    """

    batch: int
    rate: float
    epochs: int
    is_adamw: bool = False
    is_whitened: bool = False


RECIPES = {
    # The quick start of its README: Adam, rate 1e-4, four bags a step, ten passes.
    "torchmil ABMIL gated, as its README trains": Recipe(4, 1e-4, 10),
    "torchmil ABMIL gated, our rate, passes, batch, decay": Recipe(32, 2e-3, 40, is_adamw=True),
    "the same on standardised vectors": Recipe(32, 2e-3, 40, is_adamw=True, is_whitened=True),
}
SHIPPED = "**Slideway ABMIL**, as `slideway train` does it"
OURS = "Slideway ABMIL, 40 passes of 32 bags"
# Pinned to what torchmil gets in the third recipe, so that tables can be made again when the defaults change.
TRAINING = Training(more_steps=(), epochs=40, batch=32, seeds=SEEDS)
OURS_ALONE = "Slideway ABMIL, each question by itself"


def judge_fold(sample: Sample, fold: Fold) -> Told:
    bags = [np.asarray(sample.bag(i).vectors, np.float32) for i in range(len(sample))]
    known, asked = [bags[i] for i in fold.train], [bags[i] for i in fold.test]
    labels = {task: own[fold.train] for task, own in sample.labels.items()}
    means = np.stack([bag.mean(axis=0, dtype=np.float64) for bag in bags])
    told: Told = {}

    def take(name: str, work: Callable[[], dict[str, Array]]) -> None:
        began = time.process_time()
        told[name] = (work(), time.process_time() - began)

    take(SHIPPED, lambda: judge_by_ours(sample.questions, known, labels, asked, Training(seeds=SEEDS)))
    take(OURS, lambda: judge_by_ours(sample.questions, known, labels, asked))
    take(OURS_ALONE, lambda: judge_alone(sample, known, labels, asked))
    for name, judge in (("mean-pool + logistic regression", judge_by_mean), ("nearest cases", judge_by_neighbours)):
        take(
            name,
            lambda judge=judge: {
                q.id: judge(q, means[fold.train], labels[q.id], means[fold.test])[:, 0] for q in sample.questions
            },
        )
    for name, recipe in RECIPES.items():
        take(name, lambda recipe=recipe: {q: judge_by_theirs(known, labels[q], asked, recipe) for q in TASKS})
    return told


def judge_by_ours(
    questions: Any,
    known: list[Array],
    labels: dict[str, Array],
    asked: list[Array],
    training: Training = TRAINING,
) -> dict[str, Array]:
    head = fit_abmil(known, labels, questions, training)
    scores = [score_bag(head, bag) for bag in asked]
    joined = join_questions(questions, {q.id: np.stack([one.logits[q.id] for one in scores]) for q in questions})
    return {task: log[:, 1] - log[:, 0] for task, log in joined.items()}


def judge_alone(sample: Sample, known: list[Array], labels: dict[str, Array], asked: list[Array]) -> dict[str, Array]:
    """Each question learnt alone and from all bags: what hierarchy and shared layers add, or cost."""
    return {q.id: judge_by_ours((q,), known, {q.id: labels[q.id]}, asked)[q.id] for q in sample.questions}


def judge_by_theirs(known: list[Array], labels: Array, asked: list[Array], recipe: Recipe) -> Array:
    """(n_asked,) logits of torchmil's ABMIL, trained by its own Trainer, averaged over seeds."""
    if recipe.is_whitened:
        every = np.concatenate(known)
        shift, scale = every.mean(axis=0), every.std(axis=0) + 1e-6
        known, asked = ([(bag - shift) / scale for bag in bags] for bags in (known, asked))
    bags = [
        {"X": torch.from_numpy(bag), "Y": torch.tensor(float(label))} for bag, label in zip(known, labels, strict=True)
    ]
    told = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = ABMIL(in_shape=(known[0].shape[1],), gated=True)
        decay = {"weight_decay": TRAINING.decay} if recipe.is_adamw else {}
        optimiser = (torch.optim.AdamW if recipe.is_adamw else torch.optim.Adam)(
            model.parameters(), lr=recipe.rate, **decay
        )
        loader = DataLoader(bags, batch_size=recipe.batch, shuffle=True, collate_fn=collate_fn)
        trainer = Trainer(model, optimiser, device="cpu", disable_pbar=True, verbose=False)
        # Without a second loader it goes over the training bags twice in each pass, only to measure; the weights of the
        # last pass are used here.
        trainer.train(recipe.epochs, loader, DataLoader(bags[:1], collate_fn=collate_fn))
        with torch.no_grad():
            model.eval()
            told.append([float(model(torch.from_numpy(bag)[None])) for bag in asked])
    return np.mean(told, axis=0)


def work_on(sample: Sample, folds: Sequence[Fold]) -> list[Told]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, settle, (sample,)) as pool:
        return list(pool.map(judge_here, folds))


SETTLED: dict[str, Sample] = {}


def settle(sample: Sample) -> None:
    threadpool_limits(1)
    torch.set_num_threads(1)
    SETTLED["sample"] = sample


def judge_here(fold: Fold) -> Told:
    return judge_fold(SETTLED["sample"], fold)


def report(sample: Sample, folds: Sequence[Fold], told: Sequence[Told], repeats: int) -> None:
    print(f"{len(sample)} slides of {len(set(sample.cases))} cases; five case folds, dealt {repeats} times")
    print("\n| method | neoplastic: AUROC | malignant: AUROC | CPU s for one fold, both questions |\n|---|---|---|---|")
    for name in told[0]:
        cells = []
        for task in TASKS:
            total = np.zeros(len(sample))
            for fold, one in zip(folds, told, strict=True):
                total[fold.test] += one[name][0][task]
            found = measure_auroc(total / repeats, sample.labels[task] == 1, cases=sample.cases)
            cells.append(f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})")
        seconds = np.mean([one[name][1] for one in told])
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="where bags are kept; default: a temporary folder")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sample = gather_atlas(options.data / "atlas", options.keep or Path(scratch), list(TASKS))
        folds = [fold for seed in range(options.repeats) for fold in make_folds(sample, CASE_FOLDS, seed)]
        report(sample, folds, work_on(sample, folds), options.repeats)


if __name__ == "__main__":
    main()
