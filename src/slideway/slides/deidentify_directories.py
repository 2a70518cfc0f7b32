"""TIFF directories read with bounds on everything, so that a hostile file costs an error and not the machine.

`tifftools` follows pointers without such bounds, so it only writes here: what it is given comes from this module.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from slideway.core.errors import BrokenSlideError
from slideway.slides.tiff import MAX_DIRECTORIES

MAX_ENTRIES = 1_000  # of one directory; scanners write some twenty to eighty
MAX_VALUE_BYTES = 200_000_000  # of all directories together: six million stored tiles, far beyond the largest scan

DESCRIPTION, SOFTWARE, XMP, SUB_DIRECTORIES = 270, 305, 700, 330
WIDTH, HEIGHT, TILE_OFFSETS, TILE_COUNTS, STRIP_OFFSETS, STRIP_COUNTS = 256, 257, 324, 325, 273, 279
JPEG_TABLES, PROFILE, NDPI_FORMAT = 347, 34675, 65420

_ASCII, _UNDEFINED = 2, 7
# Form and bytes of one value by TIFF type. Source: TIFF 6.0 section 2; 13: TIFF Technical Note 1; 16–18: BigTIFF.
_TYPES = {
    1: ("B", 1), 2: ("s", 1), 3: ("H", 2), 4: ("I", 4), 5: ("II", 8), 6: ("b", 1), 7: ("s", 1), 8: ("h", 2),
    9: ("i", 4), 10: ("ii", 8), 11: ("f", 4), 12: ("d", 8), 13: ("I", 4), 16: ("Q", 8), 17: ("q", 8), 18: ("Q", 8),
}  # fmt: skip


@dataclass
class Entry:
    """One tag of a directory.

    Attributes:
        type_number: As TIFF counts types.
        values: Numbers (rationals as numerator, denominator …), or bytes for text and undefined content.
    """

    type_number: int
    values: list[Any] | bytes


@dataclass
class Directory:
    """One image of a TIFF: the tags that were asked for, and the numbers of those that were not.

    Attributes:
        entries: By tag.
        others: Tags that are there and were not asked for; their content was never read.
        below: Images that hang below this one (SubIFDs), each chain in order.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    others: set[int] = field(default_factory=set)
    below: list[Directory] = field(default_factory=list)

    @property
    def is_tiled(self) -> bool:
        """Whether its pixels are stored as tiles."""
        return TILE_OFFSETS in self.entries

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.number(WIDTH), self.number(HEIGHT)

    def number(self, tag: int) -> int:
        """Return the first value of a whole-number tag; 0 when it is not there."""
        entry = self.entries.get(tag)
        if entry is None or isinstance(entry.values, bytes) or not entry.values:
            return 0
        return int(entry.values[0])

    def text(self, tag: int) -> str:
        """Return a text tag, wrong bytes replaced; empty when it is not there."""
        entry = self.entries.get(tag)
        if entry is None:
            return ""
        content = entry.values if isinstance(entry.values, bytes) else bytes(v & 255 for v in entry.values)
        return content.split(b"\0")[0].decode("utf-8", "replace")

    def spans(self) -> list[tuple[int, int]]:
        """List (offset, length) of the stored tiles or strips, in order."""
        places, counts = (TILE_OFFSETS, TILE_COUNTS) if self.is_tiled else (STRIP_OFFSETS, STRIP_COUNTS)
        offsets, lengths = self.entries.get(places), self.entries.get(counts)
        if offsets is None or lengths is None or len(offsets.values) != len(lengths.values):
            raise ValueError("a directory lists no stored pixels, or fewer places than lengths")
        return list(zip(map(int, offsets.values), map(int, lengths.values), strict=True))


@dataclass
class Tiff:
    """A TIFF's directories and what its header says.

    Attributes:
        directories: The main chain, in order.
        is_big: BigTIFF.
        is_big_endian: Most significant byte first.
        n_bytes: Size of the file.
    """

    directories: list[Directory]
    is_big: bool
    is_big_endian: bool
    n_bytes: int


def _count_stored(image: Directory) -> int:
    """How many tiles or strips an image of its size has; each colour apart when PlanarConfiguration says so."""
    width, height = image.size_px
    planes = max(1, image.number(277)) if image.number(284) == 2 else 1
    if image.is_tiled:
        tile_width, tile_height = image.number(322), image.number(323)
        if not (tile_width and tile_height):
            raise ValueError("its tiles have no size")
        return -(-width // tile_width) * -(-height // tile_height) * planes
    return -(-height // (image.number(278) or height or 1)) * planes  # RowsPerStrip


def walk(directories: list[Directory]) -> Iterator[Directory]:
    """Yield directories and those below them."""
    for directory in directories:
        yield directory
        yield from walk(directory.below)


def read_directories(file: BinaryIO, name: str, wanted: frozenset[int]) -> Tiff:
    """Read the wanted tags of every directory; other tags are counted and never read.

    Raises:
        BrokenSlideError: A pointer leads outside the file or in a loop, or a directory is larger than any scanner's.
    """
    try:
        return _Walker(file, wanted).read()
    except (ValueError, struct.error) as error:
        raise BrokenSlideError(
            f"{name}: the TIFF header is damaged ({error}); copy the file again from the scanner"
        ) from error


def check_spans(tiff: Tiff, kept: list[Directory], name: str) -> None:
    """Refuse stored pixels outside of the file, overlapping, or more than the image has: something else would travel.

    Raises:
        BrokenSlideError: One of those.
    """
    try:
        if any(len(directory.spans()) != _count_stored(directory) for directory in walk(kept)):
            raise ValueError("it lists more or fewer stored tiles than its size has")
        spans = {span for directory in walk(kept) for span in directory.spans() if span[1]}
    except ValueError as error:
        raise BrokenSlideError(f"{name}: the TIFF header is damaged ({error}); copy the file again") from error
    if any(offset < 8 or length < 0 or offset + length > tiff.n_bytes for offset, length in spans):
        raise BrokenSlideError(f"{name}: stored tiles lie past the end of the file; it was cut off: copy it again")
    if sum(length for _, length in spans) > tiff.n_bytes:
        raise BrokenSlideError(f"{name}: stored tiles overlap each other; the header is damaged or hostile")


class _Walker:
    """Follows pointers, each at most once, inside the file only."""

    def __init__(self, file: BinaryIO, wanted: frozenset[int]) -> None:
        self._file, self._wanted = file, wanted | {SUB_DIRECTORIES}
        self._size = file.seek(0, 2)
        self._seen: set[int] = set()
        self._value_bytes = 0
        head = self._read(0, 8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise ValueError("it is no TIFF")
        self._is_big_endian, self._is_big = head[:2] == b"MM", b"+" in head[:4]
        self._order: Literal["<", ">"] = ">" if self._is_big_endian else "<"
        if self._is_big and struct.unpack(f"{self._order}HH", head[4:8]) != (8, 0):
            raise ValueError("a BigTIFF with pointers of a size that nobody uses")

    def read(self) -> Tiff:
        first = self._number(8, "Q") if self._is_big else self._number(4, "I")
        directories = self._chain(first)
        if not directories:
            raise ValueError("it holds no image")
        return Tiff(directories, self._is_big, self._is_big_endian, self._size)

    def _chain(self, pointer: int, siblings: frozenset[int] | None = None) -> list[Directory]:
        """Follow a chain to its end, or to the next of the `siblings` that a directory lists below itself."""
        directories: list[Directory] = []
        while pointer and not (directories and siblings and pointer in siblings):
            if pointer in self._seen or len(self._seen) >= MAX_DIRECTORIES:
                raise ValueError("its chain of directories runs in a loop, or is too long")
            self._seen.add(pointer)
            directory, pointer = self._directory(pointer, is_below=siblings is not None)
            directories.append(directory)
        return directories

    def _directory(self, at: int, *, is_below: bool) -> tuple[Directory, int]:
        count_form, pointer_form, entry_bytes = ("Q", "Q", 20) if self._is_big else ("H", "I", 12)
        count = self._number(at, count_form)
        if count > MAX_ENTRIES:
            raise ValueError(f"a directory declares {count:,} tags")
        start = at + struct.calcsize(count_form)
        table = self._read(start, count * entry_bytes)
        found = Directory()
        for index in range(count):
            self._entry(table[index * entry_bytes : (index + 1) * entry_bytes], found)
        below = found.entries.pop(SUB_DIRECTORIES, None)
        if below is not None and not is_below and not isinstance(below.values, bytes):
            places = frozenset(map(int, below.values))
            found.below = [directory for place in below.values for directory in self._chain(int(place), places)]
        return found, self._number(start + count * entry_bytes, pointer_form)

    def _entry(self, entry: bytes, found: Directory) -> None:
        tag, type_number = struct.unpack(f"{self._order}HH", entry[:4])
        if tag in found.entries or tag in found.others:
            raise ValueError(f"tag {tag} stands twice in one directory")
        if tag not in self._wanted or type_number not in _TYPES:
            found.others.add(tag)
            return
        pointer_form = f"{self._order}{'Q' if self._is_big else 'I'}"
        width = struct.calcsize(pointer_form)
        count = struct.unpack(pointer_form, entry[4 : 4 + width])[0]
        form, value_bytes = _TYPES[type_number]
        n_bytes = count * value_bytes
        self._value_bytes += n_bytes
        if self._value_bytes > MAX_VALUE_BYTES:
            raise ValueError("its directories are larger than any scanner's")
        inline = entry[4 + width :]
        content = inline[:n_bytes] if n_bytes <= width else self._read(struct.unpack(pointer_form, inline)[0], n_bytes)
        if type_number in (_ASCII, _UNDEFINED):
            found.entries[tag] = Entry(type_number, content)
        else:
            numbers = np.frombuffer(content, np.dtype(form[0]).newbyteorder(self._order))
            found.entries[tag] = Entry(type_number, numbers.tolist())

    def _number(self, at: int, form: str) -> int:
        number: int = struct.unpack(self._order + form, self._read(at, struct.calcsize(form)))[0]
        return number

    def _read(self, at: int, n_bytes: int) -> bytes:
        if at + n_bytes > self._size:
            raise ValueError("a pointer leads past the end of the file: it was cut off")
        self._file.seek(at)
        return self._file.read(n_bytes)


def read_tiff(path: Path, wanted: frozenset[int]) -> Tiff:
    """Read the directories of a file; see `read_directories`."""
    with path.open("rb") as file:
        return read_directories(file, path.name, wanted)
