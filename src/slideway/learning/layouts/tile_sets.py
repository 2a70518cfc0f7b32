"""PatchCamelyon and NCT-CRC: sets of single tiles, written as tile tables."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import CohortError
from slideway.learning.cohort import FOLD_WORDS, TEST, TRAIN
from slideway.learning.layouts.found import FoundCohort, FoundRow, find_files, require_some
from slideway.learning.table import name_some, read_table
from slideway.learning.tile_table import SEPARATOR

TISSUES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_PCAM = "camelyonpatch_level_2_split"
_PCAM_MPP = "0.972"  # level 2 of slides at 0.243 µm/px, "10x" in the set's readme
_CRC_MPP = "0.5"
_CRC_PARTS = {"NCT-CRC-HE-100K": TRAIN, "NCT-CRC-HE-100K-NONORM": TRAIN, "CRC-VAL-HE-7K": TEST}


def find_pcam(folder: Path) -> FoundCohort:
    """Read PatchCamelyon: `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5` and `…_meta.csv`.

    Tiles stay in the HDF5 files. The case of a tile is the slide that the meta table names.

    Raises:
        CohortError: Files are missing, still packed, or do not belong together.
    """
    rows: list[FoundRow] = []
    notes: list[str] = []
    splits = [split for split in ("train", "valid", "test") if _find_part(folder, f"{_PCAM}_{split}_x.h5")]
    for split in splits:
        pixels, labels = _open_split(folder, split)
        slides = _read_slides(folder, split, labels, notes)
        rows += [
            FoundRow(pixels, f"{SEPARATOR}x{SEPARATOR}{i}", (slides[i], _PCAM_MPP, FOLD_WORDS[split], label))
            for i, label in enumerate(np.where(labels == 1, "yes", "no").tolist())
        ]
    require_some(rows, folder, f"PatchCamelyon has files named {_PCAM}_train_x.h5, …_y.h5 and …_meta.csv")
    if any(not row.cells[0] for row in rows):  # cases of all tiles or of none
        rows = [FoundRow(row.path, row.inside, ("", *row.cells[1:])) for row in rows]
    notes.append("yes: there is tumour in the central 32 × 32 px. Slides stand for cases; the set names no patients")
    return FoundCohort(("case", "mpp", "fold", "malignant"), tuple(rows), tuple(notes), ("malignant",), is_tiles=True)


def _find_part(folder: Path, name: str) -> Path | None:
    if (folder / name).is_file():
        return folder / name
    packed = folder / f"{name}.gz"
    if packed.is_file():
        raise CohortError(
            f"{packed.name} is packed, and tiles cannot be read out of it; unpack it first: "
            f"python -m gzip -d {packed.name}"
        )
    return None


def _open_split(folder: Path, split: str) -> tuple[Path, NDArray[np.int64]]:
    pixels, answers = (_find_part(folder, f"{_PCAM}_{split}_{part}.h5") for part in "xy")
    if pixels is None or answers is None:
        raise CohortError(f"{folder}: {_PCAM}_{split}_y.h5 is missing; download it")
    try:
        with h5py.File(pixels, "r") as x, h5py.File(answers, "r") as y:
            labels = np.asarray(y["y"]).reshape(-1).astype(np.int64)  # stored as (n, 1, 1, 1)
            count = int(x["x"].shape[0])
    except (OSError, KeyError) as error:
        raise CohortError(f"{pixels.name} or its labels cannot be read ({error}); download them again") from error
    if count != len(labels):
        raise CohortError(f"{pixels.name}: {count} tiles and {len(labels)} labels; download both again")
    return pixels, labels


def _read_slides(folder: Path, split: str, labels: NDArray[np.int64], notes: list[str]) -> tuple[str, ...]:
    """Slide of each tile; empty ones, and a note, when the meta table is missing or of other tiles."""
    path = folder / f"{_PCAM}_{split}_meta.csv"
    none = ("",) * len(labels)
    if not path.is_file():
        notes.append(f"{path.name} is missing: slides of tiles are not known, and the table names no cases")
        return none
    table = read_table(path, required=("wsi", "center_tumor_patch"))
    said = np.array([word.lower() == "true" for word in table.column("center_tumor_patch")])
    if len(said) != len(labels) or (said != (labels == 1)).any():
        notes.append(f"{path.name} does not agree with the labels of its tiles: it is not used, no cases are named")
        return none
    return table.column("wsi")


def find_nct_crc(folder: Path) -> FoundCohort:
    """Read NCT-CRC-HE-100K (or -NONORM) and CRC-VAL-HE-7K: nine folders of `.tif` tiles in each.

    Raises:
        CohortError: No such folder, or both forms of the same 100,000 tiles.
    """
    parts = {name: folder / name for name in _CRC_PARTS if (folder / name).is_dir()}
    if not parts and folder.name in _CRC_PARTS:
        parts = {folder.name: folder}
    both = [name for name in parts if _CRC_PARTS[name] == TRAIN]
    if len(both) > 1:
        raise CohortError(f"{folder}: {name_some(both)} hold the same tiles; move one of them away")
    rows = [
        FoundRow(path, "", ("", _CRC_MPP, _CRC_PARTS[name] if len(parts) > 1 else "", tissue))
        for name, part in parts.items()
        for tissue in TISSUES
        if (part / tissue).is_dir()
        for path in find_files(part / tissue, (".tif", ".tiff"))
    ]
    require_some(rows, folder, f"NCT-CRC-HE-100K/ and CRC-VAL-HE-7K/, each with the folders {', '.join(TISSUES)}")
    notes = [
        "no patients are named: a split within NCT-CRC-HE-100K is optimistic. CRC-VAL-HE-7K is of other patients, and "
        "stands in test",
        "colours and JPEG quality differ between the nine folders; a head can tell some tissues by them alone "
        "(arXiv 2409.11546)",
    ]
    return FoundCohort(("case", "mpp", "fold", "tissue"), tuple(rows), tuple(notes), ("tissue",), is_tiles=True)
