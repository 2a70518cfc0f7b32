"""A TIFF slide copied without label, overview and identifying tags; stored tiles go over byte for byte.

Every tag and every key of a description is on a list of what pixels and physical scale need, or it is not copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slideway.core.errors import BrokenSlideError, DeidentifyError
from slideway.slides.deidentify_directories import (
    DESCRIPTION,
    JPEG_TABLES,
    NDPI_FORMAT,
    PROFILE,
    SOFTWARE,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    SUB_DIRECTORIES,
    TILE_COUNTS,
    TILE_OFFSETS,
    XMP,
    Directory,
    Entry,
    Tiff,
    check_spans,
    read_directories,
    walk,
)
from slideway.slides.deidentify_streams import clean_jpeg_tables, clean_profile, hash_stored
from slideway.slides.deidentify_words import (
    PHILIPS_SOFTWARE,
    Words,
    find_leica_directories,
    rewrite_aperio,
    rewrite_leica,
    rewrite_ome,
    rewrite_philips,
    rewrite_trestle,
)

# What says how pixels are stored and how large they are on the glass: tag and the most values it may have, so that
# nothing else hides there. Source: TIFF 6.0; TIFF/EP and libtiff for 32997.
_NUMBER_TAGS = {
    254: 1, 256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 266: 1, 274: 1, 277: 1, 278: 1, 282: 2, 283: 2, 284: 1, 286: 2,
    287: 2, 296: 1, 317: 1, 320: 3 * 65536, 322: 1, 323: 1, 338: 8, 339: 8, 529: 6, 530: 2, 531: 1, 532: 12, 32997: 1,
}  # fmt: skip
_PLACES = {TILE_OFFSETS, TILE_COUNTS, STRIP_OFFSETS, STRIP_COUNTS}
_WHOLE_NUMBERS = {1, 3, 4, 5, 8, 9, 10, 11, 12, 16, 17}  # every TIFF type that is no text, no bytes and no pointer
_ASCII, _UNDEFINED, _IFD, _IFD8 = 2, 7, 13, 18
_READ = frozenset({*_NUMBER_TAGS, *_PLACES, DESCRIPTION, SOFTWARE, XMP, JPEG_TABLES, PROFILE, NDPI_FORMAT})
_MAX_XMP_CHARACTERS = 1_000_000

_TAG_NAMES = {
    269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 285: "PageName", 305: "Software",
    306: "DateTime", 315: "Artist", 316: "HostComputer", 700: "XMP", 33432: "Copyright", 33723: "IPTC",
    34377: "Photoshop", 34665: "EXIF", 34853: "GPS",
}  # fmt: skip
_SUFFIXES = {
    "aperio": ".svs",
    "ome": ".ome.tif",
    "philips": ".tiff",
    "trestle": ".tif",
    "leica": ".scn",
    "tiff": ".tif",
}

_REFUSED = {
    "ventana": "Ventana BIF keeps what its tiles' places need in the directory of the label picture",
    "hamamatsu": "Hamamatsu NDPI points into its file in a way of its own, and its private tags are not documented",
}


@dataclass(frozen=True)
class TiffPlan:
    """What will be written of a TIFF slide.

    Attributes:
        vendor: `aperio`, `ome`, `philips`, `leica`, `trestle`, or `tiff` for every other.
        tiff: Header and directories as read.
        kept: Directories that will be written, their tags already clean.
        pixel_sha256: See `hash_pixels`.
        removed: What goes, in words, never its content.
        stays: What stays, in words.
    """

    vendor: str
    tiff: Tiff
    kept: list[Directory]
    pixel_sha256: str
    removed: tuple[str, ...]
    stays: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """File name's ending by which readers know the format."""
        return _SUFFIXES[self.vendor]


def plan_tiff(path: Path) -> TiffPlan:
    """Decide what of a TIFF slide may travel; reads every stored tile once.

    Raises:
        DeidentifyError: A format, or content of it, that cannot be written anew with certainty.
        BrokenSlideError: The file contradicts itself.
    """
    with path.open("rb") as file:
        tiff = read_directories(file, path.name, _READ)
        vendor = _find_vendor(tiff.directories[0])
        if vendor in _REFUSED:
            raise DeidentifyError(
                f"{path.name}: {_REFUSED[vendor]}; it is not written anew here. Convert the slide to DICOM or to a "
                "plain tiled TIFF (wsidicomizer and vips do that), then run this on the result"
            )
        kept, dropped = _choose_images(tiff, vendor, path.name)
        check_spans(tiff, kept, path.name)
        removed = [*dropped, *_name_lost_tags(tiff)]  # named first: cleaning takes the tags away
        stays: list[str] = []
        words = [_clean(directory, vendor, path.name, is_first=i == 0) for i, directory in enumerate(walk(kept))]
        for each in words:
            removed += each.removed
            stays += each.kept
        digest = hash_pixels(file, kept, path.name, check=True)
    stays += ["pixels, levels and resolution tags"]
    return TiffPlan(vendor, tiff, kept, digest, tuple(dict.fromkeys(removed)), tuple(dict.fromkeys(stays)))


def write_tiff(source: Path, plan: TiffPlan, target: Path) -> None:
    """Write what the plan keeps; classic TIFF stays classic, BigTIFF stays BigTIFF, the byte order stays.

    Source:
        tifftools copies stored pixels in the order of the file and nothing that no directory points to.
    """
    import tifftools

    with source.open("rb") as file, target.open("xb+") as out:
        images = [_as_tifftools(directory, plan.tiff, file) for directory in plan.kept]
        tifftools.write_tiff(images, out, bigEndian=plan.tiff.is_big_endian, bigtiff=plan.tiff.is_big)


def check_written(target: Path, plan: TiffPlan) -> None:
    """Read the file that was written and hold it against the plan.

    Raises:
        DeidentifyError: A tag or an image too many, or other pixels.
    """
    with target.open("rb") as file:
        tiff = read_directories(file, target.name, _READ)
        found, wanted = (list(walk(directories)) for directories in (tiff.directories, plan.kept))
        same = len(found) == len(wanted) and all(
            not a.others and a.entries.keys() == b.entries.keys() for a, b in zip(found, wanted, strict=True)
        )
        if not same or tiff.is_big != plan.tiff.is_big:
            raise DeidentifyError("the file that was written holds other tags than it should; please report this")
        if hash_pixels(file, tiff.directories, target.name, check=False) != plan.pixel_sha256:
            raise DeidentifyError(
                "the stored tiles that were written are not those of the slide; did the slide change meanwhile? "
                "Run it again"
            )


def hash_pixels(file: BinaryIO, images: list[Directory], name: str, *, check: bool) -> str:
    """Hash the stored tiles: sha256 over each image's size and the sha256 of each of its tiles, in order.

    A tile that is listed many times is read once. `check` also refuses tiles that carry text of their own.
    """
    whole = hashlib.sha256()
    known: dict[tuple[int, int], bytes] = {}
    for image in walk(images):
        width, height = image.size_px
        whole.update(f"{width}x{height}\n".encode())
        for span in image.spans():
            if span not in known:
                known[span] = _hash_tile(file, span, name, check=check)
            whole.update(known[span])
    return whole.hexdigest()


def _hash_tile(file: BinaryIO, span: tuple[int, int], name: str, *, check: bool) -> bytes:
    file.seek(span[0])
    try:
        return hash_stored(file, span[1], name, check=check)
    except ValueError as error:
        raise BrokenSlideError(f"{name}: the file became shorter while it was read; copy it again") from error


def _find_vendor(first: Directory) -> str:
    """Recognise a vendor as OpenSlide and tifffile do."""
    description, software = first.text(DESCRIPTION), first.text(SOFTWARE)
    signs: list[tuple[str, Callable[[], bool]]] = [
        ("hamamatsu", lambda: NDPI_FORMAT in first.entries),
        ("ventana", lambda: "<iScan" in first.text(XMP)[:_MAX_XMP_CHARACTERS]),
        ("aperio", lambda: description.startswith("Aperio")),
        ("philips", lambda: software.startswith("Philips") and "DPUfsImport" in description),
        ("leica", lambda: "leica-microsystems.com/scn" in description),
        ("trestle", lambda: software.startswith("MedScan")),
        ("ome", lambda: "openmicroscopy.org" in description and "<" in description),
    ]
    return next((vendor for vendor, is_it in signs if is_it()), "tiff")


# --- which images ---------------------------------------------------------------------------------------------------


def _choose_images(tiff: Tiff, vendor: str, name: str) -> tuple[list[Directory], list[str]]:
    """Keep the levels of the pyramid, and Aperio's thumbnail of the scanned area; name what goes."""
    if vendor == "leica":
        return _choose_leica(tiff, name)
    first = tiff.directories[0]
    if not all(first.size_px):
        raise BrokenSlideError(f"{name}: its first image has no size; copy the file again from the scanner")
    kept, dropped = [first], []
    for index, image in enumerate(tiff.directories[1:], 1):
        if _is_level(image, first, vendor):
            kept.append(image)
        elif vendor == "aperio" and index == 1 and not image.is_tiled:
            _check_thumbnail(image, first, name)  # readers take the second page for the thumbnail, whatever it is
            kept.append(image)
        else:
            dropped.append(_name_image(image))
    for image in kept:
        below = [each for each in image.below if _is_level(each, first, vendor)]
        dropped += [_name_image(each) for each in image.below if each not in below]
        image.below = below
    return kept, dropped


def _choose_leica(tiff: Tiff, name: str) -> tuple[list[Directory], list[str]]:
    """Keep the directories that Leica's XML names for scanned areas; the first of them takes over the XML."""
    description = tiff.directories[0].entries[DESCRIPTION]
    places = find_leica_directories(tiff.directories[0].text(DESCRIPTION), name)
    if max(places) >= len(tiff.directories) or len(set(places)) != len(places):
        raise BrokenSlideError(f"{name}: its XML names images that the file does not hold; copy it again")
    kept = [tiff.directories[place] for place in places]
    n_dropped = len(tiff.directories) - len(kept)
    for image in kept:
        image.below = []
        image.entries.pop(DESCRIPTION, None)
    kept[0].entries[DESCRIPTION] = description
    return kept, ["overview and further images"] if n_dropped else []


def _is_level(image: Directory, first: Directory, vendor: str) -> bool:
    """Say whether an image is a coarser level: tiled, smaller, of the same shape, and not called label or macro."""
    if not image.is_tiled or not all(image.size_px) or _name_image(image) != "further image":
        return False
    (width, height), (full_width, full_height) = image.size_px, first.size_px
    if width * 1.2 > full_width:
        return False
    expected = full_height * width / full_width
    # Philips pads every level to whole tiles, so their shapes differ
    slack = 0.25 if vendor == "philips" else 0.02
    return abs(height - expected) <= max(1.5, slack * expected, 512 if vendor == "philips" else 0)


def _name_image(image: Directory) -> str:
    words = image.text(DESCRIPTION)[:2_000].lower()
    return next((f"{kind} image" for kind in ("label", "macro", "overview", "thumbnail") if kind in words), _FURTHER)


_FURTHER = "further image"


def _check_thumbnail(image: Directory, first: Directory, name: str) -> None:
    (width, height), (full_width, full_height) = image.size_px, first.size_px
    if _name_image(image) != _FURTHER or abs(width * full_height - height * full_width) > 0.03 * width * full_height:
        raise DeidentifyError(
            f"{name}: the second image of this Aperio slide should be its thumbnail and has another shape than the "
            "scan, so it may show the label. Convert the slide to a plain tiled TIFF or to DICOM, then run this on that"
        )


# --- which tags -----------------------------------------------------------------------------------------------------


def _name_lost_tags(tiff: Tiff) -> Iterator[str]:
    lost = {tag for image in walk(tiff.directories) for tag in {*image.others, *({XMP} & image.entries.keys())}}
    yield from (f"TIFF {_TAG_NAMES[tag]}" for tag in sorted(lost) if tag in _TAG_NAMES)
    if n_other := len(lost - _TAG_NAMES.keys()):
        yield f"{n_other} private or other TIFF tag{'s' if n_other > 1 else ''}"


def _clean(directory: Directory, vendor: str, name: str, *, is_first: bool) -> Words:
    """Reduce a directory to allowed tags, in place, and write its description anew."""
    description, software = directory.text(DESCRIPTION), directory.text(SOFTWARE)
    words = _rewrite(vendor, description, directory, name, is_first=is_first)
    entries = {tag: entry for tag, entry in directory.entries.items() if _is_allowed(directory, tag, entry)}
    stays, removed = list(words.kept), list(words.removed)
    if description and not words.text:
        removed.append("TIFF ImageDescription")
    if words.text:
        entries[DESCRIPTION] = Entry(_ASCII, words.text.encode())
    if is_first and vendor in {"philips", "trestle"}:  # readers know these two by their software
        entries[SOFTWARE] = Entry(_ASCII, (PHILIPS_SOFTWARE if vendor == "philips" else "MedScan").encode())
    elif software:
        removed.append("TIFF Software")
    if isinstance(tables := _content(directory, JPEG_TABLES), bytes):
        entries[JPEG_TABLES] = Entry(_UNDEFINED, clean_jpeg_tables(tables))
    if (profile := _content(directory, PROFILE)) is not None:
        cleaned = clean_profile(profile)
        if cleaned is None:
            removed.append("a damaged colour profile")
        else:
            entries[PROFILE] = Entry(_UNDEFINED, cleaned)
            stays.append("colour profile")
            removed.append("names and dates in the colour profile")
    directory.entries = entries
    directory.others = set()
    return Words(words.text, tuple(stays), tuple(removed))


_XML_WRITERS = {"philips": rewrite_philips, "leica": rewrite_leica}


def _rewrite(vendor: str, description: str, directory: Directory, name: str, *, is_first: bool) -> Words:
    if not description:
        return Words()
    if vendor == "aperio":
        return rewrite_aperio(description, directory.size_px)
    if not is_first:
        return Words()
    if vendor == "ome":
        return rewrite_ome(description, directory.size_px, name)
    if vendor in _XML_WRITERS:
        return _XML_WRITERS[vendor](description, name)
    return rewrite_trestle(description) if vendor == "trestle" else Words()


def _is_allowed(directory: Directory, tag: int, entry: Entry) -> bool:
    if tag in _PLACES:
        is_tile_tag = tag in {TILE_OFFSETS, TILE_COUNTS}
        return entry.type_number in _WHOLE_NUMBERS and is_tile_tag == directory.is_tiled
    return entry.type_number in _WHOLE_NUMBERS and len(entry.values) <= _NUMBER_TAGS.get(tag, 0)


def _content(directory: Directory, tag: int) -> bytes | None:
    entry = directory.entries.get(tag)
    if entry is None:
        return None
    return entry.values if isinstance(entry.values, bytes) else bytes(int(value) & 255 for value in entry.values)


def _as_tifftools(directory: Directory, tiff: Tiff, file: BinaryIO) -> dict[str, Any]:
    """Give a directory the form in which tifftools writes it."""
    tags: dict[int, dict[str, Any]] = {
        tag: {"datatype": entry.type_number, "data": entry.values} for tag, entry in directory.entries.items()
    }
    if directory.below:
        below = [[_as_tifftools(each, tiff, file)] for each in directory.below]
        tags[SUB_DIRECTORIES] = {"datatype": _IFD8 if tiff.is_big else _IFD, "ifds": below}
    return {
        "tags": tags,
        "path_or_fobj": file,
        "size": tiff.n_bytes,
        "bigEndian": tiff.is_big_endian,
        "bigtiff": tiff.is_big,
    }
