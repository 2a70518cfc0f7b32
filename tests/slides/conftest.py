"""Small slides of every format, painted once a session."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from slideway.testing import slides
from slideway.testing.dicom import write_dicom_slide
from slideway.testing.slides import Pixels, make_levels

WIDTH_PX, HEIGHT_PX = 1000, 750


@pytest.fixture(scope="session")
def levels() -> list[Pixels]:
    return slides.make_levels(slides.paint_tissue(WIDTH_PX, HEIGHT_PX))


def _write_png(path: Path, levels: list[Pixels]) -> Path:
    return slides.write_picture(path, levels[0])


WRITERS: dict[str, Callable[[Path, list[Pixels]], Path]] = {
    "ycbcr.tif": slides.write_pyramid,
    "rgb.tif": lambda path, levels: slides.write_pyramid(path, levels, **slides.JPEG_RGB),
    "lzw.tif": lambda path, levels: slides.write_pyramid(path, levels, compression="lzw", predictor=True),
    "deflate.tif": lambda path, levels: slides.write_pyramid(path, levels, compression="deflate"),
    "big.tif": lambda path, levels: slides.write_pyramid(path, levels, is_bigtiff=True),
    "aperio.svs": slides.write_svs,
    "slide.ome.tif": slides.write_ome_tiff,
    "j2k-ycbcr.svs": lambda path, levels: slides.write_jpeg2000(path, levels, as_ycbcr=True),
    "j2k-rgb.svs": lambda path, levels: slides.write_jpeg2000(path, levels, as_ycbcr=False),
    "sparse.tif": lambda path, levels: slides.write_sparse(path, levels[0]),
    "flat.png": _write_png,
    "flat.jpg": _write_png,
    "flat.bmp": _write_png,
    "flat.tif": _write_png,
    "dicom": lambda path, levels: write_dicom_slide(
        path, levels, label=levels[0][:100, :200], overview=levels[1][:, :180]
    ),
}


@pytest.fixture(scope="session")
def slide_of(tmp_path_factory: pytest.TempPathFactory, levels: list[Pixels]) -> Callable[[str], Path]:
    """Give the path of a synthetic slide by its name in WRITERS, written on first use."""
    folder = tmp_path_factory.mktemp("slides")

    def write(name: str) -> Path:
        path = folder / name
        return path if path.exists() else WRITERS[name](path, levels)

    return write


# --- packages of the same shape as `kfbslide`, `tmapslide` and `opensdpc`, reading a plain picture ---------------


class FakeError(Exception):
    """Stands for the package's OpenSlideError."""


def _picture_behind(path: str) -> Pixels:
    with Image.open(Path(path).with_suffix(".png")) as picture:
        return np.asarray(picture.convert("RGB"))


class FakeOpenSlide:
    """What kfbslide 0.3.4 and tmapslide 0.2.3 offer, with their habits: int() of coordinates, grey beyond the edge."""

    properties: ClassVar[dict[str, str]] = {}

    def __init__(self, filename: str) -> None:
        if Path(filename).stat().st_size < 100:
            raise FakeError("Cannot parse file: unpack requires a buffer of 88 bytes")
        self._levels = make_levels(_picture_behind(filename))
        self.level_dimensions = tuple((level.shape[1], level.shape[0]) for level in self._levels)
        self.level_downsamples = (1.0, 4.0, 16.0)
        self.dimensions = self.level_dimensions[0]
        self.associated_images = {"label": Image.new("RGBA", (20, 10), (0, 0, 0, 255))}
        self.properties = dict(type(self).properties)

    def read_region(self, location: tuple[float, float], level: int, size: tuple[int, int]) -> Image.Image:
        downsample = self.level_downsamples[level]
        x, y = int(location[0] / downsample), int(location[1] / downsample)
        picture = Image.new("RGBA", size, (244, 244, 244, 255))
        picture.paste(Image.fromarray(self._levels[level][y : y + size[1], x : x + size[0]]))
        return picture

    def close(self) -> None:
        self._levels = []


def fake_module(vendor: str, **properties: str) -> Any:
    module = types.ModuleType(f"fake_{vendor}")
    shared = {"openslide.vendor": vendor, "openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5", **properties}
    module.OpenSlide = type("OpenSlide", (FakeOpenSlide,), {"properties": shared})  # type: ignore[attr-defined]
    module.OpenSlideError = FakeError  # type: ignore[attr-defined]
    return module


class _Pointer:
    """A ctypes pointer: true unless null, and `contents`."""

    def __init__(self, contents: Any) -> None:
        self.contents = contents


class _Person:
    _fields_ = (("flag", int), ("inforSize", int), ("pathologyID", bytes), ("name", bytes), ("remark", bytes))
    flag, inforSize, pathologyID, name, remark = 1, 2, bytes(64), b"Doe" + bytes(61), bytes(64)  # noqa: N815


class FakeSdpc:
    """What opensdpc 1.0.0 and sdpc-for-python 1.0.5 offer: no properties, structures behind pointers, RGB arrays."""

    def __init__(self, path: str) -> None:
        if Path(path).stat().st_size < 100:
            raise ValueError("NULL pointer access")
        self._slide = FakeOpenSlide(path)
        self.level_dimensions = self._slide.level_dimensions
        self.level_downsamples = self._slide.level_downsamples
        head = types.SimpleNamespace(ruler=0.5, rate=20)
        self.sdpc = _Pointer(types.SimpleNamespace(picHead=_Pointer(head), personInfo=_Pointer(_Person())))

    def read_region(self, location: tuple[float, float], level: int, size: tuple[int, int]) -> Pixels:
        return np.asarray(self._slide.read_region(location, level, size).convert("RGB"))

    def close(self) -> None:
        self._slide.close()


@pytest.fixture(scope="session")
def fakes() -> types.SimpleNamespace:
    """Stand-ins for the vendors' packages; no real file of theirs can be had here."""
    return types.SimpleNamespace(module=fake_module, sdpc=FakeSdpc)
