"""The chart of coverage: right lengths, tones that need no colour, nothing off the page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from slideway.core.catalogue import load_catalogue
from slideway.core.coverage import Coverage, TrainedTask, measure_coverage
from slideway.reports.coverage_chart import TONES, draw_coverage, lay_out_coverage, render_coverage_svg
from slideway.reports.lettering import measure_text

SVG = "{http://www.w3.org/2000/svg}"


def measure(*heads: tuple[str, str]) -> Coverage:
    return measure_coverage(
        load_catalogue(),
        [TrainedTask(head, "malignant", (site,), True, 90, "case-folds", 0.93, 0.85) for head, site in heads]
        + [TrainedTask("weak", "malignant", ("breast",), False, 9, "tiles", None, None)],
    )


def test_bars_of_sites_are_as_long_as_their_shares() -> None:
    coverage = measure()
    bars = lay_out_coverage(coverage).bars[-22:]  # 21 sites and all others
    shares = [covered.site.incidence.share_percent for covered in coverage.sites] + [6.90]
    per_percent = [bar.width_px / share for bar, share in zip(bars, shares, strict=True)]
    assert max(per_percent) == pytest.approx(min(per_percent))


def test_bars_of_totals_fill_as_much_of_the_whole_as_they_say() -> None:
    coverage = measure(("lung-head", "lung"))
    bars = lay_out_coverage(coverage).bars[len(TONES) :][:6]
    parts = {bar.stage: bar.width_px for bar in bars if bar.stage != "listed"}
    whole_px = bars[0].width_px + bars[1].width_px
    assert {stage: round(100 * width / whole_px, 2) for stage, width in parts.items()} == {
        "catalogued": coverage.catalogued_percent,
        "trained": coverage.trained_percent,
        "validated": coverage.validated_percent,
    }


def test_without_a_head_no_bar_is_trained_or_validated() -> None:
    coverage = measure_coverage(load_catalogue(), [])
    chart = lay_out_coverage(coverage)
    drawn = [bar.stage for bar in chart.bars[len(TONES) :]]
    assert set(drawn) == {"catalogued", "listed"}
    assert [text.text for text in chart.texts].count("0.00 %") == 2


def test_svg_is_whole_xml_and_says_what_it_shows() -> None:
    root = ElementTree.fromstring(render_coverage_svg(measure(("lung-head", "lung"))))
    words = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert "Lung and trachea" in words
    assert any("validated: lung-head" in line for line in words)
    assert "trained: weak" in next(line for line in words if line.startswith("7.40"))
    assert any("doi:10.1016/j.jncc.2024.01.006" in line for line in words)
    assert any("not a regulator's" in line for line in words)
    assert "21.98 % a validated one" in (root.findtext(f"{SVG}desc") or "")


def test_stages_differ_by_more_than_colour() -> None:
    svg = render_coverage_svg(measure(("lung-head", "lung")))
    assert 'fill="url(#trained)"' in svg
    assert "stroke-dasharray" in svg
    assert len({(tone.pattern, sum(tone.fill) > 600, sum(tone.fill) > 760) for tone in TONES.values()}) == len(TONES)


def test_a_heads_name_cannot_become_markup() -> None:
    svg = render_coverage_svg(measure(("<script>&\x07", "lung")))
    ElementTree.fromstring(svg)
    assert "<script" not in svg


def test_nothing_leaves_the_page_even_in_a_wider_font() -> None:
    chart = lay_out_coverage(measure(("a-head-with-quite-a-long-name-of-the-county-hospital", "lung")))
    for text in chart.texts:
        width_px = measure_text(text.text, text.size_px) * 1.15
        left_px = text.x_px - width_px if text.ends_there else text.x_px
        assert left_px >= 0, text.text
        assert left_px + width_px <= chart.width_px, text.text
        assert text.y_px + text.size_px < chart.height_px


def test_picture_shows_hatches_and_is_the_same_each_time() -> None:
    first, second = draw_coverage(measure()), draw_coverage(measure())
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    chart = lay_out_coverage(measure())
    bar = next(bar for bar in chart.bars[len(TONES) :] if bar.stage == "trained")
    inside = first[
        round(bar.y_px) + 2 : round(bar.y_px + bar.height_px) - 2,
        round(bar.x_px) + 2 : round(bar.x_px + bar.width_px) - 2,
    ]
    colours = np.unique(inside.reshape(-1, 3), axis=0)
    assert len(colours) == 2


def test_svg_uses_no_reference_outside_itself() -> None:
    svg = render_coverage_svg(measure())
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]
