"""TIFF pyramids: pixels equal OpenSlide's, every stored tile is decoded once, positions never drift."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slideway.core.errors import UnknownFormatError
from slideway.core.slide import ResolutionSource
from slideway.slides import bands
from slideway.slides.openslide import OpenSlideReader
from slideway.slides.reader import choose_reader
from slideway.slides.tiff import TiffReader
from slideway.testing import slides
from slideway.testing.slides import Pixels

SlideOf = Callable[[str], Path]
COMPARED = [
    "ycbcr.tif",
    "rgb.tif",
    "lzw.tif",
    "deflate.tif",
    "big.tif",
    "aperio.svs",
    "j2k-ycbcr.svs",
    "j2k-rgb.svs",
    "sparse.tif",
]


def real_slides() -> list[Path]:
    folder = os.environ.get("SLIDEWAY_TEST_SLIDES")
    return sorted(file for file in Path(folder).iterdir() if file.suffix in {".tif", ".svs"}) if folder else []


def largest_difference(path: Path, *, n_places: int) -> int:
    """Largest difference to OpenSlide over a few regions of each level that both cut at whole pixels."""
    ours, theirs = TiffReader(path), OpenSlideReader(path)
    random = np.random.default_rng(0)
    worst = 0
    for index, level in enumerate(ours.describe().levels):
        # at an odd downsample OpenSlide interpolates between pixels, except at the level's origin
        places = [(0, 0)]
        if float(level.downsample).is_integer():
            places += [
                (int(random.integers(level.width_px)), int(random.integers(level.height_px))) for _ in range(n_places)
            ]
        for x, y in places:
            a, b = (reader.read_region(index, x, y, 300, 300).astype(int) for reader in (ours, theirs))
            worst = max(worst, int(np.abs(a - b).max()))
    ours.close()
    theirs.close()
    return worst


@pytest.mark.parametrize("name", COMPARED)
def test_pixels_equal_those_of_openslide_within_rounding(slide_of: SlideOf, name: str) -> None:
    assert largest_difference(slide_of(name), n_places=8) <= 1


@pytest.mark.parametrize("path", real_slides(), ids=lambda path: path.name)
def test_pixels_of_real_slides_equal_those_of_openslide(path: Path) -> None:
    assert largest_difference(path, n_places=12) <= 1


@pytest.mark.parametrize(("name", "photometric"), [("ycbcr.tif", 6), ("rgb.tif", 2)])
def test_colours_follow_the_photometric_tag(
    slide_of: SlideOf, levels: list[Pixels], name: str, photometric: int
) -> None:
    with tifffile.TiffFile(slide_of(name)) as tiff:
        assert int(tiff.pages.first.photometric) == photometric
    reader = TiffReader(slide_of(name))
    read = reader.read_region(0, 0, 0, 1000, 750)
    reader.close()
    assert np.abs(read.astype(int) - levels[0]).mean() < 3


@pytest.mark.parametrize("tile_mpp", [0.5, 0.73, 1.1])
def test_each_stored_tile_is_decoded_exactly_once_in_a_full_pass(slide_of: SlideOf, tile_mpp: float) -> None:
    reader = TiffReader(slide_of("ycbcr.tif"))
    slide = reader.describe()
    step = 224 * tile_mpp / 0.5
    xy = [(round(i * step), round(j * step)) for j in range(int(750 / step) + 1) for i in range(int(1000 / step) + 1)]
    read = bands.plan_read(slide, np.array(xy, np.int32), step, 224)
    lost = [index for _, _, lost in bands.read_tiles(reader, read, batch=8) for index in lost]
    reader.close()
    assert lost == []
    assert read.level == 0
    assert reader.cache.decoded == 4 * 3


def test_tile_far_out_on_a_huge_slide_is_where_it_should_be(tmp_path: Path) -> None:
    path = slides.write_huge_pyramid(tmp_path / "huge.tif", 20_000)
    reader = TiffReader(path)
    slide = reader.describe()
    step = 224 * 0.5 / 0.2527  # a resolution at which rounding the step would drift by 13 px over the slide
    places = [round(i * step) for i in range(int(20_000 / step))]
    xy = np.array([(x, 10_000) for x in places], np.int32)
    read = bands.plan_read(slide, xy, step, 224)
    assert read.xy_level_px[:, 0].tolist() == places
    assert abs(places[-1] - step * (len(places) - 1)) <= 0.5
    for indices, tiles, _ in bands.read_tiles(reader, read, batch=4):
        for index, tile in zip(indices, tiles, strict=True):
            whole = reader.read_region(0, places[index], 10_000, read.region_px, read.region_px)
            expected = np.empty_like(tile)
            bands.fit_tile(whole, expected)
            assert (tile == expected).all()
    reader.close()


def test_huge_pyramid_is_small_on_disk_and_its_levels_agree(tmp_path: Path) -> None:
    path = slides.write_huge_pyramid(tmp_path / "huge.tif")
    assert path.stat().st_size < 6_000_000
    reader = TiffReader(path)
    slide = reader.describe()
    assert [level.width_px for level in slide.levels] == [100_000, 25_000, 6_250, 1_563]
    assert slide.resolution.mpp == pytest.approx(0.25, rel=1e-3)
    centre = [
        reader.read_region(i, level.width_px // 2, level.height_px // 2, 200, 200).mean((0, 1))
        for i, level in enumerate(slide.levels)
    ]
    assert np.ptp(centre, axis=0).max() < 10
    assert (reader.read_region(0, 0, 0, 300, 300) == 255).all()
    reader.close()
    assert largest_difference(path, n_places=3) == 0


def test_missing_tiles_of_a_sparse_slide_are_white(slide_of: SlideOf) -> None:
    reader = TiffReader(slide_of("sparse.tif"))
    assert (reader.read_region(0, 0, 0, 40, 40) == 255).all()
    assert reader.read_region(0, 400, 300, 100, 100).mean() < 235
    reader.close()


@pytest.mark.parametrize(("mpp", "source"), [(0.5, "metadata"), (None, "unknown"), (352.8, "unknown")])
def test_only_a_resolution_that_a_scanner_makes_is_believed(tmp_path: Path, mpp: float | None, source: str) -> None:
    path = slides.write_pyramid(tmp_path / "a.tif", width_px=300, height_px=300, mpp=mpp)
    reader = TiffReader(path)
    assert reader.describe().resolution.source is ResolutionSource(source)
    reader.close()


@pytest.mark.parametrize(
    "tags",
    [
        {"software": "MedScan 1.2", "description": "OverlapsXY= 16 16"},
        {"extratags": [(700, 1, 16, b"<iScan x='1'   />"[:16], True)]},
    ],
)
def test_formats_with_overlapping_tiles_are_left_to_openslide(tmp_path: Path, tags: dict[str, object]) -> None:
    path = tmp_path / "overlapping.tif"
    tifffile.imwrite(path, np.zeros((512, 512, 3), np.uint8), tile=(256, 256), photometric="rgb", metadata=None, **tags)
    assert TiffReader.score(path) == 0
    assert choose_reader(path) is not TiffReader


def test_tiled_tiff_that_is_not_8_bit_rgb_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "sixteen.tif"
    tifffile.imwrite(path, np.zeros((512, 512, 3), np.uint16), tile=(256, 256), photometric="rgb")
    with pytest.raises(UnknownFormatError, match=r"sixteen\.tif.*8-bit RGB"):
        TiffReader(path)


def test_ome_xml_cannot_make_the_reader_open_another_file(tmp_path: Path) -> None:
    other = slides.write_ome_tiff(
        tmp_path / "other.ome.tif", slides.make_levels(slides.paint_tissue(600, 500), count=1)
    )
    path = tmp_path / "hostile.ome.tif"
    with tifffile.TiffFile(other) as tiff:
        xml = str(tiff.ome_metadata)
    reference = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="other.ome.tif">urn:uuid:1</UUID></TiffData>'
    hostile = xml.replace('<TiffData IFD="0" PlaneCount="1"/>', reference)
    assert hostile != xml
    glass = np.full((500, 600, 3), 250, np.uint8)
    tifffile.imwrite(path, glass, tile=(256, 256), photometric="rgb", description=hostile.encode(), metadata=None)
    reader = TiffReader(path)
    assert reader.read_region(0, 200, 200, 100, 100).mean() == 250
    reader.close()
