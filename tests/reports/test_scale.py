import numpy as np
import pytest

from slideway.reports.scale import choose_scale_bar, draw_scale_bar


@pytest.mark.parametrize(
    ("width_um", "text"),
    [
        (1000, "200 µm"),
        (40, "10 µm"),
        (4000, "1 mm"),
        (4001, "1 mm"),
        (3999, "500 µm"),
        (50_000, "10 mm"),
        (2, "0.5 µm"),
    ],
)
def test_bar_is_the_longest_round_length_within_a_quarter_of_the_width(width_um: float, text: str) -> None:
    assert choose_scale_bar(width_um).text == text


def test_bar_is_round_and_fills_a_tenth_to_a_quarter_of_any_width() -> None:
    for width_um in np.geomspace(1, 1e6, 997):
        bar = choose_scale_bar(float(width_um))
        assert f"{bar.length_um:e}"[0] in "125"
        assert 0.1 * width_um * (1 - 1e-9) <= bar.length_um <= 0.25 * width_um * (1 + 1e-9)


@pytest.mark.parametrize("width_um", [0.0, -5.0, float("nan"), float("inf")])
def test_bar_of_no_width_is_the_callers_mistake(width_um: float) -> None:
    with pytest.raises(ValueError, match="width_um"):
        choose_scale_bar(width_um)


def test_drawn_bar_is_as_long_as_its_text_says() -> None:
    drawn = draw_scale_bar(2.0, within_px=1000, is_estimated=False, text_px=24, ink=(255, 255, 255), ground=(0, 0, 0))
    middle_row = np.asarray(drawn)[drawn.height // 2, :, 0]
    length_px = int(np.argmin(middle_row > 200))
    assert choose_scale_bar(2000).length_um == 500
    assert length_px == 250
