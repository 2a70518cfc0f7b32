"""Reading a case bundle: every prefix is a true answer, every flipped bit is refused, what contradicts itself too."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles.build import DEFAULT_CODEC, build_bundle
from slideway.bundles.container import pack_container
from slideway.bundles.lock import lock_parts
from slideway.bundles.read import read_bundle
from slideway.bundles.summary_part import dump_summary
from slideway.core.errors import BrokenBundleError, LockedBundleError, WrongUseError
from slideway.registry.keys import SigningKey

SIGNER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RECEIVER = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
FORMS = ("plain", "locked")


def give_form(built, form):
    """The bytes of a bundle as it is, or signed and locked; and the key that opens it."""
    if form == "locked":
        parts, lock = lock_parts(built.parts, RECEIVER.public_key())
        return pack_container(parts, lock=lock, signer=SIGNER), RECEIVER
    return pack_container(built.parts), None


def require_true_prefix(bag, whole, tissue_tiles):
    """Each tile says what it says in the whole, and together they stand for all."""
    place = {tuple(where): i for i, where in enumerate(whole.grid.column_row.tolist())}
    mine = [place[tuple(where)] for where in bag.grid.column_row.tolist()]
    assert mine == sorted(set(mine))
    assert np.array_equal(bag.vectors, whole.vectors[mine])
    assert np.array_equal(bag.focus, whole.focus[mine])
    assert bag.weights.sum(dtype=np.float64) == pytest.approx(tissue_tiles, rel=1e-5)
    assert bag.weights.min() >= 1
    for name in ("encoder_id", "fingerprint", "slide_sha256"):
        assert getattr(bag, name) == getattr(whole, name)


@pytest.mark.parametrize(("form", "is_sampled"), [("plain", True), ("locked", False)])
def test_a_bundle_cut_at_any_byte_is_a_true_prefix_or_a_clear_error(toy, short_chunks, form, is_sampled):
    content, key = give_form(build_bundle(toy(120, 24, is_sampled=is_sampled)), form)
    whole = read_bundle(content, key=key)
    names, seen, refused = [entry.name for entry in whole.head.entries], {}, 0
    assert names == ["summary", "opinion", "thumbnail", "tiles-0", "axes", "tiles-1", "tiles-2"]
    for cut in range(len(content)):
        try:
            bundle = read_bundle(content[:cut], key=key)
        except BrokenBundleError as error:
            refused += 1
            assert len(str(error)) > 30
            continue
        n = len(bundle.contents)
        assert bundle.contents == {name: whole.contents[name] for name in names[:n]}
        assert bundle.missing == tuple(names[n:])
        assert not bundle.is_whole
        assert (bundle.summary, bundle.head) == (whole.summary, whole.head)
        seen.setdefault(n, bundle)
    assert refused == whole.head.n_bytes + whole.head.entries[0].n_bytes
    assert sorted(seen) == list(range(1, len(names)))
    for n, bundle in seen.items():
        assert (bundle.opinion is None) == (n < 2)
        assert (bundle.thumbnail is None) == (n < 3)
        assert (bundle.bag() is None) == (n < 4)
        if n >= 4:
            assert len(bundle.bag()) < 120
            require_true_prefix(bundle.bag(), whole.bag(), whole.summary.tissue_tiles)


@pytest.mark.parametrize("form", FORMS)
def test_any_flipped_bit_is_refused(toy, form):
    content, key = give_form(build_bundle(replace(toy(6, 4, n_findings=0), thumbnail=None)), form)
    damaged = bytearray(content)
    for at in range(len(content)):
        for bit in range(8):
            damaged[at] ^= 1 << bit
            with pytest.raises(BrokenBundleError):
                read_bundle(bytes(damaged), key=key)
            damaged[at] ^= 1 << bit
    assert read_bundle(bytes(damaged), key=key).is_whole


def test_a_whole_bundle_says_what_went_in(toy, short_chunks, tmp_path):
    content = toy()
    path = tmp_path / "bundle.swb"
    path.write_bytes(build_bundle(content).pack())
    bundle = read_bundle(path)
    assert bundle.is_whole
    assert bundle.missing == ()
    assert bundle.opinion == content.opinion
    assert bundle.thumbnail[8:12] == b"WEBP"
    assert bundle.summary == replace(content.summary, codec=DEFAULT_CODEC)
    bag = bundle.bag()
    assert bag.sampling is None
    assert np.array_equal(bag.grid.column_row, content.bag.grid.column_row)
    assert bag.grid.xy_level0_px.tolist() == content.bag.grid.xy_level0_px.tolist()
    numbers = content.bag.vectors.astype(float)
    assert np.abs(bag.vectors - numbers).max() < 0.5 * np.abs(numbers - np.median(numbers, axis=0)).mean()
    assert np.abs(bag.focus - content.bag.focus).max() <= 900 / 254 / 2 * 1.01
    assert np.abs(bundle.rows.novelty - content.novelty).max() <= 0.2501


def test_a_thrifty_bag_keeps_its_own_weights_and_reasons(toy, short_chunks):
    content = toy(is_sampled=True)
    bag = read_bundle(build_bundle(content).pack()).bag()
    assert np.array_equal(bag.sampling.reason, content.bag.sampling.reason)
    assert np.array_equal(bag.sampling.weight, content.bag.sampling.weight)


def test_focus_that_is_unknown_stays_unknown(toy, short_chunks):
    def blur(bag):
        bag.focus[::3] = np.nan
        return bag

    content = toy(edit_bag=blur)
    focus = read_bundle(build_bundle(content).pack()).bag().focus
    assert np.array_equal(np.isnan(focus), np.isnan(content.bag.focus))
    content.bag.focus[:] = np.nan
    assert np.isnan(read_bundle(build_bundle(content).pack()).bag().focus).all()


@pytest.mark.parametrize("codec", ["fp16", "int8", "steps"])
def test_numbers_that_are_not_finite_arrive_finite_and_leave_the_others_as_they_were(toy, short_chunks, codec):
    def spoil(bag):
        bag.vectors[7] = np.nan
        bag.vectors[8, 3] = np.inf
        bag.vectors[9, 3] = -65_504
        bag.vectors[10, 3] = 65_504
        return bag

    content = toy(edit_bag=spoil)
    bag = read_bundle(build_bundle(content, codec=codec).pack()).bag()
    others = np.setdiff1d(np.arange(200), [7, 8])
    assert np.isfinite(bag.vectors).all()
    error = np.abs(bag.vectors[others].astype(float) - content.bag.vectors[others].astype(float))
    bound = {"fp16": 0, "int8": 0.6 * 131_008 / 255, "steps": 64}[codec]  # float16 has steps of 32 at 65,504
    assert error.max() <= bound


def test_a_slide_without_tissue_is_a_whole_bundle_without_a_bag(toy):
    bundle = read_bundle(build_bundle(toy(0, n_findings=0)).pack())
    assert bundle.is_whole
    assert bundle.summary.tiles == 0
    assert bundle.bag() is None


def test_a_locked_bundle_opens_with_its_key_only(built):
    content, key = give_form(built, "locked")
    assert read_bundle(content, key=key).contents == read_bundle(built.pack()).contents
    for other in (None, X25519PrivateKey.generate()):
        with pytest.raises(LockedBundleError, match="slideway bundle key"):
            read_bundle(content, key=other)


def test_a_file_that_is_not_there_is_a_callers_mistake(tmp_path):
    with pytest.raises(WrongUseError, match=r"gone\.swb"):
        read_bundle(tmp_path / "gone.swb")


# Whole bundles with good hashes that contradict themselves


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"tiles": 150, "tissue_tiles": 150}, "more tiles"),
        ({"tiles_left_out": 1}, "more tiles"),
        ({"tissue_tiles": 300}, "stand for"),
        ({"is_sampled": True}, "sampled"),
        ({"width_px": 448}, "outside"),
        ({"tile_px": 22_400}, "outside"),
        ({"fingerprint": "ab" * 32}, "basis"),
    ],
)
def test_a_summary_that_does_not_fit_its_tiles_is_refused(built, repack, lie, message):
    summary = dump_summary(replace(built.summary, **lie), room=2_000)
    with pytest.raises(BrokenBundleError, match=message):
        read_bundle(repack(built, summary=summary)).bag()


def test_more_tiles_promised_than_came_are_missing_not_made_up(built, repack):
    summary = dump_summary(replace(built.summary, tiles=10**9, tissue_tiles=10**9), room=2_000)
    bag = read_bundle(repack(built, summary=summary)).bag()
    assert len(bag) == 200
    assert bag.weights.sum(dtype=np.float64) == pytest.approx(10**9, rel=1e-4)


def test_a_tile_that_comes_twice_is_refused(built, repack):
    parts = {part.name: part.content for part in built.parts}
    summary = dump_summary(replace(built.summary, tiles=400, tissue_tiles=400), room=2_000)
    with pytest.raises(BrokenBundleError, match="twice"):
        read_bundle(repack(built, summary=summary, tiles_2=parts["tiles-1"])).bag()


def test_tiles_out_of_order_or_before_their_axes_are_refused(built):
    parts = {part.name: part for part in built.parts}
    one, two, axes = (parts[name] for name in ("tiles-1", "tiles-2", "axes"))
    first = built.parts[:4]
    for wrong in ((axes, two, one), (axes, two), (one, axes, two), (axes, replace(one, name="tiles-01"))):
        with pytest.raises(BrokenBundleError):
            read_bundle(pack_container([*first, *wrong]))
    assert read_bundle(pack_container([*first, axes, one])).bag() is not None


def test_tiles_without_the_axes_that_they_need_are_refused(built):
    parts = [part for part in built.parts if part.name != "axes"]
    with pytest.raises(BrokenBundleError, match="basis"):
        read_bundle(pack_container(parts)).bag()


def test_the_first_part_must_be_the_summary(built):
    for wrong in (built.parts[1:], [replace(built.parts[0], tier=1), *built.parts[1:]]):
        with pytest.raises(BrokenBundleError, match="no summary"):
            read_bundle(pack_container(wrong))
