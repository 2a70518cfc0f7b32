"""BRACS: breast slides and regions in seven lesion types and three groups, with patients in BRACS.xlsx."""

from __future__ import annotations

import re
from pathlib import Path

from slideway.core.errors import CohortError
from slideway.learning.layouts.found import FoundCohort, FoundRow, find_files, find_fold, require_some, settle_folds
from slideway.learning.layouts.spreadsheet import read_sheet

GROUPS = {
    **dict.fromkeys(("N", "PB", "UDH"), "benign"),
    **dict.fromkeys(("FEA", "ADH"), "atypical"),
    **dict.fromkeys(("DCIS", "IC"), "malignant"),
}
_SLIDE = re.compile(r"(BRACS_\d+)", re.IGNORECASE)
_REGION = re.compile(r"(BRACS_\d+)_[A-Z]+_\d+", re.IGNORECASE)
_REGION_MPP = "0.25"
_SHEET = "WSI_Information"


def find_bracs_slides(folder: Path) -> FoundCohort:
    """Read the slides: `train/Group_BT/Type_N/BRACS_1.svs`, likewise `val` and `test`, and BRACS.xlsx.

    Raises:
        CohortError: Slides or BRACS.xlsx are missing, or a slide's patient is not in there.
    """
    found = []
    for path in find_files(folder, (".svs",)):
        lesion = path.parent.name.removeprefix("Type_")
        if _SLIDE.fullmatch(path.stem) and lesion in GROUPS:
            found.append((path, path.stem.upper(), lesion))
    return _make_cohort(folder, found, mpp="", expected="BRACS_WSI/train/Group_BT/Type_N/BRACS_1.svs and so on")


def find_bracs_regions(folder: Path) -> FoundCohort:
    """Read the regions: `train/0_N/BRACS_264_N_1.png`, likewise `val` and `test`, and BRACS.xlsx.

    Raises:
        CohortError: Regions or BRACS.xlsx are missing, or a region's patient is not in there.
    """
    found = []
    for path in find_files(folder, (".png",)):
        name, lesion = _REGION.fullmatch(path.stem), path.parent.name.rpartition("_")[2]
        if name and lesion in GROUPS:
            found.append((path, name[1].upper(), lesion))
    expected = "BRACS_RoI/latest_version/train/0_N/BRACS_264_N_1.png and so on"
    return _make_cohort(folder, found, mpp=_REGION_MPP, expected=expected)


def _make_cohort(folder: Path, found: list[tuple[Path, str, str]], *, mpp: str, expected: str) -> FoundCohort:
    patients = _read_patients(folder) if found else {}
    unknown = [slide for _, slide, _ in found if slide not in patients]
    if unknown:
        raise CohortError(f"{folder}: {unknown[0]} is not in the sheet {_SHEET} of BRACS.xlsx; download it again")
    cases = [f"patient-{patients[slide]}" for _, slide, _ in found]
    given = [find_fold(path, folder) for path, _, _ in found]
    folds, notes = settle_folds(cases, given if all(given) else [""] * len(given))
    rows = [
        FoundRow(path, "", (case, "H&E", mpp, fold, _is_malignant(lesion), GROUPS[lesion], lesion))
        for (path, _, lesion), case, fold in zip(found, cases, folds, strict=True)
    ]
    require_some(rows, folder, expected)
    notes.append(
        "flat epithelial atypia and atypical ductal hyperplasia count as not malignant; in-situ carcinoma does"
    )
    columns = ("case", "stain", "mpp", "fold", "malignant", "group", "lesion")
    tasks = ("malignant", "group:benign<atypical<malignant", "lesion")
    return FoundCohort(columns, tuple(rows), tuple(notes), tasks)


def _is_malignant(lesion: str) -> str:
    return "yes" if GROUPS[lesion] == "malignant" else "no"


def _read_patients(folder: Path) -> dict[str, str]:
    places = (folder, *folder.parents[:3])  # the sheet lies beside BRACS_WSI, or above it
    path = next((place / "BRACS.xlsx" for place in places if (place / "BRACS.xlsx").is_file()), None)
    path = path or next((p for p in find_files(folder, (".xlsx",)) if p.name == "BRACS.xlsx"), None)
    if path is None:
        raise CohortError(
            f"{folder}: no BRACS.xlsx; it says which slides are of one patient (547 slides of 189), and without it "
            "patients would be learnt from and judged: download it and put it here"
        )
    header, *lines = read_sheet(path, _SHEET)
    names = [" ".join(cell.lower().split()) for cell in header]
    if "wsi filename" not in names or "patient id" not in names:
        raise CohortError(f"{path.name}: its sheet {_SHEET} has no 'WSI Filename' and 'Patient Id'; download it again")
    slide, patient = names.index("wsi filename"), names.index("patient id")
    return {line[slide].upper(): line[patient].removesuffix(".0") for line in lines if line[slide]}
