"""Real slides and labelled tiles to measure on; what the cache lacks is read and encoded."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "training"), str(ROOT / "training/heads")]
from train_starters import write_atlas_cohort  # noqa: E402

from slideway.bundles import read_bag  # noqa: E402
from slideway.bundles.build import BundleContent  # noqa: E402
from slideway.bundles.read import read_bundle  # noqa: E402
from slideway.cli.progress import Steps  # noqa: E402
from slideway.cli.train_tiles import encode_table  # noqa: E402
from slideway.core.bag import EmbeddingBag  # noqa: E402
from slideway.core.opinion import TaskQuestion  # noqa: E402
from slideway.encoders import Encoder  # noqa: E402
from slideway.learning.cohort import read_cohort  # noqa: E402
from slideway.learning.questions import index_labels, select_tasks  # noqa: E402
from slideway.learning.sample import gather_sample  # noqa: E402
from slideway.learning.splits import Fold, case_folds  # noqa: E402
from slideway.learning.tile_heads import make_tile_folds  # noqa: E402
from slideway.learning.tile_table import read_tile_table  # noqa: E402

Array = NDArray[Any]
TASKS = ("organ", "neoplastic", "malignant")
CASE_FOLDS = 10


@dataclass(frozen=True)
class Slide:
    """One slide.

    Attributes:
        name: Within the atlas.
        case: What it is grouped by.
        fold: Fold in which its case was not learnt from.
        bag: Its tiles as they were encoded, 93 to 96 or all.
        file_bytes: Size of the slide's file; 0 where only tiles of it are at hand.
        is_reduced: The file holds the slide at a half or a quarter of its size.
        content: What `slideway read` would put into its bundle; only of a whole slide.
    """

    name: str
    case: str
    fold: int
    bag: EmbeddingBag
    file_bytes: int = 0
    is_reduced: bool = False
    content: BundleContent | None = None


@dataclass(frozen=True)
class Atlas:
    """The set.

    Attributes:
        parts: Every slide as a sample of its tiles.
        wholes: Those of which all tiles were read.
        questions: Asked of slides.
        labels: For each task (n_parts,) position of the label, -1 where unknown.
        behaviour: Of each part, as the set states it.
    """

    parts: tuple[Slide, ...]
    wholes: tuple[Slide, ...]
    questions: tuple[TaskQuestion, ...]
    labels: dict[str, Array]
    behaviour: tuple[str, ...]


@dataclass(frozen=True)
class LabelledTiles:
    """Single tiles with labels; the set names no patients.

    Attributes:
        name: Of the set.
        vectors: (n, width) float16.
        labels: (n,) 0 or 1.
        folds: Tiles to learn from and to judge.
    """

    name: str
    vectors: Array
    labels: Array
    folds: tuple[Fold, ...]

    @property
    def judged(self) -> Array:
        """Rows that some fold judges, ascending."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))


def read_atlas_set(data: Path, cache: Path, encoder: Encoder) -> Atlas:
    folder = data / "atlas"
    (cache / "bags").mkdir(parents=True, exist_ok=True)
    with Steps() as steps:
        cohort = read_cohort(write_atlas_cohort(folder, encoder, cache / "bags", steps))
    questions = select_tasks(cohort, list(TASKS))
    sample = gather_sample(cohort, questions, [row.path for row in cohort.rows])
    with (folder / "slides.csv").open(newline="", encoding="utf-8") as table:
        behaviour = {Path(row["tiles_file"]).stem: row["behaviour"] for row in csv.DictReader(table)}
    fold_of: dict[str, int] = {}
    asked = np.stack([sample.labels[task] for task in ("malignant", "neoplastic")], axis=1)
    for number, fold in enumerate(case_folds(sample.cases, asked, CASE_FOLDS, 0)):
        fold_of |= {sample.cases[i]: number for i in fold.test}
    names = [path.parent.name for path in sample.bag_paths]
    parts = tuple(
        Slide(name, case, fold_of[case], sample.bag(i))
        for i, (name, case) in enumerate(zip(names, sample.cases, strict=True))
    )
    wholes = read_wholes(folder / "slides", cache / "slides", {part.name: part for part in parts})
    labels = {task: np.asarray(own) for task, own in sample.labels.items()}
    return Atlas(parts, wholes, tuple(questions), labels, tuple(behaviour[name] for name in names))


def read_wholes(slides: Path, out: Path, parts: dict[str, Slide]) -> tuple[Slide, ...]:
    """Whole slides as `slideway read` leaves them: bag and bundle."""
    files = sorted(slides.glob("*.tif"))
    if any(not (out / file.stem / "bundle.swb").is_file() for file in files):
        command = [sys.executable, "-m", "slideway", "read", str(slides), "--out", str(out), "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = []
    for file in files:
        name, _, reduced = file.stem.rpartition(".")
        part = parts[name]
        bag = read_bag(out / file.stem / "bag.safetensors")
        content = restore_content(out / file.stem / "bundle.swb", bag)
        found.append(Slide(name, part.case, part.fold, bag, file.stat().st_size, reduced != "x1", content))
    return tuple(found)


def restore_content(bundle: Path, bag: EmbeddingBag) -> BundleContent:
    """What went into a bundle, with the vectors as they were before they were coded."""
    from answers import describe_tissue

    came = read_bundle(bundle)
    groups, novelty = describe_tissue(bag)
    thumbnail = None if came.thumbnail is None else unpack_thumbnail(came.thumbnail)
    return BundleContent(
        bag=bag,
        summary=came.summary,
        opinion=came.opinion or {},
        thumbnail=thumbnail,
        attention=None,  # no head is in force, as shipped
        novelty=novelty.percentile,
        representatives=groups.representatives,
    )


def unpack_thumbnail(content: bytes) -> Array:
    import imagecodecs

    pixels: Array = imagecodecs.webp_decode(content)
    return np.ascontiguousarray(pixels[..., :3])


def read_labelled(data: Path, cache: Path, encoder: Encoder) -> tuple[LabelledTiles, ...]:
    """PatchCamelyon's and the oral set's tiles, as `training/heads/train_starters.py` takes them."""
    folder = cache / "labelled"
    folder.mkdir(parents=True, exist_ok=True)
    sets = (("pcam1000", "metastasis", 0.97), ("oscc", "oral-carcinoma", 0.5))
    return tuple(_read_one(data / "labelled", folder, encoder, *one) for one in sets)


def _read_one(labelled: Path, folder: Path, encoder: Encoder, name: str, task: str, mpp: float) -> LabelledTiles:
    with (labelled / "labels.csv").open(newline="", encoding="utf-8") as source:
        rows = [row for row in csv.DictReader(source) if row["set"] == name]
    link = folder / f"{name}.tar"
    if not link.exists():
        link.symlink_to((labelled / f"{name}.tar").resolve())
    has_split = all(row["split"] for row in rows)
    path = folder / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("tile", "mpp", task, *(("fold",) if has_split else ())))
        for row in rows:
            fold = "train" if row["split"] == "train" else "test"
            label = "yes" if row["label"] in {"1", "OSCC"} else "no"
            table.writerow((f"{name}.tar::{row['file']}", mpp, label, *((fold,) if has_split else ())))
    tiles = read_tile_table(path)
    (question,) = select_tasks(tiles, [task])
    labels = np.asarray(index_labels(tiles, question))
    stored = folder / f"{name}.{encoder.card.fingerprint[:12]}.npy"
    if not stored.exists():
        with Steps() as steps:
            np.save(stored, encode_table(tiles, encoder, steps))
    _, folds = make_tile_folds(tiles, labels, 0)
    return LabelledTiles(name, np.load(stored), labels, tuple(folds))
