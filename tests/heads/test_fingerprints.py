"""Invariant I7: wherever embeddings could meet, those of two encoders are refused; a new such place must be listed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable

import numpy as np
import pytest

import slideway.bundles
import slideway.core
import slideway.heads
import slideway.pipeline
from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import FingerprintMismatchError
from slideway.heads import group_tiles, score_novelty
from slideway.heads.novelty import Reference, find_reference
from slideway.heads.similar import find_centre, find_similar

ROOMS = (slideway.core, slideway.bundles, slideway.heads, slideway.pipeline)
OTHER = "0" * 64


def make_reference(fingerprint: str, encoder_id: str = "toy") -> Reference:
    return Reference(
        "n", encoder_id, fingerprint, np.zeros(8, np.float32), np.eye(8, dtype=np.float32), np.arange(100, dtype="f4")
    )


# Every function in which two things with fingerprints meet, with a call in which they differ.
MEETINGS: dict[str, Callable[[EmbeddingBag, EmbeddingBag], object]] = {
    "slideway.heads.novelty.score_novelty": lambda a, b: score_novelty(a, make_reference(b.fingerprint)),
    "slideway.heads.similar.find_similar": lambda a, b: find_similar(a, group_tiles(a), [b]),
    "slideway.heads.similar.find_centre": lambda a, b: find_centre([a, b]),
}


@pytest.fixture
def pair(lay_bag) -> tuple[EmbeddingBag, EmbeddingBag]:
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    return lay_bag(vectors), lay_bag(vectors, fingerprint=OTHER)


@pytest.mark.parametrize("place", list(MEETINGS))
def test_embeddings_of_two_encoders_do_not_meet(pair, place: str) -> None:
    with pytest.raises(FingerprintMismatchError, match="different encoders"):
        MEETINGS[place](*pair)


def test_one_stranger_among_many_is_found(lay_bag) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    library = [lay_bag(vectors) for _ in range(9)] + [lay_bag(vectors, fingerprint=OTHER)]
    with pytest.raises(FingerprintMismatchError):
        find_similar(library[0], group_tiles(library[0]), library)


def test_optimised_form_of_an_encoder_does_not_meet_its_fp32_bags(lay_bag) -> None:
    # Same network, same tiles, nearly the same numbers: another precision is another fingerprint all the same.
    from dataclasses import replace

    from slideway.registry import DEFAULT_ENCODER, find_encoder

    card = find_encoder(DEFAULT_ENCODER)
    form = replace(card, weights=replace(card.weights, precision="fp16"))
    with pytest.raises(FingerprintMismatchError):
        require_same_encoder(card.fingerprint, form.fingerprint)


def test_packaged_reference_is_not_offered_to_another_encoder_of_the_same_id(lay_bag) -> None:
    from slideway.registry import DEFAULT_ENCODER, find_encoder

    width = find_encoder(DEFAULT_ENCODER).output.width
    assert find_reference(lay_bag(np.zeros((4, width)), fingerprint=OTHER, encoder_id=DEFAULT_ENCODER)) is None


def meetings() -> set[str]:
    """Public functions whose signature lets two things with fingerprints in."""
    found = set()
    for room in ROOMS:
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
                if function.__module__ != module.name or name.startswith("_"):
                    continue
                types = [str(a) for p, a in inspect.get_annotations(function).items() if p != "return"]
                several = any(
                    re.search(r"(Sequence|Iterable|list|tuple|Mapping|dict)\[.*EmbeddingBag", t) for t in types
                )
                if several or sum(bool(re.search(r"\b(EmbeddingBag|Reference)\b", t)) for t in types) > 1:
                    found.add(f"{module.name}.{name}")
    return found


def test_no_function_brings_bags_together_unlisted() -> None:
    assert meetings() == set(MEETINGS)
