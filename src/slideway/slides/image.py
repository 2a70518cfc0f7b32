"""Plain pictures (PNG, JPEG, BMP, flat TIFF) as slides of one level; their resolution is almost never known."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from slideway.core.errors import BrokenSlideError, SlideTooLargeError, UnknownFormatError
from slideway.core.slide import Level, Resolution, Slide
from slideway.slides.openslide import on_white
from slideway.slides.reader import PARSER_ERRORS, read_head
from slideway.slides.tiff import NO_RESOLUTION, checked_resolution

# A picture without a pyramid is decoded whole: beyond this even a generous memory limit is no help.
MAX_IMAGE_PX = 400_000_000
_SLACK_BYTES = 300_000_000  # a strip of a thumbnail, its copies on the way to RGB, the answer on its way out

_FORMATS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
# What Pillow holds in memory per pixel; it keeps RGB in four bytes.
_BYTES_PER_PX = {"1": 1, "L": 1, "P": 1, "LA": 4, "PA": 4, "RGB": 4, "RGBA": 4, "RGBX": 4, "CMYK": 4, "YCbCr": 4}

_ORIENTATION = 274
_ROWS_TURNED, _COLUMNS_TURNED, _AXES_SWAPPED = {3, 4, 6, 7}, {2, 3, 7, 8}, {5, 6, 7, 8}

# Fields of EXIF and TIFF that name a person, a place, a device of a person, or a moment.
_IDENTIFYING_TAGS = {
    "Artist", "Copyright", "DateTime", "DocumentName", "GPSInfo", "HostComputer", "ImageDescription", "PageName",
    "UserComment", "XPAuthor", "XPComment", "XPTitle",
}  # fmt: skip


class ImageReader:
    """Reads one flat picture; EXIF orientation is applied, transparency is laid on white, CMYK becomes RGB."""

    name: ClassVar[str] = "image"

    @classmethod
    def score(cls, path: Path) -> int:
        """Claim PNG, JPEG, BMP and TIFFs that are not tiled; tiled ones belong to the pyramid readers."""
        if path.is_dir():
            return 0
        form = _format_of(path)
        if form != "TIFF":
            return 50 if form else 0
        try:
            with _open_picture(path, form) as picture:
                return 0 if 322 in picture.tag_v2 else 50  # TileWidth
        except (UnknownFormatError, SlideTooLargeError):
            return 4  # below the TIFF reader's own last resort
        except PARSER_ERRORS:
            return 0

    def __init__(self, path: Path) -> None:
        self._path = path
        form = _format_of(path)
        if form is None:
            raise UnknownFormatError(f"{path.name}: this is no PNG, JPEG, BMP or TIFF")
        try:
            self._picture = _open_picture(path, form)
        except PARSER_ERRORS as error:
            raise BrokenSlideError(f"{path.name}: the {form} header is damaged; copy the file again") from error
        self._vendor = form.lower()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._picture.close)
            _check_memory(path.name, self._picture)  # first: Pillow decodes a PNG to look for its EXIF
            try:
                with _no_warnings():
                    self._picture.load()
            except MemoryError as error:
                raise SlideTooLargeError(_too_large(path.name, self._picture)) from error
            except PARSER_ERRORS as error:
                raise BrokenSlideError(
                    f"{path.name}: the {form} is cut off or damaged ({error}); copy the file again"
                ) from error
            self._orientation = _find_orientation(self._picture)
            on_failure.pop_all()

    def describe(self) -> Slide:
        """Describe the picture; a resolution is taken from TIFF tags only, and only when a scanner could mean it."""
        width_px, height_px = self._size_px
        exif = _named_tags(self._picture)
        found = [
            f"{self._vendor.upper()} {name}" for name, value in exif.items() if name in _IDENTIFYING_TAGS and value
        ]
        found += [f"PNG text {key}" for key in getattr(self._picture, "text", {})]
        return Slide(
            name=self._path.name,
            vendor=self._vendor,
            reader=self.name,
            levels=(Level(width_px, height_px, 1.0),),
            resolution=_find_resolution(self._picture),
            scanner=" ".join(str(exif[key]).strip() for key in ("Make", "Model") if exif.get(key)),
            identifiers=tuple(sorted(set(found))),
            has_icc_profile=self.icc_profile() is not None,
        )

    def read_region(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Read a rectangle; see `SlideReader.read_region`."""
        if level != 0:
            raise IndexError(f"level {level}: a plain picture has level 0 only")
        region = np.full((height_px, width_px, 3), 255, np.uint8)
        x0, x1 = max(x_px, 0), min(x_px + width_px, self._size_px[0])
        y0, y1 = max(y_px, 0), min(y_px + height_px, self._size_px[1])
        if x0 < x1 and y0 < y1:
            region[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = self._read_oriented(x0, y0, x1, y1)
        return region

    def read_side_image(self, name: str) -> NDArray[np.uint8]:
        """Raise KeyError: a plain picture has no side pictures."""
        raise KeyError(name)

    def icc_profile(self) -> bytes | None:
        """Return the ICC profile when it describes RGB; one for CMYK or grey means nothing for the pixels we give."""
        profile = self._picture.info.get("icc_profile")
        return bytes(profile) if profile and profile[16:20] == b"RGB " else None

    def close(self) -> None:
        """Release the picture."""
        self._picture.close()

    @property
    def _size_px(self) -> tuple[int, int]:
        width_px, height_px = self._picture.size
        return (height_px, width_px) if self._orientation in _AXES_SWAPPED else (width_px, height_px)

    def _read_oriented(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """Cut a rectangle of the upright picture out of the stored one, so that no turned copy is ever held."""
        if self._orientation in _AXES_SWAPPED:
            x0, y0, x1, y1 = y0, x0, y1, x1
        stored_w, stored_h = self._picture.size
        if self._orientation in _COLUMNS_TURNED:
            x0, x1 = stored_w - x1, stored_w - x0
        if self._orientation in _ROWS_TURNED:
            y0, y1 = stored_h - y1, stored_h - y0
        cut = self._picture.crop((x0, y0, x1, y1))
        pixels = on_white(cut.convert("RGBA") if cut.has_transparency_data else cut)
        if self._orientation in _ROWS_TURNED:
            pixels = pixels[::-1]
        if self._orientation in _COLUMNS_TURNED:
            pixels = pixels[:, ::-1]
        return pixels.transpose(1, 0, 2) if self._orientation in _AXES_SWAPPED else pixels


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Pillow about odd but readable metadata: they may quote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _format_of(path: Path) -> str | None:
    head = read_head(path, 4)
    return next((form for magic, form in _FORMATS.items() if head.startswith(magic)), None)


def _open_picture(path: Path, form: str) -> Any:
    """Open a picture's header; pixels are not decoded yet."""
    pillows_own_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # ours is stated below, in our words
    try:
        with _no_warnings():
            picture = Image.open(path, formats=(form,))
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_own_limit
    width_px, height_px = picture.size
    if width_px * height_px > MAX_IMAGE_PX:
        picture.close()
        raise SlideTooLargeError(
            f"{path.name}: {width_px:,} × {height_px:,} px in one piece; a flat picture may have "
            f"{MAX_IMAGE_PX // 1_000_000} million. Save it as a tiled pyramid, or the file is damaged or hostile"
        )
    if picture.mode not in _BYTES_PER_PX:
        picture.close()
        raise UnknownFormatError(
            f"{path.name}: its pixels are '{picture.mode}', not 8-bit colour or grey; save it with 8 bits a channel"
        )
    return picture


def _check_memory(name: str, picture: Any) -> None:
    """Refuse before decoding what cannot fit, so that the cause is named instead of a crash."""
    left = _address_space_left()
    if left is not None and _bytes_needed(picture) > left:
        raise SlideTooLargeError(_too_large(name, picture))


def _too_large(name: str, picture: Any) -> str:
    width_px, height_px = picture.size
    return (
        f"{name}: {width_px:,} × {height_px:,} px in one piece need {_bytes_needed(picture) / 1e6:,.0f} MB, more than "
        "the sandboxed reader has left; save the picture as a tiled pyramid"
    )


def _bytes_needed(picture: Any) -> int:
    width_px, height_px = picture.size
    # a progressive JPEG keeps the coefficients of the whole picture while it is decoded, two bytes each
    coefficients = 2 * len(picture.getbands()) if picture.info.get("progressive") else 0
    return int(width_px) * int(height_px) * (_BYTES_PER_PX[picture.mode] + coefficients) + _SLACK_BYTES


def _address_space_left() -> int | None:
    """Bytes until this process's own limit; None where the system has or tells none."""
    if sys.platform != "linux":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return soft - pages * resource.getpagesize()


def _find_orientation(picture: Any) -> int:
    try:
        with _no_warnings():
            orientation = picture.getexif().get(_ORIENTATION, 1)
    except PARSER_ERRORS:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _named_tags(picture: Any) -> dict[str, Any]:
    """EXIF or TIFF tags by name; damaged EXIF says nothing."""
    try:
        with _no_warnings():
            exif = picture.getexif()
            tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
            if exif.get_ifd(ExifTags.IFD.GPSInfo):
                tags[ExifTags.Base.GPSInfo] = True
    except PARSER_ERRORS:
        return {}
    return {ExifTags.TAGS[tag]: value for tag, value in tags.items() if tag in ExifTags.TAGS}


def _find_resolution(picture: Any) -> Resolution:
    """A dpi in PNG or JPEG is a printer's or an editor's; in TIFF it may be the scanner's, when plausible."""
    if picture.format != "TIFF":
        return NO_RESOLUTION
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(picture.tag_v2.get(296, 1))
    per_unit = [float(picture.tag_v2.get(tag, 0)) for tag in (282, 283)]
    if unit_um is None or not all(value > 0 for value in per_unit):
        return NO_RESOLUTION
    return checked_resolution(sum(unit_um / value for value in per_unit) / 2, "TIFF XResolution/YResolution")
