"""The evidence table of docs/encoder.md: retrieval, probes, robustness and speed of encoders, split by case.

    python bench/encoders/evaluate.py DATA --encoder ID_OR_FOLDER --onnx "NAME=FILE.onnx" --out results.json

DATA holds `atlas/` (slides.csv, tiles/) and `labelled/` (labels.csv, pcam1000.tar, oscc.tar). Vectors are kept in
`--cache`, so that a second run only counts. Needs scikit-learn and scipy beside Slideway.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tomli_w
from numpy.typing import NDArray
from perturb import PERTURBATIONS
from tasks import (
    Figure,
    compare_perturbed,
    guess_slide,
    over_cases,
    probe_folds,
    probe_leaving_cases_out,
    probe_split,
    retrieve,
    standardise,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from atlas import decode, read_atlas, read_rows

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
THREADS = 2
PERTURBED_EVERY = 4  # every fourth tile of a slide is perturbed

# Diagnoses that at least two cases share, as words of the atlas's own text.
DIAGNOSES = {
    "pancreatic ductal carcinoma": "pancreatic (ductal )?adenocarcinoma|pancreas adenosquamous",
    "conventional adenoma": "tubular adenoma",
    "serrated or hyperplastic polyp": "sessile serrated|^hyperplastic polyp",
    "neural tumour": "ganglioneuroma|schwann|granular cell",
    "neuroendocrine tumour": "neuroendocrine|pituitary adenoma",
    "sarcoma": "sarcoma|small round cell",
    "colitis": "colitis|crohn",
    "duodenitis": "celiac|giardia",
    "gastritis": "helicobacter|gastritis cystica|acinar metaplasia",
}


@dataclass(frozen=True)
class Atlas:
    """All tiles with what is known of each, one row a tile; `perturbed` says which are perturbed."""

    tiles: NDArray[np.uint8]
    case: NDArray[Any]
    slide: NDArray[Any]
    organ: NDArray[Any]
    diagnosis: NDArray[Any]
    is_neoplastic: NDArray[np.int64]
    perturbed: NDArray[np.int64]


def name_diagnosis(text: str) -> str:
    """Which shared diagnosis a slide has; its own words when none is shared."""
    return next((name for name, words in DIAGNOSES.items() if re.search(words, text, re.IGNORECASE)), text)


def load_atlas(folder: Path) -> Atlas:
    slides, rows = list(read_atlas(folder)), read_rows(folder)
    counts = [len(slide.tiles) for slide in slides]
    positions = np.concatenate([np.arange(count) for count in counts])
    return Atlas(
        tiles=np.concatenate([slide.tiles for slide in slides]),
        case=np.repeat([slide.case for slide in slides], counts),
        slide=np.repeat([slide.name for slide in slides], counts),
        organ=np.repeat([slide.organ for slide in slides], counts),
        diagnosis=np.repeat([name_diagnosis(row["diagnosis"]) for row in rows], counts),
        is_neoplastic=np.repeat([int(row["behaviour"] != "non-neoplastic") for row in rows], counts),
        perturbed=np.flatnonzero(positions % PERTURBED_EVERY == 0),
    )


@dataclass(frozen=True)
class Labelled:
    """One labelled set: tiles, 0 or 1 each, and its own training split (all False where it has none)."""

    tiles: NDArray[np.uint8]
    is_positive: NDArray[np.int64]
    is_train: NDArray[np.bool_]


def load_labelled(folder: Path, name: str, positive: str) -> Labelled:
    """Read a set; lymph-node tiles (96 px at 0.97 µm/px) are brought to 0.5 µm/px."""
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["set"] == name]
    tiles = []
    with tarfile.open(folder / f"{name}.tar") as archive:
        stored = {member.name.removeprefix(f"{name}/"): member for member in archive.getmembers() if member.isfile()}
        for row in rows:
            file = archive.extractfile(stored[row["file"]])
            assert file is not None
            pixels = decode(file.read())
            zoom = 0.97 / 0.5 if name == "pcam1000" else 1.0
            pixels = cv2.resize(pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
            border = max(0, 224 - pixels.shape[0])
            tiles.append(
                cv2.copyMakeBorder(
                    pixels, border // 2, border - border // 2, border // 2, border - border // 2, cv2.BORDER_REFLECT
                )[:224, :224]
            )
    return Labelled(
        np.stack(tiles),
        np.array([int(row["label"] == positive) for row in rows]),
        np.array([row["split"] == "train" for row in rows]),
    )


def colour_statistics(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What colour alone says: mean, deviation and five percentiles of each channel of RGB and HSV."""
    out = []
    for tile in tiles:
        pixels = np.concatenate([tile, cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)], 2)[::2, ::2].reshape(-1, 6)
        marks = np.percentile(pixels, (5, 25, 50, 75, 95), axis=0)
        out.append(np.concatenate([pixels.mean(0), pixels.std(0), marks.ravel()]))
    return np.asarray(out, np.float32)


def load_card(text: str) -> tuple[str, str, Encode]:
    """Name, key of the cache and function of an encoder with a card, golden tiles checked."""
    from slideway.encoders import load_encoder
    from slideway.registry import find_encoder

    card = find_encoder(text)
    encoder = load_encoder(card, engine="onnxruntime", threads=THREADS)
    return card.id, card.fingerprint, encoder.encode


def load_onnx(text: str) -> tuple[str, str, Encode]:
    """The same for a bare file: input `tiles` uint8 (n, 224, 224, 3), output `vectors`."""
    from slideway.encoders.engines import OnnxRuntimeEngine

    name, _, file = text.partition("=")
    return name, hashlib.sha256(Path(file).read_bytes()).hexdigest(), OnnxRuntimeEngine(Path(file), THREADS).run


def encode_all(encode: Encode, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Two tiles a pass on two threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return np.concatenate(list(pool.map(lambda i: encode(tiles[i : i + 2]), range(0, len(tiles), 2))))


def encode_set(encode: Encode, atlas: Atlas, labelled: dict[str, Labelled]) -> dict[str, NDArray[np.float32]]:
    """Vectors of everything one encoder is asked about."""
    vectors = {"clean": encode_all(encode, atlas.tiles)}
    for name, change in PERTURBATIONS.items():
        vectors[name] = encode_all(encode, np.stack([change(tile) for tile in atlas.tiles[atlas.perturbed]]))
    return vectors | {name: encode_all(encode, given.tiles) for name, given in labelled.items()}


def measure(vectors: dict[str, NDArray[np.float32]], atlas: Atlas, labelled: dict[str, Labelled]) -> dict[str, Any]:
    """All figures of one encoder from its vectors."""
    scale, organ = choose_scale(vectors["clean"], atlas)
    clean = scale(vectors["clean"])
    figures: dict[str, Any] = {"width": int(clean.shape[1])}
    figures |= {f"organ_{name}": figure for name, figure in organ.items()}
    diagnosis = retrieve(clean, atlas.diagnosis, atlas.case)
    figures |= {f"diagnosis_{name}": figure for name, figure in diagnosis.items()}
    probe = probe_leaving_cases_out(standardise(vectors["clean"]), atlas.is_neoplastic, atlas.case)
    figures |= {f"neoplastic_{name}": figure for name, figure in probe.items()}
    pcam, oscc = labelled["pcam1000"], labelled["oscc"]
    figures["pcam_auc"] = probe_split(vectors["pcam1000"], pcam.is_positive, pcam.is_train)
    figures["oscc_auc"] = probe_folds(vectors["oscc"], oscc.is_positive)
    betrayal = guess_slide(standardise(vectors["clean"]), atlas.slide)
    figures |= {f"slide_{name}": value for name, value in betrayal.items()}
    figures["robustness"] = measure_robustness(vectors, scale, atlas)
    figures["subgroups"] = split_by_organ(clean, atlas)
    return figures


def measure_held_out(clean: NDArray[np.float32], atlas: Atlas, fold: int, folds: int) -> dict[str, Any]:
    """Organ retrieval of one fold's cases only: for a run that was trained without them (`--leave-out`)."""
    cases = sorted(set(atlas.case.tolist()))
    held = np.isin(atlas.case, [case for i, case in enumerate(cases) if i % folds == fold])
    scale, _ = choose_scale(clean, atlas)
    everything = scale(clean)
    searched = (everything, atlas.organ, atlas.case)
    return dict(retrieve(everything[held], atlas.organ[held], atlas.case[held], searched=searched))


def split_by_organ(clean: NDArray[np.float32], atlas: Atlas) -> list[dict[str, Any]]:
    """Organ retrieval of each organ that two cases share; too few cases for an interval."""
    rows = []
    for organ in np.unique(atlas.organ):
        here = atlas.organ == organ
        cases = np.unique(atlas.case[here])
        if len(cases) > 1:
            found = retrieve(
                clean[here], atlas.organ[here], atlas.case[here], searched=(clean, atlas.organ, atlas.case)
            )
            rows.append({"organ": str(organ), "cases": len(cases), "organ_r1": found["r1"].value})
    return rows


def choose_scale(
    clean: NDArray[np.float32], atlas: Atlas
) -> tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], dict[str, Figure]]:
    """Centred, or also standardised channel by channel: whichever finds organs better."""
    mean, deviation = clean.mean(0), np.maximum(clean.std(0), 1e-6)
    scales = (lambda v: v - mean, lambda v: (v - mean) / deviation)
    found = [retrieve(scale(clean), atlas.organ, atlas.case) for scale in scales]
    best = int(found[1]["map"].value > found[0]["map"].value)
    return scales[best], found[best]


def measure_robustness(
    vectors: dict[str, NDArray[np.float32]], scale: Callable[[Any], Any], atlas: Atlas
) -> dict[str, Any]:
    """For each change: cosine with the unchanged tile, share that finds itself, organ retrieval before and after."""
    kept = atlas.perturbed
    clean = scale(vectors["clean"])[kept]
    before = retrieve(clean, atlas.organ[kept], atlas.case[kept])["r1"]
    rows: dict[str, Any] = {"organ_r1_unchanged": before}
    cosines, drops = [], []
    for name in PERTURBATIONS:
        changed = scale(vectors[name])
        cosine = compare_perturbed(clean, changed)
        nearest = np.argmax(_unit(changed) @ _unit(clean).T, axis=1)
        unchanged = (clean, atlas.organ[kept], atlas.case[kept])
        after = retrieve(changed, atlas.organ[kept], atlas.case[kept], searched=unchanged)["r1"]
        rows[name] = {
            "cosine": over_cases(cosine, atlas.case[kept]),
            "finds_itself": over_cases((nearest == np.arange(len(kept))).astype(float), atlas.case[kept]),
            "organ_r1": after,
        }
        cosines.append(cosine), drops.append(before.by_unit - after.by_unit)
    rows["cosine_mean"] = over_cases(np.mean(cosines, 0), atlas.case[kept])
    rows["finds_itself_mean"] = float(np.mean([rows[name]["finds_itself"].value for name in PERTURBATIONS]))
    rows["organ_r1_kept"] = float(1 - np.mean(drops) / max(before.value, 1e-9))
    return rows


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12)


def measure_speed(encode: Encode, tiles: NDArray[np.uint8]) -> float:
    """Tiles a second on two threads, after a warm start."""
    encode_all(encode, tiles[:32])
    began = time.perf_counter()
    encode_all(encode, tiles[:256])
    return 256 / (time.perf_counter() - began)


def as_json(value: Any) -> Any:
    if isinstance(value, Figure):
        return {"value": round(value.value, 4), "low": round(value.low, 4), "high": round(value.high, 4)}
    if isinstance(value, dict):
        return {name: as_json(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [as_json(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


def write_table(results: dict[str, Any]) -> str:
    """Markdown, one row an encoder."""
    columns = {
        "width": "width",
        "organ_r1": "organ R@1",
        "organ_r5": "organ R@5",
        "organ_map": "organ mAP",
        "diagnosis_r1": "same diagnosis R@1",
        "diagnosis_map": "same diagnosis mAP",
        "neoplastic_tile_auc": "neoplastic, AUC of tiles",
        "neoplastic_case_auc": "neoplastic, AUC of cases",
        "pcam_auc": "PCam AUC",
        "oscc_auc": "OSCC AUC",
        "slide_nearest": "slide by nearest tile",
        "slide_probe": "slide by probe",
        "tiles_per_s": "tiles/s, fp32",
    }
    robust = {"cosine_mean": "cosine when changed", "finds_itself_mean": "finds itself", "organ_r1_kept": "R@1 kept"}
    lines = [f"| encoder | {' | '.join([*columns.values(), *robust.values()])} |"]
    lines.append("|" + "---|" * (1 + len(columns) + len(robust)))
    for name, figures in results.items():
        cells = [words(figures.get(key)) for key in columns]
        cells += [words(figures["robustness"][key]) for key in robust]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def words(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f} ({value['low']:.2f}–{value['high']:.2f})"
    if isinstance(value, float):
        return f"{value:.3f}" if value < 2 else f"{value:.0f}"
    return "" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", action="append", default=[], help="id or folder of an encoder with a card")
    parser.add_argument("--onnx", action="append", default=[], metavar="NAME=FILE", help="a bare ONNX file")
    parser.add_argument("--cache", type=Path, default=Path("encoder-vectors"))
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--held-out", metavar="K/N", help="also organ retrieval of the cases of fold K of N alone")
    parser.add_argument("--stamp", type=Path, metavar="FOLDER", help="write its figures into the card of this encoder")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    atlas = load_atlas(options.data / "atlas")
    folder = options.data / "labelled"
    labelled = {name: load_labelled(folder, name, positive) for name, positive in (("pcam1000", "1"), ("oscc", "OSCC"))}
    asked = [("colour statistics", "colour-1", colour_statistics)]
    asked += [load_onnx(text) for text in options.onnx] + [load_card(text) for text in options.encoder]
    results: dict[str, Any] = {}
    for name, key, encode in asked:
        kept = options.cache / f"{key[:16]}.npz"
        if not kept.exists():
            np.savez(kept, **encode_set(encode, atlas, labelled))
        with np.load(kept, allow_pickle=False) as file:
            vectors = {entry: file[entry] for entry in file.files}
        figures = measure(vectors, atlas, labelled)
        if options.held_out:
            fold, folds = (int(number) for number in options.held_out.split("/"))
            figures["held_out"] = measure_held_out(vectors["clean"], atlas, fold, folds)
            print(f"{name}: {as_json(figures['held_out'])}", file=sys.stderr)
        if encode is not colour_statistics:
            figures["tiles_per_s"] = measure_speed(encode, atlas.tiles)
        results[name] = as_json(figures)
        print(f"{name}: organ R@1 {words(results[name]['organ_r1'])}", file=sys.stderr, flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.stamp:
        stamp_metrics(options.stamp, results)
    print(write_table(results))


def stamp_metrics(folder: Path, results: dict[str, Any]) -> None:
    """Put an encoder's figures into its card, as they stand in the JSON; speed is the machine's and stays out."""
    from slideway.registry import read_card

    card, path = read_card(folder), folder / "card.toml"
    figures = {name: value for name, value in results[card.id].items() if name != "tiles_per_s"}
    command = "python bench/encoders/evaluate.py DATA --encoder " + card.id
    written_by_hand = path.read_text(encoding="utf-8").partition("\n[metrics]")[0]
    stamped = tomli_w.dumps({"metrics": {"command": command, **figures}})
    path.write_text(f"{written_by_hand}\n{stamped}", encoding="utf-8")


if __name__ == "__main__":
    main()
