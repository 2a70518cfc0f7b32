"""Small words between node and cloud: what a message is, and how a batch of them travels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import imagecodecs

from slideway.core.errors import LineRefusedError
from slideway.store.facet import hash_json
from slideway.store.schema import canonical_json

FROM_NODES = ("status", "slide-accepted", "slide-ended", "consult-request", "regions", "withdrawn", "taken")
FROM_CLOUD = ("opinion", "enough", "rejected", "ask-regions", "consult-answer", "consult-state", "command")
MAX_BATCH_BYTES = 4 * 2**20  # unpacked: so much a receiver sets aside for one batch
MAX_MESSAGE_BYTES = 60 * 2**10  # so that a full batch of 64 stays below
MAX_BATCH_MESSAGES = 1000
_LEVEL = 10
_MAX_LENGTHS = {"id": 256, "kind": 64, "subject": 128}


@dataclass(frozen=True)
class Message:
    """One message; the receiver lets it take effect once, however often it comes.

    Attributes:
        id: The sender's own name for it; never used for other content.
        kind: What it is, one of `FROM_NODES` or `FROM_CLOUD`.
        subject: What it is about, e.g. a slide's hash; empty for none.
        sequence: Of one kind and subject the highest is the newest.
        body: The content, as JSON.
    """

    id: str
    kind: str
    subject: str
    sequence: int
    body: Mapping[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        """The message as JSON."""
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "sequence": self.sequence,
            "body": dict(self.body),
        }

    @property
    def size_bytes(self) -> int:
        """Bytes of its canonical JSON as it travels, in UTF-8."""
        return len(canonical_json(self.content).encode("utf-8"))

    @property
    def sha256(self) -> str:
        """Hash of its canonical JSON, in hex: what a receipt is given for."""
        return hash_json(self.content)


def parse_message(content: Any) -> Message:
    """Read a message from JSON.

    Raises:
        LineRefusedError: It is none.
    """
    if not isinstance(content, dict):
        raise _malformed("a message is a JSON object")
    for name, length in _MAX_LENGTHS.items():
        text = content.get(name)
        if not isinstance(text, str) or len(text) > length or (not text and name != "subject"):
            raise _malformed(f"{name} of a message is a text of at most {length} signs")
    sequence, body = content.get("sequence"), content.get("body")
    if not isinstance(sequence, int) or isinstance(sequence, bool) or abs(sequence) >= 2**63:
        raise _malformed("sequence of a message is a whole number")
    if not isinstance(body, dict):
        raise _malformed("body of a message is a JSON object")
    message = Message(content["id"], content["kind"], content["subject"], sequence, body)
    if not _can_be_kept(message):
        raise _malformed("a message is JSON without NaN, without half characters and without the character 0")
    return message


def parse_messages(items: Any) -> list[Message]:
    """Read a batch from JSON.

    Raises:
        LineRefusedError: It is none, or of more than `MAX_BATCH_MESSAGES`.
    """
    if not isinstance(items, list):
        raise _malformed("a list named `messages`")
    if len(items) > MAX_BATCH_MESSAGES:
        raise _malformed(f"at most {MAX_BATCH_MESSAGES:,} in a batch")
    return [parse_message(item) for item in items]


def _can_be_kept(message: Message) -> bool:
    """Whether both databases take it, and both sides hash it alike."""
    try:
        text = canonical_json(message.content)
        text.encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return "\\u0000" not in text


def pack_json(content: Any) -> bytes:
    """Canonical JSON as one zstd frame: what repeats in a batch is paid for once."""
    return bytes(imagecodecs.zstd_encode(canonical_json(content).encode("utf-8"), _LEVEL))


def unpack_json(packed: bytes) -> Any:
    """What `pack_json` wrote; never more than `MAX_BATCH_BYTES`.

    Raises:
        LineRefusedError: It is something else, or too much.
    """
    try:
        return json.loads(bytes(imagecodecs.zstd_decode(packed, out=MAX_BATCH_BYTES)))
    except (imagecodecs.ZstdError, ValueError, RecursionError) as error:
        raise _malformed(f"not one zstd frame of at most {MAX_BATCH_BYTES:,} bytes of JSON") from error


def _malformed(reason: str) -> LineRefusedError:
    return LineRefusedError(f"messages: {reason}", status=422, refusal="message-malformed")
