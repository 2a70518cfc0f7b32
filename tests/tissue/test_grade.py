"""Every verdict has its reasons, and every reason is documented."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import slideway.tissue.grade
from slideway.core.slide import ResolutionSource
from slideway.core.tissue import QualityGrade, TissueMask, Verdict
from slideway.tissue import grade_quality

SHAPE = (400, 500)


def mask(*, pen_px: int = 0, fold_px: int = 0, tissue: tuple[slice, slice] = np.s_[100:300, 100:400]) -> TissueMask:
    pixels, pen, fold = (np.zeros(SHAPE, dtype=bool) for _ in range(3))
    pixels[tissue] = True
    pen[150:250, 150 : 150 + pen_px] = True
    fold[150:250, 150 : 150 + fold_px] = True
    return TissueMask(pixels & ~pen, mpp=8.0, pen=pen, fold=fold, scanned=np.ones(SHAPE, dtype=bool))


def grade(found: TissueMask | None = None, **changes: object) -> QualityGrade:
    arguments: dict[str, object] = {
        "slide_mpp": 0.25,
        "tile_mpp": 0.5,
        "resolution_source": ResolutionSource.METADATA,
        "focus": np.full(100, 1.8, dtype=np.float32),
    }
    return grade_quality(mask() if found is None else found, **(arguments | changes))  # type: ignore[arg-type]


def codes(quality: QualityGrade) -> set[str]:
    return {reason.code for reason in quality.reasons}


def focus_with(blurred: int, unknown: int = 0) -> NDArray[np.float32]:
    focus = np.full(100, 1.8, dtype=np.float32)
    focus[:blurred] = 1.1
    focus[blurred : blurred + unknown] = np.nan
    return focus


def test_clean_slide_is_readable_without_reasons() -> None:
    quality = grade()
    assert quality.verdict is Verdict.READABLE
    assert quality.reasons == ()
    assert quality.measures["blurred_share"] == 0


def test_no_tissue_is_an_answer_with_its_figure() -> None:
    quality = grade(mask(tissue=np.s_[0:0, 0:0]))
    assert quality.verdict is Verdict.NO_TISSUE
    assert codes(quality) == {"no-tissue"}
    assert quality.measures == {"tissue_mm2": 0.0}


def test_little_tissue_limits() -> None:
    quality = grade(mask(tissue=np.s_[100:140, 100:140]))
    assert quality.verdict is Verdict.LIMITED
    assert codes(quality) == {"little-tissue"}


@pytest.mark.parametrize(("blurred", "verdict"), [(5, Verdict.READABLE), (20, Verdict.LIMITED), (60, Verdict.RESCAN)])
def test_share_of_blurred_tiles_decides(blurred: int, verdict: Verdict) -> None:
    quality = grade(focus=focus_with(blurred))
    assert quality.verdict is verdict
    assert quality.measures["blurred_share"] == pytest.approx(blurred / 100)
    assert ("blurred" in codes(quality)) == (verdict is not Verdict.READABLE)


def test_tiles_that_cannot_be_judged_do_not_count_as_sharp() -> None:
    quality = grade(focus=focus_with(20, unknown=50))
    assert quality.measures["blurred_share"] == pytest.approx(0.4)


def test_slide_whose_focus_cannot_be_judged_says_so() -> None:
    quality = grade(focus=focus_with(0, unknown=95))
    assert codes(quality) == {"focus-unknown"}
    assert grade(focus=np.full(10, np.nan, dtype=np.float32)).verdict is Verdict.LIMITED


@pytest.mark.parametrize(("pen_px", "verdict"), [(0, Verdict.READABLE), (100, Verdict.LIMITED)])
def test_ink_on_tissue_counts(pen_px: int, verdict: Verdict) -> None:
    quality = grade(mask(pen_px=pen_px))
    assert quality.verdict is verdict
    assert quality.measures["pen_share"] == pytest.approx(pen_px * 100 / (200 * 300))


def test_tissue_mostly_under_ink_is_to_be_cleaned_and_rescanned() -> None:
    found = mask()
    pen = np.zeros(SHAPE, dtype=bool)
    pen[110:290, 110:390] = True
    quality = grade(TissueMask(found.pixels & ~pen, 8.0, pen, found.fold, found.scanned))
    assert quality.verdict is Verdict.RESCAN
    assert codes(quality) == {"pen-on-tissue"}


def test_ink_beside_tissue_does_not_count() -> None:
    found = mask()
    pen = np.zeros(SHAPE, dtype=bool)
    pen[20:50, 20:480] = True
    assert grade(TissueMask(found.pixels, 8.0, pen, found.fold, found.scanned)).verdict is Verdict.READABLE


def test_folds_limit_and_never_ask_for_a_rescan() -> None:
    quality = grade(mask(fold_px=250))
    assert quality.verdict is Verdict.LIMITED
    assert codes(quality) == {"folded"}


def test_tissue_at_the_border_of_the_scan_is_cut_off() -> None:
    quality = grade(mask(tissue=np.s_[0:200, 100:400]))
    assert codes(quality) == {"cut-off"}
    assert quality.measures["cut_mm"] == pytest.approx(300 * 0.008)


def test_tissue_at_the_border_of_an_inner_scanned_area_is_cut_off() -> None:
    found = mask(tissue=np.s_[50:250, 100:400])
    scanned = np.zeros(SHAPE, dtype=bool)
    scanned[50:] = True
    assert codes(grade(TissueMask(found.pixels, 8.0, found.pen, found.fold, scanned))) == {"cut-off"}


@pytest.mark.parametrize(
    ("slide_mpp", "verdict"),
    [(0.5, Verdict.READABLE), (0.54, Verdict.READABLE), (1.0, Verdict.LIMITED), (4.0, Verdict.RESCAN)],
)
def test_scan_coarser_than_the_encoder_limits(slide_mpp: float, verdict: Verdict) -> None:
    quality = grade(slide_mpp=slide_mpp)
    assert quality.verdict is verdict
    assert ("coarse-scan" in codes(quality)) == (verdict is not Verdict.READABLE)


def test_estimated_resolution_is_always_said() -> None:
    quality = grade(resolution_source=ResolutionSource.ESTIMATED)
    assert quality.verdict is Verdict.LIMITED
    assert codes(quality) == {"resolution-estimated"}


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.05, Verdict.READABLE), (0.2, Verdict.LIMITED), (0.5, Verdict.RESCAN)]
)
def test_overexposure_counts_on_tissue(share: float, verdict: Verdict) -> None:
    thumbnail = np.full((*SHAPE, 3), 245, dtype=np.uint8)
    thumbnail[100:300, 100:400] = (200, 120, 180)
    thumbnail[100 : 100 + round(200 * share), 100:400] = (255, 235, 255)
    quality = grade(thumbnail=thumbnail)
    assert quality.verdict is verdict
    assert quality.measures["overexposed_share"] == pytest.approx(share)


def test_dark_scan_is_underexposed() -> None:
    assert codes(grade(thumbnail=np.full((*SHAPE, 3), 80, dtype=np.uint8))) == {"under-exposed"}


def test_thumbnail_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        grade(thumbnail=np.zeros((3, 3, 3), dtype=np.uint8))


def test_worst_reason_decides_and_all_are_told() -> None:
    quality = grade(focus=focus_with(60), slide_mpp=1.0, resolution_source=ResolutionSource.ESTIMATED)
    assert quality.verdict is Verdict.RESCAN
    assert codes(quality) == {"blurred", "coarse-scan", "resolution-estimated"}


def test_every_code_of_the_source_is_documented() -> None:
    source = Path(slideway.tissue.grade.__file__).read_text(encoding="utf-8")
    in_source = set(re.findall(r'Reason\(\s*"([a-z-]+)"', source))
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    table = page.split("## The reasons")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.MULTILINE))
    assert len(in_source) >= 10
    assert in_source == documented


def test_every_measure_is_documented() -> None:
    quality = grade(thumbnail=np.full((*SHAPE, 3), 240, dtype=np.uint8))
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in quality.measures)
