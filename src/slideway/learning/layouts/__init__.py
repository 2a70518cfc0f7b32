"""Read the folder and label layout of public cohorts: one module a family, each listed in `LAYOUTS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from slideway.core.errors import CohortError
from slideway.learning.layouts.bracs import find_bracs_regions, find_bracs_slides
from slideway.learning.layouts.camelyon import find_camelyon16, find_camelyon17
from slideway.learning.layouts.found import FoundCohort
from slideway.learning.layouts.panda import find_panda
from slideway.learning.layouts.tcga import find_tcga
from slideway.learning.layouts.tile_sets import find_nct_crc, find_pcam
from slideway.learning.table import write_table

__all__ = ["LAYOUTS", "FoundCohort", "Layout", "build_cohort", "write_cohort"]


@dataclass(frozen=True)
class Layout:
    """One public cohort.

    Attributes:
        title: Its name, and what its folder holds.
        find: Reads a folder of that layout.
    """

    title: str
    find: Callable[[Path], FoundCohort]


LAYOUTS: Mapping[str, Layout] = MappingProxyType({
    "camelyon16": Layout("CAMELYON16: lymph nodes, metastasis or not", find_camelyon16),
    "camelyon17": Layout("CAMELYON17: lymph nodes of five centres, with stages.csv", find_camelyon17),
    "panda": Layout("PANDA: prostate biopsies, with train.csv", find_panda),
    "tcga": Layout("TCGA: what gdc-client downloaded, with its manifest", find_tcga),
    "bracs": Layout("BRACS: breast slides, with BRACS.xlsx", find_bracs_slides),
    "bracs-roi": Layout("BRACS: breast regions (PNG), with BRACS.xlsx", find_bracs_regions),
    "pcam": Layout("PatchCamelyon: tiles in HDF5", find_pcam),
    "nct-crc": Layout("NCT-CRC-HE-100K and CRC-VAL-HE-7K: tiles in folders of nine tissues", find_nct_crc),
})  # fmt: skip


def build_cohort(kind: str, folder: Path) -> FoundCohort:
    """Read a folder of a public cohort.

    Raises:
        CohortError: No such kind, or the folder is not laid out that way; the message says what is missing.
    """
    if kind not in LAYOUTS:
        raise CohortError(f"no layout {kind!r}; there are {', '.join(LAYOUTS)}")
    if not folder.is_dir():
        raise CohortError(f"{folder} is not a folder; give the one that the cohort was unpacked into")
    return LAYOUTS[kind].find(folder.resolve())


def write_cohort(found: FoundCohort, out: Path) -> None:
    """Write a found cohort as cohort.csv or tiles.csv, with paths relative to it.

    Raises:
        OutputError: It cannot be written.
    """
    folder = out.resolve().parent
    first = "tile" if found.is_tiles else "slide"
    rows = ((_relate(row.path, folder) + row.inside, *row.cells) for row in found.rows)
    write_table(out, (first, *found.columns), rows)


def _relate(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return path.as_posix()
