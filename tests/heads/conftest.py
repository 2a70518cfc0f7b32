"""Bags of made-up vectors, laid out on a square slide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from slideway.core.bag import EmbeddingBag
from slideway.core.tissue import TileGrid

FINGERPRINT = "f" * 64
LayBag = Callable[..., EmbeddingBag]


@pytest.fixture(scope="session")
def lay_bag() -> LayBag:
    def lay(vectors: NDArray, fingerprint: str = FINGERPRINT, encoder_id: str = "toy") -> EmbeddingBag:
        n, side = len(vectors), max(1, int(np.ceil(np.sqrt(len(vectors)))))
        places = np.stack([np.arange(n) % side, np.arange(n) // side], axis=1).astype(np.int32)
        return EmbeddingBag(
            vectors.astype(np.float16),
            TileGrid(places, 224, 0.5, 0.5),
            np.ones(n, np.float32),
            encoder_id,
            fingerprint,
            "0" * 64,
        )

    return lay
