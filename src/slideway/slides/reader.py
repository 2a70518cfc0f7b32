"""What a reader of one file format must offer, and how the reader of a file is chosen."""

from __future__ import annotations

import importlib.metadata
import struct
import zlib
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from slideway.core.errors import BrokenSlideError, SlideAccessError, SlidewayError, UnknownFormatError
from slideway.core.slide import Slide

CERTAIN = 100  # nobody reads this file better: no further reader is asked

# What format libraries raise on damaged bytes; a MemoryError is not among them, the worker answers that one itself.
PARSER_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    OSError,
    RuntimeError,
    SyntaxError,  # Pillow's word for a broken PNG
    struct.error,
    zlib.error,
)


@runtime_checkable
class SlideReader(Protocol):
    """One format's reader. It runs inside the sandboxed worker and may crash there without harm.

    The contract is `slideway.testing.ReaderContract`; derive a test class from it for your own reader and
    register the reader under the entry point group `slideway.readers`.
    """

    name: ClassVar[str]

    @classmethod
    def score(cls, path: Path) -> int:
        """Say how well this reader reads `path`: 0 not at all … 100 better than any other. Cheap; never raises."""
        ...

    def __init__(self, path: Path) -> None:
        """Open the file; raise an `UnreadableSlideError` that names the true cause."""
        ...

    def describe(self) -> Slide:
        """Describe the slide from its metadata."""
        ...

    def read_region(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Read a rectangle, in pixels of `level`, as (height, width, 3) RGB; white beyond the slide's edge."""
        ...

    def read_side_image(self, name: str) -> NDArray[np.uint8]:
        """Read `label`, `macro` or `thumbnail` as (height, width, 3) RGB; KeyError when the file has none."""
        ...

    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile, if any."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def find_readers() -> list[type[SlideReader]]:
    """Load every registered reader, foreign ones first so that they can outbid ours.

    A reader whose own import fails is left out: its extra may be half installed.
    """
    entry_points = sorted(
        importlib.metadata.entry_points(group="slideway.readers"),
        key=lambda entry: entry.dist is not None and entry.dist.name == "slideway",
    )
    return [reader for entry in entry_points if (reader := _load(entry)) is not None]


def _load(entry: importlib.metadata.EntryPoint) -> type[SlideReader] | None:
    try:
        reader: type[SlideReader] = entry.load()
    except ImportError:
        return None
    return reader


def choose_reader(path: Path) -> type[SlideReader]:
    """Choose the reader with the highest score for a file or folder.

    Raises:
        SlideAccessError: The path is not there or may not be read.
        BrokenSlideError: The file is empty.
        UnknownFormatError: Nobody recognises it.
    """
    check_access(path)
    best, best_score = None, 0
    for reader in find_readers():
        score = reader.score(path)
        if score > best_score:
            best, best_score = reader, score
        if score >= CERTAIN:
            break
    if best is None:
        raise UnknownFormatError(_explain_unknown(path))
    return best


def read_head(path: Path, n_bytes: int) -> bytes:
    """Read a file's first bytes for a `score`; none for a folder and for what cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(n_bytes)
    except OSError:
        return b""


def check_access(path: Path) -> None:
    """Refuse a path that is not there, may not be read, or is empty, in the words of its true cause."""
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise SlideAccessError(f"{path.name}: neither a file nor a folder (a pipe or a device); give a slide file")
        with path.open("rb") as file:
            if not file.read(1):
                raise BrokenSlideError(f"{path.name}: the file is empty (0 bytes); copy it again from the scanner")
    except FileNotFoundError as error:
        raise SlideAccessError(f"{path.name}: no such file or folder; check the path") from error
    except PermissionError as error:
        raise SlideAccessError(
            f"{path.name}: this user may not read it; ask for read permission on the file"
        ) from error
    except SlidewayError:
        raise
    except OSError as error:
        raise SlideAccessError(f"{path.name}: cannot be read: {error.strerror}; check the disk or share") from error


def _explain_unknown(path: Path) -> str:
    if path.is_dir():
        return f"{path.name}: this folder is no slide that any installed reader knows (a DICOM slide is one folder)"
    with path.open("rb") as file:
        head = file.read(512)
    looks = "it looks like text" if _is_text(head) else f"it begins with bytes {head[:4].hex(' ')}"
    return (
        f"{path.name}: no reader recognises this file ({looks}); Slideway reads SVS, tiled and OME TIFF, NDPI, MRXS, "
        "SCN, BIF, VMS, Philips TIFF, DICOM and plain images: see docs/formats.md"
    )


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r\f\b\x1b" or byte >= 0x20 for byte in head)
