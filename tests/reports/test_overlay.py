from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from slideway.core.findings import TissueGroups
from slideway.core.slide import ResolutionSource
from slideway.core.tissue import TileGrid
from slideway.reports import FocusSummary, SlideMaps, draw_overlay
from slideway.reports.palette import (
    ATTENTION_BANDS,
    MOST_ATTENDED_COLOUR,
    MOST_NOVEL_COLOUR,
    PUSH_COLOUR,
    TISSUE_COLOUR,
    Pattern,
    colour_of_group,
)
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


Attend = Callable[..., SlideMaps]


def white(maps: SlideMaps) -> SlideMaps:
    return replace(maps, thumbnail=np.full_like(maps.thumbnail, 255), excluded=None)


def test_attention_is_a_fourth_map_with_words_for_every_band_and_pattern(
    maps: SlideMaps, make_attention: Attend
) -> None:
    panels = draw_panels(make_attention(replace(maps, excluded=None)), width_px=900)
    assert [panel.name for panel in panels[2:]] == ["Novelty: how unlike the reference set", "Attention: Neoplastic?"]
    legend = panels[3].legend
    assert [entry.text.split(":")[0] for entry in legend[:4]] == [band.text for band in ATTENTION_BANDS[::-1]]
    assert [entry.pattern for entry in legend[4:]] == [Pattern.HATCH, Pattern.BACK_HATCH]
    assert legend[4].text == "pushes towards its likeliest answer"
    assert "Neoplastic?" in panels[3].description


def test_bands_of_attention_hold_their_share_of_tiles_and_say_their_share_of_attention(
    make_maps: Callable[..., SlideMaps], make_attention: Attend
) -> None:
    maps = make_maps(1400, 1100)
    count = len(maps.grid)
    weight = np.full(count, 1e-6)
    hot = np.random.default_rng(0).permutation(count)[: count // 100]
    weight[hot] = 1 + np.arange(len(hot))
    legend = draw_panels(make_attention(maps, weight, np.zeros(count)), width_px=600)[3].legend
    assert legend[0].text in {f"top 1 % of tiles: {share} of the attention" for share in ("> 99.9 %", "99.9 %")}
    # Tiles that nobody looked at more than at others stand in the lowest band, all of them.
    assert [entry.text.split(": ")[1] for entry in legend[1:3]] == ["0 %", "0 %"]


def test_even_attention_marks_no_tile(maps: SlideMaps, make_attention: Attend) -> None:
    panel = draw_panels(make_attention(white(maps), np.ones(len(maps.grid))), width_px=900)[3]
    assert not shows(panel.picture, MOST_ATTENDED_COLOUR)
    assert not shows(panel.picture, PUSH_COLOUR)
    assert panel.legend[3].text == "other 80 %: 100 %"


def test_one_tile_in_a_small_slide_is_the_top_one(make_maps: Callable[..., SlideMaps], make_attention: Attend) -> None:
    maps = white(make_maps(150, 100))
    weight = np.ones(len(maps.grid))
    weight[5] = 9
    picture = draw_panels(make_attention(maps, weight, np.zeros(len(maps.grid))), width_px=900)[3].picture
    y, x = np.nonzero((picture == np.array(MOST_ATTENDED_COLOUR)).all(axis=2))
    column, row = maps.grid.column_row[5]
    assert column == round(float(x.mean()) / 84 - 0.5)
    assert row == round(float(y.mean()) / 84 - 0.5)


@pytest.mark.parametrize(("push", "slope"), [(1.0, -1), (-1.0, 1)], ids=["towards", "against"])
def test_the_hatch_leans_the_way_the_tile_pushes_and_leaves_most_of_it_free(
    make_maps: Callable[..., SlideMaps], make_attention: Attend, push: float, slope: int
) -> None:
    maps = white(make_maps(150, 100))
    weight = np.ones(len(maps.grid))
    weight[5] = 9
    panel = draw_panels(make_attention(maps, weight, np.full(len(maps.grid), push)), width_px=900)[3]
    column, row = maps.grid.column_row[5]
    tile = panel.picture[row * 84 + 8 : row * 84 + 76, column * 84 + 8 : column * 84 + 76]
    lines = (tile == np.array(PUSH_COLOUR)).all(axis=2)
    assert 0.05 < lines.mean() < 0.2
    step = np.roll(lines, slope, axis=1)[:-1, 2:-2]
    assert (step == lines[1:, 2:-2]).all()
    assert len(panel.legend) == 5


def test_tiles_too_fine_to_hatch_carry_a_sign_beside_them(
    make_maps: Callable[..., SlideMaps], make_attention: Attend
) -> None:
    maps = white(make_maps(1500, 1000))
    xy = maps.grid.column_row
    centre = xy.mean(axis=0)
    weight = np.exp(-((xy - centre * [0.6, 1.0]) ** 2).sum(axis=1) / 50)
    weight += np.exp(-((xy - centre * [1.4, 1.0]) ** 2).sum(axis=1) / 50)
    panel = draw_panels(make_attention(maps, weight, np.where(xy[:, 0] < centre[0], 1, -1)), width_px=600)[3]
    assert [entry.pattern for entry in panel.legend[4:]] == [Pattern.PLUS, Pattern.MINUS]
    dark = (panel.picture == np.array(PUSH_COLOUR)).all(axis=2)
    # A + leaves less of its dark disc than a - does: + stands on the left, - on the right.
    left, right = dark[:, :300].sum(), dark[:, 300:].sum()
    assert 0 < left < right < 0.02 * dark.size


def test_attention_gives_the_same_pixels_and_leaves_the_callers_arrays(
    make_maps: Callable[..., SlideMaps], make_attention: Attend
) -> None:
    maps = make_attention(make_maps())
    first, second = draw_overlay(maps), draw_overlay(make_attention(make_maps()))
    assert np.array_equal(first, second)
    assert maps.attention is not None
    assert maps.attention.weight.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("width_px", "height_px"),
    [(125, 190), (600, 600), (1250, 700), (1500, 500), (2500, 190), (190, 2500), (4000, 40), (40, 4000), (70, 70)],
)
def test_four_maps_of_every_shape_of_slide_give_a_readable_picture(
    make_maps: Callable[..., SlideMaps], make_attention: Attend, width_px: int, height_px: int
) -> None:
    picture = draw_overlay(make_attention(make_maps(width_px, height_px)), title_lines=["x.svs"], notes=["n " * 300])
    assert max(picture.shape) <= 3000
    assert picture.shape[1] >= 2000


def test_four_maps_stand_in_a_row_two_by_two_or_stacked(
    make_maps: Callable[..., SlideMaps], make_attention: Attend
) -> None:
    row, square, stack = (
        draw_overlay(make_attention(make_maps(*size))) for size in ((400, 350), (900, 300), (2500, 190))
    )
    assert [columns_of(picture) for picture in (row, square, stack)] == [4, 2, 1]
    assert row.shape[0] < square.shape[0] < square.shape[1]


def columns_of(picture: np.ndarray) -> int:
    """Runs of glass along the line that crosses most of it: pictures beside each other."""
    pale = (picture > 225).all(axis=2)
    line = pale[np.argmax(pale.sum(axis=1))]
    steps = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return int((np.diff(steps)[::2] > 100).sum())


def test_attention_of_another_grid_is_the_callers_mistake(maps: SlideMaps, make_attention: Attend) -> None:
    attended = make_attention(maps)
    with pytest.raises(ValueError, match="one weight for each tile"):
        replace(attended, grid=maps.grid.select(np.arange(3)), groups=TissueGroups(np.zeros(3, np.int16), ((),)),
                novelty=None)  # fmt: skip


def test_no_tile_and_no_attention_give_the_picture_of_before(empty_maps: SlideMaps, make_attention: Attend) -> None:
    assert [panel.name for panel in draw_panels(make_attention(empty_maps), width_px=300)] == ["Tissue"]
