"""The form of an invitation: a code of two halves, what a newcomer signs, and the file for a node without a line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from slideway.core.errors import WrongUseError
from slideway.sync.identity import Keys, encode_key

ENROL_AS = b"slideway-enrol/1\n"  # so that a signature over a code is never one of anything else
PIN_DIGITS = 20  # 80 bits: nobody makes a second certificate, or invitation, with the same
MOST_BYTES = 2**16
PATTERN = "invitation-*.json"
_VERSION = 1


@dataclass(frozen=True)
class Invitation:
    """What a node without a line needs to know of its cloud; it holds no secret.

    Attributes:
        tenant: Whose node it will be.
        node: Its id.
        cloud_key: (base64) Ed25519 key that receipts are signed with.
        cloud_receiving_key: (base64) X25519 key that bundles are locked to.
        ca_pem: The authority to believe, should the node get a line.
    """

    tenant: str
    node: str
    cloud_key: str
    cloud_receiving_key: str
    ca_pem: str

    @property
    def file_name(self) -> str:
        """Its name in a folder."""
        return f"invitation-{self.tenant}-{self.node}.json"

    @property
    def content(self) -> bytes:
        """Its file."""
        said = {"slideway_invitation": _VERSION, **asdict(self)}
        return json.dumps(said, sort_keys=True, indent=1).encode("utf-8")


def find_invitation(folder: Path, pin: str) -> Invitation:
    """The invitation in a folder whose hash a code names.

    Raises:
        WrongUseError: There is none, or a newer Slideway wrote it.
    """
    found = [path for path in sorted(folder.glob(PATTERN)) if path.is_file()]
    if not found:
        raise WrongUseError(f"{folder.name}: no invitation in it; the cloud's operator writes one: "
                            "slideway cloud invite TENANT NODE --to-folder FOLDER")  # fmt: skip
    for path in found:
        content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
        if pin_content(content) == pin:
            return _read(path.name, content)  # written by the cloud: the code says so
    raise WrongUseError(
        f"{folder.name}: no invitation in it is the one that the code names: a code of another invitation, a copy that "
        "was cut off, or somebody changed it; nothing was changed here"
    )


def _read(name: str, content: bytes) -> Invitation:
    said = json.loads(content)
    if not isinstance(said, dict) or said.get("slideway_invitation") != _VERSION:
        raise WrongUseError(f"{name}: of a newer version; update Slideway")
    try:
        return Invitation(**{field: str(said[field]) for field in Invitation.__dataclass_fields__})
    except KeyError as error:
        raise WrongUseError(f"{name}: lacks {error}; ask for a new one") from error


def split_code(code: str) -> tuple[str, str]:
    """Secret and pin of the one line that an operator typed.

    Raises:
        WrongUseError: It is not of that form.
    """
    secret, _, pin = code.strip().partition(".")
    if not secret or len(pin) != PIN_DIGITS:
        raise WrongUseError("the code is one line of two halves with a dot between; copy all of it")
    return secret, pin.lower()


def pin_content(content: bytes) -> str:
    """What a code carries of a certificate (DER) or an invitation: the first 20 hex digits of its sha256."""
    return hashlib.sha256(content).hexdigest()[:PIN_DIGITS]


def sign_code(keys: Keys, secret: str) -> str:
    """The proof (base64) that whoever enrols holds the key."""
    return encode_key(keys.signing.sign(ENROL_AS + secret.encode("utf-8")))
