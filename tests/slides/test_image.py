"""Plain pictures: turned upright, laid on white, bounded in memory, and without a resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from slideway.core.errors import BrokenSlideError, SlideTooLargeError, UnknownFormatError
from slideway.slides.image import MAX_IMAGE_PX, ImageReader
from slideway.slides.reader import choose_reader
from slideway.testing.slides import Pixels, paint_tissue


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return paint_tissue(90, 60)


def read_all(path: Path) -> Pixels:
    reader = ImageReader(path)
    slide = reader.describe()
    whole = reader.read_region(0, 0, 0, slide.width_px, slide.height_px)
    reader.close()
    return whole


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_also_to_parts(tmp_path: Path, pixels: Pixels, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert (read_all(path) == upright).all()
    reader = ImageReader(path)
    assert (reader.read_region(0, 11, 7, 20, 30) == upright[7:37, 11:31]).all()
    reader.close()


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "RGB"])
def test_every_8_bit_kind_of_pixel_becomes_rgb(tmp_path: Path, pixels: Pixels, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(pixels).convert(mode).save(path)
    read = read_all(path)
    assert read.shape == (60, 90, 3)
    assert abs(float(read.mean()) - float(pixels.mean())) < 12


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (20, 10), (10, 20, 30, 0)).save(path)
    assert (read_all(path) == 255).all()


def test_cmyk_jpeg_is_read_and_its_cmyk_profile_is_not_offered(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "a.jpg"
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"
    Image.fromarray(pixels).convert("CMYK").save(path, icc_profile=bytes(profile))
    reader = ImageReader(path)
    assert reader.icc_profile() is None
    assert not reader.describe().has_icc_profile
    reader.close()


def test_dpi_of_png_and_jpeg_is_no_resolution(tmp_path: Path, pixels: Pixels) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, dpi=(50_800, 50_800))
        reader = ImageReader(tmp_path / name)
        assert reader.describe().resolution.mpp is None
        reader.close()


@pytest.mark.parametrize(("dpi", "mpp"), [(50_800, 0.5), (72, None), (300, None)])
def test_dpi_of_flat_tiff_counts_when_a_scanner_could_mean_it(
    tmp_path: Path, pixels: Pixels, dpi: int, mpp: float | None
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif", dpi=(dpi, dpi))
    reader = ImageReader(tmp_path / "a.tif")
    found = reader.describe().resolution.mpp
    reader.close()
    assert found == pytest.approx(mpp) if mpp else found is None


def test_identifying_exif_is_named_and_its_values_never(tmp_path: Path, pixels: Pixels) -> None:
    exif = Image.Exif()
    exif[0x013B], exif[0x010F], exif[0x0110] = "Dr Doe", "Maker", "Model 1"
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    reader = ImageReader(tmp_path / "a.jpg")
    slide = reader.describe()
    reader.close()
    assert slide.identifiers == ("JPEG Artist",)
    assert slide.scanner == "Maker Model 1"
    assert "Doe" not in repr(slide)


def test_sixteen_bit_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(path)
    with pytest.raises(UnknownFormatError, match=r"deep\.png.*8 bits a channel"):
        choose_reader(path)(path)


def test_more_pixels_than_allowed_are_refused_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    side = int(MAX_IMAGE_PX**0.5) + 1
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 200_000
    with pytest.raises(SlideTooLargeError, match=r"bomb\.png: 20,001 × 20,001 px in one piece"):
        ImageReader(path)


def test_header_without_a_picture_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "head.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(BrokenSlideError, match=r"head\.png: the PNG header is damaged"):
        choose_reader(path)(path)
