"""What codecs may know of an encoder beforehand: principal axes and codebooks, fitted on other slides and not sent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from slideway.core.errors import UnreadableBagError

SCHEMA_MAJOR = 1
PART_NUMBERS = 4  # numbers that product quantisation puts into one byte
CENTRES = 256
_FIT_ROWS = 4_096  # vectors that centres are fitted on; evenly spread over those given
_ROUNDS = 8

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureBasis:
    """Axes and codebooks for the vectors of one encoder, less their slide's centre.

    Attributes:
        fingerprint: Fingerprint of the encoder; whoever passes a basis has checked it (invariant I7).
        axes: (n_axes, width) float32, orthonormal rows, of most variance first.
        codebooks: (n_parts, 256, 4) float32, centres for every four numbers; None when not fitted.
    """

    fingerprint: str
    axes: Floats
    codebooks: Floats | None = None

    def __post_init__(self) -> None:
        if self.axes.ndim != 2 or not 0 < len(self.axes) <= self.axes.shape[1]:
            raise ValueError("a basis has between 1 and width axes, of width numbers each")
        if self.codebooks is not None and self.codebooks.shape != (count_parts(self.width), CENTRES, PART_NUMBERS):
            raise ValueError(f"codebooks have {CENTRES} centres for every {PART_NUMBERS} numbers")
        if not all(np.isfinite(array).all() for array in (self.axes, self.codebooks) if array is not None):
            raise ValueError("a basis holds finite numbers only")

    @property
    def width(self) -> int:
        """Length of the vectors it is for."""
        return int(self.axes.shape[1])

    @cached_property
    def id(self) -> str:
        """Hash of all its numbers; a payload names the basis it needs by it."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for array in (self.axes, self.codebooks):
            digest.update(b"-" if array is None else np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()[:16]


def count_parts(width: int) -> int:
    """Bytes a vector takes in product quantisation."""
    return -(-width // PART_NUMBERS)


def fit_basis(
    vectors: NDArray[Any], slide: NDArray[Any], *, fingerprint: str, n_axes: int | None = None, codebooks: bool = True
) -> FeatureBasis:
    """Fit a basis on tiles of many slides.

    Args:
        vectors: (n, width) embeddings, finite.
        slide: (n,) slide of each tile; each slide's own mean is taken off, since payloads carry theirs.
        fingerprint: Fingerprint of the encoder.
        n_axes: Axes to keep; None keeps all.
        codebooks: Whether to fit those of product quantisation, too.
    """
    centred = np.empty(vectors.shape, np.float32)
    for one in dict.fromkeys(slide.tolist()):
        mine = slide == one
        centred[mine] = vectors[mine] - vectors[mine].mean(axis=0, dtype=np.float64)
    axes = find_axes(centred)[0][:n_axes]
    return FeatureBasis(fingerprint, axes, fit_codebooks(centred) if codebooks else None)


def find_axes(centred: Floats) -> tuple[Floats, Floats]:
    """Principal axes (k, width) as rows, and the standard deviation along each, both of most variance first.

    With at least as many vectors as numbers, k is the width; with fewer, k is at most their number, found from their
    products with each other, which for wide vectors is a hundred times quicker. The largest number of each axis is
    positive, so that the same vectors give the same signs.
    """
    n, width = centred.shape
    if 0 < n < width:
        variance, weight = np.linalg.eigh((centred @ centred.T).astype(np.float64) / n)
        is_real = variance > 1e-9 * max(float(variance[-1]), 1e-300)  # the others are rounding: their axes are noise
        variance = variance[is_real]
        axes = (weight[:, is_real].T @ centred) / np.sqrt(variance * n)[:, None]
    else:
        variance, columns = np.linalg.eigh((centred.T @ centred).astype(np.float64) / max(1, n))
        axes = columns.T
    axes = axes[::-1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    deviation = np.sqrt(np.maximum(variance[::-1], 0))
    return (axes * np.where(largest < 0, -1, 1)).astype(np.float32), deviation.astype(np.float32)


def split_parts(centred: Floats) -> Floats:
    """(n_parts, n, 4): every four numbers side by side, the last filled with zeros."""
    missing = count_parts(centred.shape[1]) * PART_NUMBERS - centred.shape[1]
    full = np.pad(centred, ((0, 0), (0, missing)))
    return np.ascontiguousarray(full.reshape(len(full), -1, PART_NUMBERS).transpose(1, 0, 2))


def join_parts(parts: Floats, width: int) -> Floats:
    """Inverse of `split_parts`."""
    return np.ascontiguousarray(parts.transpose(1, 0, 2).reshape(parts.shape[1], -1)[:, :width])


def fit_codebooks(centred: Floats) -> Floats:
    """(n_parts, 256, 4) centres by Lloyd's method from seeded vectors; the same vectors give the same centres."""
    rows = np.unique(np.linspace(0, len(centred) - 1, min(len(centred), _FIT_ROWS)).round().astype(int))
    parts = split_parts(centred[rows])
    first = np.random.default_rng(0).choice(len(rows), CENTRES, replace=len(rows) < CENTRES)
    return np.stack([_fit_centres(part, part[first]) for part in parts])


def _fit_centres(points: Floats, centres: Floats) -> Floats:
    for _ in range(_ROUNDS):
        nearest = find_nearest(points, centres)
        count = np.bincount(nearest, minlength=CENTRES)
        sums = np.stack([np.bincount(nearest, points[:, i], CENTRES) for i in range(PART_NUMBERS)], axis=1)
        centres = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centres).astype(np.float32)
    return centres


def find_nearest(points: Floats, centres: Floats) -> NDArray[np.uint8]:
    """(n,) nearest of 256 centres for each point."""
    nearness = points @ centres.T
    nearness -= 0.5 * (centres * centres).sum(axis=1)
    nearest: NDArray[np.uint8] = nearness.argmax(axis=1).astype(np.uint8)
    return nearest


def dump_basis(basis: FeatureBasis, *, notes: Mapping[str, str]) -> bytes:
    """A basis as a safetensors file; `notes` say what it was fitted on."""
    arrays = {"axes": basis.axes, "codebooks": basis.codebooks}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    facts = {"schema": f"{SCHEMA_MAJOR}.0", "fingerprint": basis.fingerprint, "id": basis.id}
    content: bytes = save(tensors, metadata={**notes, **facts})
    return content


def load_basis(path: Path) -> FeatureBasis:
    """Read a basis.

    Raises:
        UnreadableBagError: It is not one, is damaged, or is of a newer major version.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            schema = metadata["schema"]
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        if schema.partition(".")[0] != str(SCHEMA_MAJOR):
            raise UnreadableBagError(
                f"{path.name} is of schema {schema}, this Slideway reads {SCHEMA_MAJOR}.x; update Slideway"
            )
        basis = FeatureBasis(metadata["fingerprint"], tensors["axes"], tensors.get("codebooks"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UnreadableBagError(f"{path.name} is not a basis or is damaged ({error}); install it again") from error
    if basis.id != metadata.get("id"):
        raise UnreadableBagError(f"{path.name} was changed or damaged; install it again")
    return basis
