"""Watch the slides that were read: do the last ones still look like the cases a head learnt from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag
from slideway.core.errors import WrongUseError
from slideway.heads.drift import DriftMonitor, DriftPoint, fit_monitor, watch
from slideway.heads.head import Head
from slideway.pipeline.slide_library import BAG, Library, ReadSlide, count_encoders, keep_encoder
from slideway.registry.head_records import HeadCard

SCHEMA = "slideway-drift/1.0"
ORDERS = ("time", "name")


@dataclass(frozen=True)
class DriftWatch:
    """What was seen.

    Attributes:
        monitor: The reference and its thresholds.
        slides: Slides in order, each once.
        read_at: For each slide when its bag was written, seconds since 1970.
        points: One for each slide.
        repeated: Further readings of a slide that already counts.
        empty: Readings without a tile.
    """

    monitor: DriftMonitor
    slides: tuple[ReadSlide, ...]
    read_at: tuple[float, ...]
    points: tuple[DriftPoint, ...]
    repeated: int
    empty: int


def watch_library(
    library: Library, card: HeadCard, head: Head, *, window: int, false_alarms: float, by: str = "time"
) -> DriftWatch:
    """Roll a window over the slides of a library and hold each against the cases that a head learnt from.

    A slide counts once, however often it was read; one without tiles does not count. Bags of other encoders are left
    out.

    Args:
        library: Slides that were read.
        card: The head's card.
        head: The head; its known cases are the reference.
        window: Slides in a window.
        false_alarms: Share of windows of ordinary slides that may raise an alarm.
        by: `time` (when the bag was written) or `name` (of the reading's folder).

    Raises:
        FingerprintMismatchError: No slide was read with the head's encoder.
        WrongUseError: The head knows no cases, or no slide has tiles.
    """
    if not head.known.names:
        raise WrongUseError(f"{card.id} keeps no known cases, so there is nothing to hold slides against")
    own = keep_encoder(library, card.input.encoder_fingerprint, card.input.encoder_id, skip_foreign=True)
    placed = [(slide, (slide.folder / BAG).stat().st_mtime) for slide in own.slides]
    placed.sort(key=lambda one: (one[0].folder.name, one[1]) if by == "name" else (one[1], one[0].folder.name))
    kept: dict[str, tuple[ReadSlide, float, NDArray[np.float64]]] = {}
    repeated = empty = 0
    for slide, read_at in placed:
        vector = average_slide(head, slide.bag)
        if vector is None:
            empty += 1
        elif slide.bag.slide_sha256 in kept:
            repeated += 1
        else:
            kept[slide.bag.slide_sha256] = (slide, read_at, vector)
    if not kept:
        raise WrongUseError(f"{library.folder}: no slide in there has a tile; there is nothing to watch")
    monitor = fit_monitor(head.known.means, window=window, false_alarms=false_alarms)
    points = watch(monitor, np.stack([vector for _, _, vector in kept.values()]))
    return DriftWatch(
        monitor,
        tuple(slide for slide, _, _ in kept.values()),
        tuple(read_at for _, read_at, _ in kept.values()),
        points,
        repeated,
        empty,
    )


def average_slide(head: Head, bag: EmbeddingBag) -> NDArray[np.float64] | None:
    """(rank,) mean tile of a slide behind the head's input layer, each for what it stands for; None without tiles."""
    projected = head.network.projection(bag.vectors)
    is_whole = projected.any(axis=1)  # the input layer puts a tile at 0 whose vector is not finite
    if not is_whole.any():
        return None
    return np.asarray(np.average(projected[is_whole], axis=0, weights=bag.weights[is_whole]), np.float64)


def describe_drift(told: DriftWatch, library: Library, card: HeadCard) -> dict[str, Any]:
    """Everything as plain numbers and words, for JSON."""
    monitor, points = told.monitor, told.points
    limits = [_number(limit) for limit in monitor.limits]
    foreign = sum(
        count
        for (fingerprint, _), count in count_encoders(library.slides).items()
        if fingerprint != card.input.encoder_fingerprint
    )
    return {
        "schema": SCHEMA,
        "head": {"id": card.id, "version": card.version, "fingerprint": card.fingerprint},
        "window": monitor.window,
        "false_alarms": monitor.false_alarms,
        "reference_cases": len(monitor.points) if not monitor.lack else None,
        "thresholds": {"t_squared": limits[0], "mmd": limits[1]},
        "not_judged_because": _say_lack(told),
        "slides": len(told.slides),
        "windows_judged": sum(not math.isnan(point.t_squared) for point in points),
        "windows_in_alarm": sum(point.is_alarm for point in points),
        "alarm_now": points[-1].is_alarm,
        "left_out": {
            "other_encoder": foreign,
            "unreadable": list(library.unreadable),
            "read_again": told.repeated,
            "without_tiles": told.empty,
        },
        "points": [
            _describe(point, slide, read_at)
            for point, slide, read_at in zip(points, told.slides, told.read_at, strict=True)
        ],
    }


def _say_lack(told: DriftWatch) -> str:
    if told.monitor.lack:
        return told.monitor.lack
    if len(told.slides) < told.monitor.window:
        return f"{len(told.slides)} slides were read, a window holds {told.monitor.window}."
    return ""


def _describe(point: DriftPoint, slide: ReadSlide, read_at: float) -> dict[str, Any]:
    return {
        "reading": slide.folder.name,
        "read_at": datetime.fromtimestamp(read_at, UTC).isoformat(timespec="seconds"),
        "t_squared": _number(point.t_squared),
        "mmd": _number(point.mmd),
        "alarms": list(point.alarms),
        "words": point.words,
    }


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def say_drift(result: dict[str, Any]) -> str:
    """The windows that were judged, one a line, and what they come to."""
    lines = [
        f"{result['slides']} slides against the cases of {result['head']['id']}; windows of {result['window']}, "
        f"{result['false_alarms']:.1%} false alarms"
    ]
    lines += _say_left_out(result["left_out"])
    if result["not_judged_because"]:
        return "\n".join([*lines, f"  not judged: {result['not_judged_because']}"])
    limits = result["thresholds"]
    lines.append(f"  alarm above T² {limits['t_squared']:.2f} or MMD {limits['mmd']:.4f}")
    for point in result["points"]:
        if point["t_squared"] is not None:
            mark = f"  ALARM ({' and '.join(point['alarms'])})" if point["alarms"] else ""
            lines.append(
                f"  {point['read_at'][:10]}  to {point['reading']:32}  T² {point['t_squared']:9.2f}  "
                f"MMD {point['mmd']:8.4f}{mark}"
            )
    lines.append(f"  {result['points'][-1]['words']}")
    if result["windows_in_alarm"]:
        lines.append(
            f"ALARM in {result['windows_in_alarm']} of {result['windows_judged']} windows"
            + ("." if result["alarm_now"] else ", not in the last one.")
            + " What to do: docs/drift.md"
        )
    return "\n".join(lines)


def _say_left_out(left_out: dict[str, Any]) -> Sequence[str]:
    words = {
        "other_encoder": "read with another encoder",
        "read_again": "read again",
        "without_tiles": "without tiles",
    }
    lines = [f"  left out: {left_out[key]} {text}" for key, text in words.items() if left_out[key]]
    return [*lines, *(f"  left out, cannot be read: {name}" for name in left_out["unreadable"])]
