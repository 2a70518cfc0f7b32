"""A part with tiles: everything comes back, and nothing hostile in it gets through, or gets memory or time."""

import tracemalloc

import imagecodecs
import msgpack
import numpy as np
import pytest

from slideway.bundles.codec_bytes import SectionWriter
from slideway.bundles.codecs import encode
from slideway.bundles.order import NEVER, RANDOM
from slideway.bundles.tiles_part import dump_tiles, find_shared_axes, load_shared_axes, load_tiles, peek_tiles
from slideway.core.errors import BrokenBundleError

NAN, INF = float("nan"), float("inf")


def dump_some(content, tiles=None, codec="int8", basis=None, novelty="given"):
    n = len(content.bag)
    tiles = np.arange(n) if tiles is None else tiles
    reason, since = np.full(n, RANDOM, np.uint8), np.full(n, NEVER, np.uint8)
    novelty = content.novelty if isinstance(novelty, str) else novelty
    return dump_tiles(content.bag, tiles, reason=reason, since=since, novelty=novelty, codec=codec, basis=basis)


def split(part):
    at = 2 + int.from_bytes(part[:2], "little")
    return msgpack.unpackb(part[2:at]), part[at:]


def join(head, body):
    packed = head if isinstance(head, bytes) else msgpack.packb(head)
    return len(packed).to_bytes(2, "little") + packed + body


def test_some_tiles_come_back_with_all_that_is_known_of_them(toy):
    content = toy(40, 8, is_sampled=True)
    tiles = np.array([0, 3, 9, 20, 39])
    content.bag.focus[3] = np.nan
    content.novelty[9] = np.nan
    part = dump_some(content, tiles, codec="fp16")
    rows = load_tiles(part, None, "a bundle")
    assert np.array_equal(rows.column_row, content.bag.grid.column_row[tiles])
    assert np.array_equal(rows.vectors, content.bag.vectors[tiles])
    assert np.array_equal(rows.edge_reason, content.bag.sampling.reason[tiles])
    assert np.array_equal(rows.weight, content.bag.sampling.weight[tiles])
    assert np.isnan(rows.focus).tolist() == [False, True, False, False, False]
    assert np.nanmax(np.abs(rows.focus - content.bag.focus[tiles])) <= 900 / 254 / 2 * 1.01
    assert np.isnan(rows.novelty).tolist() == [False, False, True, False, False]
    assert np.nanmax(np.abs(rows.novelty - content.novelty[tiles])) <= 0.2501
    head = peek_tiles(part, "a bundle")
    assert (head.tiles, head.width, head.is_sampled) == (5, 8, True)


def test_without_a_reference_no_novelty_is_made_up(toy):
    rows = load_tiles(dump_some(toy(9, 4), novelty=None), None, "a bundle")
    assert np.isnan(rows.novelty).all()
    assert rows.weight.tolist() == [1] * 9


def test_shared_axes_come_back_and_are_the_same_basis(toy):
    content = toy(400, 32)
    sent, basis = find_shared_axes(content.bag.vectors, "steps", content.bag.fingerprint)
    back = load_shared_axes(sent, content.bag.fingerprint, "a bundle")
    assert back.id == basis.id
    part = dump_some(content, codec="steps", basis=basis)
    assert split(part)[0]["header"]["basis"] == basis.id
    assert np.array_equal(load_tiles(part, back, "a bundle").vectors, load_tiles(part, basis, "a bundle").vectors)


def test_numbers_that_are_not_finite_do_not_spoil_shared_axes(toy):
    content = toy(400, 32)
    content.bag.vectors[5] = np.nan
    content.bag.vectors[6, 1] = np.inf
    assert find_shared_axes(content.bag.vectors, "steps", "f" * 64) is not None
    assert find_shared_axes(np.full((9, 4), np.nan, np.float16), "steps", "f" * 64) is None
    assert find_shared_axes(content.bag.vectors, "int8", "f" * 64) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"tiles": 39},
        {"tiles": 0},
        {"tiles": -1},
        {"tiles": 2**40},
        {"tiles": 40.0},
        {"tiles": True},
        {"width": 7},
        {"width": 0},
        {"width": 2**17},
        {"codec": "zip"},
        {"codec": ["int8"]},
        {"header": None},
        {"header": []},
        {"header": {}},
        {"header": {"version": 2, "clamped": 0}},
        {"header": {"version": 1, "clamped": 41}},
        {"header": {"version": 1, "clamped": 0, "axes": 2**50}},
        {"header": {"version": 1, "clamped": 0, "axes": NAN}},
        {"bytes": [0, 0]},
        {"bytes": [-1, 5]},
        {"bytes": [2**62, 2**62]},
        {"bytes": [1.0, 2.0]},
        {"bytes": 3},
        {"focus": [NAN, 1.0]},
        {"focus": [0.0, INF]},
        {"focus": [0.0, 0.0]},
        {"focus": [0.0, 1e300]},
        {"focus": [1, 2]},
        {"focus": ["1", "2"]},
        {"has_novelty": 1},
        {"has_novelty": False},
        {"is_sampled": True},
        {"is_sampled": None},
    ],
    ids=str,
)
def test_a_head_that_does_not_fit_is_refused(toy, changed):
    head, body = split(dump_some(toy(40, 8)))
    with pytest.raises(BrokenBundleError):
        load_tiles(join(head | changed, body), None, "a bundle")


@pytest.mark.parametrize("key", ["tiles", "width", "codec", "header", "bytes", "focus", "has_novelty", "is_sampled"])
def test_a_head_that_lacks_something_is_refused(toy, key):
    head, body = split(dump_some(toy(40, 8)))
    with pytest.raises(BrokenBundleError):
        load_tiles(join({name: value for name, value in head.items() if name != key}, body), None, "a bundle")


@pytest.mark.parametrize(
    "head", [b"", b"\xc1", b"\x91" * 60_000, b"\xdf\xff\xff\xff\xff", b"\x01", b"\x81\x01\x02"], ids=range(6)
)
def test_hostile_msgpack_is_refused(head):
    for load in (lambda part: load_tiles(part, None, "a"), lambda part: load_shared_axes(part, "f" * 64, "a")):
        with pytest.raises(BrokenBundleError):
            load(join(head, b"rest"))
        with pytest.raises(BrokenBundleError):
            load(b"\x05")


def replace_facts(content, **changed):
    """A part of 9 tiles with hostile numbers behind its vectors."""
    head, body = split(dump_some(content))
    facts = {
        "reason": np.zeros(9, np.uint8),
        "since": np.full(9, NEVER, np.uint8),
        "focus": np.zeros(9, np.uint8),
        "novelty": np.zeros(9, np.uint8),
        "edge_reason": np.zeros(9, np.uint8),
        "weight": np.ones(9, "<f4"),
    } | changed
    writer = SectionWriter()
    for value in facts.values():
        writer.add(value)
    return join(head | {"is_sampled": True}, body[: sum(head["bytes"])] + writer.join())


@pytest.mark.parametrize(
    "changed",
    [
        {"reason": np.full(9, 5, np.uint8)},
        {"edge_reason": np.full(9, 255, np.uint8)},
        {"novelty": np.full(9, 201, np.uint8)},
        {"weight": np.full(9, np.nan, "<f4")},
        {"weight": np.full(9, np.inf, "<f4")},
        {"weight": np.full(9, 0.5, "<f4")},
        {"weight": np.full(9, -1, "<f4")},
        {"weight": np.full(9, 1e30, "<f4")},
        {"focus": np.zeros(8, np.uint8)},
        {"more": np.zeros(1, np.uint8)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_facts_out_of_range_are_refused(toy, changed):
    content = toy(9, 4)
    assert len(load_tiles(replace_facts(content), None, "a bundle").weight) == 9
    with pytest.raises(BrokenBundleError):
        load_tiles(replace_facts(content, **changed), None, "a bundle")


def test_places_beyond_int32_are_refused(toy):
    head, body = split(dump_some(toy(9, 4)))
    steps = b"\xfe\xff\xff\xff\x0f" * 18  # each 2**31 - 1
    writer = SectionWriter()
    writer.add(b"\0" + len(steps).to_bytes(4, "little"))
    writer.add(steps)
    places = writer.join()
    far = join(head | {"bytes": [len(places), head["bytes"][1]]}, places + body[head["bytes"][0] :])
    with pytest.raises(BrokenBundleError, match="int32"):
        load_tiles(far, None, "a bundle")


def test_numbers_at_the_ends_of_float16_stay_finite(toy):
    content = toy(200, 8)
    content.bag.vectors[::2] = 65_504
    rows = load_tiles(dump_some(content, codec="steps-coarse"), None, "a bundle")
    assert np.isfinite(rows.vectors).all()


def test_few_bytes_that_promise_many_tiles_or_axes_get_no_memory():
    zeros = encode(np.zeros((1, 4), np.float16), "steps").payload
    header = {"version": 1, "clamped": 0, "axes": 0, "axes_inside": True, "step": 0.5}
    head = {"codec": "steps", "header": header, "bytes": [0, len(zeros)], "focus": [0.0, 1.0], "has_novelty": False}
    bomb = imagecodecs.zstd_encode(bytes(60_000_000), 3)
    section = len(bomb).to_bytes(4, "little") + bomb
    tracemalloc.start()
    for tiles, width in ((2**24, 8), (2**20, 2_048), (2**14, 2**16), (2**26, 1)):
        part = join(head | {"tiles": tiles, "width": width, "is_sampled": False}, zeros)
        with pytest.raises(BrokenBundleError):
            load_tiles(part, None, "a bundle")
    for axes, width in ((2**16, 2**16), (2**14, 2**13)):
        with pytest.raises(BrokenBundleError, match="axes"):
            load_shared_axes(join({"axes": axes, "width": width}, 2 * section), "f" * 64, "a bundle")
        inside = head | {"tiles": 2, "width": width, "is_sampled": False, "header": header | {"axes": axes}}
        with pytest.raises(BrokenBundleError):
            load_tiles(join(inside | {"bytes": [0, 3 * len(section)]}, 3 * section), None, "a bundle")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
