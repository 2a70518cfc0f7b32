"""Damaged headers, thousands of them: only the errors the worker can answer escape, and never late.

Longer runs, guided by coverage: bench/fuzz/fuzz_headers.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideway.core.errors import SlidewayError
from slideway.slides import open_slide
from slideway.slides.reader import PARSER_ERRORS
from slideway.slides.tiff import TiffReader
from slideway.testing import slides

Damage = list[tuple[int, int, bytes]]
ANSWERED = (SlidewayError, *PARSER_ERRORS, MemoryError)  # the worker answers each of them by name


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, list[int]]]:
    """Valid small slides and the places of their directories, where damage does most."""
    folder = tmp_path_factory.mktemp("seeds")
    levels = slides.make_levels(slides.paint_tissue(400, 300), factor=2, count=2)
    paths = [
        slides.write_pyramid(folder / "a.tif", levels),
        slides.write_pyramid(folder / "b.tif", levels, compression="lzw"),
        slides.write_pyramid(folder / "c.tif", levels, is_bigtiff=True),
        slides.write_svs(folder / "d.svs", levels),
        slides.write_ome_tiff(folder / "e.ome.tif", levels),
        slides.write_jpeg2000(folder / "f.svs", levels, as_ycbcr=True),
    ]
    seeds = []
    for path in paths:
        with tifffile.TiffFile(path) as tiff:
            places = [0, *(page.offset for page in tiff.pages)]
        seeds.append((path.read_bytes(), places))
    return seeds


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    logging.disable(logging.CRITICAL)  # tifffile tells of every odd tag
    yield tmp_path_factory.mktemp("fuzz")
    logging.disable(logging.NOTSET)


# Which directory, how far into it, which bytes: mostly the extremes that overflow, loop or point nowhere.
EXTREMES = [b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\0\0\0"]
DAMAGE = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 400), st.sampled_from(EXTREMES) | st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=6,
)


def apply_damage(seed: tuple[bytes, list[int]], damage: Damage, keep: float) -> bytes:
    content, places = bytearray(seed[0]), seed[1]
    for place, offset, replacement in damage:
        at = places[place % len(places)] + offset
        content[at : at + len(replacement)] = replacement[: max(0, len(content) - at)]
    return bytes(content[: round(len(content) * keep)])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 5), damage=DAMAGE, keep=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.3]))
def test_damaged_header_raises_what_the_worker_can_answer_and_in_time(
    seeds: list[tuple[bytes, list[int]]], scratch: Path, which: int, damage: Damage, keep: float
) -> None:
    path = scratch / "damaged.svs"
    path.write_bytes(apply_damage(seeds[which], damage, keep))
    began = time.monotonic()
    assert 0 <= TiffReader.score(path) <= 100
    try:
        reader = TiffReader(path)
    except ANSWERED:
        return
    finally:
        assert time.monotonic() - began < 10
    try:
        slide = reader.describe()
        for index in range(len(slide.levels)):
            reader.read_region(index, 0, 0, 300, 300)
        for name in slide.side_images:
            reader.read_side_image(name)
    except ANSWERED:
        pass
    finally:
        reader.close()
        assert time.monotonic() - began < 10


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 5), damage=DAMAGE, keep=st.sampled_from([1.0, 1.0, 0.5]))
def test_damaged_header_through_the_sandbox_is_a_slide_or_a_named_refusal(
    seeds: list[tuple[bytes, list[int]]], scratch: Path, which: int, damage: Damage, keep: float
) -> None:
    path = scratch / "boxed.svs"
    path.write_bytes(apply_damage(seeds[which], damage, keep))
    try:
        with open_slide(path) as opened:
            opened.read_region(0, 0, 0, 300, 300)
    except SlidewayError as error:
        assert "boxed.svs" in str(error)
        assert str(scratch) not in str(error)
