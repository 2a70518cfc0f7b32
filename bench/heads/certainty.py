"""Figures of docs/certainty.md: coverage of rare classes, temperature on few cases, alarms of drift, strange slides.

    python bench/heads/certainty.py [--repeats 200] [--atlas DATA_FOLDER/atlas]

Without `--atlas` everything is drawn at random, seeded, and takes a few minutes on one core. With it, the tiles of the
Histopathology Atlas set are encoded with the shipped encoder, whole and spoilt, and each case is judged by a typicality
of all others (a few minutes more).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.heads import typicality as typicality_module
from slideway.heads.calibration import apply_temperature, fit_temperature
from slideway.heads.conformal import calibrate, calibrate_marginal, p_values, prediction_sets
from slideway.heads.drift import fit_monitor, watch
from slideway.heads.metrics import auroc, exact_interval, negative_log_likelihood
from slideway.heads.typicality import fit_typicality, score_typicality

Array = NDArray[Any]
Random = np.random.Generator
SHARES = np.array([0.60, 0.20, 0.10, 0.07, 0.03])
WIDTH, AXES = 64, 16
SPOILT_PER_SLIDE = 16


def table(head: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def draw_classes(n: int, random: Random) -> tuple[Array, Array]:
    """Five overlapping classes in ten dimensions, judged by the rule that is best on average, a little too sure."""
    labels = random.choice(5, n, p=SHARES)
    centres = 1.6 * np.eye(5, 10)
    points = centres[labels] + random.normal(size=(n, 10))
    logits = points @ centres.T - (centres**2).sum(axis=1) / 2 + np.log(SHARES)
    return apply_temperature(logits, 0.8), labels


def report_coverage(repeats: int) -> None:
    """Coverage and size of marginal and Mondrian sets, 500 calibration and 2,000 new cases each time."""
    rules = {"marginal": calibrate_marginal, "Mondrian": calibrate}
    upset = np.zeros((2, 2))  # sets of one label, with the leading one in it and not: how many, and how many right
    covered, size, count = ({name: np.zeros(5) for name in (*rules, "")} for _ in range(3))
    rare = {name: [] for name in rules}
    for seed in range(repeats):
        random = np.random.default_rng(seed)
        probabilities, labels = draw_classes(500, random)
        new, truth = draw_classes(2_000, random)
        count[""] += np.bincount(truth, minlength=5)
        for name, rule in rules.items():
            sets = prediction_sets(p_values(rule(probabilities, labels), new), 0.1)
            is_covered = sets[np.arange(len(truth)), truth]
            covered[name] += np.bincount(truth, is_covered, minlength=5)
            size[name] += np.bincount(truth, sets.sum(axis=1), minlength=5)
            rare[name].append(is_covered[truth == 4].mean())
            if name == "Mondrian":
                single, leads = sets.sum(axis=1) == 1, sets[np.arange(len(truth)), new.argmax(axis=1)]
                for i, kind in enumerate((single & leads, single & ~leads)):
                    upset[i] += (kind.sum(), (kind & is_covered).sum())
    print(f"\n## Coverage at 90 %, {repeats} repeats")
    rows = []
    for name in rules:
        parts = [f"{c:.1%} / {s:.2f}" for c, s in zip(covered[name] / count[""], size[name] / count[""], strict=True)]
        overall = f"{covered[name].sum() / count[''].sum():.1%} / {size[name].sum() / count[''].sum():.2f}"
        rows.append([name, overall, *parts, f"{np.quantile(rare[name], 0.05):.0%}"])
    head = ["sets", "all", *(f"class of {share:.0%}" for share in SHARES), "rarest class, worst 5 % of repeats"]
    table(head, rows)
    text = " and ".join(f"{all_ / count[''].sum():.2%} ({right / all_:.0%} right)" for all_, right in upset)
    print(f"\nMondrian sets of one label with the leading label and without: {text}")


def report_temperature(repeats: int) -> None:
    """Likelihood of new cases after a temperature from few cases; the head is twice too sure."""
    print(f"\n## Temperature from few cases, {repeats} repeats")
    rows = []
    for separation, name in ((1.0, "AUROC .76"), (2.0, "AUROC .92"), (3.5, "AUROC .99")):
        for n in (20, 50, 200):
            found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            random = np.random.default_rng(n)
            new, truth = draw_logits(20_000, separation, random)
            for _ in range(repeats):
                logits, labels = draw_logits(n, separation, random)
                for smooth, kept in found.items():
                    temperature = fit_temperature(logits, labels, smooth_targets=smooth)
                    kept.append((temperature, negative_log_likelihood(apply_temperature(new, temperature), truth)))
            best = negative_log_likelihood(apply_temperature(new, 2.0), truth)
            cells = []
            for smooth in (False, True):
                temperatures, losses = np.array(found[smooth]).T
                cells.append(f"{np.median(temperatures):.2f} / {losses.mean():.3f}")
            rows.append([name, str(n), *cells, f"{best:.3f}"])
    table(
        ["two classes", "cases", "plain: median temperature / likelihood", "smoothed targets", "with the true 2"], rows
    )


def draw_logits(n: int, separation: float, random: Random) -> tuple[Array, Array]:
    labels = random.integers(0, 2, n)
    labels[:2] = (0, 1)
    return 2 * separation * random.normal(separation * (labels - 0.5), 1, n), labels


def draw_slides(n: int, random: Random) -> Array:
    """Vectors of slides: 64 axes of falling spread, with tails as of Student's t with five degrees of freedom."""
    return random.normal(size=(n, WIDTH)) * np.sqrt(3 / random.chisquare(5, n))[:, None] * SPREAD


SPREAD = np.linspace(1, 0.1, WIDTH) ** 1.5


def shift_all(by: float) -> Any:
    return lambda slides, random: slides + by * SPREAD * random.choice([-1, 1], WIDTH)


def shift_one(slides: Array, random: Random) -> Array:
    return slides + SPREAD * np.eye(WIDTH)[random.integers(AXES)]


def shift_site(slides: Array, random: Random) -> Array:
    """One of three sites stains anew: its slides, a third, move by two deviations on five of the main axes."""
    moved = np.zeros(WIDTH)
    moved[random.choice(AXES, 5, replace=False)] = 2
    return slides + (random.random(len(slides)) < 1 / 3)[:, None] * moved * SPREAD


CHANGES = {
    "none": lambda slides, _: slides,
    "mean, every axis by 0.25 sd": shift_all(0.25),
    "mean, every axis by 0.5 sd": shift_all(0.5),
    "mean, every axis by 1 sd": shift_all(1.0),
    "mean, one main axis by 1 sd": shift_one,
    "spread × 1.5": lambda slides, _: 1.5 * slides,
    "one site of three stains anew": shift_site,
}


def report_drift(repeats: int) -> None:
    """Share of windows that raise an alarm, over several references."""
    print(f"\n## Alarms at 1 % nominal, {repeats} references, 10 windows each without a change and 4 with one")
    settings = ((60, 20), (200, 20), (200, 50))
    columns: dict[str, list[str]] = {name: [] for name in CHANGES}
    for cases, window in settings:
        alarms: dict[str, list[tuple[bool, bool]]] = {name: [] for name in CHANGES}
        for seed in range(repeats):
            random = np.random.default_rng(1000 * cases + seed)
            monitor = fit_monitor(draw_slides(cases, random), window=window, seed=seed)
            for name, change in CHANGES.items():
                for _ in range(10 if name == "none" else 4):
                    found = watch(monitor, change(draw_slides(window, random), random))[-1].alarms
                    alarms[name].append(("mean" in found, "distribution" in found))
        for name, kept in alarms.items():
            mean, distribution = np.array(kept).mean(axis=0)
            either = np.array(kept).any(axis=1)
            spread = exact_interval(int(either.sum()), len(either))
            text = f"{mean:.1%} / {distribution:.1%} / {either.mean():.1%}"
            columns[name].append(f"{text} ({spread.low:.1%}–{spread.high:.1%})" if name == "none" else text)
    head = ["change (T² / MMD / either)", *(f"{cases} cases, window {window}" for cases, window in settings)]
    table(head, [[name, *cells] for name, cells in columns.items()])


def report_strangeness(atlas: Path) -> None:
    """How strange spoilt slides of a case are to a typicality of all other cases, at two shrinkages."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
    from build_reference import encode_tiles, read_sections
    from spoil import SPOILT

    from slideway.registry.store import DEFAULT_ENCODER, find_encoder

    card, random = find_encoder(DEFAULT_ENCODER), np.random.default_rng(0)
    slides = read_sections(atlas, card)
    whole = [encode_tiles(card, slide.tiles).astype(np.float32) for slide in slides]
    spoilt: dict[str, list[Array]] = {}
    for slide in slides:
        chosen = slide.tiles[random.choice(len(slide.tiles), SPOILT_PER_SLIDE, replace=False)]
        for name, spoil in SPOILT.items():
            spoilt.setdefault(name, []).append(
                encode_tiles(card, np.stack([spoil(tile, random) for tile in chosen])).astype(np.float32)
            )
    every = np.concatenate(whole)
    turn = np.linalg.svd(every - every.mean(axis=0), full_matrices=False)[2][:WIDTH].T
    lay = [(vectors - every.mean(axis=0)) @ turn for vectors in whole]
    kinds = {"as scanned": lay, **{n: [(v - every.mean(axis=0)) @ turn for v in kept] for n, kept in spoilt.items()}}
    of_case, of_organ = np.array([slide.case for slide in slides]), np.array([slide.organ for slide in slides])
    several = np.array([len(set(of_case[of_organ == organ])) > 1 for organ in of_organ])
    found = {}
    for shrinkage in (0.01, 1.0):
        typicality_module._SHRINKAGE = shrinkage
        found[shrinkage] = {name: [] for name in (*kinds, "organ left out")}
        for i, case in enumerate(of_case):
            known = fit_typicality([gather(lay, of_case, one) for one in dict.fromkeys(of_case) if one != case])
            for name, kept in kinds.items():
                found[shrinkage][name].append(judge(known, kept[i]))
            if several[i]:
                others = dict.fromkeys(of_case[of_organ != of_organ[i]].tolist())
                strange = fit_typicality([gather(lay, of_case, one) for one in others])
                found[shrinkage]["organ left out"].append(judge(strange, lay[i]))
    print(f"\n## Strange slides, {len(slides)} slides of {len(set(of_case))} cases")
    rows = []
    for name in found[1.0]:
        cells = []
        for shrinkage in (0.01, 1.0):
            kept = np.array(found[shrinkage][name])
            usual = np.array(found[shrinkage]["as scanned"])[several if name == "organ left out" else slice(None)]
            both, truth = np.r_[usual[:, 0], kept[:, 0]], np.r_[np.zeros(len(usual)), np.ones(len(kept))]
            cells += ["" if name == "as scanned" else f"{auroc(both, truth):.2f}", f"{(kept[:, 1] < 0.05).mean():.0%}"]
        rows.append([name, *cells])
    table(["slide", "AUROC, 0.01", "referred, 0.01", "AUROC, 1", "referred, 1"], rows)


def gather(lay: list[Array], of_case: Array, case: str) -> Array:
    return np.concatenate([vectors for vectors, one in zip(lay, of_case, strict=True) if one == case])


def judge(known: typicality_module.Typicality, vectors: Array) -> tuple[float, float]:
    """Raw score, so that slides beyond every known case are still told apart, and p-value."""
    parts = typicality_module._measure_parts(
        vectors, np.ones(len(vectors)), known.mean, known.whitening, known.bank, known.case_means
    )
    return float(typicality_module._join(parts, known.centre_spread)), score_typicality(known, vectors).p_value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--atlas", type=Path, help="folder with slides.csv and tiles/")
    options = parser.parse_args()
    report_coverage(options.repeats)
    report_temperature(options.repeats)
    report_drift(max(1, options.repeats // 2))
    if options.atlas is not None:
        report_strangeness(options.atlas)


if __name__ == "__main__":
    main()
