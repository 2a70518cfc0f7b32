"""What heads and baselines said of slides whose case they had not learnt from; needs no torch to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ABMIL = "abmil"
MEAN_POOL = "mean-pool + logistic regression"
NEIGHBOURS = "nearest cases"
METHODS = (ABMIL, MEAN_POOL, NEIGHBOURS)
Logits = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class HeldOut:
    """What was said of slides whose case was not learnt from.

    Attributes:
        judged: (n_slides,) bool, True where a fold tested the slide.
        logits: For each method and task (n_slides, outputs); not a number where not judged.
        p_value: (n_slides,) chance of a slide at least as strange among the known cases; not a number where not judged.
        strangeness: (n_slides,) share of known cases that are less strange; not a number where not judged.
    """

    judged: NDArray[np.bool_]
    logits: Mapping[str, Logits]
    p_value: NDArray[np.float64]
    strangeness: NDArray[np.float64]
