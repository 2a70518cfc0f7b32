"""Pixels of a slide's regions: believed only when signed, locked, of the slide that they name, and inside it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slideway.bundles.container import BundleHead, iterate_parts, read_head
from slideway.bundles.lock import Unlocker
from slideway.bundles.read import REGION
from slideway.core.errors import BrokenBundleError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

MAX_REGION_BYTES = 64 * 2**20  # 2,048 pixels square, without loss, are 12 MB at most
MAX_REGIONS = 256  # of one slide
_NAME = "the region"
_MAX_PLACE_BYTES = 1000
_PLACE = "place"


@dataclass(frozen=True)
class Region:
    """One region, read and checked.

    Attributes:
        head: Of its container: who signed it, and whether it is locked.
        slide: Hash of the slide that it says it is of.
        rectangle: x, y, width and height in level-0 pixels.
        picture: WebP, one picture without anything else in it.
    """

    head: BundleHead
    slide: str
    rectangle: tuple[int, int, int, int]
    picture: bytes


def read_placed_region(content: bytes, *, key: X25519PrivateKey) -> Region:
    """Read what `slideway.bundles.release.release_region` made.

    Args:
        content: All of it.
        key: The receiver's private key, where it is locked to it.

    Raises:
        BrokenBundleError: Another form, changed, or a picture larger than its place.
        LockedBundleError: Locked to another key.
    """
    file = io.BytesIO(content)
    head = read_head(file, _NAME)
    names = [entry.name for entry in head.entries]
    if names != [_PLACE, REGION] or head.entries[0].n_bytes > _MAX_PLACE_BYTES:
        raise _broken(f"it holds {', '.join(names[:4])}, not its place and one picture")
    unlocker = None if head.lock is None else Unlocker(head.lock, key, _NAME)
    parts = [
        part.content if unlocker is None else unlocker.unlock(i, part).content
        for i, part in enumerate(iterate_parts(file, head, _NAME))
    ]
    if len(parts) < len(names):
        raise _broken("it was cut off")
    slide, rectangle = _read_place(parts[0])
    width_px, height_px = _measure_webp(parts[1])
    if width_px > rectangle[2] or height_px > rectangle[3]:
        raise _broken("its picture is larger than the place that it names")
    return Region(head, slide, rectangle, parts[1])


def require_inside(rectangle: Sequence[int], width_px: int, height_px: int) -> None:
    """Refuse a place that is not on the slide.

    Raises:
        BrokenBundleError: It is not.
    """
    x, y, width, height = rectangle
    if x < 0 or y < 0 or x + width > width_px or y + height > height_px:
        raise _broken("its place is not inside the slide")


def _read_place(content: bytes) -> tuple[str, tuple[int, int, int, int]]:
    try:
        place: Any = json.loads(content)
        slide, box = place["slide"], place["rectangle"]
        is_right = isinstance(slide, str) and isinstance(box, list) and len(box) == 4
        if not is_right or not all(type(edge) is int and 0 <= edge < 2**31 for edge in box) or not (box[2] and box[3]):
            raise ValueError("of another form")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _broken("its place is not a slide and a rectangle") from error
    return slide, (box[0], box[1], box[2], box[3])


def _measure_webp(webp: bytes) -> tuple[int, int]:
    """Width and height of a WebP file of one chunk, the picture; one with metadata is refused.

    Source: WebP container specification (RFC 9649), sections 2.5, 2.6 and 3.4; VP8 (RFC 6386), section 9.1.
    """
    riff_bytes, chunk_bytes = (int.from_bytes(webp[at : at + 4], "little") for at in (4, 16))
    is_bare = webp[:4] == b"RIFF" and webp[8:12] == b"WEBP" and webp[12:16] in (b"VP8 ", b"VP8L")
    if not is_bare or len(webp) < 30 or riff_bytes + 8 != len(webp) or 20 + chunk_bytes + chunk_bytes % 2 != len(webp):
        raise _broken("its picture is not one WebP picture and nothing else")
    if webp[12:16] == b"VP8L":
        bits = int.from_bytes(webp[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(webp[26:28], "little") & 0x3FFF, int.from_bytes(webp[28:30], "little") & 0x3FFF


def _broken(why: str) -> BrokenBundleError:
    return BrokenBundleError(f"{_NAME}: {why}; the sender's program is at fault: tell them")
