"""The ways in which vectors travel: every codec, the first parts of those in two, and a coarser rung to try."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles import codec_steps
from slideway.bundles.codec_basis import FeatureBasis
from slideway.bundles.codecs import CODECS, Codec, decode, encode
from slideway.core.bag import EmbeddingBag

Array = NDArray[Any]
LOSSLESS = "fp16"
TRIED = "steps-1.0"  # not a codec of Slideway's: a coarser rung, to see whether it should be one
CODECS[TRIED] = Codec(
    1.0,
    "as steps; every number within half of the usual spread",
    partial(codec_steps.write_in_steps, share=1.0),
    codec_steps.read_in_steps,
    wants_basis=True,
)
# A bag of 96 tiles lies whole in its own first 96 axes: such a codec would look lossless there and cost as much.
NEEDS_BASIS = ("pca-int8", "pca-int4", "pq")


@dataclass(frozen=True)
class Way:
    """One way to send vectors.

    Attributes:
        codec: Name in `CODECS`.
        is_first: Only the first of a codec's two parts has come.
    """

    codec: str
    is_first: bool = False

    @property
    def name(self) -> str:
        return f"{self.codec}, first part" if self.is_first else self.codec

    @property
    def is_shipped(self) -> bool:
        """It can be asked of `build_bundle`."""
        return self.codec != TRIED and not self.is_first


WAYS = tuple(way for codec in CODECS for way in ([Way(codec, True), Way(codec)] if "+" in codec else [Way(codec)]))


def send(vectors: Array, way: Way, basis: FeatureBasis | None = None) -> tuple[Array, int]:
    """What the receiver has of vectors, as its bag holds them (float16), and the bytes that took."""
    sent = encode(vectors, way.codec, basis=basis)
    if way.is_first:
        sent = sent.prefix
    return decode(sent, basis=basis).astype(np.float16), len(sent.payload)


def send_bag(bag: EmbeddingBag, way: Way, basis: FeatureBasis | None = None) -> tuple[EmbeddingBag, int]:
    vectors, n_bytes = send(bag.vectors, way, basis)
    return replace(bag, vectors=vectors), n_bytes
