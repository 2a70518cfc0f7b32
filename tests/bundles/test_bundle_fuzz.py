"""Hostile bundles: whatever comes, there is an answer or one of our errors, and reading many leaks nothing."""

import gc
import io
import json
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import imagecodecs
import msgpack
import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideway.bundles.build import build_bundle
from slideway.bundles.container import MAGIC, Part, pack_container
from slideway.bundles.lock import lock_parts
from slideway.bundles.read import read_bundle
from slideway.core.errors import BrokenBundleError, SlidewayError

PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def try_to_read(content, key=None):
    """Everything that a receiver asks of a bundle: a sound answer, or one of our errors with a sentence."""
    try:
        bundle = read_bundle(content, key=key)
        bag, opinion = bundle.bag(), bundle.opinion
    except SlidewayError as error:
        assert len(str(error)) > 30
        return
    assert opinion is None or isinstance(opinion, dict)
    if bag is not None:
        assert np.isfinite(bag.vectors).all()
        assert bag.grid.column_row.min() >= 0
        assert np.isfinite(bag.weights).all()
        assert len(bag) <= bundle.summary.tiles


@pytest.fixture
def small(toy, short_chunks):
    return build_bundle(toy(60, 12))


@FUZZ
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_refused(content, has_start):
    start = struct.pack("<8sHHI", MAGIC, 1, 0, len(content)) if has_start else b""
    with pytest.raises(BrokenBundleError):
        read_bundle(start + content)


@FUZZ
@given(st.data())
def test_parts_with_random_bytes_in_a_valid_container_end_in_our_errors(small, data):
    name = data.draw(st.sampled_from([part.name for part in small.parts]))
    content = data.draw(st.binary(min_size=1, max_size=300))
    packed = data.draw(st.booleans())
    content = imagecodecs.zstd_encode(content, 3) if packed else content
    parts = [replace(part, content=content) if part.name == name else part for part in small.parts]
    try_to_read(pack_container(parts))


@FUZZ
@given(st.data())
def test_parts_with_flipped_bytes_in_a_valid_container_end_in_an_answer_or_our_errors(small, data):
    parts = list(small.parts)
    victim = data.draw(st.integers(0, len(parts) - 1))
    content = bytearray(parts[victim].content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    parts[victim] = replace(parts[victim], content=bytes(content))
    try_to_read(pack_container(parts))


@FUZZ
@given(st.data())
def test_parts_cut_anywhere_in_a_valid_container_end_in_an_answer_or_our_errors(small, data):
    parts = list(small.parts)
    victim = data.draw(st.integers(0, len(parts) - 1))
    cut = data.draw(st.integers(1, len(parts[victim].content)))
    parts[victim] = replace(parts[victim], content=parts[victim].content[:cut])
    try_to_read(pack_container(parts))


@FUZZ
@given(st.data())
def test_hostile_summaries_end_in_an_answer_or_our_errors(small, data):
    plain = msgpack.unpackb(imagecodecs.zstd_decode(small.parts[0].content))
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(ODD)
    summary = imagecodecs.zstd_encode(msgpack.packb(plain), 3)
    try_to_read(pack_container([replace(small.parts[0], content=summary), *small.parts[1:]]))


@FUZZ
@given(st.data())
def test_hostile_heads_of_tiles_and_axes_end_in_an_answer_or_our_errors(small, data):
    victims = [i for i, part in enumerate(small.parts) if part.name == "axes" or part.name.startswith("tiles")]
    victim = data.draw(st.sampled_from(victims))
    content = small.parts[victim].content
    at = 2 + int.from_bytes(content[:2], "little")
    head = msgpack.unpackb(content[2:at])
    inner = head["header"] if "header" in head and data.draw(st.booleans()) else head
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(ODD)
    packed = msgpack.packb(head)
    parts = list(small.parts)
    parts[victim] = replace(parts[victim], content=len(packed).to_bytes(2, "little") + packed + content[at:])
    try_to_read(pack_container(parts))


@FUZZ
@given(ODD)
def test_hostile_locks_end_in_our_errors(small, odd):
    parts, lock = lock_parts(small.parts, PRIVATE.public_key())
    key = sorted(lock)[hash(repr(odd)) % 3]
    if lock[key] == odd:
        return
    with pytest.raises(SlidewayError):
        read_bundle(pack_container(parts, lock=lock | {key: odd}), key=PRIVATE)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"7",
        b'"text"',
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"a": "\xff"}',
        bytes(5_000_000),
    ],
    ids=range(12),
)
def test_an_opinion_that_is_none_is_refused(small, repack, raw):
    bundle = read_bundle(repack(small, opinion=bytes(imagecodecs.zstd_encode(raw, 3))))
    with pytest.raises(BrokenBundleError, match="opinion"):
        _ = bundle.opinion
    assert len(bundle.bag()) == 60


def test_an_opinion_that_is_not_zstd_is_refused(small, repack):
    with pytest.raises(BrokenBundleError, match="opinion"):
        _ = read_bundle(repack(small, opinion=json.dumps({}).encode())).opinion


def test_parts_that_unpack_to_far_more_than_they_promise_are_refused(small, repack):
    bomb = bytes(imagecodecs.zstd_encode(bytes(80_000_000), 3))
    before = psutil.Process().memory_info().rss
    for name in ("summary", "opinion", "tiles_0", "tiles_1", "axes"):
        try_to_read(repack(small, **{name: bomb}))
    assert psutil.Process().memory_info().rss - before < 60_000_000


def test_reading_many_bundles_leaves_no_file_open_and_no_memory_taken(small, tmp_path):
    path = tmp_path / "bundle.swb"
    parts, lock = lock_parts(small.parts, PRIVATE.public_key())
    path.write_bytes(pack_container(parts, lock=lock))
    cut = tmp_path / "cut.swb"
    cut.write_bytes(path.read_bytes()[:-60])
    broken = tmp_path / "broken.swb"
    broken.write_bytes(path.read_bytes()[:-1] + b"!")
    process = psutil.Process()

    def read_some(times):
        for _ in range(times):
            assert len(read_bundle(path, key=PRIVATE).bag()) == 60
            assert len(read_bundle(cut, key=PRIVATE).bag()) < 60
            with pytest.raises(SlidewayError):
                read_bundle(broken, key=PRIVATE)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        read_some(20)
        gc.collect()
        before, files = process.memory_info().rss, len(process.open_files())
        read_some(80)
        gc.collect()
    assert len(process.open_files()) == files
    assert process.memory_info().rss - before < 8_000_000


def test_the_reader_takes_any_kind_of_file_in_small_bites(small, monkeypatch):
    """A pipe gives what it has; a part may come in many pieces."""

    class Slow(io.BytesIO):
        def read(self, n=-1):
            return super().read(min(n, 7))

    monkeypatch.setattr(Path, "open", lambda self, mode: Slow(small.pack()))
    assert len(read_bundle(Path("pipe.swb")).bag()) == 60


def test_a_part_of_tier_3_that_nobody_knows_is_kept_as_bytes(small):
    region = Part("region-0", 3, b"pixels", is_optional=True)
    bundle = read_bundle(pack_container([*small.parts, region]))
    assert bundle.contents["region-0"] == b"pixels"
