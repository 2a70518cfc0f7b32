"""Novelty is a rank among reference tiles of unseen cases, and never compares two encoders."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from slideway.core.errors import FingerprintMismatchError, UntrustedEncoderError
from slideway.heads import Reference, find_reference, load_reference, score_novelty
from slideway.heads.novelty import NOVEL_PERCENTILE, build_reference, dump_reference
from slideway.registry import DEFAULT_ENCODER, find_encoder, list_encoders

FINGERPRINT = "f" * 64
WIDTH = 12


def draw_cases(cases: int, tiles: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of several cases: each case has a stain of its own, each tile differs within it."""
    random = np.random.default_rng(seed)
    stain = random.normal(0, 0.5, (cases, WIDTH))
    case = np.repeat(np.arange(cases), tiles)
    return stain[case] + random.normal(0, np.linspace(0.2, 2, WIDTH), (len(case), WIDTH)), case


@pytest.fixture(scope="module")
def reference() -> Reference:
    vectors, case = draw_cases(30, 40, seed=0)
    return build_reference(vectors, case, name="toy-30-cases", encoder_id="toy", fingerprint=FINGERPRINT)


def test_tissue_like_the_reference_is_novel_as_rarely_as_promised(lay_bag, reference):
    novelty = score_novelty(lay_bag(draw_cases(30, 40, seed=1)[0]), reference)
    assert novelty.novel_share == pytest.approx(0.01, abs=0.015)
    assert 40 < np.median(novelty.percentile) < 60
    assert novelty.reference == "toy-30-cases"


def test_tile_far_from_all_reference_tissue_is_at_the_top(lay_bag, reference):
    vectors = draw_cases(1, 10, seed=2)[0]
    vectors[3] += 20
    novelty = score_novelty(lay_bag(vectors), reference)
    assert novelty.percentile[3] == 100
    assert novelty.novel_share == pytest.approx(0.1)


def test_direction_in_which_tissue_hardly_varies_counts_more(lay_bag, reference):
    along, across = np.zeros((2, WIDTH))
    along[-1], across[0] = 3, 3
    novelty = score_novelty(lay_bag(reference.mean + np.stack([along, across])), reference)
    assert novelty.percentile[1] > novelty.percentile[0]


def test_reference_tiles_are_compared_with_other_cases_only():
    vectors, case = draw_cases(6, 40, seed=3)
    vectors[case == 5] += 15  # one case unlike all others: it must not vouch for itself
    reference = build_reference(vectors, case, name="n", encoder_id="toy", fingerprint=FINGERPRINT)
    assert (reference.distances > 10 * np.median(reference.distances)).sum() == 40


def test_bag_of_another_encoder_is_refused(lay_bag, reference):
    with pytest.raises(FingerprintMismatchError, match="one encoder"):
        score_novelty(lay_bag(draw_cases(1, 5, seed=0)[0], fingerprint="0" * 64), reference)


def test_empty_bag_has_no_novelty(lay_bag, reference):
    novelty = score_novelty(lay_bag(np.empty((0, WIDTH))), reference)
    assert novelty.percentile.shape == (0,)
    assert novelty.novel_share == 0


def test_vector_that_is_not_finite_counts_as_most_novel(lay_bag, reference):
    vectors = draw_cases(1, 4, seed=0)[0]
    vectors[1], vectors[2] = np.nan, np.inf
    percentile = score_novelty(lay_bag(vectors), reference).percentile
    assert list(percentile[1:3]) == [100, 100]
    assert np.isfinite(percentile).all()


def test_reference_comes_back_from_its_file(reference, tmp_path):
    path = tmp_path / "toy.safetensors"
    path.write_bytes(dump_reference(reference, notes={"credit": "nobody"}))
    loaded = load_reference(path)
    assert (loaded.name, loaded.encoder_id, loaded.fingerprint) == ("toy-30-cases", "toy", FINGERPRINT)
    for name in ("mean", "whitening", "distances"):
        assert np.array_equal(getattr(loaded, name), getattr(reference, name))


def rewrite(path, reference, **changes):
    path.write_bytes(dump_reference(reference, notes={}))
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = {**file.metadata(), **{k: v for k, v in changes.items() if isinstance(v, str)}}
    tensors |= {k: v for k, v in changes.items() if not isinstance(v, str)}
    path.write_bytes(save(tensors, metadata=metadata))
    return path


def test_changed_number_in_a_reference_is_refused(reference, tmp_path):
    mean = reference.mean.copy()
    mean[4] += 0.001
    with pytest.raises(UntrustedEncoderError, match="changed or damaged"):
        load_reference(rewrite(tmp_path / "r.safetensors", reference, mean=mean))


def test_reference_of_a_newer_major_schema_is_refused(reference, tmp_path):
    with pytest.raises(UntrustedEncoderError, match="update Slideway"):
        load_reference(rewrite(tmp_path / "r.safetensors", reference, schema="2.0"))
    assert load_reference(rewrite(tmp_path / "r.safetensors", reference, schema="1.4")).name == reference.name


@pytest.mark.parametrize("content", [b"", b"not a reference", save({"mean": np.zeros(3, np.float32)})])
def test_file_that_is_no_reference_is_refused(tmp_path, content):
    path = tmp_path / "r.safetensors"
    path.write_bytes(content)
    with pytest.raises(UntrustedEncoderError, match="not a reference set"):
        load_reference(path)


def test_every_packaged_encoder_has_a_reference_of_its_own_fingerprint(lay_bag):
    for card in list_encoders():
        bag = lay_bag(np.zeros((1, card.output.width)), fingerprint=card.fingerprint, encoder_id=card.id)
        found = find_reference(bag)
        assert found is not None
        assert (found.encoder_id, found.fingerprint, len(found.mean)) == (card.id, card.fingerprint, card.output.width)


def test_encoder_with_the_id_of_a_packaged_one_but_other_weights_has_no_reference(lay_bag):
    assert find_reference(lay_bag(np.zeros((1, 544)), encoder_id=DEFAULT_ENCODER)) is None


@pytest.mark.parametrize("encoder_id", ["unheard-of", "../references/slideway-small", "", "*"])
def test_unknown_encoder_has_no_reference(lay_bag, encoder_id):
    assert find_reference(lay_bag(np.zeros((1, 544)), encoder_id=encoder_id)) is None


def test_packaged_reference_knows_tissue_from_blank_black_and_noise(lay_bag):
    card = find_encoder(DEFAULT_ENCODER)
    vectors = load_file(card.golden_path)["vectors"]
    bag = lay_bag(vectors, fingerprint=card.fingerprint, encoder_id=card.id)
    reference = find_reference(bag)
    assert reference is not None
    percentile = score_novelty(bag, reference).percentile
    assert (percentile[:5] < 99).all()
    # blank glass is near the reference's tiles at the edge of a section
    assert (percentile[6:] > NOVEL_PERCENTILE).all()
