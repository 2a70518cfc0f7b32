"""Delimited text as hospitals and spreadsheets write it: one header line, then one line a slide or tile."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slideway.core.errors import CohortError, OutputError

MAX_BYTES = 512 * 1024 * 1024
SHOWN = 5  # offending lines or files that a message lists
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Table:
    """A table, by column.

    Attributes:
        path: Where it was read from.
        columns: Cells of each column, stripped, in the order of the file.
        lines: Line of the file that each row ends on, for messages.
        sha256: Hash of the file.
        notes: What was guessed in reading it.
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    sha256: str
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lines)

    def column(self, name: str) -> tuple[str, ...]:
        """Cells of a column; empty ones when the table does not have it."""
        return self.columns.get(name, ("",) * len(self))


def read_table(path: Path, *, required: Sequence[str], exact_names: bool = False) -> Table:
    """Read a table: comma, semicolon or tab; UTF-8, UTF-16 with a byte order mark, or GB18030.

    Args:
        path: The file.
        required: Columns it must have.
        exact_names: Keep the header's capitals; else they do not matter.

    Raises:
        CohortError: It is not there, not text, or not such a table.
    """
    content = _read_bytes(path)
    text, notes = _decode(path, content)
    header, delimiter = _read_header(path, text)
    names = [name if exact_names else name.lower() for name in header]
    _require_columns(path, names, required)
    rows, lines = _read_rows(path, text, delimiter, len(names))
    if not rows:
        raise CohortError(f"{path.name} has a header line and nothing below it; add one line a slide or tile")
    cells = zip(*rows, strict=True)
    columns = {name: tuple(values) for name, values in zip(names, cells, strict=True)}
    return Table(path, columns, tuple(lines), hashlib.sha256(content).hexdigest(), notes)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table as UTF-8 CSV, whole or not at all.

    Raises:
        OutputError: The folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: {error.strerror or error}; choose another file with --out") from error


def name_lines(lines: Sequence[int]) -> str:
    """`line 3`, `lines 3, 4 and 9`, or the first few and how many there are."""
    shown = [str(line) for line in lines[:SHOWN]]
    if len(lines) == 1:
        return f"line {shown[0]}"
    if len(lines) > SHOWN:
        return f"lines {', '.join(shown)} … ({len(lines)} in all)"
    return f"lines {', '.join(shown[:-1])} and {shown[-1]}"


def name_some(things: Iterable[str]) -> str:
    """The first few of some names, and how many there are."""
    every = list(things)
    return ", ".join(every[:SHOWN]) + (f" … ({len(every)} in all)" if len(every) > SHOWN else "")


def is_there(path: Path, *, file: bool = False) -> bool:
    """Whether there is such a file, or with `file` unset such a folder; no, for names that no file can have."""
    try:
        return path.is_file() if file else path.exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CohortError(f"{path}: no such file; give the table that lists the slides or tiles")
    if path.stat().st_size > MAX_BYTES:
        raise CohortError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB; it is not a table of slides or tiles")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CohortError(f"{path.name} cannot be read ({error.strerror}); mend its rights") from error
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise CohortError(f"{path.name} is a spreadsheet; save it as CSV (UTF-8) and give that")
    return content


def _decode(path: Path, content: bytes) -> tuple[str, tuple[str, ...]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings: list[tuple[str, tuple[str, ...]]] = [("utf-16", ())]
    else:
        guess = (f"{path.name} is not UTF-8; it was read as GB18030. If names look wrong, save it as UTF-8",)
        encodings = [("utf-8-sig", ()), ("gb18030", guess)]
    for encoding, notes in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, notes
    raise CohortError(f"{path.name} is not text in UTF-8, UTF-16 or GB18030; save it as CSV (UTF-8)")


def _read_header(path: Path, text: str) -> tuple[list[str], str]:
    line = next((line for line in io.StringIO(text, newline="") if line.strip()), "").strip("\r\n")
    if not line:
        raise CohortError(f"{path.name} is empty; its first line names the columns")
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error as error:
        raise CohortError(f"{path.name}, line 1: {error}; its first line names the columns") from error
    while header and not header[-1] and len(header) > 1:
        header.pop()  # spreadsheets write empty columns at the right
    return header, delimiter


def _require_columns(path: Path, names: Sequence[str], required: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CohortError(f"{path.name}: column {name_some(twice)} is there twice; rename or delete one")
    for name in required:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"rename {near[0]!r} to {name!r}" if near else f"add it; it has {name_some(names)}"
            raise CohortError(f"{path.name}: no column {name!r}; {hint}")


def _read_rows(path: Path, text: str, delimiter: str, width: int) -> tuple[list[list[str]], list[int]]:
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if any(stripped[width:]) or len(stripped) < width:
                raise CohortError(
                    f"{path.name}, line {reader.line_num}: {len(stripped)} cells, the header has {width}; a cell that "
                    "holds the delimiter must stand in quotes"
                )
            rows.append(stripped[:width])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise CohortError(f"{path.name}, line {reader.line_num}: {error}; save it as CSV again") from error
    return rows[1:], lines[1:]
