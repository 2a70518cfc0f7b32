"""Baselines of a slide: real bytes of its very tissue, intervals that hold, a viewing model."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from slideway.core.bag import EmbeddingBag, Sampling
from slideway.core.errors import WrongUseError
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.core.tissue import TileGrid
from slideway.pipeline.baselines import (
    StillCodecs,
    ViewedLevel,
    ViewingModel,
    at_own_resolution,
    estimate_total,
    lay_viewer_tiles,
    measure_baselines,
)
from slideway.slides import open_slide
from slideway.slides.files import hash_slide
from slideway.testing import slides as synthetic

QUICK = StillCodecs(jpegxl_effort=1)


def bag_of(grid, sha256):
    return EmbeddingBag(
        np.zeros((len(grid), 4), np.float16), grid, np.ones(len(grid), np.float32), "toy", "f" * 64, sha256
    )


def grid_of(columns, rows, *, tile_px=224, mpp=0.5):
    places = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    return TileGrid(places.astype(np.int32), tile_px, 0.5, mpp)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """1,600 × 1,400 px at 0.5 µm/px, tissue from edge to edge."""
    path = tmp_path_factory.mktemp("slide") / "full.tif"
    pixels = synthetic.paint_tissue(1600, 1400, fills_all=True)
    return synthetic.write_pyramid(path, synthetic.make_levels(pixels), mpp=0.5)


@pytest.fixture(scope="module")
def exact(slide):
    return measure_baselines(slide, bag_of(grid_of(4, 3), hash_slide(slide)), sample=None, codecs=QUICK)


def test_the_jpeg_baseline_is_the_sum_of_the_tiles_own_jpegs(slide, exact):
    expected = 0
    with open_slide(slide) as opened:
        for batch in opened.read_tiles(grid_of(4, 3)):
            for tile in batch.tiles:
                file = io.BytesIO()
                Image.fromarray(tile).save(file, "JPEG", quality=80, subsampling="4:2:0", optimize=True)
                expected += file.tell()
    assert exact.jpeg.n_bytes == expected
    assert (exact.jpeg.tiles, exact.jpeg.counted, exact.jpeg.is_exact) == (12, 12, True)
    assert exact.jpeg.low == exact.jpeg.high == expected


def test_jpeg_2000_has_the_ratio_that_its_name_says(exact):
    raw = 12 * 224 * 224 * 3
    assert raw / exact.jpeg2000.n_bytes == pytest.approx(20, rel=0.05)
    assert raw / exact.jpeg2000_limit.n_bytes == pytest.approx(32, rel=0.05)
    assert exact.psnr_db["jpeg2000"] > exact.psnr_db["jpeg2000_limit"] + 1


def test_a_worse_quality_takes_fewer_bytes(slide, exact):
    bag = bag_of(grid_of(4, 3), hash_slide(slide))
    worse = measure_baselines(
        slide, bag, sample=None, codecs=StillCodecs(jpeg_quality=40, jpegxl_distance=4.0, jpegxl_effort=1)
    )
    assert worse.jpeg.n_bytes < exact.jpeg.n_bytes
    assert worse.jpegxl.n_bytes < exact.jpegxl.n_bytes
    assert worse.psnr_db["jpegxl"] < exact.psnr_db["jpegxl"]


def test_half_the_tissue_costs_half_the_bytes(slide, exact):
    half = measure_baselines(slide, bag_of(grid_of(2, 3), hash_slide(slide)), sample=None, codecs=QUICK)
    assert half.jpeg.n_bytes == pytest.approx(exact.jpeg.n_bytes / 2, rel=0.05)
    assert half.jpegxl.n_bytes == pytest.approx(exact.jpegxl.n_bytes / 2, rel=0.05)
    assert half.viewing.n_bytes < exact.viewing.n_bytes


def test_a_sample_is_seeded_and_its_interval_holds_the_exact_total(slide, exact):
    bag = bag_of(grid_of(4, 3), hash_slide(slide))
    drawn = [measure_baselines(slide, bag, sample=6, seed=seed, codecs=QUICK) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1]
    assert drawn[0].jpeg != drawn[2].jpeg
    assert (drawn[0].jpeg.counted, drawn[0].jpeg.tiles, drawn[0].jpeg.is_exact) == (6, 12, False)
    assert drawn[0].jpeg.low < exact.jpeg.n_bytes < drawn[0].jpeg.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    sizes = random.gamma(4, 3000, 2000)
    hits = 0
    for _ in range(400):
        estimate = estimate_total(random.choice(sizes, 200, replace=False), len(sizes))
        hits += estimate.low <= sizes.sum() <= estimate.high
    assert 0.91 < hits / 400 < 0.985


def test_a_tile_that_stands_for_others_counts_as_often(slide):
    bag = bag_of(grid_of(2, 1), hash_slide(slide))
    whole = measure_baselines(slide, bag, codecs=QUICK)
    sampling = Sampling(np.zeros(2, np.uint8), np.full(2, 3, np.float32))
    sampled = measure_baselines(slide, dataclasses.replace(bag, sampling=sampling), codecs=QUICK)
    assert sampled.jpeg.n_bytes == 3 * whole.jpeg.n_bytes
    assert sampled.jpegxl.n_bytes == 3 * whole.jpegxl.n_bytes


def test_a_slide_without_tissue_has_no_tissue_baseline(slide):
    empty = measure_baselines(slide, bag_of(grid_of(0, 0), hash_slide(slide)), codecs=QUICK)
    assert [empty.jpeg.n_bytes, empty.jpeg2000.n_bytes, empty.jpegxl.n_bytes, empty.viewing.n_bytes] == [0, 0, 0, 0]
    assert empty.file_bytes == slide.stat().st_size


def test_another_file_than_the_one_that_was_read_is_refused(slide):
    with pytest.raises(WrongUseError, match="not the slide that was read"):
        measure_baselines(slide, bag_of(grid_of(1, 1), "0" * 64))


def test_at_its_own_resolution_a_tile_holds_the_pixels_of_level_0(slide):
    grid = TileGrid(np.array([[1, 2]], np.int32), 224, 0.5, 0.522)
    own = at_own_resolution(grid)
    assert own.tile_px == 215
    assert own.tile_level0_px == pytest.approx(grid.tile_level0_px)
    np.testing.assert_array_equal(own.xy_level0_px, grid.xy_level0_px)


def test_tiles_at_its_own_resolution_are_not_resized(tmp_path):
    pixels = synthetic.paint_tissue(900, 500, mpp=0.3, fills_all=True)
    path = synthetic.write_pyramid(tmp_path / "s.tif", [pixels], mpp=0.3, compression="zlib")
    own = at_own_resolution(grid_of(2, 1, mpp=0.3))
    assert own.tile_px == 373
    with open_slide(path) as opened:
        (batch,) = opened.read_tiles(own)
    np.testing.assert_array_equal(batch.tiles[1], pixels[:373, 373:746])


def test_a_viewer_fetches_every_tile_of_its_pyramid_that_tissue_touches():
    slide = Slide("s", "v", "r", (Level(4000, 3000, 1.0),), Resolution(0.25, ResolutionSource.GIVEN))
    grid = TileGrid(np.array([[0, 0], [3, 2]], np.int32), 224, 0.5, 0.25)  # squares of 448 px at 0 and (1344, 896)
    finest = lay_viewer_tiles(slide, grid, 0, 256, whole=False).column_row.tolist()
    expected = {(x, y) for x in (0, 1) for y in (0, 1)} | {(x, y) for x in (5, 6) for y in (3, 4, 5)}
    assert finest == sorted(map(list, expected), key=lambda place: (place[1], place[0]))
    coarse = lay_viewer_tiles(slide, grid, 3, 256, whole=False)
    assert (coarse.column_row.tolist(), coarse.tile_mpp) == ([[0, 0]], 2.0)
    assert len(lay_viewer_tiles(slide, grid, 3, 256, whole=True)) == 2 * 2


def test_shares_of_the_viewing_model_scale_its_bytes(slide):
    bag = bag_of(grid_of(2, 2), hash_slide(slide))

    def stream(*levels):
        return measure_baselines(slide, bag, sample=None, codecs=QUICK, model=ViewingModel(levels)).viewing.n_bytes

    whole, part = ViewedLevel("20x", 0.5, 1.0, "test"), ViewedLevel("20x", 0.5, 0.25, "test")
    everything = stream(whole)
    assert stream(part) == pytest.approx(everything / 4, abs=1)
    assert stream(whole, ViewedLevel("40x", 0.25, 1.0, "test")) == everything  # not scanned that fine
