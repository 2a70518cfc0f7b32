"""The error tree and its documentation."""

from pathlib import Path

import pytest

from slideway.core import errors

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SlidewayError)]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_code_is_documented_with_its_exit_code(error):
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert f"| `{error.code}` | {error.exit_code} |" in page


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_stands_in_the_drawn_tree(error):
    assert f"{error.__name__} " in (errors.__doc__ or "") or error is errors.SlidewayError


def test_codes_are_unique():
    assert len({c.code for c in CLASSES}) == len(CLASSES)
