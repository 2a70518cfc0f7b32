"""Codecs of vectors: each keeps its promise, whatever the numbers; nothing hostile gets through, or gets memory."""

import json
import struct
import tracemalloc
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slideway.bundles import codec_steps
from slideway.bundles.codec_basis import dump_basis, fit_basis, load_basis
from slideway.bundles.codec_steps import FEW_AXIS_CODES
from slideway.bundles.codecs import CODECS, EncodedVectors, decode, encode, find_clamped
from slideway.core.errors import UnreadableBagError

BOUNDED = {"int8": 255, "int4": 15}
REFINED = [name for name in CODECS if "+" in name]
BAGS = hnp.arrays(
    np.float16,
    st.tuples(st.integers(0, 24), st.integers(1, 9)),
    elements=st.floats(-60_000, 60_000, width=16) | st.sampled_from([0.0, 1.0, -0.5, 6e-8]),
)


def tissue_like(n=600, width=32, seed=0):
    """Few directions hold most of the variance, as in embeddings of tissue."""
    random = np.random.default_rng(seed)
    spread = 3 * 0.8 ** np.arange(width)
    turned = np.linalg.qr(np.random.default_rng(9).normal(size=(width, width)))[0]
    return (random.normal(size=(n, width)) * spread @ turned + 1).astype(np.float16)


@pytest.fixture(scope="module")
def basis():
    slides = [tissue_like(300, seed=seed) + np.float16(seed) for seed in (5, 6)]
    return fit_basis(np.concatenate(slides), np.repeat([0, 1], 300), fingerprint="f" * 64)


def over_json(encoded):
    """As it comes out of a bundle: the header through JSON."""
    return replace(encoded, header=json.loads(json.dumps(encoded.header)))


@settings(max_examples=60, deadline=None)
@given(BAGS, st.sampled_from(list(CODECS)))
def test_every_codec_gives_back_finite_numbers_of_the_same_shape_and_the_same_bytes_twice(vectors, codec):
    encoded = encode(vectors, codec)
    decoded = decode(over_json(encoded))
    assert decoded.shape == vectors.shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    assert encode(vectors, codec) == encoded


@settings(max_examples=60, deadline=None)
@given(BAGS)
def test_fp16_gives_back_every_bit(vectors):
    assert np.array_equal(decode(encode(vectors, "fp16")).astype(np.float16).view(np.uint16), vectors.view(np.uint16))


@settings(max_examples=60, deadline=None)
@given(BAGS.filter(len), st.sampled_from(list(BOUNDED)))
def test_int8_and_int4_are_within_half_a_step_of_each_dimension(vectors, codec):
    exact = vectors.astype(np.float64)
    step = np.ptp(exact, axis=0) / BOUNDED[codec] * (1 + 2**-9) + 1.2e-7  # float16 rounds the step up
    error = np.abs(decode(encode(vectors, codec)) - exact)
    assert (error <= step / 2 + 1e-6 * np.abs(exact).max(axis=0)).all()


@settings(max_examples=60, deadline=None)
@given(BAGS.filter(len), st.sampled_from(["steps-fine", "steps", "steps-coarse"]))
def test_steps_keep_every_number_within_half_a_step(vectors, codec):
    encoded = encode(vectors, codec)
    error = np.abs(decode(encoded) - vectors.astype(np.float64))
    assert error.max() <= encoded.header["step"] / 2 + 1e-6 * np.abs(vectors.astype(np.float64)).max()


def test_the_step_is_half_of_what_usual_numbers_differ_by_and_one_strange_tile_does_not_change_it():
    vectors = tissue_like()
    usual = np.sqrt(np.median(((vectors.astype(float) - vectors.mean(axis=0, dtype=float)) ** 2).mean(axis=1)))
    strange = vectors.copy()
    strange[7] = 30_000
    for bag in (vectors, strange):
        assert encode(bag, "steps").header["step"] == pytest.approx(usual / 2, rel=0.2, abs=0)
    assert encode(vectors, "steps-coarse").header["step"] == pytest.approx(usual * 0.75, rel=0.01)


def test_steps_keep_a_rare_tile_that_no_axis_reaches_where_pca_loses_it(basis):
    vectors = tissue_like(1_000)
    narrow = replace(basis, axes=basis.axes[:4])
    lesion = vectors.copy()
    lesion[500] += (10 * basis.axes[-1]).astype(np.float16)
    step = encode(lesion, "steps", basis=narrow).header["step"]
    kept = decode(encode(lesion, "steps", basis=narrow), basis=narrow)
    lost = decode(encode(lesion, "pca-int8", basis=narrow), basis=narrow)
    assert np.abs(kept[500] - lesion[500]).max() <= 0.51 * step
    assert np.linalg.norm(lost[500] - lesion[500].astype(float)) > 9


@pytest.mark.parametrize("codec", REFINED)
def test_coarse_part_and_residual_give_the_int8_answer(codec):
    vectors = tissue_like()
    encoded = encode(vectors, codec)
    exact = decode(encode(vectors, "int8"))
    step = np.ptp(vectors.astype(float), axis=0) / 255
    assert (np.abs(decode(encoded) - exact) <= 1.01 * step).all()
    if codec != "steps+int8":
        assert np.array_equal(decode(encoded), exact)


@pytest.mark.parametrize("codec", REFINED)
def test_the_prefix_alone_is_as_good_as_its_coarse_codec(codec):
    vectors = tissue_like()
    coarse = encode(vectors, codec.partition("+")[0])
    prefix = over_json(encode(vectors, codec)).prefix
    assert len(prefix.payload) < 1.1 * len(coarse.payload)
    errors = [np.abs(decode(one) - vectors.astype(float)).mean() for one in (prefix, coarse)]
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("codec", REFINED)
def test_a_residual_cut_anywhere_is_refused_and_the_prefix_stays_usable(codec):
    encoded = encode(tissue_like(20), codec)
    prefix_bytes = encoded.header["prefix_bytes"]
    for cut in range(len(encoded.payload)):
        part = replace(encoded, payload=encoded.payload[:cut])
        if cut == prefix_bytes:
            assert np.array_equal(decode(part), decode(encoded.prefix))
        else:
            with pytest.raises(UnreadableBagError):
                decode(part)


@pytest.mark.parametrize("codec", CODECS)
def test_smaller_codes_cost_fewer_bytes_than_lossless_and_decode_to_something_alike(codec):
    vectors = tissue_like(2_000)
    encoded = encode(vectors, codec)
    centred = vectors.astype(float) - vectors.mean(axis=0, dtype=float)
    decoded = decode(encoded) - vectors.mean(axis=0, dtype=float)
    cosine = (centred * decoded).sum(1) / np.linalg.norm(centred, axis=1) / np.linalg.norm(decoded, axis=1)
    assert cosine.mean() > (0.7 if codec == "binary" else 0.98)
    if codec != "fp16":
        assert len(encoded.payload) < 0.65 * len(encode(vectors, "fp16").payload)


@pytest.mark.parametrize("codec", CODECS)
def test_numbers_that_are_not_finite_are_clamped_flagged_and_leave_the_others_as_they_were(codec):
    vectors = tissue_like()
    poisoned = vectors.copy()
    poisoned[3, 1], poisoned[8, 1], poisoned[599, 2] = np.inf, -np.inf, np.nan
    encoded = over_json(encode(poisoned, codec))
    assert find_clamped(encoded).tolist() == [3, 8, 599]
    assert find_clamped(encode(vectors, codec)).tolist() == []
    others = np.setdiff1d(np.arange(600), [3, 8, 599])
    worst = [np.abs(decode(one)[others] - vectors[others]).max() for one in (encoded, encode(vectors, codec))]
    assert worst[0] <= 1.2 * worst[1] + 1e-6


def test_infinite_numbers_become_the_farthest_of_their_dimension_and_the_others_its_mean():
    vectors = np.array([[1, 2], [5, np.nan], [np.inf, 6], [-np.inf, np.nan]], np.float16)
    assert decode(encode(vectors, "fp16")).tolist() == [[1, 2], [5, 4], [5, 6], [1, 4]]


@pytest.mark.parametrize("codec", CODECS)
def test_a_bag_without_a_finite_number_decodes_to_zeros(codec):
    assert not decode(encode(np.full((3, 5), np.nan, np.float16), codec)).any()


@pytest.mark.parametrize("codec", CODECS)
def test_an_empty_bag_is_an_answer_of_no_bytes(codec):
    encoded = encode(np.empty((0, 8), np.float16), codec)
    assert encoded.payload == b""
    assert decode(over_json(encoded)).shape == (0, 8)
    with pytest.raises(UnreadableBagError, match="follow"):
        decode(replace(encoded, payload=b"12345"))


def test_a_given_basis_is_not_sent_is_named_and_must_be_there_to_decode(basis):
    vectors = tissue_like(40, seed=3)
    for codec in (name for name in CODECS if CODECS[name].wants_basis):
        encoded = over_json(encode(vectors, codec, basis=basis))
        assert encoded.header["basis"] == basis.id
        assert len(encoded.payload) < len(encode(vectors, codec).payload)
        assert decode(encoded, basis=basis).shape == vectors.shape
        for wrong in (None, replace(basis, axes=-basis.axes)):
            with pytest.raises(UnreadableBagError, match="basis"):
                decode(encoded, basis=wrong)


def test_a_basis_of_another_width_is_a_callers_mistake(basis):
    with pytest.raises(ValueError, match="numbers"):
        encode(tissue_like(5, width=8), "steps", basis=basis)


def test_a_large_bag_sends_axes_of_its_own_and_still_costs_less_than_int4():
    vectors = tissue_like(3_000, width=64)
    encoded = encode(vectors, "steps")
    assert encoded.header["axes_inside"]
    assert encoded.header["axes"] > 0
    assert len(encoded.payload) < 0.6 * len(encode(vectors, "int4").payload)


def read_own_axes(encoded):
    """Codes (k, width) of the axes inside a payload of steps."""
    k, (_, width) = encoded.header["axes"], encoded.shape
    _, _, codes, *_ = split_sections(encoded.payload)
    return np.frombuffer(codes, np.int8).reshape(k, width)


def test_few_tiles_send_fewer_axes_of_five_bits_and_many_send_more_of_eight():
    few, many = (encode(tissue_like(n, width=64), "steps") for n in (150, 6_000))
    assert 0 < few.header["axes"] < many.header["axes"]
    assert np.abs(read_own_axes(few)).max() == FEW_AXIS_CODES == 15
    assert np.abs(read_own_axes(many)).max() == 127


@pytest.mark.parametrize("n", [20, 150, 6_000])
def test_of_all_ways_to_send_axes_the_smallest_is_taken(monkeypatch, n):
    vectors = tissue_like(n, width=64)
    taken, find_ways = len(encode(vectors, "steps").payload), codec_steps._own_axes
    alone = []
    for i in range(3):
        monkeypatch.setattr(codec_steps, "_own_axes", lambda centred, step, i=i: find_ways(centred, step)[i : i + 1])
        alone.append(len(encode(vectors, "steps").payload))
    assert taken == min(alone)
    assert len(set(alone)) == 3


def test_product_quantisation_sends_codebooks_only_where_they_pay():
    assert encode(tissue_like(100), "pq").codec == "int4"
    assert encode(tissue_like(6_000), "pq").codec == "pq"


def test_a_basis_file_comes_back_and_a_changed_one_is_refused(basis, tmp_path):
    path = tmp_path / "basis.safetensors"
    content = dump_basis(basis, notes={"tissue": "toy"})
    path.write_bytes(content)
    assert load_basis(path).id == basis.id
    for at in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UnreadableBagError, match=r"changed|not a basis"):
            load_basis(path)
    path.write_bytes(content[:-8])
    with pytest.raises(UnreadableBagError, match="not a basis"):
        load_basis(path)


def test_ranges_as_small_as_float16_goes_are_still_within_half_a_step():
    vectors = (np.arange(356) * 2.0**-24).astype(np.float16)[:, None]
    assert np.abs(decode(encode(vectors, "int8")) - vectors).max() <= 2.0**-24


def test_centres_beyond_the_ends_of_float16_are_kept_at_its_ends():
    vectors = np.full((5_000, 64), 22_000, np.float16)
    vectors[0] = -60_000
    encoded = encode(vectors, "pq")
    assert np.isfinite(decode(encoded)).all()


# Hostile input


def try_to_decode(encoded, basis=None):
    """Decode something hostile: numbers of the declared shape or one clear refusal, nothing else."""
    try:
        decoded = decode(encoded, basis=basis)
    except UnreadableBagError as error:
        assert len(str(error)) > 20
    else:
        assert decoded.shape == tuple(encoded.shape)
        assert np.isfinite(decoded).all()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(CODECS)), st.binary(max_size=200), st.integers(0, 40), st.integers(1, 40), st.integers(0, 3)
)
def test_random_bytes_never_end_in_anything_but_a_refusal(codec, payload, n, width, clamped):
    header = {"version": 1, "clamped": clamped, "axes": 2, "axes_inside": True, "step": 0.5, "codebooks_inside": True}
    try_to_decode(EncodedVectors(codec, (n, width), payload, {**header, "prefix_bytes": 1}))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(list(CODECS)), st.data())
def test_flipped_bits_and_truncation_never_end_in_anything_but_numbers_or_a_refusal(codec, data):
    vectors = tissue_like(12, width=6)
    vectors[3, 1] = np.inf
    encoded = encode(vectors, codec)
    payload = bytearray(encoded.payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try_to_decode(replace(encoded, payload=bytes(payload)))
    cut = data.draw(st.integers(0, len(payload)))
    try_to_decode(replace(encoded, payload=bytes(payload[:cut])))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(CODECS)), st.data())
def test_hostile_numbers_inside_whole_sections_never_end_in_anything_but_numbers_or_a_refusal(codec, data):
    encoded = encode(tissue_like(12, width=6), codec)
    sections = split_sections(encoded.payload)
    victim = data.draw(st.integers(0, len(sections) - 1))
    content = bytearray(sections[victim])
    for _ in range(data.draw(st.integers(1, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 0x7B, 0x7F, 0xFF]))
    sections[victim] = bytes(content)
    try_to_decode(replace(encoded, payload=join_sections(sections)))


def split_sections(payload):
    sections = []
    while payload:
        n_bytes = struct.unpack("<I", payload[:4])[0]
        packed, payload = payload[4 : 4 + n_bytes], payload[4 + n_bytes :]
        sections.append(imagecodecs.zstd_decode(packed) if packed else b"")
    return sections


def join_sections(sections):
    packed = [imagecodecs.zstd_encode(one, 3) if one else b"" for one in sections]
    return b"".join(struct.pack("<I", len(one)) + one for one in packed)


ODD = st.sampled_from([None, -1, 0, 1, 3, 10**12, True, 0.5, float("nan"), float("inf"), "1", [], {}])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(CODECS)), st.data())
def test_hostile_headers_never_end_in_anything_but_numbers_or_a_refusal(codec, data):
    encoded = encode(tissue_like(12, width=6), codec)
    key = data.draw(st.sampled_from([*sorted(encoded.header), "basis"]))
    try_to_decode(replace(encoded, header={**encoded.header, key: data.draw(ODD)}))
    shape = (data.draw(ODD), data.draw(ODD))
    if shape != (12, 6):
        with pytest.raises(UnreadableBagError):
            decode(replace(encoded, shape=shape))


@pytest.mark.parametrize("codec", CODECS)
def test_a_few_bytes_that_declare_a_giant_bag_get_no_memory(codec):
    bomb = imagecodecs.zstd_encode(bytes(50_000_000), 9)
    payload = struct.pack("<I", len(bomb)) + bomb
    header = {"version": 1, "clamped": 0, "axes": 100, "axes_inside": True, "step": 0.5, "codebooks_inside": True}
    header["prefix_bytes"] = 3
    tracemalloc.start()
    for declared in ((3, 4), (2**18, 2_048), (2**19, 2_048), (2**40, 8), (10, 2**30)):
        with pytest.raises(UnreadableBagError):
            decode(EncodedVectors(codec, declared, payload, header))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_takes_no_more_than_six_times_the_declared_memory(codec):
    vectors = tissue_like(4_000, width=64)
    encoded = encode(vectors, codec)
    tracemalloc.start()
    decode(encoded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 4 * vectors.size + 500_000


def test_more_bit_planes_than_codes_have_are_refused():
    encoded = encode(tissue_like(8, width=4), "steps", basis=None)
    *others, planes, bits = split_sections(encoded.payload)
    assert planes[0] < 26
    whole = bits + bytes(4 * (30 - planes[0]))
    with pytest.raises(UnreadableBagError, match="planes"):
        decode(replace(encoded, payload=join_sections([*others, bytes([30]), whole])))


def test_steps_that_leave_the_range_of_vectors_are_refused():
    encoded = encode(tissue_like(40), "steps+int8")
    with pytest.raises(UnreadableBagError, match="range"):
        decode(replace(encoded, header={**encoded.header, "step": 9e5}))


@pytest.mark.parametrize("codec", REFINED)
def test_a_header_that_lies_about_its_first_part_is_refused(codec):
    encoded = encode(tissue_like(20), codec)
    for lie in (len(encoded.payload) + 1, None, "7", True):
        with pytest.raises(UnreadableBagError, match="coarse"):
            decode(replace(encoded, header={**encoded.header, "prefix_bytes": lie}))


def test_a_wrong_number_of_clamped_tiles_is_refused():
    vectors = tissue_like(20)
    vectors[[2, 5]] = np.nan
    encoded = encode(vectors, "int8")
    with pytest.raises(UnreadableBagError, match="clamped"):
        decode(replace(encoded, header={**encoded.header, "clamped": 1}))


def test_unknown_codecs_and_newer_versions_are_refused_in_words():
    encoded = encode(tissue_like(5), "int8")
    with pytest.raises(UnreadableBagError, match="update Slideway"):
        decode(replace(encoded, codec="int2"))
    with pytest.raises(UnreadableBagError, match="update Slideway"):
        decode(replace(encoded, header={**encoded.header, "version": 2}))
    with pytest.raises(ValueError, match="no codec"):
        encode(tissue_like(5), "int2")
    with pytest.raises(ValueError, match="n_tiles, width"):
        encode(np.zeros(5, np.float16), "int8")
