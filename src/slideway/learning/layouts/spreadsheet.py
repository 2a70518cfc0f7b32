"""Cells of one sheet of an .xlsx file, with the standard library."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from slideway.core.errors import CohortError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_MAX_BYTES = 64 * 1024 * 1024  # of one part, unpacked


def read_sheet(path: Path, name: str) -> list[list[str]]:
    """Rows of a sheet as text, all of one width; empty cells are empty.

    Raises:
        CohortError: It is not an .xlsx file, or has no such sheet.

    Source:
        ECMA-376 part 1, SpreadsheetML: workbook.xml names the sheets, sharedStrings.xml holds text.
    """
    try:
        with zipfile.ZipFile(path) as book:
            part = _find_part(book, path, name)
            shared = _read_shared(book)
            rows = [_read_row(row, shared) for row in _parse(book, part).iter(f"{_MAIN}row")]
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, ValueError, IndexError, OSError) as error:
        raise CohortError(f"{path.name} is not a readable .xlsx file ({error}); download it again") from error
    width = max((len(row) for row in rows), default=0)
    if not width:
        raise CohortError(f"{path.name}: its sheet {name} is empty; download it again")
    return [row + [""] * (width - len(row)) for row in rows]


def _find_part(book: zipfile.ZipFile, path: Path, name: str) -> str:
    sheets = {sheet.get("name", ""): sheet.get(_RELATION, "") for sheet in
              _parse(book, "xl/workbook.xml").iter(f"{_MAIN}sheet")}  # fmt: skip
    if name not in sheets:
        raise CohortError(f"{path.name} has no sheet {name!r}, it has {', '.join(sheets)}; download it again")
    targets = {
        relation.get("Id"): relation.get("Target", "") for relation in _parse(book, "xl/_rels/workbook.xml.rels")
    }
    target = targets[sheets[name]]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _read_shared(book: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    return [_join(item) for item in _parse(book, "xl/sharedStrings.xml").iter(f"{_MAIN}si")]


def _read_row(row: ElementTree.Element, shared: list[str]) -> list[str]:
    cells: list[str] = []
    for cell in row.iter(f"{_MAIN}c"):
        column = _number_column(cell.get("r", "")) if cell.get("r") else len(cells)
        cells += [""] * (column + 1 - len(cells))
        value = cell.findtext(f"{_MAIN}v", "")
        if cell.get("t") == "s":
            value = shared[int(value)]
        elif cell.get("t") == "inlineStr":
            value = _join(cell)
        cells[column] = value.strip()
    return cells


def _join(element: ElementTree.Element) -> str:
    return "".join(text.text or "" for text in element.iter(f"{_MAIN}t"))


def _number_column(reference: str) -> int:
    """0 of `A7`, 27 of `AB7`."""
    letters = re.match(r"[A-Z]{1,3}", reference)
    if letters is None:
        raise ValueError(f"cell {reference!r}")
    number = 0
    for letter in letters[0]:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _parse(book: zipfile.ZipFile, part: str) -> ElementTree.Element:
    if book.getinfo(part).file_size > _MAX_BYTES:
        raise ValueError(f"{part} is larger than any table of slides")
    content = book.read(part)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError("it declares entities")
    return ElementTree.fromstring(content)  # noqa: S314  entities are refused above
