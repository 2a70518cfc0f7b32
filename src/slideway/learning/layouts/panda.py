"""PANDA: prostate biopsies of two centres, graded by ISUP grade group."""

from __future__ import annotations

from pathlib import Path

from slideway.core.errors import CohortError
from slideway.learning.layouts.found import FoundCohort, FoundRow, find_files, require_some, say_left_out
from slideway.learning.table import read_table


def find_panda(folder: Path) -> FoundCohort:
    """Read PANDA: `train.csv` and `train_images/IMAGE_ID.tiff`.

    `grade` is the ISUP grade group of cancers, 1 to 5; `isup` the set's own number, with 0 for benign.

    Raises:
        CohortError: Table or images are missing, or a grade is none.
    """
    path = folder / "train.csv"
    if not path.is_file():
        raise CohortError(f"{folder}: no train.csv; PANDA has it beside train_images/")
    table = read_table(path, required=("image_id", "data_provider", "isup_grade", "gleason_score"))
    images = {file.stem: file for file in find_files(folder / "train_images", (".tiff", ".tif"))}
    rows, missing = [], []
    for index, image in enumerate(table.column("image_id")):
        isup, score = table.column("isup_grade")[index], table.column("gleason_score")[index].lower()
        if isup not in {"0", "1", "2", "3", "4", "5"}:
            raise CohortError(f"train.csv, line {table.lines[index]}: isup_grade is {isup!r}; it is 0 to 5")
        if image not in images:
            missing.append(image)
            continue
        is_cancer = isup != "0"
        gleason = "0+0" if score == "negative" else score  # one centre writes negative, the other 0+0
        labels = ("yes" if is_cancer else "no", isup if is_cancer else "", isup, gleason)
        rows.append(FoundRow(images[image], "", (image, table.column("data_provider")[index], "H&E", *labels)))
    require_some(rows, folder, "PANDA has images named as train.csv says, in train_images/")
    notes = [
        *say_left_out(missing, "not in train_images"),
        "no patients are named: each biopsy is taken for a case, though a patient gave several, so that figures by "
        "case are optimistic; trust leave-site-out",
        "the two centres graded by different rules, and labels of the training set are known to be noisy",
    ]
    columns = ("case", "site", "stain", "malignant", "grade", "isup", "gleason")
    return FoundCohort(columns, tuple(rows), tuple(notes), ("malignant", "grade:ordinal", "isup:ordinal"))
