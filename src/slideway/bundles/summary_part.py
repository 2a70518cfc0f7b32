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
_MOST = 2**31
_NUMBERS = ("mpp", "tile_mpp", "tissue_mm2", "novel_share")
_HASHES = ("slide_sha256", "fingerprint")


def dump_summary(summary: BundleSummary, *, room: int) -> bytes:
    """The summary as the bytes of its part; findings are shortened, then left out from the end, until it fits.

    Args:
        summary: What is known.
        room: Bytes it may take.

    Raises:
        ValueError: Not even without findings does it fit: an id or a site is far too long.
    """
    given = summary.findings
    for n, most_labels in [(len(given), _MOST_LABELS), *((n, 1) for n in range(len(given), -1, -1))]:
        brief = tuple(replace(finding, labels=finding.labels[:most_labels]) for finding in given[:n])
        left_out = summary.findings_left_out + len(given) - n  # a bundle made of a bundle lacks those, too
        shorter = replace(summary, findings=brief, findings_left_out=left_out)
        content = _pack(shorter)
        if len(content) <= room:
            return content
    raise ValueError(f"a summary does not fit into {room} bytes")


def _pack(summary: BundleSummary) -> bytes:
    plain: dict[str, Any] = {field.name: getattr(summary, field.name) for field in fields(summary)}
    plain |= {name: bytes.fromhex(plain[name]) for name in _HASHES}
    plain |= {name: float(plain[name]) for name in _NUMBERS if plain[name] is not None}
    plain["findings"] = [
        [finding.task, finding.answer, list(finding.labels), _round(finding.probability), finding.in_force]
        for finding in summary.findings
    ]
    return bytes(imagecodecs.zstd_encode(msgpack.packb(plain), _LEVEL))


def _round(probability: float | None) -> float | None:
    return None if probability is None else round(float(probability), 4)


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
        if type(values["reasons"]) is not list or type(values["findings"]) is not list:
            raise ValueError("no list of reasons or of findings")
        values["reasons"] = tuple(values["reasons"])
        values["findings"] = tuple(_read_finding(*row) for row in values["findings"])
        summary = BundleSummary(**values)
        _require_plausible(summary)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException, RuntimeError) as error:
        raise BrokenBundleError(
            f"{name}: its summary cannot be read ({type(error).__name__}); the sender's program is at fault: tell them"
        ) from error
    return summary


def _read_finding(task: Any, answer: Any, labels: Any, probability: Any, in_force: Any) -> BriefFinding:
    is_plausible = (
        type(labels) is list
        and all(map(_is_text, [task, answer, *labels]))
        and (probability is None or _is_number(probability, 0, 1))
        and type(in_force) is bool
    )
    if not is_plausible:
        raise ValueError("a finding of another form")
    return BriefFinding(task, answer, tuple(labels), probability, in_force)


def _require_plausible(summary: BundleSummary) -> None:
    texts = [summary.case, summary.site, summary.verdict, summary.encoder_id, summary.codec, *summary.reasons]
    counts = [summary.width_px, summary.height_px, summary.tile_px, summary.tiles, summary.tiles_left_out]
    counts += [summary.tissue_tiles, summary.findings_left_out]
    is_plausible = (
        all(map(_is_text, texts))
        and all(type(count) is int and 0 <= count < _MOST for count in counts)
        and all(_is_number(number, 1e-3, 1e3) for number in (summary.mpp, summary.tile_mpp))
        and _is_number(summary.tissue_mm2, 0, 1e6)
        and (summary.novel_share is None or _is_number(summary.novel_share, 0, 1))
        and type(summary.is_mpp_estimated) is type(summary.is_sampled) is bool
        and len(summary.slide_sha256) == len(summary.fingerprint) == 64
        and summary.tiles_left_out <= summary.tiles <= summary.tissue_tiles
        and summary.tile_px > 0
    )
    if not is_plausible:
        raise ValueError("a value is out of range")


def _is_text(value: Any) -> bool:
    """A string without control characters, which a terminal would obey."""
    return type(value) is str and not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in value)


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) is float and low <= value <= high
