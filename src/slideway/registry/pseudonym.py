"""Stand-ins for accession numbers: the same for all slides of a case at one site, different at every other site.

An accession number is short and guessable, so a bare hash of it would be undone by trying all of them. Here a secret
that never leaves the site goes into the hash: who lacks it can neither undo nor confirm a guess.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import unicodedata
from pathlib import Path

from slideway.core.errors import WrongUseError
from slideway.core.pseudonym import LETTERS
from slideway.registry.keys import keys_folder
from slideway.registry.secret_file import keep_secret, read_secret

_FILE = "pseudonym-secret"
_SECRET_BYTES = 32
_MADE_FOR = b"slideway-case/1\n"  # so that the secret's other uses, should there be any, never give the same


def pseudonym_secret_path() -> Path:
    """File of this site's secret."""
    return keys_folder() / _FILE


def load_pseudonym_secret(folder: Path | None = None) -> bytes:
    """This site's secret, 32 random bytes, made and kept (mode 0600) on first use.

    Whoever has it can test guesses of accession numbers; if it is lost, later slides of a case get another pseudonym.

    Args:
        folder: Where it lies; None for the user's own keys.

    Raises:
        WrongUseError: It is damaged, or other users may read it.
        OutputError: It cannot be written.
    """
    path = pseudonym_secret_path() if folder is None else folder / _FILE
    secret = read_secret(path, "pseudonym secret")
    if secret is None:
        keep_secret(path, secrets.token_bytes(_SECRET_BYTES))
        secret = read_secret(path, "pseudonym secret")
    if secret is None or len(secret) != _SECRET_BYTES:
        raise WrongUseError(
            f"{path}: damaged; bring it back from a backup. Removing it makes a new one, and cases that are already "
            "read then get other pseudonyms"
        )
    return secret


def make_pseudonym(secret: bytes, accession_number: str) -> str:
    """The pseudonym of a case.

    Args:
        secret: Of the site, from `load_pseudonym_secret`.
        accession_number: As the LIS writes it; spaces around it and the way of writing accents do not count.

    Returns:
        16 letters and digits of base32: the first 80 bits of HMAC-SHA256.

    Raises:
        WrongUseError: The number is empty.

    Source:
        HMAC: RFC 2104; base32: RFC 4648, section 6; NFC: Unicode Standard Annex 15.

    Example:
        >>> make_pseudonym(bytes(32), "A26-1") == make_pseudonym(bytes(32), " A26-1 ")
        True
    """
    number = write_alike(accession_number)
    if not number:
        raise WrongUseError("the accession number is empty; leave it out where there is none")
    digest = hmac.new(secret, _MADE_FOR + number.encode(), hashlib.sha256).digest()
    return base64.b32encode(digest).decode()[:LETTERS]


def write_alike(accession_number: str) -> str:
    """An accession number as it is compared: without spaces around it, accents composed (NFC)."""
    return unicodedata.normalize("NFC", accession_number).strip()
