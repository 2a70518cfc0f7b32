"""Slides that a head should refer: unseen organs, negative controls, drift. Figures of docs/hard.md.

    python bench/heads/strange.py DATA [--keep FOLDER]

DATA as for `training/heads/train_starters.py`; pictures of things come with scikit-image and scikit-learn. Typicality
is fitted as a head does: on 64 main axes of the tiles of its own cases. A spoilt slide is ten of its tiles, all spoilt,
judged by a model of all other cases; groups of other sets are 24 tiles, judged by a model of all cases. What a slide's
overview decides (tissue, ink, stain) is asked of a mosaic of the bag's tiles.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from atlas import AtlasSlide
from build_reference import read_sections
from certainty import gather, judge, table
from lesions import encode_all, keep, load
from measure import cut
from perturb import PERTURBATIONS
from spoil import SPOILT

from slideway.core.errors import UnknownResolutionError
from slideway.core.slide import ResolutionSource
from slideway.core.tissue import TissueMask, Verdict
from slideway.encoders import Encoder
from slideway.heads.abmil import fit_projection
from slideway.heads.drift import fit_monitor, watch
from slideway.heads.metrics import exact_interval, measure_auroc
from slideway.heads.typicality import fit_typicality
from slideway.tissue import estimate_mpp, find_tissue, grade_quality, judge_stain, measure_focus
from slideway.tissue.stain import HE

Array = NDArray[Any]
RANK = 64
SPOILT_TILES, GROUP_TILES, GROUPS = 10, 24, 8
ENLARGED = "enlarged twofold"  # magnified, therefore soft: a scan with a wrong pixel size is not, so focus is not asked
CONTROLS = ("empty glass", "pen on glass", "pen over tissue", "blurred, σ 2 µm", "blurred, σ 4 µm", "random noise",
            "red and blue exchanged", ENLARGED)  # fmt: skip
WITHOUT_SCALE = ("empty glass", "pen on glass", "random noise", "blurred, σ 2 µm", "blurred, σ 4 µm")
PICTURES = ("chelsea", "coffee", "astronaut", "rocket", "brick", "grass", "gravel", "coins", "retina", "ihc")
DOUBTFUL_FACTOR = 1.6  # as slideway.pipeline.opinions
OVERVIEW_MPP = 8.0
WINDOWS, REFERENCES = 200, 40


@dataclass(frozen=True)
class Group:
    """Tiles that are judged together, their vectors, and the case that a model of them must leave out, if any."""

    tiles: Array
    vectors: Array
    case: str = ""


@dataclass(frozen=True)
class Known:
    """The atlas's sections: each slide's vectors, case and organ."""

    vectors: list[Array]
    case: Array
    organ: Array

    def fit(self, keep_cases: Sequence[str]) -> tuple[Any, Any]:
        """Input layer and typicality of some cases."""
        chosen = [v for v, case in zip(self.vectors, self.case, strict=True) if case in set(keep_cases)]
        projection = fit_projection(np.concatenate(chosen), rank=RANK)
        laid = [projection(v) for v in self.vectors]
        return projection, fit_typicality([gather(laid, self.case, case) for case in keep_cases])

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(self.case.tolist()))


# What is judged


def spoil_slides(encoder: Encoder, slides: Sequence[AtlasSlide]) -> dict[str, list[Group]]:
    """The atlas's slides, each change of every slide's ten tiles."""
    random = np.random.default_rng(0)
    changes = {name: SPOILT[name] for name in CONTROLS}
    changes |= {f"drift: {name}": lambda tile, _, change=change: change(tile) for name, change in PERTURBATIONS.items()}
    groups: dict[str, list[Group]] = {name: [] for name in ("as scanned", *changes)}
    for slide in slides:
        tiles = slide.tiles[np.sort(random.choice(len(slide.tiles), SPOILT_TILES, replace=False))]
        groups["as scanned"].append(Group(tiles, encode_all(encoder, tiles), slide.case))
        for name, change in changes.items():
            changed = np.stack([change(tile, random) for tile in tiles])
            # pixels of what is judged for drift are not needed again
            kept = changed[:0] if name.startswith("drift") else changed
            groups[name].append(Group(kept, encode_all(encoder, changed), slide.case))
    return groups


def read_others(encoder: Encoder, labelled: Path) -> dict[str, list[Group]]:
    """Groups of tiles of other sets, and pictures of things."""
    with (labelled / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"pcam1000": "lymph nodes, PatchCamelyon", "oscc": "oral mucosa"}
    wanted: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        label = {"0": "normal", "1": "metastasis"}.get(row["label"], row["label"])
        name = f"{names[row['set']]}: {label} {row['note']}".strip()
        wanted.setdefault(name, []).append((row["set"], row["file"]))
    groups = {}
    for name, files in wanted.items():
        chosen = np.random.default_rng(0).permutation(len(files))[: GROUPS * GROUP_TILES]
        tiles = read_files(labelled, [files[i] for i in chosen])
        groups[name] = [make_group(encoder, part) for part in np.array_split(tiles, max(1, len(tiles) // GROUP_TILES))]
    for name, pictures in read_pictures().items():
        groups[name] = [make_group(encoder, tiles) for tiles in pictures]
    return groups


def make_group(encoder: Encoder, tiles: Array) -> Group:
    return Group(tiles, encode_all(encoder, tiles))


def read_files(labelled: Path, files: list[tuple[str, str]]) -> Array:
    tiles = []
    with tarfile.open(labelled / f"{files[0][0]}.tar") as archive:
        for _, name in files:
            picture = PIL.Image.open(io.BytesIO(archive.extractfile(name).read())).convert("RGB")
            tiles.append(np.asarray(picture.resize((224, 224), PIL.Image.Resampling.BILINEAR)))
    return np.stack(tiles)


def read_pictures() -> dict[str, list[Array]]:
    """Tiles cut from photographs and textures; what is stained with DAB stands apart."""
    import skimage
    from sklearn.datasets import load_sample_images

    folder, random = Path(skimage.__file__).parent / "data", np.random.default_rng(0)
    pictures = {}
    for name in PICTURES:
        path = next(path for path in (folder / f"{name}.png", folder / f"{name}.jpg") if path.exists())
        pictures[name] = np.asarray(PIL.Image.open(path).convert("RGB"))
    pictures |= {f"sample {i}": np.asarray(picture) for i, picture in enumerate(load_sample_images().images)}
    cuts = {name: np.stack([cut(picture[..., :3], random) for _ in range(GROUP_TILES)])
            for name, picture in pictures.items()}  # fmt: skip
    grey = ("brick", "grass", "gravel", "coins")
    return {
        "photographs": [own for name, own in cuts.items() if name not in (*grey, "ihc")],
        "grey textures": [cuts[name] for name in grey],
        "DAB with haematoxylin": [cuts["ihc"]],
    }


# What the checks say


def check_pixels(tiles: Array, ask_scale: bool) -> dict[str, bool]:
    """What is refused or referred for its pixels alone."""
    mosaic = lay_mosaic(tiles)
    edge = round(mosaic.shape[0] * 0.5 / OVERVIEW_MPP), round(mosaic.shape[1] * 0.5 / OVERVIEW_MPP)
    overview = cv2.resize(mosaic, edge[::-1], interpolation=cv2.INTER_AREA)
    mask = find_tissue(overview, mpp=OVERVIEW_MPP)
    grade = grade_quality(
        mask, slide_mpp=0.5, tile_mpp=0.5, resolution_source=ResolutionSource.METADATA, thumbnail=overview,
        focus=measure_focus(tiles, mpp=0.5),
    )  # fmt: skip
    all_true, nothing = np.ones(overview.shape[:2], bool), np.zeros(overview.shape[:2], bool)
    look = judge_stain(overview, TissueMask(all_true, mpp=OVERVIEW_MPP, pen=nothing, fold=nothing))
    lost = grade.verdict is Verdict.RESCAN
    found = grade.measures
    return {
        "tissue or ink": grade.verdict is Verdict.NO_TISSUE
        or (lost and (found["pen_share"] > 0.5 or found["overexposed_share"] > 0.3)),
        "focus": lost and found["blurred_share"] > 0.5,
        "stain": look.stain not in ("", HE),
        "scale": ask_scale and is_scale_doubtful(tiles),
    }


def lay_mosaic(tiles: Array) -> Array:
    columns = int(np.ceil(len(tiles) ** 0.5))
    rows = len(tiles) // columns
    return np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)])


def is_scale_doubtful(tiles: Array) -> bool:
    try:
        found = estimate_mpp(list(tiles), min_nuclei=100)
    except UnknownResolutionError:
        return False
    return not 1 / DOUBTFUL_FACTOR < found.mpp / 0.5 < DOUBTFUL_FACTOR


# Reports


def report_organs(known: Known, usual: Array) -> None:
    """Held-out organs against each case's own score while it was left out."""
    print("\n## Organs left out\n")
    rows, held, same = [], [], []
    for organ in dict.fromkeys(known.organ.tolist()):
        own = np.flatnonzero(known.organ == organ)
        cases = dict.fromkeys(known.case[own].tolist())
        if len(cases) < 2:
            continue
        projection, typicality = known.fit([case for case in known.cases if case not in cases])
        scores = np.array([judge(typicality, projection(known.vectors[i])) for i in own])
        others = np.flatnonzero(known.organ != organ)
        held.append(scores), same.append(usual[own])
        rows.append([organ, str(len(cases)), *compare(scores, usual[others], known.case[own], known.case[others])])
    held, same = np.concatenate(held), np.concatenate(same)
    rows.append(["**all, against the same slides with their organ known**", "", *compare(held, same)])
    table(["organ left out", "cases", "AUROC (95 %)", "referred, p < .05"], rows)
    print(f"\nreferred with their organ known: {say_share(same[:, 1] < 0.05)}; of all: {say_share(usual[:, 1] < 0.05)}")


def compare(strange: Array, usual: Array, cases: Any = None, other_cases: Any = None) -> list[str]:
    both, truth = np.r_[strange[:, 0], usual[:, 0]], np.r_[np.ones(len(strange)), np.zeros(len(usual))] > 0
    of = None if cases is None else np.r_[cases, other_cases]
    found = measure_auroc(both, truth, cases=of, draws=500)
    return [f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})", say_share(strange[:, 1] < 0.05)]


def say_share(hits: Array) -> str:
    return f"{hits.mean():.0%} of {len(hits)}"


def report_controls(groups: dict[str, list[Group]], models: dict[str, tuple[Any, Any]]) -> None:
    print("\n## Negative controls: share of groups that each check refuses or refers\n")
    rows = []
    for name, those in groups.items():
        if name.startswith("drift"):
            continue
        checks = [check_pixels(group.tiles, name not in WITHOUT_SCALE) for group in those]
        p_values = []
        for group in those:
            projection, typicality = models[group.case]
            p_values.append(judge(typicality, projection(group.vectors))[1])
        found = {key: np.array([one[key] for one in checks]) for key in checks[0]}
        found["typicality"] = np.array(p_values) < 0.05
        if name == ENLARGED:
            found["focus"] &= False
        by_any = np.any(list(found.values()), axis=0)
        cells = [f"{hits.mean():.0%}" for hits in found.values()]
        if name in WITHOUT_SCALE:
            cells[3] = "–"
        if name == ENLARGED:
            cells[1] = "–"
        limits = exact_interval(int(by_any.sum()), len(by_any))
        rows.append([name, str(len(those)), *cells, f"**{by_any.mean():.0%}** ({limits.low:.0%}–{limits.high:.0%})"])
    head = ["what", "groups", "tissue, ink", "focus", "stain look", "scale by nuclei", "typicality", "any (95 %)"]
    table(head, rows)


def report_drift(known: Known, groups: dict[str, list[Group]], projection: Any) -> None:
    whole = np.stack([projection(vectors).mean(axis=0) for vectors in known.vectors])
    changed = {name.removeprefix("drift: "): np.stack([projection(group.vectors).mean(axis=0) for group in those])
               for name, those in groups.items()
               if name.startswith("drift") or name in ("as scanned", "blurred, σ 2 µm")}  # fmt: skip
    changed = {"none: the slides' own tiles, all of them": whole, **changed}
    changed["none: ten of each slide's tiles"] = changed.pop("as scanned")
    seen, fresh = {name: [] for name in changed}, {name: [] for name in changed}
    monitor, random = fit_monitor(whole, window=20), np.random.default_rng(0)
    for name, vectors in changed.items():
        for _ in range(WINDOWS):
            seen[name].append(watch(monitor, vectors[random.choice(len(vectors), 20, replace=False)])[-1].is_alarm)
    for seed in range(REFERENCES):
        reference, new = part_slides(known, np.random.default_rng(seed))
        own = fit_monitor(whole[reference], window=10, seed=seed)
        for name, vectors in changed.items():
            fresh[name].append(watch(own, vectors[new[:10]])[-1].is_alarm)
    print(f"\n## Drift: share of windows with an alarm at 1 % nominal, {len(whole)} slides\n")
    rows = []
    for name in sorted(changed, key=lambda name: not name.startswith("none")):
        cells = []
        for kept in (seen[name], fresh[name]):
            limits = exact_interval(int(np.sum(kept)), len(kept))
            cells.append(f"{np.mean(kept):.0%} ({limits.low:.0%}–{limits.high:.0%})")
        rows.append([name, *cells])
    table(["change of every slide", "reference of all slides, window of 20 of them",
           "reference of 75 % of the cases, window of 10 unseen slides"], rows)  # fmt: skip


def part_slides(known: Known, random: np.random.Generator) -> tuple[Array, Array]:
    """Slides of three quarters of the cases, and the others in random order."""
    order = random.permutation(known.cases)
    is_new = np.isin(known.case, order[: round(len(order) / 4)])
    return np.flatnonzero(~is_new), random.permutation(np.flatnonzero(is_new))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="folder where vectors are kept for another run")
    options = parser.parse_args()
    encoder = load()
    slides = read_sections(options.data / "atlas", encoder.card)
    vectors = keep(options.keep, "sections", lambda: [encode_all(encoder, slide.tiles) for slide in slides])
    of_case, of_organ = np.array([slide.case for slide in slides]), np.array([slide.organ for slide in slides])
    known = Known([own.astype(np.float32) for own in vectors], of_case, of_organ)
    groups = keep(options.keep, "spoilt", lambda: spoil_slides(encoder, slides))
    groups |= keep(options.keep, "others", lambda: read_others(encoder, options.data / "labelled"))
    models = {case: known.fit([one for one in known.cases if one != case]) for case in known.cases}
    models[""] = known.fit(known.cases)
    usual = np.array([judge(models[case][1], models[case][0](own))
                      for own, case in zip(known.vectors, known.case, strict=True)])  # fmt: skip
    report_organs(known, usual)
    report_drift(known, groups, models[""][0])
    report_controls(groups, models)


if __name__ == "__main__":
    main()
