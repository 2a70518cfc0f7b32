"""Is an optimised form of an encoder still that encoder? Cosine, neighbours, a linear probe, and a strict gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# A centred cosine of .99 is a noise of 14 % of a vector's own length: less than the difference between two neighbouring
# tiles of one tissue. Half of the tiles must be far nearer.
MIN_COSINE_MEDIAN = 0.995
MIN_COSINE_P01 = 0.99
# Retrieval and grouping rest on who is nearest; one changed neighbour in twenty is what re-reading a slide half a tile
# shifted changes anyway.
MIN_NEIGHBOUR_AGREEMENT = 0.95
# Heads trained on the fp32 vectors may lose one tile in a hundred, not more.
MAX_PROBE_LOSS = 0.01
# Vectors that move by more than this share of their spread, when only the tile beside changes, are no description.
MAX_REPEAT_OF_SPREAD = 0.25
MIN_TILES = 64  # fewer say nothing of the first percentile or of neighbours

_GROUPS = 8
_ROUNDS = 50
_RIDGE = 1e-2  # of the mean variance: as many numbers as tiles must not fit by heart
_FEWEST_OF_A_CLASS = 4  # two to fit on and two to ask about


@dataclass(frozen=True)
class Gate:
    """What a form must reach.

    Attributes:
        cosine_median: Least median of the centred cosines.
        cosine_p01: Least first percentile of them.
        neighbour_agreement: Least share of tiles that keep their nearest neighbour.
        probe_loss: Most accuracy that a linear probe may lose.
        repeat_of_spread: Most that any number may move when a tile is encoded beside another one, over their spread.
    """

    cosine_median: float = MIN_COSINE_MEDIAN
    cosine_p01: float = MIN_COSINE_P01
    neighbour_agreement: float = MIN_NEIGHBOUR_AGREEMENT
    probe_loss: float = MAX_PROBE_LOSS
    repeat_of_spread: float = MAX_REPEAT_OF_SPREAD

    def tightened(self, share: float) -> Gate:
        """A gate that lets through only this share of the error."""
        return Gate(
            cosine_median=1 - share * (1 - self.cosine_median),
            cosine_p01=1 - share * (1 - self.cosine_p01),
            neighbour_agreement=1 - share * (1 - self.neighbour_agreement),
            probe_loss=share * self.probe_loss,
            repeat_of_spread=self.repeat_of_spread,
        )

    @property
    def words(self) -> str:
        """For the card."""
        return (
            f"centred cosine: median >= {self.cosine_median:g}, first percentile >= {self.cosine_p01:g}; same nearest "
            f"neighbour for >= {self.neighbour_agreement:.0%} of the tiles; linear probe loses <= {self.probe_loss:.0%}"
        )


@dataclass(frozen=True)
class Equivalence:
    """How near one form's vectors are to the fp32 encoder's, on the same tiles.

    Attributes:
        tiles: How many.
        cosine_median: Median cosine of a tile's two vectors, both centred on the fp32 mean.
        cosine_p01: First percentile of them.
        cosine_min: Lowest of them.
        neighbour_agreement: Share of tiles whose nearest other tile is the same in both.
        probe_loss: Accuracy lost by a linear probe fitted on fp32 vectors when it is given the form's; None when the
            tiles make no two classes.
    """

    tiles: int
    cosine_median: float
    cosine_p01: float
    cosine_min: float
    neighbour_agreement: float
    probe_loss: float | None

    def failures(self, gate: Gate) -> tuple[str, ...]:
        """What the gate refuses, in words; empty when the form passes."""
        loss = 0.0 if self.probe_loss is None else self.probe_loss
        checks = (
            (
                self.cosine_median >= gate.cosine_median,
                f"median cosine {self.cosine_median:.4f} < {gate.cosine_median:g}",
            ),
            (
                self.cosine_p01 >= gate.cosine_p01,
                f"cosine of the first percentile {self.cosine_p01:.4f} < {gate.cosine_p01:g}",
            ),
            (
                self.neighbour_agreement >= gate.neighbour_agreement,
                f"same neighbour for {self.neighbour_agreement:.1%} < {gate.neighbour_agreement:.0%} of the tiles",
            ),
            (loss <= gate.probe_loss, f"linear probe loses {loss:.1%} > {gate.probe_loss:.0%}"),
        )
        return tuple(words for is_met, words in checks if not is_met)


def measure_equivalence(
    reference: NDArray[np.float32], form: NDArray[np.float32], *, labels: NDArray[np.int64] | None = None
) -> Equivalence:
    """Compare a form's vectors with the fp32 encoder's.

    Args:
        reference: (n, width) vectors of the fp32 encoder.
        form: (n, width) vectors of the form, of the same tiles in the same order.
        labels: (n,) class of each tile for the probe, for example its slide; None groups the tiles by likeness.

    Raises:
        ValueError: The two are not of one shape, or fewer than two tiles.
    """
    if reference.shape != form.shape or reference.ndim != 2 or len(reference) < 2:
        raise ValueError(f"two sets of vectors of the same tiles are compared, not {reference.shape} and {form.shape}")
    expected, got = reference.astype(np.float64), form.astype(np.float64)
    if not np.isfinite(got).all():
        return Equivalence(len(got), 0.0, 0.0, 0.0, 0.0, 1.0)
    centre = expected.mean(axis=0)
    expected, got = expected - centre, got - centre  # one centre for both: a shift of all vectors is a difference too
    cosine = np.sum(_unit(expected) * _unit(got), axis=1)
    return Equivalence(
        tiles=len(got),
        cosine_median=float(np.median(cosine)),
        cosine_p01=float(np.percentile(cosine, 1)),
        cosine_min=float(cosine.min()),
        neighbour_agreement=float(np.mean(_nearest(expected) == _nearest(got))),
        probe_loss=measure_probe_loss(expected, got, group_by_likeness(expected) if labels is None else labels),
    )


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _nearest(vectors: Floats) -> NDArray[np.int64]:
    """Index of each vector's nearest other by cosine."""
    unit = _unit(vectors)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    nearest: NDArray[np.int64] = np.argmax(likeness, axis=1)
    return nearest


def measure_probe_loss(reference: Floats, form: Floats, labels: NDArray[np.int64]) -> float | None:
    """Accuracy that a ridge classifier, fitted on half of the fp32 vectors, loses on the form's vectors of the rest.

    Both halves take their turn. Classes of fewer than four tiles are left out; None when fewer than two remain.
    """
    names, counts = np.unique(labels, return_counts=True)
    known = names[counts >= _FEWEST_OF_A_CLASS]
    if len(known) < 2:
        return None
    kept = np.isin(labels, known)
    classes = np.searchsorted(known, labels[kept])
    first = _every_second_of_a_class(classes)
    losses = []
    for fitted, asked in ((first, ~first), (~first, first)):
        guess = _Ridge(reference[kept][fitted], classes[fitted], len(known))
        right = [np.mean(guess(vectors[kept][asked]) == classes[asked]) for vectors in (reference, form)]
        losses.append(right[0] - right[1])
    return float(np.mean(losses))


def _every_second_of_a_class(classes: NDArray[np.int64]) -> NDArray[np.bool_]:
    order = np.argsort(classes, kind="stable")
    rank = np.empty(len(classes), np.int64)
    starts = np.searchsorted(classes[order], classes[order])
    rank[order] = np.arange(len(classes)) - starts
    is_even: NDArray[np.bool_] = rank % 2 == 0
    return is_even


class _Ridge:
    """A linear classifier on standardised vectors, one target a class, solved in the smaller of the two spaces."""

    def __init__(self, vectors: Floats, classes: NDArray[np.int64], n_classes: int) -> None:
        self._mean, self._std = vectors.mean(axis=0), vectors.std(axis=0) + 1e-9
        known = (vectors - self._mean) / self._std
        targets = np.eye(n_classes)[classes]
        self._offset = targets.mean(axis=0)
        kernel = known @ known.T
        ridge = _RIDGE * np.trace(kernel) / len(known) * np.eye(len(known))
        self._weights = known.T @ np.linalg.solve(kernel + ridge, targets - self._offset)

    def __call__(self, vectors: Floats) -> NDArray[np.int64]:
        best: NDArray[np.int64] = np.argmax((vectors - self._mean) / self._std @ self._weights + self._offset, axis=1)
        return best


def group_by_likeness(vectors: Floats) -> NDArray[np.int64]:
    """Up to eight groups of like vectors, (n,): k-means from the farthest points; nothing is drawn at random."""
    centres = [vectors[np.argmax(np.linalg.norm(vectors, axis=1))]]
    distance = np.linalg.norm(vectors - centres[0], axis=1)
    while len(centres) < _GROUPS and distance.max() > 0:
        centres.append(vectors[np.argmax(distance)])
        distance = np.minimum(distance, np.linalg.norm(vectors - centres[-1], axis=1))
    middle = np.stack(centres)
    groups = np.zeros(len(vectors), np.int64)
    for _ in range(_ROUNDS):
        squared = (middle**2).sum(axis=1) - 2 * vectors @ middle.T
        nearest = np.argmin(squared, axis=1)
        if np.array_equal(nearest, groups):
            break
        groups = nearest
        middle = np.stack(
            [vectors[groups == g].mean(axis=0) if (groups == g).any() else middle[g] for g in range(len(middle))]
        )
    return groups
