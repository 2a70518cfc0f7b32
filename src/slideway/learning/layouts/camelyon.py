"""CAMELYON16 and CAMELYON17: lymph nodes of women with breast cancer, with and without metastasis."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from slideway.core.errors import CohortError
from slideway.learning.cohort import TEST, TRAIN
from slideway.learning.layouts.found import FoundCohort, FoundRow, find_files, require_some, say_left_out
from slideway.learning.table import read_table

_SLIDE16 = re.compile(r"(normal|tumor|test)_(\d{3})", re.IGNORECASE)
_SLIDE17 = re.compile(r"patient_(\d{3})_node_(\d)", re.IGNORECASE)
_CENTRE = re.compile(r"cent(?:er|re)_(\d)", re.IGNORECASE)
_TIFF = (".tif", ".tiff")
# The set's own readme: normal_086 shows a tumour and was published again as tumor_111; test_049 is a duplicate.
_WITHDRAWN = frozenset({"normal_086", "test_049"})
_PER_CENTRE = 20  # training patients; patient_000 to patient_019 come from centre 0, and so on
_TRAINING_PATIENTS = 100
STAGES = ("negative", "itc", "micro", "macro")


def find_camelyon16(folder: Path) -> FoundCohort:
    """Read CAMELYON16: `normal_001.tif`, `tumor_001.tif`, `test_001.tif`, wherever they lie below the folder.

    Test slides get their label from `reference.csv`, or from lying annotations (`test_001.xml`) where that is missing.

    Raises:
        CohortError: There is no such slide, or test slides have no labels.
    """
    slides = {path.stem.lower(): path for path in find_files(folder, _TIFF) if _SLIDE16.fullmatch(path.stem)}
    tests = [name for name in slides if name.startswith("test")]
    answers = _read_answers(folder, tests) if tests else {}
    rows, unlabelled = [], []
    for name, path in sorted(slides.items()):
        if name in _WITHDRAWN:
            continue
        is_test = name.startswith("test")
        label = answers.get(name, "") if is_test else ("yes" if name.startswith("tumor") else "no")
        if not label:
            unlabelled.append(name)
            continue
        rows.append(FoundRow(path, "", (name, "H&E", TEST if is_test else TRAIN, label)))
    require_some(rows, folder, "CAMELYON16 has slides named normal_001.tif, tumor_001.tif and test_001.tif")
    notes = [
        *say_left_out(sorted(_WITHDRAWN & set(slides)), "withdrawn by the set's own readme"),
        *say_left_out(unlabelled, "reference.csv does not name them"),
        "each slide is taken for a case of its own: the set names no patients, and holds one slide of each",
        "hospitals are not named in the files; the column site is left out",
    ]
    return FoundCohort(("case", "stain", "fold", "malignant"), tuple(rows), tuple(notes), ("malignant",))


def _read_answers(folder: Path, tests: list[str]) -> dict[str, str]:
    table = next((path for path in find_files(folder, (".csv",)) if path.name.lower() == "reference.csv"), None)
    if table is not None:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip().lower() for cell in line] for line in csv.reader(file) if line]
        # Without a header: test_001,Tumor,IDC,Macro
        return {Path(line[0]).stem: "yes" if "tumor" in line[1:] else "no" for line in lines
                if {"tumor", "normal"} & set(line[1:])}  # fmt: skip
    annotated = {path.stem.lower() for path in find_files(folder, (".xml",))}
    if not any(name.startswith("test_") for name in annotated):
        raise CohortError(
            f"{folder}: {len(tests)} test slides and no labels; put reference.csv, or the annotations test_001.xml …, "
            "beside them, or take the test slides away"
        )
    return {name: "yes" if name in annotated else "no" for name in tests}


def find_camelyon17(folder: Path) -> FoundCohort:
    """Read CAMELYON17: `patient_000_node_0.tif`, wherever they lie below the folder, and `stages.csv`.

    Raises:
        CohortError: Slides or stages are missing, or a slide called negative has an annotated metastasis.
    """
    slides = {path.stem.lower(): path for path in find_files(folder, _TIFF) if _SLIDE17.fullmatch(path.stem)}
    stages, centres = _read_stages(folder)
    annotated = {path.stem.lower() for path in find_files(folder, (".xml",))}
    wrong = sorted(name for name in annotated if stages.get(name) == STAGES[0])
    if wrong:
        raise CohortError(f"{folder}: {wrong[0]} is negative in the stages, and has an annotation; mend one of them")
    known = {name: path for name, path in sorted(slides.items()) if stages.get(name) in STAGES}
    sites = {name: _find_centre(name, path, centres) for name, path in known.items()}
    has_sites = all(sites.values())
    rows = [
        FoundRow(
            path, "", (name[:11], sites[name] if has_sites else "", "H&E", _is_positive(stages[name]), stages[name])
        )
        for name, path in known.items()
    ]
    require_some(rows, folder, "CAMELYON17 has slides named patient_000_node_0.tif, and their stages in stages.csv")
    notes = [
        *say_left_out(sorted(set(slides) - set(known)), "no stage is known, as for the test patients"),
        *([] if has_sites else ["the centre of some test patients is not known; the column site is left empty"]),
        "isolated tumour cells (itc) count as malignant; ask for stage to tell them apart",
    ]
    columns = ("case", "site", "stain", "malignant", "stage")
    return FoundCohort(columns, tuple(rows), tuple(notes), ("malignant", f"stage:{'<'.join(STAGES)}"))


def _read_stages(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    names = ("stages.csv", "stage_labels.csv")
    path = next((path for path in find_files(folder, (".csv",)) if path.name.lower() in names), None)
    if path is None:
        raise CohortError(f"{folder}: no stages.csv (or stage_labels.csv); download it with the slides")
    table = read_table(path, required=("patient", "stage"))
    slides = [Path(name.lower()).stem for name in table.column("patient")]  # lines of whole patients end in .zip
    stages = dict(zip(slides, (stage.lower() for stage in table.column("stage")), strict=True))
    centres = dict(zip(slides, table.column("center"), strict=True))
    return stages, {name: f"centre-{centre}" for name, centre in centres.items() if centre}


def _find_centre(name: str, path: Path, centres: dict[str, str]) -> str:
    if name in centres:
        return centres[name]
    for part in path.parts:
        if found := _CENTRE.fullmatch(part):
            return f"centre-{found[1]}"
    patient = int(name[8:11])
    return f"centre-{patient // _PER_CENTRE}" if patient < _TRAINING_PATIENTS else ""


def _is_positive(stage: str) -> str:
    return "no" if stage == STAGES[0] else "yes"
