"""The first part of a bundle: the summary as zstd over msgpack, shortened until tier 0 stays below two kilobytes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import imagecodecs
import msgpack

from slideway.core.bundle import BriefFinding, BundleSummary
from slideway.core.errors import BrokenBundleError

NAME = "summary"
MAX_TIER0_BYTES = 2_048
_MAX_RAW_BYTES = 65_536
_LEVEL = 19
_MOST_LABELS = 3
_HASHES = ("slide_sha256", "fingerprint")


def dump_summary(summary: BundleSummary, *, room: int) -> bytes:
    """The summary as the bytes of its part; findings are shortened, then left out from the end, until it fits.

    Args:
        summary: What is known.
        room: Bytes it may take.

    Raises:
        ValueError: Not even without findings does it fit: an id or a site is far too long.
    """
    brief = tuple(replace(finding, labels=finding.labels[:_MOST_LABELS]) for finding in summary.findings)
    for n in range(len(brief), -1, -1):
        shorter = replace(summary, findings=brief[:n], findings_left_out=len(brief) - n)
        content = _pack(shorter)
        if len(content) <= room:
            return content
    raise ValueError(f"a summary does not fit into {room} bytes")


def _pack(summary: BundleSummary) -> bytes:
    plain: dict[str, Any] = {field.name: getattr(summary, field.name) for field in fields(summary)}
    plain |= {name: bytes.fromhex(plain[name]) for name in _HASHES}
    plain["findings"] = [
        [f.task, f.answer, list(f.labels), None if f.probability is None else round(f.probability, 4), f.in_force]
        for f in summary.findings
    ]
    return bytes(imagecodecs.zstd_encode(msgpack.packb(plain), _LEVEL))


def load_summary(content: bytes, name: str) -> BundleSummary:
    """Read the part back; nothing in it is trusted.

    Raises:
        BrokenBundleError: It is not a summary, or lacks something.
    """
    try:
        raw = imagecodecs.zstd_decode(content, out=_MAX_RAW_BYTES)
        plain = msgpack.unpackb(raw, strict_map_key=True, max_ext_len=0)
        known = {field.name for field in fields(BundleSummary)}
        values = {key: value for key, value in plain.items() if key in known}  # a newer minor version may say more
        values |= {key: values[key].hex() for key in _HASHES}
        values["reasons"] = tuple(values["reasons"])
        values["findings"] = tuple(
            BriefFinding(task, answer, tuple(labels), probability, in_force)
            for task, answer, labels, probability, in_force in values["findings"]
        )
        summary = BundleSummary(**values)
        _require_plausible(summary)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException, RuntimeError) as error:
        raise BrokenBundleError(
            f"{name}: its summary cannot be read ({type(error).__name__}); the sender's program is at fault: tell them"
        ) from error
    return summary


def _require_plausible(summary: BundleSummary) -> None:
    texts = [summary.case, summary.site, summary.verdict, summary.encoder_id, summary.codec, *summary.reasons]
    counts = [summary.width_px, summary.height_px, summary.tile_px, summary.tiles, summary.tiles_left_out]
    counts += [summary.tissue_tiles]
    is_plausible = (
        all(type(text) is str for text in texts)
        and all(type(count) is int and 0 <= count < 2**31 for count in counts)
        and all(type(number) is float and 0 < number < 1e3 for number in (summary.mpp, summary.tile_mpp))
        and len(summary.slide_sha256) == len(summary.fingerprint) == 64
        and summary.tiles_left_out <= summary.tiles <= summary.tissue_tiles
    )
    if not is_plausible:
        raise ValueError("a value is out of range")
