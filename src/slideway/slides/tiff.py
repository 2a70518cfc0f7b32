"""TIFF-family pyramids (SVS, generic tiled TIFF, OME-TIFF): stored tiles read directly, each decoded once.

The stored JPEG stream goes straight to libjpeg-turbo, so pixels equal OpenSlide's; JPEG 2000 to OpenJPEG.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from slideway.core.errors import BrokenSlideError, SlideTooLargeError, UnknownFormatError
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.slides.cache import StoredTileCache
from slideway.slides.reader import CERTAIN, PARSER_ERRORS

# The widest scans (whole mounts at 0.12 µm/px) stay under 600,000 px; a header beyond that is damaged or hostile.
MAX_SIDE_PX = 600_000
MAX_STORED_TILE_PX = 64_000_000
MAX_DIRECTORIES = 2_000  # focal planes and levels of a slide need a few dozen
# Stored tiles of one band of a slide: 64 MB hold 27,000 px of width at 0.25 µm/px and 256 px tiles.
CACHE_BYTES = 64_000_000

_JPEG, _JPEG2000 = 7, {33003, 33004, 33005, 34712}
_DECODABLE = {1, 5, _JPEG, 8, 32946, 50000, 50001, *_JPEG2000}
# Their stored levels are padded, overlapping or striped in ways that only OpenSlide knows.
_LEFT_TO_OPENSLIDE = ("is_ndpi", "is_scn", "is_bif", "is_philips")


class TiffReader:
    """Reads tiled TIFF pyramids without going through a region API."""

    name: ClassVar[str] = "tiff"

    @classmethod
    def score(cls, path: Path) -> int:
        """Claim tiled 8-bit RGB TIFFs with a codec at hand; vendors with odd layouts are left to OpenSlide."""
        if not _is_tiff(path):
            return 0
        try:
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                if any(getattr(tiff, flag) for flag in _LEFT_TO_OPENSLIDE) or _is_trestle_or_ventana(page):
                    return 0
                return CERTAIN if page.is_tiled and _is_rgb(page) and int(page.compression) in _DECODABLE else 0
        except PARSER_ERRORS:
            return 5  # a TIFF all the same: opening it names the cause

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        with contextlib.ExitStack() as on_failure:
            self._file = on_failure.enter_context(path.open("rb"))
            try:
                _check_directories(self._file)
                # OME-XML may name other files to take pixels from: never, they may be another patient's
                self._tiff = on_failure.enter_context(tifffile.TiffFile(path, _multifile=False))
                self._pages, self._side = _sort_pages(self._tiff)
            except PARSER_ERRORS as error:
                raise BrokenSlideError(
                    f"{path.name}: the TIFF header is damaged ({error}); copy the file again from the scanner"
                ) from error
            if not self._pages:
                raise UnknownFormatError(f"{path.name}: this TIFF holds no tiled 8-bit RGB image")
            self.cache = StoredTileCache(CACHE_BYTES)
            for page in self._pages:
                self._check_page(page)
            on_failure.pop_all()

    def describe(self) -> Slide:
        """Describe the slide from its TIFF tags."""
        base = self._pages[0]
        widths = [int(page.imagewidth) for page in self._pages]
        heights = [int(page.imagelength) for page in self._pages]
        levels = tuple(
            Level(w, h, (widths[0] / w + heights[0] / h) / 2 if i else 1.0)
            for i, (w, h) in enumerate(zip(widths, heights, strict=True))
        )
        aperio = parse_aperio(base.description) if self._tiff.is_svs else {}
        scope = aperio.get("ScanScope ID", "")
        return Slide(
            name=self._path.name,
            vendor="aperio" if aperio else "ome-tiff" if self._tiff.is_ome else "generic-tiff",
            reader=self.name,
            levels=levels,
            resolution=_find_resolution(self._tiff, aperio),
            scanner=" ".join(filter(None, [_text_tag(base, "Make"), _text_tag(base, "Model"), scope])),
            objective_power=_float(aperio.get("AppMag")),
            side_images=tuple(sorted(self._side)),
            identifiers=_find_identifiers(base, aperio, self._side),
            has_icc_profile=self.icc_profile() is not None,
        )

    def read_region(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Read a rectangle of one level; see `SlideReader.read_region`."""
        page = self._pages[level]
        region = np.full((height_px, width_px, 3), 255, np.uint8)
        tile_w, tile_h = int(page.tilewidth), int(page.tilelength)
        x_end, y_end = min(x_px + width_px, int(page.imagewidth)), min(y_px + height_px, int(page.imagelength))
        for row in range(max(y_px, 0) // tile_h, -(-y_end // tile_h)):
            for column in range(max(x_px, 0) // tile_w, -(-x_end // tile_w)):
                tile = self.stored_tile(level, column, row)
                left, top = column * tile_w, row * tile_h
                x0, x1 = max(left, x_px), min(left + tile_w, x_end)
                y0, y1 = max(top, y_px), min(top + tile_h, y_end)
                region[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def stored_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Return one stored tile, (tile_height, tile_width, 3) RGB, decoded at most once while it is cached."""
        page = self._pages[level]
        index = row * -(-int(page.imagewidth) // int(page.tilewidth)) + column
        return self.cache.get((level, index), lambda: self._decode(page, level, index))

    def stored_tile_height(self, level: int) -> int:
        """Height of a stored tile of `level`, for `bands.CoarseReader`."""
        return int(self._pages[level].tilelength)

    def read_coarse_row(self, level: int, row: int) -> NDArray[np.uint8]:
        """Read one row of stored tiles at an eighth of its size: fast, for triage only, never for an encoder."""
        page = self._pages[level]
        columns = -(-int(page.imagewidth) // int(page.tilewidth))
        height = min(int(page.tilelength), int(page.imagelength) - row * int(page.tilelength))
        tiles = [self._decode_coarse(page, level, row * columns + column) for column in range(columns)]
        return np.ascontiguousarray(np.hstack(tiles)[: max(1, height // 8), : max(1, int(page.imagewidth) // 8)])

    def read_side_image(self, name: str) -> NDArray[np.uint8]:
        """Read a side picture; KeyError when the file has none of that name."""
        page = self._side[name]
        if int(page.imagewidth) * int(page.imagelength) > MAX_STORED_TILE_PX:
            raise SlideTooLargeError(f"{self._path.name}: its {name} image declares more than 64 million pixels")
        picture = page.asarray()
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        return np.ascontiguousarray(picture[..., :3], np.uint8)

    def icc_profile(self) -> bytes | None:
        """Return the ICC profile of the finest level, if any."""
        tag = self._pages[0].tags.get("InterColorProfile")
        return bytes(tag.value) if tag is not None else None

    def close(self) -> None:
        """Release the file."""
        self._file.close()
        self._tiff.close()

    def _decode(self, page: Any, level: int, index: int) -> NDArray[np.uint8]:
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        shape = (int(page.tilelength), int(page.tilewidth), 3)
        if count == 0:  # a sparse slide: scanners leave tiles of bare glass out
            return np.full(shape, 255, np.uint8)
        self._file.seek(offset)
        data = self._file.read(count)
        tile = _decode_tile(page, data, index)
        if tile.shape[0] > shape[0] or tile.shape[1] > shape[1] or tile.ndim != 3:
            raise BrokenSlideError(f"{self._path.name}: stored tile {index} of level {level} decodes to {tile.shape}")
        if tile.shape != shape:
            padded = np.full(shape, 255, np.uint8)
            padded[: tile.shape[0], : tile.shape[1]] = tile[..., :3]
            return padded
        return tile

    def _decode_coarse(self, page: Any, level: int, index: int) -> NDArray[np.uint8]:
        if int(page.compression) == _JPEG and (count := int(page.databytecounts[index])):
            self._file.seek(int(page.dataoffsets[index]))
            data = self._file.read(count)
            _check_jpeg_size(data, int(page.tilewidth), int(page.tilelength))
            return decode_scaled(page, data, eighths=1)
        return self._decode(page, level, index)[4::8, 4::8]

    def _check_page(self, page: Any) -> None:
        """Refuse a level whose header cannot be true, before a single pixel is decoded."""
        name, width, height = self._path.name, int(page.imagewidth), int(page.imagelength)
        if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
            raise SlideTooLargeError(
                f"{name}: the header declares {width:,} × {height:,} px, more than any scanner makes "
                f"(limit {MAX_SIDE_PX:,} px a side); the header is damaged"
            )
        tile_w, tile_h = int(page.tilewidth), int(page.tilelength)
        if not 0 < tile_w * tile_h <= MAX_STORED_TILE_PX:
            raise SlideTooLargeError(f"{name}: the header declares stored tiles of {tile_w:,} × {tile_h:,} px")
        needed = -(-width // tile_w) * -(-height // tile_h)
        offsets = np.asarray(page.dataoffsets, np.int64)
        counts = np.asarray(page.databytecounts, np.int64)
        if len(offsets) < needed or len(counts) < needed:
            raise BrokenSlideError(
                f"{name}: the header declares {needed:,} stored tiles and lists {min(len(offsets), len(counts)):,}; "
                "the file was cut or its header damaged: copy it again from the scanner"
            )
        end = int((offsets + counts)[counts > 0].max(initial=0))
        if end > self._size:
            missing = int(((offsets + counts) > self._size).sum())
            raise BrokenSlideError(
                f"{name}: {missing:,} of {needed:,} stored tiles lie past the end of the file "
                f"({self._size:,} bytes of at least {end:,}); it was cut off while copying: copy it again"
            )


def _is_tiff(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _check_directories(file: BinaryIO) -> None:
    """Follow the chain of directories by its pointers alone: tifffile would follow a loop for ever.

    Source: TIFF 6.0 section 2; BigTIFF has 8-byte counts and offsets.
    """
    order = "<" if file.read(2) == b"II" else ">"
    is_big = _read_number(file, f"{order}H") == 43
    count_form, pointer_form, entry_bytes = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    file.seek(8 if is_big else 4)
    seen: set[int] = set()
    while pointer := _read_number(file, order + pointer_form):
        if pointer in seen or len(seen) >= MAX_DIRECTORIES:
            raise ValueError("its chain of directories runs in a loop" if pointer in seen else "too many directories")
        seen.add(pointer)
        file.seek(pointer)
        file.seek(_read_number(file, order + count_form) * entry_bytes, 1)


def _read_number(file: BinaryIO, form: str) -> int:
    content = file.read(struct.calcsize(form))
    if len(content) < struct.calcsize(form):
        raise ValueError("the file ends before its directory does: it was cut off")
    number: int = struct.unpack(form, content)[0]
    return number


def _is_trestle_or_ventana(page: Any) -> bool:
    """Their stored tiles overlap; recognised as OpenSlide recognises them."""
    xmp = page.tags.valueof("XMP", default=b"")
    return str(page.software).startswith("MedScan") or (isinstance(xmp, bytes) and b"<iScan" in xmp)


def _is_rgb(page: Any) -> bool:
    return page.dtype == np.uint8 and page.samplesperpixel in (3, 4) and int(page.planarconfig) == 1


def _sort_pages(tiff: tifffile.TiffFile) -> tuple[list[Any], dict[str, Any]]:
    """Split a file's pages into pyramid levels, finest first, and side pictures by name."""
    base = tiff.series[0]
    levels = [level.keyframe for level in base.levels]
    if len(levels) == 1:
        levels = _unlinked_levels(tiff)
    levels = [page for page in levels if page.is_tiled and _is_rgb(page)]
    levels.sort(key=lambda page: -int(page.imagewidth))
    side: dict[str, Any] = {}
    for series in tiff.series[1:]:
        name = str(series.name).lower()
        if name in {"label", "macro", "thumbnail"}:
            side[name] = series.keyframe
    return levels, side


def _unlinked_levels(tiff: tifffile.TiffFile) -> list[Any]:
    """Levels that some writers store as plain pages: smaller, tiled, and of the first page's shape."""
    first = tiff.pages.first
    levels = [first]
    for page in [page.aspage() for page in list(tiff.pages)[1:]]:
        ratio_x, ratio_y = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
        if page.is_tiled and ratio_x > 1.2 and abs(ratio_x / ratio_y - 1) < 0.02:
            levels.append(page)
    return levels


def _decode_tile(page: Any, data: bytes, index: int) -> NDArray[np.uint8]:
    compression = int(page.compression)
    if compression == _JPEG:
        _check_jpeg_size(data, int(page.tilewidth), int(page.tilelength))
        # TIFF says in PhotometricInterpretation what the three components are; streams of abbreviated JPEG
        # carry no marker of their own, and guessing turns RGB slides green (as libtiff and OpenSlide do it).
        colour = "YCBCR" if int(page.photometric) == 6 else "RGB"
        tile: NDArray[np.uint8] = imagecodecs.jpeg8_decode(
            data, tables=page.jpegtables, colorspace=colour, outcolorspace="RGB"
        )
        return tile
    if compression in _JPEG2000:
        _check_jpeg2000_size(data, int(page.tilewidth), int(page.tilelength))
        tile = imagecodecs.jpeg2k_decode(data)
        is_ycbcr = compression == 33003 or (compression != 33005 and int(page.photometric) == 6)
        return ycbcr_to_rgb(tile) if is_ycbcr else tile
    decoded, _, _ = page.decode(data, index)
    return np.ascontiguousarray(decoded[0][..., :3])


def decode_scaled(page: Any, data: bytes, eighths: int) -> NDArray[np.uint8]:
    """Decode a JPEG tile at `eighths`/8 of its size: faster, but other pixels; for triage only.

    Features of scaled tiles are not those of area-resized ones (cosine .990), so nothing is encoded from them.
    """
    from PIL import Image

    colour_transform = 1 if int(page.photometric) == 6 else 0
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([colour_transform])
    tables = page.jpegtables[2:-2] if page.jpegtables else b""
    with Image.open(io.BytesIO(data[:2] + adobe + tables + data[2:])) as picture:
        picture.draft("RGB", (-(-picture.width * eighths // 8), -(-picture.height * eighths // 8)))
        return np.asarray(picture.convert("RGB"))


def _check_jpeg_size(data: bytes, width_px: int, height_px: int) -> None:
    """Refuse a stream that would decode to more than its tile (a decompression bomb), from its SOF marker.

    Bytes between segments and repeated 0xFF are skipped as libjpeg skips them, or a bomb could hide behind them.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 9 <= len(data):
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):  # end of image, start of scan: a size after this is refused by libjpeg itself
            return
        if marker == 0xFF:
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these stand alone, without a segment
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            _check_decoded_size("JPEG", (width, height), (width_px, height_px))
            return
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def _check_jpeg2000_size(data: bytes, width_px: int, height_px: int) -> None:
    """Refuse a stream whose SIZ marker declares more than its tile. Source: ISO/IEC 15444-1, A.5.1."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(data):
        raise ValueError("a stored JPEG 2000 tile has no size")
    x1, y1, x0, y0 = struct.unpack(">4I", data[at + 8 : at + 24])
    _check_decoded_size("JPEG 2000", (x1 - x0, y1 - y0), (width_px, height_px))


def _check_decoded_size(codec: str, claimed_px: tuple[int, int], tile_px: tuple[int, int]) -> None:
    if claimed_px[0] > tile_px[0] or claimed_px[1] > tile_px[1]:
        size = f"{claimed_px[0]:,} × {claimed_px[1]:,} px"
        raise ValueError(f"a stored {codec} tile claims {size} inside a tile of {tile_px[0]} × {tile_px[1]} px")


def ycbcr_to_rgb(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range YCbCr to RGB (JFIF 1.02, the form Aperio stores in JPEG 2000)."""
    y, cb, cr = (tile[..., i].astype(np.float32) for i in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    pixels: NDArray[np.uint8] = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return pixels


def parse_aperio(description: str) -> dict[str, str]:
    r"""Parse Aperio's `key = value|key = value` image description; empty when it is none.

    Example:
        >>> parse_aperio("Aperio Image Library v11\r\n2220x2967 |AppMag = 20|MPP = 0.4990")
        {'AppMag': '20', 'MPP': '0.4990'}
    """
    if not description.startswith("Aperio"):
        return {}
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _find_resolution(tiff: tifffile.TiffFile, aperio: dict[str, str]) -> Resolution:
    if (mpp := _float(aperio.get("MPP"))) is not None:
        return checked_resolution(mpp, "Aperio MPP")
    if tiff.is_ome and tiff.ome_metadata and (mpp := _ome_mpp(tiff.ome_metadata)) is not None:
        return checked_resolution(mpp, "OME PhysicalSizeX/Y")
    mpp = _tag_mpp(tiff.pages.first)
    return checked_resolution(mpp, "TIFF XResolution/YResolution") if mpp else NO_RESOLUTION


NO_RESOLUTION = Resolution(None, ResolutionSource.UNKNOWN, "the file states none")


def checked_resolution(mpp: float, field: str) -> Resolution:
    """Take a stated mpp when a scanner could have made it; 72 dpi (353 µm/px) and the like are no statement."""
    if not 0.05 <= mpp <= 20:
        return Resolution(None, ResolutionSource.UNKNOWN, f"{field} says {mpp:.4g} µm/px, which no scanner makes")
    return Resolution(mpp, ResolutionSource.METADATA, field)


def _ome_mpp(xml: str) -> float | None:
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:  # OME-XML has neither; both serve entity bombs only
        return None
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  entities refused above, and this runs in the sandbox
    except ElementTree.ParseError:
        return None
    pixels = next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    sizes = [_micrometres(pixels, axis) for axis in "XY"]
    known = [size for size in sizes if size]
    return sum(known) / len(known) if known else None


_UM_PER_UNIT = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _micrometres(pixels: ElementTree.Element, axis: str) -> float | None:
    value = _float(pixels.get(f"PhysicalSize{axis}"))
    unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").replace("μ", "µ")
    return value * _UM_PER_UNIT[unit] if value and unit in _UM_PER_UNIT else None


def _tag_mpp(page: Any) -> float | None:
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    mpps = []
    for tag in ("XResolution", "YResolution"):
        numerator, denominator = (int(part) for part in page.tags.valueof(tag, default=(0, 0)))
        if unit_um is None or not numerator or not denominator:
            return None
        mpps.append(unit_um * denominator / numerator)
    return sum(mpps) / 2


# Aperio's description fields that name a person, a specimen or a moment.
_APERIO_IDENTIFIERS = {
    "Filename",
    "ImageID",
    "User",
    "Title",
    "Date",
    "Time",
    "Barcode",
    "Patient",
    "DSR ID",
    "Originator",
}
_TAG_IDENTIFIERS = ("DateTime", "Artist", "HostComputer", "DocumentName", "PageName", "Copyright")


def _find_identifiers(page: Any, aperio: dict[str, str], side: dict[str, Any]) -> tuple[str, ...]:
    found = [f"Aperio {key}" for key in aperio if key in _APERIO_IDENTIFIERS and aperio[key]]
    found += [f"TIFF {name}" for name in _TAG_IDENTIFIERS if _text_tag(page, name)]
    found += [f"{name} image" for name in ("label", "macro") if name in side]
    return tuple(sorted(found))


def _text_tag(page: Any, name: str) -> str:
    value = page.tags.valueof(name, default="")
    return value.strip() if isinstance(value, str) else ""


def _float(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?([eE][+-]?\d+)?", text.strip()) else None
