import numpy as np
import pytest
from PIL import Image, ImageDraw

from slideway.reports.lettering import load_font, measure_text, shorten, spell, wrap, write_text


def written(text: str, size_px: int = 40) -> np.ndarray:
    image = Image.new("RGB", (900, 90))
    write_text(ImageDraw.Draw(image), 4, 4, text, size_px, (255, 255, 255))
    return np.asarray(image)[:, :, 0]


def test_signs_that_the_font_lacks_are_spelt_out() -> None:
    assert spell("Größe 5 × 3 µm² – Ärzte, café") == "Groesse 5 x 3 µm² - Aerzte, cafe"


def test_both_micro_signs_are_one() -> None:
    assert spell("\u03bcm") == spell("\u00b5m") == "µm"


def test_other_scripts_and_broken_bytes_become_one_ellipsis() -> None:
    assert spell("张三 stomach.svs") == "… stomach.svs"
    assert spell("a\udcff\x00b") == "a…b"


@pytest.mark.parametrize("sign", list(" !#%&()*+,-./0189:;<=>?@AZ[]_az{|}~…·°±"))
def test_every_sign_left_after_spelling_is_in_the_font(sign: str) -> None:
    missing = bytes(load_font(40).getmask("\uffff"))
    assert sign == " " or bytes(load_font(40).getmask(sign)) != missing


def test_micro_is_a_u_with_a_tail_below_the_line() -> None:
    micro, u = written("µ"), written("u")
    below = slice(4 + 40 + 2, 90)
    assert micro[below].any()
    assert not u[below].any()
    assert np.array_equal(micro[:30], u[:30])


def test_a_text_is_as_wide_as_measured() -> None:
    for text in ("200 µm", "0.56 mm²", "Group 1"):
        columns = np.flatnonzero(written(text).any(axis=0))
        assert columns[-1] - 4 <= measure_text(text, 40) + 2


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    short = shorten("a-very-long-name-" * 10 + ".svs", 20, 300)
    assert short.startswith("a-very")
    assert short.endswith(".svs")
    assert measure_text(short, 20) <= 300


def test_wrapped_lines_fit_and_lose_no_word() -> None:
    text = "Groups hold tiles that look alike; nobody has named them."
    lines = wrap(text, 20, 220)
    assert " ".join(lines) == text
    assert all(measure_text(line, 20) <= 220 for line in lines)
