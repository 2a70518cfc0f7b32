from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slideway.core.findings import TissueGroups
from slideway.core.slide import ResolutionSource
from slideway.core.tissue import TileGrid
from slideway.reports import FocusSummary, SlideMaps, draw_overlay
from slideway.reports.palette import MOST_NOVEL_COLOUR, TISSUE_COLOUR, Pattern, colour_of_group
from slideway.reports.panels import draw_focus_panel, draw_panels

AMBER = (0xE0, 0xA5, 0x26)


def shows(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour, np.uint8)).all(axis=2).any())


def test_overlay_is_an_rgb_picture_that_differs_from_its_ground(maps: SlideMaps) -> None:
    picture = draw_overlay(maps, title_lines=["slide.svs", "more"], notes=["a note"])
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture[::7, ::7].std() > 20


def test_same_input_gives_the_same_pixels(maps: SlideMaps) -> None:
    first, second = (draw_overlay(maps, title_lines=["slide.svs"], notes=["n"]) for _ in range(2))
    assert np.array_equal(first, second)


def test_the_callers_arrays_stay_as_they_were(make_maps: Callable[..., SlideMaps]) -> None:
    maps, untouched = make_maps(), make_maps()
    draw_overlay(maps)
    assert np.array_equal(maps.thumbnail, untouched.thumbnail)
    assert np.array_equal(maps.mask.pixels, untouched.mask.pixels)


@pytest.mark.parametrize(
    ("width_px", "height_px"),
    [(125, 190), (3125, 1250), (2500, 190), (190, 2500), (4000, 40), (40, 4000), (1, 1), (1, 900), (900, 1)],
    ids=["fragment", "wide", "core", "core on end", "thread", "thread on end", "pixel", "line down", "line across"],
)
def test_every_shape_of_slide_gives_a_readable_picture(
    make_maps: Callable[..., SlideMaps], width_px: int, height_px: int
) -> None:
    picture = draw_overlay(make_maps(width_px, height_px), title_lines=["x" * 200 + ".svs"], notes=["n " * 300])
    height, width = picture.shape[:2]
    assert max(height, width) <= 3000
    assert width >= 600
    assert height >= 300


def test_a_tiny_fragment_is_enlarged_and_a_large_slide_reduced(make_maps: Callable[..., SlideMaps]) -> None:
    small, large = draw_overlay(make_maps(125, 190)), draw_overlay(make_maps(1250, 1900))
    assert small.shape[1] == large.shape[1] > 2000


def test_wide_slides_are_stacked_and_tall_ones_stand_side_by_side(make_maps: Callable[..., SlideMaps]) -> None:
    wide, tall = draw_overlay(make_maps(1000, 300)), draw_overlay(make_maps(300, 400))
    assert wide.shape[0] > 0.7 * wide.shape[1]
    assert tall.shape[1] > tall.shape[0]


def test_no_tissue_gives_one_panel_with_words(empty_maps: SlideMaps) -> None:
    picture = draw_overlay(empty_maps, title_lines=["empty.svs"])
    glass = (picture > 200).all(axis=2)
    middle = picture[picture.shape[0] // 2 - 60 : picture.shape[0] // 2 + 60, picture.shape[1] // 2 - 150 :][:, :300]
    assert [panel.name for panel in draw_panels(empty_maps, width_px=300)] == ["Tissue"]
    assert glass.mean() > 0.3
    assert (middle < 40).all(axis=2).mean() > 0.2  # the dark plate that carries the words


def test_what_left_a_slide_without_tiles_is_told_apart(maps: SlideMaps, empty_maps: SlideMaps) -> None:
    nothing = TileGrid(np.zeros((0, 2), np.int32), 224, 0.5, 0.5)
    bare = replace(maps, grid=nothing, groups=TissueGroups(np.zeros(0, np.int16), ()), novelty=None)
    pictures = [draw_overlay(m) for m in (bare, replace(bare, excluded=None), empty_maps)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_without_reference_set_there_is_no_novelty_map(maps: SlideMaps) -> None:
    names = [panel.name for panel in draw_panels(replace(maps, novelty=None), width_px=300)]
    assert names == ["Tissue", "Groups of like tiles"]
    assert draw_overlay(replace(maps, novelty=None)).shape != draw_overlay(maps).shape


def test_an_estimated_resolution_is_marked_in_amber(make_maps: Callable[..., SlideMaps]) -> None:
    stated, estimated = make_maps(), make_maps(source=ResolutionSource.ESTIMATED)
    assert shows(draw_overlay(estimated), AMBER)
    assert not shows(draw_overlay(stated), AMBER)
    assert draw_panels(estimated, width_px=300)[0].legend[0].text.startswith("tissue ≈")


def test_tissue_panel_outlines_tissue_and_marks_pen_fold_and_blur(maps: SlideMaps) -> None:
    panel = draw_panels(maps, width_px=900)[0]
    assert shows(panel.picture, TISSUE_COLOUR)
    assert [(entry.text.split()[0], entry.pattern) for entry in panel.legend] == [
        ("tissue", Pattern.LINE),
        ("fold?", Pattern.BACK_HATCH),
        ("pen", Pattern.CROSS_HATCH),
        ("blurred:", Pattern.HATCH),
    ]


def test_each_tile_is_tinted_in_its_groups_colour_exactly_where_it_lies(make_maps: Callable[..., SlideMaps]) -> None:
    maps = replace(make_maps(seed=3), thumbnail=np.full((200, 300, 3), 255, np.uint8))
    silent = replace(maps, groups=TissueGroups(maps.groups.group, ((),) * 8), excluded=None)
    bare_mask = replace(silent.mask, pixels=np.zeros_like(silent.mask.pixels))
    picture = draw_panels(replace(silent, mask=bare_mask), width_px=600)[1].picture
    for (column, row), group in zip(maps.grid.column_row, maps.groups.group, strict=True):
        tile = picture[row * 28 : (row + 1) * 28, column * 28 : (column + 1) * 28]
        tint = np.rint(0.7 * np.array(colour_of_group(int(group))) + 0.3 * 255)
        assert (np.abs(tile.astype(int) - tint) <= 1).all()
    tiled_px = len(maps.grid) * 28 * 28
    assert (picture != 255).any(axis=2).sum() == tiled_px


def test_tiles_do_not_drift_on_a_picture_whose_pixels_do_not_divide_them(make_maps: Callable[..., SlideMaps]) -> None:
    maps = make_maps(2000, 100)
    last = TileGrid(np.array([[141, 1]], np.int32), 224, 0.5, 0.5)
    alone = replace(
        maps,
        grid=last,
        groups=TissueGroups(np.zeros(1, np.int16), ((),)),
        novelty=None,
        excluded=None,
        mask=replace(maps.mask, pixels=np.zeros_like(maps.mask.pixels)),
        thumbnail=np.full((100, 2000, 3), 255, np.uint8),
    )
    columns = np.flatnonzero((draw_panels(alone, width_px=777)[1].picture != 255).any(axis=(0, 2)))
    um_per_px = 16_000 / 777
    assert abs(columns[0] * um_per_px - 141 * 112) <= um_per_px
    assert abs((columns[-1] + 1) * um_per_px - 142 * 112) <= um_per_px


def test_a_single_most_novel_tile_is_seen_on_a_large_slide(make_maps: Callable[..., SlideMaps]) -> None:
    maps = make_maps(3000, 2000)
    assert maps.novelty is not None
    percentile = np.full(len(maps.grid), 10, np.float32)
    percentile[len(percentile) // 2] = 99.9
    picture = draw_panels(replace(maps, novelty=replace(maps.novelty, percentile=percentile)), width_px=600)[2].picture
    assert (picture == np.array(MOST_NOVEL_COLOUR)).all(axis=2).sum() >= 8


def test_a_mask_of_another_size_than_the_thumbnail_lies_in_the_same_place(maps: SlideMaps) -> None:
    coarse = replace(
        maps.mask,
        pixels=maps.mask.pixels[::2, ::2],
        pen=maps.mask.pen[::2, ::2],
        fold=maps.mask.fold[::2, ::2],
        mpp=maps.mask.mpp * 2,
    )
    fine_outline, coarse_outline = (
        (draw_panels(m, width_px=600)[0].picture == np.array(TISSUE_COLOUR)).all(axis=2)
        for m in (maps, replace(maps, mask=coarse))
    )
    for axis in (0, 1):
        fine_px, coarse_px = (np.flatnonzero(outline.any(axis=axis)) for outline in (fine_outline, coarse_outline))
        assert abs(int(fine_px[0]) - int(coarse_px[0])) <= 6
        assert abs(int(fine_px[-1]) - int(coarse_px[-1])) <= 6


def test_more_than_eight_groups_each_keep_their_number(make_maps: Callable[..., SlideMaps]) -> None:
    maps = make_maps(groups=11)
    legend = draw_panels(maps, width_px=600)[1].legend
    assert [entry.text.split("  ")[0] for entry in legend[:11]] == [f"Group {n}" for n in range(1, 12)]


def test_focus_that_cannot_be_told_is_left_untinted(maps: SlideMaps) -> None:
    unknown = FocusSummary(maps.grid, np.full(len(maps.grid), np.nan, np.float32), 9.0)
    sharp = FocusSummary(maps.grid, np.full(len(maps.grid), 99.0, np.float32), 9.0)
    white = replace(maps, thumbnail=np.full_like(maps.thumbnail, 255), excluded=None)
    assert (draw_focus_panel(white, unknown, width_px=300).picture == 255).all()
    assert (draw_focus_panel(white, sharp, width_px=300).picture != 255).any()


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5), (5, 5, 4)])
def test_a_thumbnail_that_is_no_rgb_picture_is_the_callers_mistake(maps: SlideMaps, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="thumbnail"):
        replace(maps, thumbnail=np.zeros(shape, np.uint8))


def test_groups_and_novelty_of_another_grid_are_the_callers_mistake(maps: SlideMaps) -> None:
    with pytest.raises(ValueError, match="one group for each tile"):
        replace(maps, grid=maps.grid.select(np.arange(3)), novelty=None)
    with pytest.raises(ValueError, match="one percentile for each tile"):
        replace(maps, novelty=replace(maps.novelty, percentile=np.zeros(2, np.float32)))
