"""TCGA: slides that the GDC's client downloaded by a manifest; case, site and sample type stand in the barcode."""

from __future__ import annotations

import re
from pathlib import Path

from slideway.core.errors import CohortError
from slideway.learning.layouts.found import FoundCohort, FoundRow, require_some, say_left_out
from slideway.learning.table import Table, name_some, read_table

# TCGA-<source site>-<participant>-<sample type><vial>-<portion>-<slide>, e.g. TCGA-A1-A0SP-01Z-00-DX1
_BARCODE = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})-(\d{2})[A-Z]?-\d{2}[A-Z]?-(DX|TS|BS|MS)", re.IGNORECASE)
_MANIFEST_COLUMNS = ("id", "filename", "md5", "size", "state")
_TUMOUR, _NORMAL = range(1, 10), range(10, 20)  # sample types; 20 and above are controls and models


def find_tcga(folder: Path) -> FoundCohort:
    """Read TCGA slides by their GDC manifests, each in a folder named by its id, or all in one folder.

    A sample sheet (`gdc_sample_sheet*.tsv`) beside the manifest adds the column `project`, e.g. `TCGA-BRCA`.

    Raises:
        CohortError: There is no manifest, nothing of it is there, or a file is not as long as it should be.
    """
    manifests = _read_manifests(folder)
    projects = _read_projects(folder)
    rows, missing, strange, short = [], [], [], []
    for table in manifests:
        for file_id, name, size in zip(*(table.column(c) for c in ("id", "filename", "size")), strict=True):
            barcode = _BARCODE.match(name)
            path = next((p for p in (folder / file_id / name, folder / name) if p.is_file()), None)
            if not name.lower().endswith(".svs") or barcode is None:
                strange.append(name)
            elif path is None:
                missing.append(name)
            elif size and path.stat().st_size != int(size):
                short.append(name)
            else:
                rows.append(FoundRow(path, "", _read_barcode(barcode, projects.get(file_id, ""))))
    if short:
        raise CohortError(
            f"{folder}: {len(short)} files are not as long as the manifest says: {name_some(short)}. Their download "
            "broke off; run gdc-client again with the same manifest"
        )
    require_some(rows, folder, "each slide of the manifest lies in a folder named by its id; has gdc-client run?")
    notes = [
        *say_left_out(missing, "not downloaded"),
        *say_left_out(strange, "no slide with a TCGA barcode in its name"),
        "site is the tissue source site of the barcode; laboratories and scanners behind it are not known",
        "normal samples are nearly all frozen sections: the column stain tells them, and a head would learn that; "
        "check it before you train neoplastic",
        "most source sites sent one kind of tumour: project can then be read off site, and a head may learn the site",
    ]
    tasks = ("project", "neoplastic") if projects else ("neoplastic",)
    return FoundCohort(("case", "site", "stain", "neoplastic", "project"), tuple(rows), tuple(notes), tasks)


def _read_manifests(folder: Path) -> list[Table]:
    tables = []
    for path in sorted(folder.glob("*.txt")):
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = tuple(file.readline().strip().lower().split("\t"))
        if header[: len(_MANIFEST_COLUMNS)] == _MANIFEST_COLUMNS:
            tables.append(read_table(path, required=_MANIFEST_COLUMNS))
    if not tables:
        raise CohortError(
            f"{folder}: no GDC manifest (a .txt whose first line is id, filename, md5, size, state); put it beside the "
            "folders that gdc-client made"
        )
    return tables


def _read_projects(folder: Path) -> dict[str, str]:
    projects: dict[str, str] = {}
    for path in sorted(folder.glob("gdc_sample_sheet*.tsv")):
        table = read_table(path, required=("file id", "project id"))
        projects.update(zip(table.column("file id"), table.column("project id"), strict=True))
    return projects


def _read_barcode(barcode: re.Match[str], project: str) -> tuple[str, ...]:
    case, site, sample_type, section = (part.upper() for part in barcode.groups())
    stain = "H&E" if section == "DX" else "H&E frozen"
    kind = int(sample_type)
    neoplastic = "yes" if kind in _TUMOUR else "no" if kind in _NORMAL else ""
    return (case, site, stain, neoplastic, project)
