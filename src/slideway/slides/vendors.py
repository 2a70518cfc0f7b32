"""Slots for KFB, SDPC and TMAP slides, read by third-party packages; never tried on a real file (docs/formats.md)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from slideway.core.errors import MissingReaderError, UnreadableSlideError
from slideway.core.slide import Resolution, ResolutionSource
from slideway.slides.openslide import OpenSlideShaped
from slideway.slides.reader import PARSER_ERRORS, read_head


class _VendorReader(OpenSlideShaped):
    """One vendor's format: recognised by suffix and first bytes, also when its package is not installed."""

    suffix: ClassVar[str]
    magic: ClassVar[bytes | None] = None
    magic_at: ClassVar[int] = 0
    extra: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]

    @classmethod
    def score(cls, path: Path) -> int:
        """Claim the suffix, and the first bytes where the format has known ones."""
        if path.is_dir():
            return 0
        has_suffix = path.suffix.lower() == cls.suffix
        if cls.magic is None:
            return 60 if has_suffix else 0
        has_magic = read_head(path, 16)[cls.magic_at :].startswith(cls.magic)
        return 80 if has_magic else 30 if has_suffix else 0

    def _import(self) -> Any:
        """Import the first installed package that reads this format."""
        causes = []
        for module in self.modules:
            try:
                return importlib.import_module(module)
            except (ImportError, OSError) as error:  # OSError: a shared library it brings does not load
                causes.append(error)
        cause = next((f" ({error})" for error in causes if not isinstance(error, ModuleNotFoundError)), "")
        raise MissingReaderError(
            f"{self._path.name}: reading {self.suffix[1:].upper()} needs a third-party package{cause}; "
            f"install it with pip install 'slideway[{self.extra}]', and see docs/formats.md for its limits"
        )

    def _errors(self) -> tuple[type[Exception], ...]:
        return (*PARSER_ERRORS, self._import().OpenSlideError)

    def _open(self) -> Any:
        return self._import().OpenSlide(str(self._path))

    def _level0_px(self, level_px: int, level: int) -> float:
        # These packages cut int(coordinate / downsample): aim at the middle of the pixel, so that it comes out exact
        return (level_px + 0.5) * self._downsamples[level]


class KfbReader(_VendorReader):
    """KFBio KFB through `kfbslide` (pure Python, MIT)."""

    name: ClassVar[str] = "kfb"
    suffix: ClassVar[str] = ".kfb"
    magic: ClassVar[bytes | None] = b"\xee\xeeKFB"  # after the section mark, two bytes
    magic_at: ClassVar[int] = 2
    extra: ClassVar[str] = "kfb"
    modules: ClassVar[tuple[str, ...]] = ("kfbslide",)


class TmapReader(_VendorReader):
    """UNIC TMAP through `tmapslide` (pure Python, MIT)."""

    name: ClassVar[str] = "tmap"
    suffix: ClassVar[str] = ".tmap"
    magic: ClassVar[bytes | None] = b"TMAP0"
    extra: ClassVar[str] = "tmap"
    modules: ClassVar[tuple[str, ...]] = ("tmapslide",)

    def _resolution(self) -> Resolution:
        # tmapslide fills a gap with 10 µm / objective; that is a guess, and every result would rest on it
        if self._properties.get("tmap.mpp_source") == "derived":
            words = "the file's pixel size is implausible; tmapslide's guess from the objective is not used"
            return Resolution(None, ResolutionSource.UNKNOWN, words)
        return super()._resolution()


class SdpcReader(_VendorReader):
    """Sqray SDPC through `opensdpc` (Linux) or `sdpc-for-python` (Windows), both around the vendor's closed library."""

    name: ClassVar[str] = "sdpc"
    suffix: ClassVar[str] = ".sdpc"
    extra: ClassVar[str] = "sdpc"
    modules: ClassVar[tuple[str, ...]] = ("opensdpc.OpenSdpc", "sdpc.Sdpc")

    def _errors(self) -> tuple[type[Exception], ...]:
        return PARSER_ERRORS

    def _open(self) -> Any:
        module = self._import()
        open_file = module.Sdpc if hasattr(module, "Sdpc") else module.OpenSdpc
        return _SdpcSlide(open_file(str(self._path)))

    def _explain(self, error: Exception) -> UnreadableSlideError:
        if "NULL pointer" in str(error):  # ctypes' words when the vendor's library gives no slide back
            return super()._explain(ValueError("the vendor's library does not open it"))
        return super()._explain(error)


class _SdpcSlide:
    """Gives an SDPC slide the shape of OpenSlide's.

    Source: Sdpc.py and Sdpc_struct.py of sdpc-for-python 1.0.5; `ruler` is microns per pixel.
    """

    associated_images: ClassVar[Mapping[str, Any]] = {}  # the package can only write the label to a file

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        head = slide.sdpc.contents.picHead.contents
        self.level_dimensions = slide.level_dimensions
        self.level_downsamples = slide.level_downsamples
        self.properties: dict[str, str] = {
            "openslide.vendor": "sqray",
            "openslide.mpp-x": str(float(head.ruler)),
            "openslide.mpp-y": str(float(head.ruler)),
            "openslide.objective-power": str(int(head.rate)),
            **{f"sdpc.patient.{name}": "present" for name in _filled_fields(slide.sdpc.contents.personInfo)},
        }

    def read_region(self, location: tuple[float, float], level: int, size_px: tuple[int, int]) -> Any:
        """Read a region; the older package gives an array, the newer one a picture."""
        from PIL import Image

        region = self._slide.read_region(location, level, size_px)
        return region if isinstance(region, Image.Image) else Image.fromarray(region)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _filled_fields(person: Any) -> Iterator[str]:
    """Name the text fields of the slide's patient record that are not empty; null when the file has no record."""
    if not person:
        return
    record = person.contents
    for name, *_ in record._fields_:
        value = getattr(record, name)
        if name not in {"flag", "inforSize"} and hasattr(value, "__len__") and any(value):
            yield name
