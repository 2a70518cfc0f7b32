"""What a case's pseudonym looks like, so that nothing else, an accession number least of all, travels as one."""

from __future__ import annotations

import re

LETTERS = 16  # of base32: 80 bits
_FORM = re.compile(rf"[A-Z2-7]{{{LETTERS}}}")


def is_pseudonym(text: str) -> bool:
    """Whether a text has the form of a pseudonym that `slideway.registry.pseudonym` makes.

    Example:
        >>> is_pseudonym("KZ2QGX7LB3MWOA5T"), is_pseudonym("A26-1")
        (True, False)
    """
    return _FORM.fullmatch(text) is not None
