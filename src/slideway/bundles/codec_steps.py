"""The codecs that keep every tile: one step for all numbers, along principal axes and in what these leave over.

Axes make the codes small where tiles are alike; what a rare tile has beyond them is coded in the same step. So every
number of every tile is within half a step, whatever the axes, and no tile pays for being unlike the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles.codec_axes import Axes, give_axes, read_axes, send_axes, take_off_centre, write_axes
from slideway.bundles.codec_basis import FeatureBasis, find_axes
from slideway.bundles.codec_bytes import SectionReader, SectionWriter, fold_signs, unfold_signs
from slideway.bundles.codec_scalar import quantise, read_range, scale_back, write_range
from slideway.core.errors import UnreadableBagError

Floats = NDArray[np.float32]

# An axis along which the slide varies by less than this many steps costs more than it spares (docs/codecs.md).
AXIS_STEPS = 0.65
# Where tiles are few, axes are most of the bytes: fewer of them, rounded to 5 bits, then cost less than they spare.
FEW_AXIS_STEPS, FEW_AXIS_CODES = 1.0, 15
_MAX_STEPS = 2**20  # from the slide's centre to its farthest vector
_MAX_NUMBER = 2**18  # float16 ends at 65,504, and a step is less than twice that


def write_in_steps(
    writer: SectionWriter, vectors: Floats, basis: FeatureBasis | None, *, share: float
) -> dict[str, Any]:
    """One step for all axes, and what they leave over in the same step along the vectors' own dimensions.

    So every number is within half a step, whatever the axes. Of the axes given, the slide's own and none at all, those
    are taken that give the fewest bytes.

    Args:
        writer: Takes the sections.
        vectors: (n, width) float32.
        basis: Axes that need not be sent, or None.
        share: Step as a share of how far a usual tile's numbers lie from the centre (root mean square, median tile).
    """
    centred = take_off_centre(writer, vectors, np.median(vectors, axis=0))
    step = _choose_step(centred, share)
    ways = [*_own_axes(centred, step), *([] if basis is None else [give_axes(basis)])]
    best, header, _ = min((_try_axes(centred, axes, step) for axes in ways), key=lambda one: one[0].n_bytes)
    writer.extend(best)
    return {**header, "step": float(step)}


def choose_axes(vectors: Floats, *, share: float) -> Axes | None:
    """The slide's own axes that make all its vectors smallest, their own bytes counted; None for no vectors.

    For parts of a slide that are coded one by one with axes sent once.
    """
    if not len(vectors):
        return None
    centred = take_off_centre(SectionWriter(), vectors, np.median(vectors, axis=0))
    step = _choose_step(centred, share)
    return min((_try_axes(centred, axes, step) for axes in _own_axes(centred, step)), key=lambda one: one[0].n_bytes)[2]


def _own_axes(centred: Floats, step: np.float32) -> list[Axes]:
    """None at all, those that pay on many tiles, and fewer and coarser ones that pay on few."""
    own, deviation = find_axes(centred)
    spread = deviation[: len(centred)] / step
    return [
        send_axes(own[:0]),
        send_axes(own[: int((spread > AXIS_STEPS).sum())]),
        send_axes(own[: int((spread > FEW_AXIS_STEPS).sum())], largest=FEW_AXIS_CODES),
    ]


def _choose_step(centred: Floats, share: float) -> np.float32:
    """Medians set the centre and the step, so that no single tile does; never so small that codes overflow."""
    squares = np.einsum("ij,ij->i", centred, centred, dtype=np.float64)
    usual = share * np.sqrt(np.median(squares) / centred.shape[1])
    return np.float32(max(usual, np.sqrt(squares.max()) / _MAX_STEPS, 1e-6))


def _try_axes(centred: Floats, axes: Axes, step: np.float32) -> tuple[SectionWriter, dict[str, Any], Axes]:
    writer = SectionWriter()
    header = write_axes(writer, axes)
    codes = _count_steps(centred @ axes.rows.T, step)
    over = _count_steps(centred - _place_along(codes, axes.rows, step), step)
    writer.add_planes(fold_signs(np.ascontiguousarray(codes.T)))
    writer.add_planes(fold_signs(np.ascontiguousarray(over.T)))
    return writer, header, axes


def _count_steps(values: Floats, step: np.float32) -> NDArray[np.int32]:
    steps: NDArray[np.int32] = np.rint(values / step).astype(np.int32)
    return steps


def _place_along(codes: NDArray[np.int32], rows: Floats, step: np.float32) -> Floats:
    placed: Floats = np.matmul(codes.astype(np.float32) * step, rows)
    return placed


def read_in_steps(
    reader: SectionReader, n: int, width: int, header: dict[str, Any], basis: FeatureBasis | None
) -> Floats:
    """Inverse of `write_in_steps`, within half a step."""
    step = header.get("step")
    if type(step) is not float or not 0 < step < 1e6:
        raise UnreadableBagError(f"the header states a step of {step!r}; the bundle is damaged: ask for it again")
    centre = reader.take_array("<f2", width).astype(np.float32)
    rows = read_axes(reader, header, width, basis)
    codes = unfold_signs(reader.take_planes(len(rows), n)).T
    vectors = _place_along(codes, rows, np.float32(step))
    over = unfold_signs(reader.take_planes(width, n)).T
    vectors += over.astype(np.float32) * np.float32(step)
    vectors += centre
    if np.abs(vectors).max(initial=0) > _MAX_NUMBER:
        raise UnreadableBagError("a number is out of range; the bundle is damaged: ask for it again")
    return vectors


def write_steps_first(
    writer: SectionWriter, vectors: Floats, basis: FeatureBasis | None, *, share: float
) -> dict[str, Any]:
    """Even steps, usable alone, then what is missing to the int8 codes."""
    coarse = SectionWriter()
    header = write_in_steps(coarse, vectors, basis, share=share)
    decoded = read_in_steps(SectionReader(coarse.join()), len(vectors), vectors.shape[1], header, basis)
    writer.extend(coarse)
    prefix_bytes = writer.n_bytes
    low, step = write_range(writer, vectors, 256)
    missing = quantise(vectors, low, step, 256).astype(np.int32) - quantise(decoded, low, step, 256)
    writer.add_planes(fold_signs(missing))
    return {**header, "prefix_bytes": prefix_bytes}


def read_steps_first(
    reader: SectionReader, n: int, width: int, header: dict[str, Any], basis: FeatureBasis | None
) -> Floats:
    """Within half a step; with the residual, what int8 gives.

    A processor that rounds a sum differently may come out one int8 step beside it where a number lies on the border.
    """
    decoded = read_in_steps(reader, n, width, header, basis)
    if reader.is_at_end:
        return decoded
    low, step = read_range(reader, width)
    codes = unfold_signs(reader.take_planes(width, n))
    codes += quantise(decoded, low, step, 256)
    return scale_back(np.clip(codes, 0, 255).astype(np.uint8), low, step)
