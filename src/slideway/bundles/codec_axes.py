"""Principal axes in a payload, and the codecs PCA-int8 and PCA-int4, which keep what the first axes reach.

Every payload carries its slide's centre. Axes are those of a given basis or, when none is given, the slide's own, which
then travel as int8 and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles.codec_basis import FeatureBasis, find_axes
from slideway.bundles.codec_bytes import SectionReader, SectionWriter, pack_nibbles, unpack_nibbles
from slideway.core.errors import UnreadableBagError

Floats = NDArray[np.float32]

MAX_AXES = 128  # axes that PCA-int8 and PCA-int4 use at most


@dataclass(frozen=True)
class Axes:
    """Axes as the receiver will have them.

    Attributes:
        rows: (n_axes, width) float32.
        sent: Codes (n_axes, width) int8 and scale (n_axes,) float16 that travel in the payload; None for a basis given.
    """

    rows: Floats
    sent: tuple[NDArray[np.int8], NDArray[np.float16]] | None


def give_axes(basis: FeatureBasis, n_axes: int | None = None) -> Axes:
    """The first axes of a basis that the receiver has."""
    return Axes(basis.axes[:n_axes], None)


def send_axes(rows: Floats, *, largest: int = 127) -> Axes:
    """Axes of the slide's own, rounded to what travels: whole numbers up to `largest`, times a scale for each axis."""
    scale = (np.abs(rows).max(axis=1, initial=1e-3) / largest).astype(np.float16)
    codes = np.clip(np.rint(rows / scale.astype(np.float32)[:, None]), -largest, largest).astype(np.int8)
    return Axes(_restore_axes(codes, scale), (codes, scale))


def _restore_axes(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> Floats:
    rows: Floats = codes * scale.astype(np.float32)[:, None]
    return rows


def write_axes(writer: SectionWriter, axes: Axes) -> dict[str, Any]:
    """Append axes that the receiver does not have; returns what the header must say."""
    if axes.sent is not None:
        codes, scale = axes.sent
        writer.add(scale.astype("<f2"))
        writer.add(codes)
    return {"axes": len(axes.rows), "axes_inside": axes.sent is not None}


def read_axes(reader: SectionReader, header: dict[str, Any], width: int, basis: FeatureBasis | None) -> Floats:
    """Axes from the payload, or the first of those given.

    Raises:
        UnreadableBagError: The header is implausible, or the basis is missing or too small.
    """
    n_axes, is_inside = header.get("axes"), header.get("axes_inside")
    if type(n_axes) is not int or not 0 <= n_axes <= width or type(is_inside) is not bool:
        raise UnreadableBagError(f"the header states {n_axes!r} axes for {width} numbers; ask for the bundle again")
    if is_inside:
        scale = reader.take_array("<f2", n_axes)
        return _restore_axes(reader.take_array(np.int8, n_axes, width), scale)
    if basis is None or basis.width != width or len(basis.axes) < n_axes:
        raise UnreadableBagError(f"decoding needs the basis of {n_axes} axes that it was encoded with; pass basis=")
    return basis.axes[:n_axes]


def take_off_centre(writer: SectionWriter, vectors: Floats, centre: NDArray[Any]) -> Floats:
    """Append the slide's (width,) centre; returns the vectors less what the receiver will take for it."""
    rounded = centre.astype("<f2")
    writer.add(rounded)
    centred: Floats = vectors - rounded.astype(np.float32)
    return centred


def write_along_axes(
    writer: SectionWriter, vectors: Floats, basis: FeatureBasis | None, *, levels: int
) -> dict[str, Any]:
    """Even steps along each axis, 256 or 16 of them; what the axes do not reach is lost."""
    centred = take_off_centre(writer, vectors, vectors.mean(axis=0, dtype=np.float64))
    if basis is not None:
        axes = give_axes(basis, MAX_AXES)
    else:
        axes = send_axes(find_axes(centred)[0][: min(MAX_AXES, len(centred))])
    header = write_axes(writer, axes)
    along = centred @ axes.rows.T
    low = along.min(axis=0)
    step = np.maximum((along.max(axis=0) - low) / np.float32(levels - 1), np.float32(1e-6))
    writer.add(np.stack([low, step]).astype("<f4"))
    codes = np.clip(np.rint((along - low) / step), 0, levels - 1).astype(np.uint8).T
    writer.add(codes if levels == 256 else pack_nibbles(np.ascontiguousarray(codes)))
    return header


def read_along_axes(
    reader: SectionReader, n: int, width: int, header: dict[str, Any], basis: FeatureBasis | None, *, levels: int
) -> Floats:
    """Inverse of `write_along_axes`."""
    mean = reader.take_array("<f2", width).astype(np.float32)
    rows = read_axes(reader, header, width, basis)
    low, step = reader.take_array("<f4", 2, len(rows))
    if np.abs([low, step]).max(initial=0) > 1e9:
        raise UnreadableBagError("a scale is out of range; the bundle is damaged: ask for it again")
    if levels == 256:
        codes = reader.take_array(np.uint8, len(rows), n)
    else:
        codes = unpack_nibbles(reader.take_array(np.uint8, len(rows), -(-n // 2)), n)
    vectors: Floats = (codes.T * step + low) @ rows
    vectors += mean
    return vectors
