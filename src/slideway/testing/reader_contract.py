"""The contract of a slide reader as a test class: derive from it for your own reader.

```python
class TestMyReader(ReaderContract):
    @pytest.fixture
    def case(self) -> ReaderCase:
        return ReaderCase(MyReader, Path("a-small-slide.xyz"), width_px=2220, height_px=2967)
```
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from slideway.core.errors import SlidewayError
from slideway.core.slide import ResolutionSource
from slideway.slides.reader import PARSER_ERRORS, SlideReader


@dataclass(frozen=True)
class ReaderCase:
    """A reader and a slide it must read.

    Attributes:
        reader: The class under test.
        path: A small slide (a file or a folder) that it reads.
        width_px: True width of level 0.
        height_px: True height of level 0.
        mpp: True µm/px, None when the slide states none.
        tolerance: How far pixels may differ when a region is cut from a larger one (0, or 1 where a library blends).
    """

    reader: type[SlideReader]
    path: Path
    width_px: int
    height_px: int
    mpp: float | None = None
    tolerance: int = 0


class ReaderContract:
    """What Slideway relies on in every reader."""

    @pytest.fixture
    def case(self) -> ReaderCase:
        """Say which reader is tested on which slide."""
        raise NotImplementedError("override the fixture `case`")

    @pytest.fixture
    def reader(self, case: ReaderCase) -> Iterator[SlideReader]:
        """Open the slide for one test."""
        reader = case.reader(case.path)
        yield reader
        reader.close()

    def test_reader_claims_its_own_slide(self, case: ReaderCase) -> None:
        """The score is a whole number from 1 to 100."""
        assert isinstance(case.reader, type)
        score = case.reader.score(case.path)
        assert isinstance(score, int)
        assert 0 < score <= 100

    @pytest.mark.parametrize("content", [b"", b"just some text\n", bytes(range(256)) * 8])
    def test_reader_leaves_foreign_files_alone(self, case: ReaderCase, content: bytes, tmp_path: Path) -> None:
        """The score of what is no slide is 0, and asking for it never raises."""
        foreign = tmp_path / "foreign.bin"
        foreign.write_bytes(content)
        assert case.reader.score(foreign) == 0

    def test_reader_leaves_an_empty_folder_alone(self, case: ReaderCase, tmp_path: Path) -> None:
        """A folder that holds nothing is no slide."""
        assert case.reader.score(tmp_path) == 0

    def test_description_is_true(self, case: ReaderCase, reader: SlideReader) -> None:
        """Name, size and resolution are those of the slide; levels come finest first."""
        slide = reader.describe()
        assert slide.name == case.path.name
        assert slide.reader == case.reader.name
        assert (slide.width_px, slide.height_px) == (case.width_px, case.height_px)
        assert slide.levels[0].downsample == 1.0
        assert all(a.downsample < b.downsample for a, b in zip(slide.levels, slide.levels[1:], strict=False))
        for level in slide.levels:
            assert level.downsample == pytest.approx(case.width_px / level.width_px, rel=0.05)
        if case.mpp is None:
            assert slide.resolution.mpp is None
            assert slide.resolution.source is ResolutionSource.UNKNOWN
        else:
            assert slide.resolution.mpp == pytest.approx(case.mpp, rel=0.01)
            assert slide.resolution.source is ResolutionSource.METADATA
        assert slide.resolution.detail

    def test_regions_are_rgb_of_the_size_asked_for(self, reader: SlideReader) -> None:
        """Every level gives (height, width, 3) uint8."""
        for index in range(len(reader.describe().levels)):
            region = reader.read_region(index, 0, 0, 31, 17)
            assert region.shape == (17, 31, 3)
            assert region.dtype == np.uint8

    def test_beyond_the_edge_all_is_white(self, reader: SlideReader) -> None:
        """Left, right, above and below the slide."""
        for index, level in enumerate(reader.describe().levels):
            for x, y in ((-50, 0), (level.width_px, 0), (0, -50), (0, level.height_px), (-10_000, -10_000)):
                assert (reader.read_region(index, x, y, 50, 50) == 255).all(), (index, x, y)

    def test_region_over_the_edge_keeps_its_place(self, case: ReaderCase, reader: SlideReader) -> None:
        """What lies inside is where it would be without the edge."""
        corner = reader.read_region(0, 0, 0, 40, 40)
        shifted = reader.read_region(0, -7, -9, 47, 49)
        _assert_close(shifted[9:, 7:], corner, case.tolerance)
        assert (shifted[:9] == 255).all()
        assert (shifted[:, :7] == 255).all()

    def test_position_never_drifts(self, case: ReaderCase, reader: SlideReader) -> None:
        """A region equals the same part of a larger one, everywhere on level 0."""
        width, height = min(case.width_px, 900), min(case.height_px, 700)
        whole = reader.read_region(0, 0, 0, width, height)
        for x, y in ((0, 0), (1, 3), (width // 3, height // 2), (width - 33, height - 21), (255, 257)):
            part = whole[y : y + 21, x : x + 33]
            region = reader.read_region(0, x, y, part.shape[1], part.shape[0])
            _assert_close(region, part, case.tolerance)

    def test_coarser_levels_show_the_same_picture(self, reader: SlideReader) -> None:
        """The mean colour of every level is that of the finest (a swapped channel or level would show)."""
        levels = reader.describe().levels
        means = [
            reader.read_region(i, 0, 0, level.width_px, level.height_px).mean((0, 1)) for i, level in enumerate(levels)
        ]
        for mean in means[1:]:
            assert np.abs(mean - means[0]).max() < 6

    def test_side_images_are_those_described(self, reader: SlideReader) -> None:
        """Each named side image can be read; any other is a KeyError."""
        described = reader.describe().side_images
        for name in ("label", "macro", "thumbnail", "no such picture"):
            if name in described:
                picture = reader.read_side_image(name)
                assert picture.ndim == 3
                assert picture.shape[2] == 3
                assert picture.dtype == np.uint8
            else:
                with pytest.raises(KeyError):
                    reader.read_side_image(name)

    def test_icc_profile_is_as_described(self, reader: SlideReader) -> None:
        """`has_icc_profile` says whether `icc_profile` gives one."""
        profile = reader.icc_profile()
        assert (profile is not None) == reader.describe().has_icc_profile
        assert profile is None or profile[36:40] == b"acsp"

    def test_identifiers_are_names_and_never_values(self, reader: SlideReader) -> None:
        """Short names of fields, in order, each once."""
        identifiers = reader.describe().identifiers
        assert list(identifiers) == sorted(set(identifiers))
        assert all(0 < len(name) < 100 for name in identifiers)

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
    def test_truncated_slide_fails_cleanly(self, case: ReaderCase, share: float, tmp_path: Path) -> None:
        """A slide cut off anywhere reads, or raises what the worker can answer; it never hangs or lies about size."""
        if case.path.is_dir():
            pytest.skip("several files")
        cut = tmp_path / case.path.name
        shutil.copyfile(case.path, cut)
        with cut.open("r+b") as file:
            file.truncate(round(case.path.stat().st_size * share))
        try:
            reader = case.reader(cut)
        except (SlidewayError, *PARSER_ERRORS):
            return
        try:
            assert reader.describe().levels
            reader.read_region(0, 0, 0, case.width_px, case.height_px)
        except (SlidewayError, *PARSER_ERRORS):
            pass
        finally:
            reader.close()


def _assert_close(a: NDArray[np.uint8], b: NDArray[np.uint8], tolerance: int) -> None:
    assert a.shape == b.shape
    assert int(np.abs(a.astype(int) - b).max(initial=0)) <= tolerance
