"""Which files belong to a slide, and the hash that is its identity; nothing here looks inside a file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from slideway.core.errors import BrokenSlideError, SlideAccessError
from slideway.slides.reader import check_access

# Left by file managers, never part of a slide; their coming and going must not change its identity.
_CLUTTER = {"thumbs.db", "desktop.ini"}

# Hamamatsu VMS and VMU: beside `a.vms` lie `a.jpg`, `a(1,0).jpg`, `a_map2.jpg`, `a_macro.jpg`, `a.opt`.
# Source: https://openslide.org/formats/hamamatsu/.
_VMS_PART = r"(\(\d+(,\d+)*\))?(_map\d*|_macro)?\.(vms|vmu|jpg|ngr|opt)"
_PARTS_BESIDE = {".vms": _VMS_PART, ".vmu": _VMS_PART, ".tmap": r"\.dt\d+"}  # UNIC TMAP06: `a.DT1`, `a.DT2`


def files_of_slide(path: Path) -> tuple[Path, ...]:
    """List every file that belongs to a slide, by names alone, sorted.

    A folder means all its files. Beside an `.mrxs` lies its data folder, beside a `.vms`, `.vmu` or `.tmap` its parts.
    A `.dcm` file stands for every `.dcm` file of its folder, because only their content tells the series apart.

    Raises:
        SlideAccessError: The path, or a folder that belongs to it, is not there or may not be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b.mrxs"):
        ...     (folder / name).parent.mkdir(exist_ok=True)
        ...     _ = (folder / name).write_bytes(b"x")
        >>> [part.relative_to(folder).as_posix() for part in files_of_slide(folder / "a.mrxs")]
        ['a/Data0000.dat', 'a/Slidedat.ini', 'a.mrxs']
    """
    check_access(path)
    try:
        return tuple(sorted(_parts(path)))
    except OSError as error:
        raise SlideAccessError(f"{path.name}: cannot be listed: {error.strerror}; check the disk or share") from error


def hash_slide(path: Path) -> str:
    """Hash a slide's content as sha256, in hexadecimal; where it lies and what it is called play no part.

    One file: the sha256 of its bytes, the same that `sha256sum` prints. Several files: the sha256 of the text
    `slideway-slide-1`, then the digest of the file that was named (empty for a folder), then the digests of the
    other files in ascending order, one a line. The named file stands apart so that two DICOM slides that share
    a folder never share an identity.

    Raises:
        SlideAccessError: A file is not there or may not be read.
        BrokenSlideError: The folder holds no file.
    """
    parts = files_of_slide(path)
    if not parts:
        raise BrokenSlideError(f"{path.name}: the folder holds no file; copy the slide again from the scanner")
    if parts == (path,):
        return _hash_file(path)
    named = "" if path.is_dir() else _hash_file(path)
    others = sorted(_hash_file(part) for part in parts if part != path)
    return hashlib.sha256("\n".join(["slideway-slide-1", named, *others]).encode()).hexdigest()


def _parts(path: Path) -> list[Path]:
    if path.is_dir():
        return _files_below(path)
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and (folder := path.with_suffix("")).is_dir():
        return [path, *_files_below(folder)]
    if suffix in _PARTS_BESIDE:
        pattern = re.compile(re.escape(path.stem) + _PARTS_BESIDE[suffix], re.IGNORECASE)
        return [path, *(part for part in path.parent.iterdir() if part != path and pattern.fullmatch(part.name))]
    if suffix == ".dcm":
        siblings = (part for part in path.parent.iterdir() if part.suffix.lower() == ".dcm")
        return [path, *(part for part in siblings if part != path and _is_part(part))]
    return [path]


def _files_below(folder: Path) -> list[Path]:
    return [part for part in folder.rglob("*") if _is_part(part)]


def _is_part(part: Path) -> bool:
    # is_file() keeps pipes and devices out: reading one would wait for ever
    return part.is_file() and not part.name.startswith(".") and part.name.lower() not in _CLUTTER


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SlideAccessError(f"{path.name}: cannot be read: {error.strerror}; check the disk or share") from error
