"""Every reader keeps the published contract, on every format it reads."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideway.slides.dicom import DicomReader
from slideway.slides.image import ImageReader
from slideway.slides.openslide import OpenSlideReader
from slideway.slides.tiff import TiffReader
from slideway.slides.vendors import KfbReader, SdpcReader, TmapReader
from slideway.testing import ReaderCase, ReaderContract

SlideOf = Callable[[str], Path]
SIZE = {"width_px": 1000, "height_px": 750}


class TestTiffReader(ReaderContract):
    @pytest.fixture(
        params=[
            "ycbcr.tif", "rgb.tif", "lzw.tif", "deflate.tif", "big.tif", "slide.ome.tif", "j2k-ycbcr.svs",
            "j2k-rgb.svs", "sparse.tif",
        ]
    )  # fmt: skip
    def case(self, request: pytest.FixtureRequest, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(TiffReader, slide_of(request.param), **SIZE, mpp=0.5)


class TestTiffReaderOnAperio(ReaderContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(TiffReader, slide_of("aperio.svs"), **SIZE, mpp=0.499)


class TestOpenSlideReader(ReaderContract):
    @pytest.fixture(params=["ycbcr.tif", "lzw.tif", "sparse.tif"])
    def case(self, request: pytest.FixtureRequest, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(OpenSlideReader, slide_of(request.param), **SIZE, mpp=0.5)


class TestOpenSlideReaderOnAperio(ReaderContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(OpenSlideReader, slide_of("aperio.svs"), **SIZE, mpp=0.499)


class TestOpenSlideReaderOnDicom(ReaderContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf) -> ReaderCase:
        finest = max(slide_of("dicom").iterdir(), key=lambda file: file.stat().st_size)
        return ReaderCase(OpenSlideReader, finest, **SIZE, mpp=0.5)


class TestDicomReaderOnFolder(ReaderContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(DicomReader, slide_of("dicom"), **SIZE, mpp=0.5)


class TestDicomReaderOnFile(ReaderContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(DicomReader, min(slide_of("dicom").iterdir()), **SIZE, mpp=0.5)


class TestImageReader(ReaderContract):
    @pytest.fixture(params=["flat.png", "flat.jpg", "flat.bmp", "flat.tif"])
    def case(self, request: pytest.FixtureRequest, slide_of: SlideOf) -> ReaderCase:
        return ReaderCase(ImageReader, slide_of(request.param), **SIZE)


class _VendorContract(ReaderContract):
    def make(self, reader: type, head: bytes, slide_of: SlideOf, folder: Path) -> ReaderCase:
        path = folder / "scanner" / f"slide{reader.suffix}"
        path.parent.mkdir()
        path.write_bytes(head + bytes(1000))
        path.with_suffix(".png").write_bytes(slide_of("flat.png").read_bytes())
        return ReaderCase(reader, path, **SIZE, mpp=0.5)


class TestKfbReader(_VendorContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any) -> ReaderCase:
        monkeypatch.setitem(sys.modules, "kfbslide", fakes.module("kfbio"))
        return self.make(KfbReader, b"\xf1\x01\xee\xeeKFB\0", slide_of, tmp_path)


class TestTmapReader(_VendorContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any) -> ReaderCase:
        monkeypatch.setitem(sys.modules, "tmapslide", fakes.module("unic", **{"tmap.mpp_source": "header"}))
        return self.make(TmapReader, b"TMAP07\0\0", slide_of, tmp_path)


class TestSdpcReader(_VendorContract):
    @pytest.fixture
    def case(self, slide_of: SlideOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any) -> ReaderCase:
        module = types.ModuleType("opensdpc.OpenSdpc")
        module.OpenSdpc = fakes.sdpc  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "opensdpc", types.ModuleType("opensdpc"))
        monkeypatch.setitem(sys.modules, "opensdpc.OpenSdpc", module)
        return self.make(SdpcReader, b"SQ", slide_of, tmp_path)
