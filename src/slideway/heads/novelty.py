"""Say how unlike a reference set of ordinary tissue each tile of a slide is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import UntrustedEncoderError
from slideway.core.findings import Novelty

NOVEL_PERCENTILE = 99.0
SCHEMA_MAJOR = 1
_PACKAGED = Path(__file__).parent / "references"
_ROWS = 8_192  # vectors turned into float32 at a time

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """A reference set of tissue as one cloud of embeddings, and how far from it tiles of unseen cases lie.

    Attributes:
        name: Name of the set.
        encoder_id: Id of the encoder that made its embeddings.
        fingerprint: Fingerprint of that encoder; no other may meet it.
        mean: (width,) float32, centre of the cloud.
        whitening: (width, width) float32; `|(vector - mean) @ whitening|` is a tile's distance (Mahalanobis).
        distances: (n,) float32, ascending: distance of each reference tile from the cloud of all other cases.
    """

    name: str
    encoder_id: str
    fingerprint: str
    mean: Floats
    whitening: Floats
    distances: Floats

    def __post_init__(self) -> None:
        width = len(self.mean)
        if self.whitening.shape != (width, width) or self.distances.ndim != 1 or len(self.distances) < 100:
            raise ValueError("a reference has a (width,) mean, a (width, width) whitening and at least 100 distances")


def find_reference(bag: EmbeddingBag) -> Reference | None:
    """Packaged reference set of the very encoder that made a bag; None when there is none."""
    for path in sorted(_PACKAGED.glob("*.safetensors")):
        if path.stem == bag.encoder_id:
            reference = load_reference(path)
            return reference if reference.fingerprint == bag.fingerprint else None
    return None


def find_novelty(bag: EmbeddingBag) -> Novelty | None:
    """Novelty of a bag's tiles against the packaged reference set; None when its encoder has none."""
    reference = find_reference(bag)
    return score_novelty(bag, reference) if reference is not None else None


def score_novelty(bag: EmbeddingBag, reference: Reference) -> Novelty:
    """Rank each tile's distance from the reference among those of reference tiles from cases left out.

    Args:
        bag: Embeddings of one slide; may be empty. A vector that is not finite counts as most novel.
        reference: Reference set made with the same encoder.

    Raises:
        FingerprintMismatchError: Bag and reference were made by different encoders.
    """
    require_same_encoder(bag.fingerprint, reference.fingerprint)
    distance = measure_distance(bag.vectors, reference.mean, reference.whitening)
    below = np.searchsorted(reference.distances, distance, side="left")
    percentile = (100 * below / len(reference.distances)).astype(np.float32)
    is_novel = percentile > NOVEL_PERCENTILE
    novel_share = float(np.average(is_novel, weights=bag.weights)) if len(percentile) else 0.0
    return Novelty(percentile, reference.name, novel_share)


def measure_distance(vectors: NDArray[Any], mean: Floats, whitening: Floats) -> Floats:
    """(n,) float32 distance of each vector from a cloud; not a number where the vector is not finite."""
    parts = [np.empty(0, np.float32)]
    for i in range(0, len(vectors), _ROWS):
        centred = vectors[i : i + _ROWS].astype(np.float32) - mean
        finite = np.isfinite(centred).all(axis=1)
        distance = np.linalg.norm(np.where(finite[:, None], centred, 0) @ whitening, axis=1)
        parts.append(np.where(finite, distance, np.nan).astype(np.float32))
    return np.concatenate(parts)


def build_reference(
    vectors: NDArray[Any], case: NDArray[Any], *, name: str, encoder_id: str, fingerprint: str
) -> Reference:
    """Build a reference set from tiles of many cases.

    Args:
        vectors: (n, width) embeddings.
        case: (n,) case of each tile; a tile is never compared with its own case.
        name: Name of the set.
        encoder_id: Id of the encoder.
        fingerprint: Its fingerprint.
    """
    distances = [
        measure_distance(vectors[case == one], *fit_cloud(vectors[case != one])) for one in dict.fromkeys(case.tolist())
    ]
    mean, whitening = fit_cloud(vectors)
    return Reference(name, encoder_id, fingerprint, mean, whitening, np.sort(np.concatenate(distances)))


def fit_cloud(vectors: NDArray[Any]) -> tuple[Floats, Floats]:
    """Mean and whitening of a cloud of vectors.

    A hundredth of the mean variance is added to every direction, so that those in which the reference hardly varies
    do not decide alone.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.cov(vectors.astype(np.float64) - mean, rowvar=False)
    width = len(mean)
    regular = covariance + 0.01 * np.trace(covariance) / width * np.eye(width)
    return mean.astype(np.float32), np.linalg.cholesky(np.linalg.inv(regular)).astype(np.float32)


def dump_reference(reference: Reference, *, notes: Mapping[str, str]) -> bytes:
    """A reference set as a safetensors file; `notes` say where its tissue comes from."""
    tensors = {name: getattr(reference, name) for name in ("mean", "whitening", "distances")}
    metadata = {
        **notes,
        "schema": f"{SCHEMA_MAJOR}.0",
        "name": reference.name,
        "encoder_id": reference.encoder_id,
        "fingerprint": reference.fingerprint,
        "sha256": _hash_tensors(tensors),
    }
    content: bytes = save(tensors, metadata=metadata)
    return content


def load_reference(path: Path) -> Reference:
    """Read a reference set.

    Raises:
        UntrustedEncoderError: It is not one, is damaged, or is of a newer major version.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("mean", "whitening", "distances")}
        _require_intact(path, metadata, tensors)
        return Reference(
            name=metadata["name"],
            encoder_id=metadata["encoder_id"],
            fingerprint=metadata["fingerprint"],
            **tensors,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UntrustedEncoderError(
            f"{path.name} is not a reference set or is damaged ({error}); install Slideway again, or build it again"
        ) from error


def _require_intact(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Floats]) -> None:
    if metadata["schema"].partition(".")[0] != str(SCHEMA_MAJOR):
        raise UntrustedEncoderError(
            f"{path.name} is of schema {metadata['schema']}, this Slideway reads {SCHEMA_MAJOR}.x; update Slideway"
        )
    if metadata["sha256"] != _hash_tensors(tensors):
        raise UntrustedEncoderError(f"{path.name} was changed or damaged; install Slideway again, or build it again")


def _hash_tensors(tensors: Mapping[str, Floats]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype.str}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
