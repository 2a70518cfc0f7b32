"""What may hide inside compressed tiles, JPEG tables and colour profiles, and how it is kept out."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from slideway.core.errors import DeidentifyError

# Comments in which codecs state their own name; anything else in a comment is not known to be harmless.
_CODEC_COMMENT = re.compile(
    rb"(Kakadu-v?[\d.]+|Kdu-Layer-Info:[ -~\s]{0,400}|Created by OpenJPEG version [\d.]+|Lavc[\d.]+"
    rb"|Intel\(R\) JPEG Library, version [\d.\-]+|LEAD Technologies Inc\. V[\d.]+)\s*\0*"
)
_JPEG_START, _JPEG2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
_COMMENT, _APP0, _APP14, _APP15 = 0xFE, 0xE0, 0xEE, 0xEF


_HEAD_BYTES = 4_000_000  # of a stored tile; its header is far shorter
_READ_BYTES = 1 << 20


def hash_stored(file: BinaryIO, n_bytes: int, name: str, *, check: bool = True) -> bytes:
    """Hash the next bytes of a file, one stored tile or frame, and refuse it where it carries text of its own.

    Raises:
        DeidentifyError: See `check_stream`.
        ValueError: The file ends before.
    """
    digest = hashlib.sha256()
    head = b""
    left = n_bytes
    while left:
        content = file.read(min(left, _HEAD_BYTES if left == n_bytes else _READ_BYTES))
        if not content:
            raise ValueError("the file ends within a tile")
        head = head or content
        digest.update(content)
        left -= len(content)
    if check:
        check_stream(head, name)
    return digest.digest()


def check_stream(data: bytes, name: str) -> None:
    """Refuse a stored tile that carries text, EXIF or XMP of its own: tile bytes are never changed.

    Raises:
        DeidentifyError: A comment or application segment is not known to be harmless.
    """
    if data.startswith(_JPEG_START):
        suspicious = any(_is_suspicious(marker, segment) for marker, segment, _ in _jpeg_segments(data))
    elif data.startswith(_JPEG2000_START):
        suspicious = any(not _CODEC_COMMENT.fullmatch(text) for text in _jpeg2000_comments(data))
    else:
        return
    if suspicious:
        raise DeidentifyError(
            f"{name}: its compressed tiles carry comments or EXIF of their own, and tile bytes are never changed here; "
            "convert the slide with a tool that compresses it anew, then run this on the result"
        )


def clean_jpeg_tables(tables: bytes) -> bytes:
    """Keep the tables of an abbreviated JPEG stream, leave out its comments and application segments.

    Adobe's segment (APP14) stays: it says how colours are stored.
    """
    kept = [
        tables[at : at + 4 + len(segment)]
        for marker, segment, at in _jpeg_segments(tables)
        if not _is_text(marker) or (marker == _APP14 and _is_adobe(segment))
    ]
    return _JPEG_START + b"".join(kept) + b"\xff\xd9"


def _is_text(marker: int) -> bool:
    return marker == _COMMENT or _APP0 <= marker <= _APP15


def _is_adobe(segment: bytes) -> bool:
    return segment.startswith(b"Adobe") and len(segment) == 12


def _is_suspicious(marker: int, segment: bytes) -> bool:
    if marker == _APP0:  # JFIF, without a thumbnail
        return not (segment.startswith(b"JFIF\0") and len(segment) == 14)
    if marker == _APP14:
        return not _is_adobe(segment)
    return _is_text(marker) and not (marker == _COMMENT and _CODEC_COMMENT.fullmatch(segment))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (marker, content, place) of segments before the first scan, bytes between them skipped as in libjpeg."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):
            return
        if marker == 0xFF:
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # these stand alone
            at += 2
        else:
            length = struct.unpack(">H", data[at + 2 : at + 4])[0]
            yield marker, data[at + 4 : at + 2 + length], at
            at += 2 + max(length, 2)


def _jpeg2000_comments(data: bytes) -> Iterator[bytes]:
    """Yield the comments of the main header. Source: ISO/IEC 15444-1, A.9.2 (COM), A.4.2 (SOT ends the header)."""
    at = 2
    while at + 4 <= len(data):
        marker, length = struct.unpack(">HH", data[at : at + 4])
        if marker == 0xFF90 or length < 2:
            return
        if marker == 0xFF64:
            yield data[at + 6 : at + 2 + length]
        at += 2 + length


# --- colour profiles ---------------------------------------------------------------------------------------------

MAX_PROFILE_BYTES = 16_000_000  # as `slides.colour`: a larger one is not applied either
_MAX_PROFILE_TAGS = 100
# Tags of an ICC profile that change a colour. Source: ICC.1:2022, section 9.2. Names, serials and dates are elsewhere.
_COLOUR_TAGS = {
    b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"D2B0", b"D2B1", b"D2B2", b"D2B3", b"B2D0", b"B2D1",
    b"B2D2", b"B2D3", b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC", b"kTRC", b"wtpt", b"bkpt", b"chad", b"gamt",
}  # fmt: skip
_TYPES_OF_NUMBERS = {b"XYZ ", b"curv", b"para", b"sf32", b"mft1", b"mft2", b"mAB ", b"mBA ", b"mpet"}
_WORDS = "colour profile"


def clean_profile(profile: bytes) -> bytes | None:
    """Rebuild an ICC profile from its colour tags alone; None when it is none or is damaged.

    Its description, copyright, device names, serials and dates go; a profile needs a description and a copyright
    (ICC.1:2022, 8.2), so both say `colour profile`. The colours it makes stay the same.
    """
    if not 132 <= len(profile) <= MAX_PROFILE_BYTES or profile[36:40] != b"acsp":
        return None
    count = struct.unpack(">I", profile[128:132])[0]
    if count > _MAX_PROFILE_TAGS or len(profile) < 132 + 12 * count:
        return None
    held: dict[bytes, bytes] = {}
    for index in range(count):
        tag, at, size = struct.unpack(">4sII", profile[132 + 12 * index : 144 + 12 * index])
        if tag in _COLOUR_TAGS:
            held[tag] = profile[at : at + size]
            if at < 132 or len(held[tag]) != size or held[tag][:4] not in _TYPES_OF_NUMBERS:
                return None
    if not held:
        return None
    is_v2 = profile[8] < 4
    held |= {b"desc": _description(is_v2=is_v2), b"cprt": _copyright(is_v2=is_v2)}
    return _assemble(profile[:128], held)


def _assemble(head: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Lay out a profile. Source: ICC.1:2022, 7.2; date at byte 24, maker and model from 40, ids from 80."""
    table, content = [], b""
    places: dict[bytes, int] = {}
    start = 132 + 12 * len(tags)
    for tag, element in tags.items():
        if element not in places:  # the three channels often share one curve
            places[element] = start + len(content)
            content += element + b"\0" * (-len(element) % 4)
        table.append(struct.pack(">4sII", tag, places[element], len(element)))
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    kept_numbers = head[64:80]  # rendering intent and the illuminant
    rest = b"\0" * 4 + head[8:24] + date + b"acsp" + b"\0" * 24 + kept_numbers + b"\0" * 48
    size = struct.pack(">I", start + len(content))
    return size + rest + struct.pack(">I", len(tags)) + b"".join(table) + content


def _description(*, is_v2: bool) -> bytes:
    if not is_v2:
        return _localised()
    ascii_words = _WORDS.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(ascii_words)) + ascii_words + b"\0" * (4 + 4 + 2 + 1 + 67)


def _copyright(*, is_v2: bool) -> bytes:
    return b"text\0\0\0\0" + _WORDS.encode() + b"\0" if is_v2 else _localised()


def _localised() -> bytes:
    words = _WORDS.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(words), 28) + words
