"""Whether all files of a slide are there, by what its index file says; a scanner writes the index before or after."""

from __future__ import annotations

import configparser
from pathlib import Path

_INDEX_BYTES = 2**20
_UNFINISHED = (".part", ".tmp", ".partial", ".crdownload", ".filepart")


def find_missing(path: Path) -> str:
    """Name of what is not there yet of a slide; empty when nothing is known to miss.

    Source: MRXS and VMS: https://openslide.org/formats/mirax/ and https://openslide.org/formats/hamamatsu/.
    """
    if path.is_dir():
        return next((part.name for part in path.iterdir() if part.name.lower().endswith(_UNFINISHED)), "")
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return _find_missing_mrxs(path)
    if suffix in (".vms", ".vmu"):
        return _find_missing_vms(path)
    return ""


def _find_missing_mrxs(path: Path) -> str:
    folder = path.with_suffix("")
    index = folder / "Slidedat.ini"
    if not index.is_file():
        return f"{folder.name}/{index.name}"
    tables = _read_index(index)
    named = [tables.get("HIERARCHICAL", "INDEXFILE", fallback="")] if tables.has_section("HIERARCHICAL") else []
    if tables.has_section("DATAFILE"):
        named += [name for key, name in tables.items("DATAFILE") if key.upper() != "FILE_COUNT"]
    return next((f"{folder.name}/{name}" for name in named if name and not (folder / Path(name).name).is_file()), "")


def _find_missing_vms(path: Path) -> str:
    tables = _read_index(path)
    for section in tables.sections():
        for key, name in tables.items(section):
            is_file = key.lower().startswith(("imagefile", "mapfile", "optimisationfile", "macroimage"))
            if is_file and name.strip() and not (path.parent / Path(name.strip()).name).is_file():
                return name.strip()
    return ""


def _read_index(path: Path) -> configparser.ConfigParser:
    """An index file as tables; empty when it is none: then the reader will say so."""
    tables = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    tables.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        with path.open("rb") as file:
            text = file.read(_INDEX_BYTES).decode("utf-8-sig", "replace")
        tables.read_string(text)
    except (OSError, configparser.Error):
        return configparser.ConfigParser(interpolation=None)
    return tables
