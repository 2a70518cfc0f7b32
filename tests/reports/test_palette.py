import re

import numpy as np
import pytest

from slideway.reports.page import templates
from slideway.reports.palette import (
    ATTENTION_BANDS,
    FOCUS_BANDS,
    GROUP_COLOURS,
    NOVELTY_BANDS,
    Colour,
    colour_of_group,
    label_of_group,
    share_text,
)

# Machado, Oliveira, Fernandes 2009, severity 1.0, in linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colours: np.ndarray) -> np.ndarray:
    c = colours / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab_as_seen(colours: list[Colour], sight: str, ground: int) -> np.ndarray:
    blended = 0.7 * np.array(colours, float) + 0.3 * ground
    xyz = np.clip(linear(blended) @ SIGHT[sight].T, 0, 1) @ TO_XYZ.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


@pytest.mark.parametrize("ground", [140, 205, 250])
@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_groups_differ_for_every_kind_of_sight(sight: str, ground: int) -> None:
    lab = lab_as_seen(list(GROUP_COLOURS), sight, ground)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(len(lab))
    assert apart.min() > 17


@pytest.mark.parametrize(
    "bands", [NOVELTY_BANDS, FOCUS_BANDS[::-1], ATTENTION_BANDS], ids=["novelty", "focus", "attention"]
)
@pytest.mark.parametrize("sight", SIGHT)
def test_ordered_scales_grow_darker_step_by_step_for_every_kind_of_sight(sight: str, bands: tuple) -> None:
    lightness = lab_as_seen([band.colour for band in bands], sight, 205)[:, 0]
    assert (np.diff(lightness) < -5).all()


@pytest.mark.parametrize("sight", SIGHT)
def test_the_tiles_looked_at_most_stand_out_from_all_others_for_every_kind_of_sight(sight: str) -> None:
    for ground in (140, 205, 250):
        lightness = lab_as_seen([band.colour for band in ATTENTION_BANDS], sight, ground)[:, 0]
        assert lightness[-2] - lightness[-1] > 15


def test_bands_rise() -> None:
    for bands in (NOVELTY_BANDS, FOCUS_BANDS, ATTENTION_BANDS):
        limits = [band.from_value for band in bands]
        assert limits == sorted(set(limits))
        assert limits[0] == 0


def test_legends_never_name_a_disease() -> None:
    words = " ".join(band.text for band in (*NOVELTY_BANDS, *FOCUS_BANDS, *ATTENTION_BANDS)).lower()
    assert not re.search(r"cancer|tumou?r|malign|abnormal|suspic|lesion", words)


def test_groups_are_counted_from_one_and_colours_return_after_eight() -> None:
    assert label_of_group(0) == "Group 1"
    assert colour_of_group(8) == colour_of_group(0)


def test_a_share_is_never_rounded_to_nothing_or_to_all() -> None:
    assert share_text(0.0) == "0 %"
    assert share_text(1e-6) == "< 0.1 %"
    assert share_text(1 - 1e-6) == "> 99.9 %"
    assert share_text(1.0) == "100 %"
    assert share_text(0.0488) == "4.9 %"


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)
        return float(linear(rgb) @ TO_XYZ[1])

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_of_the_page_stands_out_in_light_dark_and_print() -> None:
    style = templates().get_template("report.css.j2").render(short_id="")
    themes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in style.split(":root {")[1:]]
    assert len(themes) == 3
    for theme in themes:
        for text, ground in (("text", "ground"), ("text", "surface"), ("quiet", "ground"), ("quiet", "surface")):
            assert contrast(theme[text], theme[ground]) >= 4.5
        assert contrast(theme["ai-bar"], theme["line"]) >= 3  # WCAG 2.2, 1.4.11: parts of a picture that carry meaning
        for badge in ("good", "look", "none", "ai"):
            assert contrast(theme[f"{badge}-text"], theme[badge]) >= 7
        assert contrast(theme["accent"], theme["ground"]) >= 4.5
