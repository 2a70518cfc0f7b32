"""Every scanner format that OpenSlide opens: NDPI, MRXS, SCN, BIF, VMS, Philips, Trestle, Zeiss and more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideway.core.errors import (
    BrokenSlideError,
    MissingCompanionError,
    SlideTooLargeError,
    UnknownFormatError,
    UnreadableSlideError,
)
from slideway.core.slide import Level, Region, Resolution, Slide
from slideway.slides.tiff import MAX_SIDE_PX, MAX_STORED_TILE_PX, NO_RESOLUTION, checked_resolution

CACHE_BYTES = 64_000_000  # as the TIFF reader: one band of stored tiles
SIDE_IMAGES = ("label", "macro", "thumbnail")

# Where the vendors write who made the scanner. Source: https://openslide.org/properties/ and real files.
_SCANNER_PROPERTIES = (
    "tiff.Make",
    "tiff.Model",
    "aperio.ScanScope ID",
    "dicom.Manufacturer",
    "dicom.ManufacturerModelName",
    "hamamatsu.Product",
    "leica.device-model",
    "mirax.GENERAL.SCANNER_HARDWARE_ID",
    "philips.DICOM_MANUFACTURER",
    "philips.DICOM_MANUFACTURERS_MODEL_NAME",
    "ventana.ScannerModel",
    "zeiss.Information.Instrument.Microscopes.Microscope.System",
)

# Words in a property's name that promise a person, a specimen, a place or a moment in its value.
_IDENTIFYING = re.compile(
    r"patient|barcode|label|user|operator|author|artist|creat|physician|institution|hospital|accession|specimen"
    r"|container|slide.?(id|name)|case.?(id|name|number)|project.?name|file.?name|title|date|(?<!exposure.)(?<!spend.)time\b"
    r"|host.?computer|comment|description|document.?name|page.?name|copyright|originator|image.?id|dsr.?id"
    r"|instance.?uid|serial",
    re.IGNORECASE,
)

# How OpenSlide says that a file beside the slide is not there.
_MISSING = re.compile(
    r"no such file|does not exist|is missing|(can't|couldn't|could not|failed to) open", re.IGNORECASE
)


class OpenSlideShaped:
    """What reads any library whose slides have the shape of OpenSlide's: `level_dimensions`, `read_region` and so on.

    A child says how to open a file and which errors the library raises.
    """

    name: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide: Any = self._open_checked()
        self._properties: dict[str, str] = dict(self._slide.properties)
        self._sizes_px = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
        self._downsamples = tuple(float(downsample) for downsample in self._slide.level_downsamples)
        if not self._sizes_px or min(map(min, self._sizes_px)) < 1:
            raise BrokenSlideError(f"{path.name}: the header declares no image, or one without pixels; copy it again")
        width_px, height_px = self._sizes_px[0]
        if max(width_px, height_px) > MAX_SIDE_PX:
            raise SlideTooLargeError(
                f"{path.name}: the header declares {width_px:,} × {height_px:,} px, more than any scanner makes"
            )

    def describe(self) -> Slide:
        """Describe the slide from the library's properties."""
        properties = self._properties
        side_images = self._side_images()
        return Slide(
            name=self._path.name,
            vendor=properties.get("openslide.vendor", self.name),
            reader=self.name,
            levels=levels_from(self._sizes_px),
            resolution=self._resolution(),
            scanner=" ".join(dict.fromkeys(properties[key] for key in _SCANNER_PROPERTIES if properties.get(key))),
            objective_power=number(properties.get("openslide.objective-power")),
            side_images=side_images,
            identifiers=find_identifiers(properties, side_images),
            has_icc_profile=self.icc_profile() is not None,
        )

    @property
    def bounds(self) -> Region | None:
        """The scanned part of the glass in level-0 pixels, where the format tells it; outside of it all is white."""
        keys = ("x", "y", "width", "height")
        numbers = [number(self._properties.get(f"openslide.bounds-{key}")) for key in keys]
        known = [round(value) for value in numbers if value is not None]
        return Region(*known) if len(known) == 4 else None

    def read_region(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Read a rectangle of one level; see `SlideReader.read_region`."""
        region = np.full((height_px, width_px, 3), 255, np.uint8)
        level_w, level_h = self._sizes_px[level]
        x0, x1 = max(x_px, 0), min(x_px + width_px, level_w)
        y0, y1 = max(y_px, 0), min(y_px + height_px, level_h)
        if x0 >= x1 or y0 >= y1:
            return region
        location = (self._level0_px(x0, level), self._level0_px(y0, level))
        try:
            cut = on_white(self._slide.read_region(location, level, (x1 - x0, y1 - y0)))
        except self._errors() as error:
            self._reopen()
            raise self._explain(error) from error
        region[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = cut
        return region

    def read_side_image(self, name: str) -> NDArray[np.uint8]:
        """Read a side picture; KeyError when the file has none of that name."""
        if name not in self._side_images():
            raise KeyError(name)
        width, height = (number(self._properties.get(f"openslide.associated.{name}.{s}")) for s in ("width", "height"))
        if (width or 0) * (height or 0) > MAX_STORED_TILE_PX:
            raise SlideTooLargeError(f"{self._path.name}: its {name} image declares more than 64 million pixels")
        try:
            return on_white(self._slide.associated_images[name])
        except self._errors() as error:
            self._reopen()
            raise self._explain(error) from error

    def icc_profile(self) -> bytes | None:
        """Return the slide's ICC profile, if any."""
        return None

    def close(self) -> None:
        """Release the file."""
        self._slide.close()

    def _open(self) -> Any:
        """Open the file with the library."""
        raise NotImplementedError

    def _errors(self) -> tuple[type[Exception], ...]:
        """What the library raises on damaged files."""
        raise NotImplementedError

    def _level0_px(self, level_px: int, level: int) -> float:
        """Turn a coordinate of a level into the level-0 coordinate that the library wants at every level."""
        raise NotImplementedError

    def _resolution(self) -> Resolution:
        return find_resolution(self._properties)

    def _open_checked(self) -> Any:
        try:
            return self._open()
        except self._errors() as error:
            raise self._explain(error) from error

    def _reopen(self) -> None:
        """After one error OpenSlide refuses everything; opened anew, only the region at fault is lost."""
        self._slide.close()
        self._slide = self._open_checked()

    def _side_images(self) -> tuple[str, ...]:
        return tuple(name for name in SIDE_IMAGES if name in self._slide.associated_images)

    def _explain(self, error: Exception) -> UnreadableSlideError:
        """Turn the library's words into ours, without the folder's name."""
        name = self._path.name
        cause = re.sub(r"(?:[A-Za-z]:)?[/\\]\S*[/\\]", "", str(error).replace(f"{self._path.parent}", ""))
        if _MISSING.search(cause):
            return MissingCompanionError(
                f"{name}: a file that belongs to this slide is missing ({cause}); "
                "copy the slide again with everything the scanner wrote beside it"
            )
        return BrokenSlideError(f"{name}: damaged or cut off ({cause}); copy the file again from the scanner")


class OpenSlideReader(OpenSlideShaped):
    """Reads through OpenSlide: slower than direct reading of stored tiles, and far wider.

    OpenSlide takes whole level-0 pixels only: at a level with an odd downsample a region may lie half a level-0
    pixel off, and OpenSlide interpolates. The position is rounded last, so the error never adds up.
    """

    name: ClassVar[str] = "openslide"

    @classmethod
    def score(cls, path: Path) -> int:
        """Claim what OpenSlide detects; also an MRXS without its folder, to name what is missing."""
        import openslide

        if path.is_dir():
            return 0
        try:
            vendor = openslide.OpenSlide.detect_format(path)
        except openslide.OpenSlideError:  # recognised, but damaged: opening it names the cause
            return 10
        if vendor is None:
            return 60 if path.suffix.lower() == ".mrxs" else 0  # alone it is a JPEG, but never a slide of its own
        return 70

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() == ".mrxs":
            _check_mrxs_folder(path)
        super().__init__(path)

    def icc_profile(self) -> bytes | None:
        """Return the slide's ICC profile, if any."""
        profile = self._slide.read_region((0, 0), 0, (0, 0)).info.get("icc_profile")  # reads no pixel
        return bytes(profile) if profile else None

    def _open(self) -> Any:
        import openslide

        slide = openslide.OpenSlide(self._path)
        slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        return slide

    def _errors(self) -> tuple[type[Exception], ...]:
        import openslide

        return (openslide.OpenSlideError,)

    def _level0_px(self, level_px: int, level: int) -> int:
        return round(level_px * self._downsamples[level])

    def _explain(self, error: Exception) -> UnreadableSlideError:
        import openslide

        if isinstance(error, openslide.OpenSlideUnsupportedFormatError):
            return UnknownFormatError(f"{self._path.name}: OpenSlide does not know this kind of file")
        return super()._explain(error)


def levels_from(sizes_px: tuple[tuple[int, int], ...]) -> tuple[Level, ...]:
    """Make levels from (width, height) of each, finest first."""
    width_px, height_px = sizes_px[0]
    return tuple(Level(w, h, (width_px / w + height_px / h) / 2 if i else 1.0) for i, (w, h) in enumerate(sizes_px))


def on_white(picture: Image.Image) -> NDArray[np.uint8]:
    """Lay a picture with straight (not premultiplied) alpha on white and return (height, width, 3) RGB."""
    if picture.mode != "RGBA":
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    rgba = np.asarray(picture)
    alpha = rgba[..., 3:]
    if alpha.size == 0 or alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    mixed = rgba[..., :3].astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    rgb: NDArray[np.uint8] = ((mixed + 127) // 255).astype(np.uint8)
    return rgb


def find_resolution(properties: Mapping[str, str]) -> Resolution:
    """Find mpp among OpenSlide's properties; for plain TIFF from its resolution tags."""
    stated = [number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    known = [mpp for mpp in stated if mpp]
    if known:
        return checked_resolution(sum(known) / len(known), f"{properties.get('openslide.vendor', '')} mpp-x/y".strip())
    unit_um = {"inch": 25_400.0, "centimeter": 10_000.0}.get(properties.get("tiff.ResolutionUnit", ""))
    per_unit = [number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
    if unit_um is None or not all(per_unit):
        return NO_RESOLUTION
    return checked_resolution(sum(unit_um / each for each in per_unit if each) / 2, "TIFF XResolution/YResolution")


def find_identifiers(properties: Mapping[str, str], side_images: tuple[str, ...]) -> tuple[str, ...]:
    """Name the non-empty properties whose names promise a person, specimen, place or moment; never their values."""
    found = [
        key
        for key, value in properties.items()
        if not key.startswith("openslide.") and value.strip() and _IDENTIFYING.search(key)
    ]
    found += [f"{name} image" for name in ("label", "macro") if name in side_images]
    return tuple(sorted(found))


def number(text: str | None) -> float | None:
    """Read a positive decimal number; None for anything else (scanners also write `nan`, `0` and words)."""
    if not text or not re.fullmatch(r"\d+(\.\d+)?([eE][+-]?\d+)?", text.strip()):
        return None
    value = float(text)
    return value if 0 <= value < 1e12 else None


def _check_mrxs_folder(path: Path) -> None:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise MissingCompanionError(
            f"{path.name}: its data folder '{folder.name}' is not beside it; an MRXS slide is the file and the folder "
            "of the same name: copy both"
        )
    if not (folder / "Slidedat.ini").is_file():
        raise MissingCompanionError(
            f"{path.name}: 'Slidedat.ini' is missing from its folder '{folder.name}'; copy the whole folder again"
        )
