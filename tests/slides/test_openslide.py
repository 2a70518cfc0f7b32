"""What OpenSlide reads: true causes, white where nothing was scanned, one bad region that stays one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image

from slideway.core.errors import BrokenSlideError, MissingCompanionError, UnknownFormatError
from slideway.core.slide import ResolutionSource
from slideway.slides.openslide import OpenSlideReader, find_identifiers, find_resolution, on_white
from slideway.slides.reader import choose_reader

SlideOf = Callable[[str], Path]


def test_mrxs_without_its_folder_says_so(tmp_path: Path) -> None:
    path = tmp_path / "case.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    with pytest.raises(MissingCompanionError, match=r"case\.mrxs: its data folder 'case' is not beside it"):
        choose_reader(path)(path)


def test_mrxs_without_its_index_says_so(tmp_path: Path) -> None:
    path = tmp_path / "case.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    (tmp_path / "case").mkdir()
    with pytest.raises(MissingCompanionError, match=r"'Slidedat\.ini' is missing"):
        choose_reader(path)(path)


def test_mrxs_with_a_damaged_index_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "case.mrxs"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "Slidedat.ini").write_text("[GENERAL]\nSLIDE_VERSION=01.03\nIMAGENUMBER_X=10\n")
    with pytest.raises(BrokenSlideError, match=r"case\.mrxs: damaged"):
        choose_reader(path)(path)


def test_vms_without_its_pictures_says_which(tmp_path: Path) -> None:
    path = tmp_path / "case.vms"
    path.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=case.jpg\n"
        "MapFile=case_map2.jpg\nMacroImage=case_macro.jpg\nPhysicalWidth=1000\nPhysicalHeight=1000\nSourceLens=20\n"
    )
    with pytest.raises(MissingCompanionError, match=r"case\.vms: a file that belongs.*case_map2\.jpg") as caught:
        choose_reader(path)(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_no_slide_is_of_unknown_format(tmp_path: Path) -> None:
    path = tmp_path / "no.ndpi"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UnknownFormatError, match=r"no\.ndpi"):
        OpenSlideReader(path)


def test_transparency_is_laid_on_white_exactly() -> None:
    straight = np.zeros((1, 4, 4), np.uint8)
    straight[0] = [(200, 100, 0, 255), (200, 100, 0, 128), (200, 100, 0, 1), (9, 9, 9, 0)]
    expected = [(200, 100, 0), (227, 177, 127), (255, 254, 254), (255, 255, 255)]
    assert on_white(Image.fromarray(straight, "RGBA")).tolist() == [[list(pixel) for pixel in expected]]


def test_after_one_unreadable_region_the_others_still_read(slide_of: SlideOf, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = OpenSlideReader(slide_of("ycbcr.tif"))
    first = reader.read_region(0, 300, 300, 50, 50)
    real = openslide.OpenSlide.read_region

    def fail_once(*_: Any) -> Any:
        monkeypatch.setattr(openslide.OpenSlide, "read_region", real)
        raise openslide.OpenSlideError("JPEG library cannot decode this")

    monkeypatch.setattr(openslide.OpenSlide, "read_region", fail_once)
    with pytest.raises(BrokenSlideError, match="cannot decode"):
        reader.read_region(0, 300, 300, 50, 50)
    assert (reader.read_region(0, 300, 300, 50, 50) == first).all()
    reader.close()


def test_icc_profile_comes_through(slide_of: SlideOf) -> None:
    finest = max(slide_of("dicom").iterdir(), key=lambda file: file.stat().st_size)
    reader = OpenSlideReader(finest)
    profile = reader.icc_profile()
    reader.close()
    assert profile is not None
    assert profile[36:40] == b"acsp"


def test_bounds_are_those_the_file_states(slide_of: SlideOf) -> None:
    reader = OpenSlideReader(slide_of("ycbcr.tif"))
    assert reader.bounds is None
    reader._properties |= {f"openslide.bounds-{key}": str(i) for i, key in enumerate(("x", "y", "width", "height"))}
    assert reader.bounds is not None
    assert reader.bounds.width_level0_px == 2
    reader.close()


@pytest.mark.parametrize(
    ("properties", "mpp"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.27"}, 0.26),
        ({"openslide.mpp-x": "0.25"}, 0.25),
        ({"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}, 0.5),
        ({"tiff.XResolution": "50800", "tiff.YResolution": "50800", "tiff.ResolutionUnit": "inch"}, 0.5),
        ({"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}, None),
        ({"openslide.mpp-x": "0", "openslide.mpp-y": "nan"}, None),
        ({"openslide.objective-power": "40"}, None),
    ],
)
def test_resolution_is_stated_or_unknown_never_derived(properties: dict[str, str], mpp: float | None) -> None:
    found = find_resolution(properties)
    assert found.mpp == pytest.approx(mpp) if mpp else found.source is ResolutionSource.UNKNOWN


def test_identifying_fields_are_named_and_their_values_never() -> None:
    properties = {
        "aperio.User": "Dr Doe", "hamamatsu.Created": "2026/11/23", "mirax.GENERAL.SLIDE_NAME": "A26-1",
        "mirax.GENERAL.SLIDE_CREATIONDATETIME": "1", "leica.barcode": "x", "ventana.Barcode1D": "y",
        "tiff.DateTime": "z", "philips.PIM_DP_UFS_BARCODE": "b", "aperio.MPP": "0.25", "hamamatsu.Product": "C1",
        "aperio.Exposure Time": "32", "aperio.Title": "", "openslide.quickhash-1": "77",
    }  # fmt: skip
    assert find_identifiers(properties, ("label", "thumbnail")) == (
        "aperio.User", "hamamatsu.Created", "label image", "leica.barcode", "mirax.GENERAL.SLIDE_CREATIONDATETIME",
        "mirax.GENERAL.SLIDE_NAME", "philips.PIM_DP_UFS_BARCODE", "tiff.DateTime", "ventana.Barcode1D",
    )  # fmt: skip
