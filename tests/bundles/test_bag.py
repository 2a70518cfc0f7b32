"""The bag file: written in any order, read by foreign libraries, refused when cut."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from slideway.bundles import BagWriter, read_bag
from slideway.core.errors import UnreadableBagError
from slideway.core.tissue import TileGrid

FACTS = {"encoder_id": "e", "fingerprint": "f" * 64, "slide_sha256": "a" * 64}


def grid_of(n: int) -> TileGrid:
    return TileGrid(np.stack([np.arange(n) % 7, np.arange(n) // 7], 1).astype(np.int32), 224, 0.5, 0.25)


def write(path, n, order, width=6):
    vectors = (np.arange(n * width).reshape(n, width) % 2000).astype(np.float32)
    with BagWriter(path, grid_of(n), width) as writer:
        for start in range(0, len(order), 3):
            indices = np.asarray(order[start : start + 3], np.int64)
            writer.write(indices, vectors[indices], indices.astype(np.float32))
        writer.finish(**FACTS)
    return vectors


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, max(0, n - 1)), unique=True)))
)
def test_rows_come_back_in_grid_order_whatever_order_they_were_written_in(tmp_path_factory, case):
    n, order = case
    order = order if n else []
    path = tmp_path_factory.mktemp("bag") / "bag.safetensors"
    vectors = write(path, n, order)
    bag = read_bag(path)
    kept = sorted(order)
    assert np.array_equal(bag.vectors, vectors[kept].astype(np.float16))
    assert np.array_equal(bag.focus, np.asarray(kept, np.float32))
    assert np.array_equal(bag.grid.column_row, grid_of(n).column_row[kept])


def test_gaps_longer_than_a_copy_block_are_closed(tmp_path):
    n = 30_000
    order = [i for i in range(n) if i % 3 or i > 25_000]
    vectors = write(tmp_path / "b", n, order[::-1], width=4)
    assert np.array_equal(read_bag(tmp_path / "b").vectors, vectors[order].astype(np.float16))


def test_any_safetensors_library_reads_a_bag(tmp_path):
    vectors = write(tmp_path / "b.safetensors", 10, range(10))
    tensors = load_file(tmp_path / "b.safetensors")
    assert np.array_equal(tensors["vectors"], vectors.astype(np.float16))
    assert tensors["column_row"].shape == (10, 2)


def test_a_bag_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "b"
    write(path, 10, range(10))
    whole = path.read_bytes()
    for cut in [0, 4, 8, 100, 2047, 2048, 2100, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(UnreadableBagError):
            read_bag(path)


def test_a_newer_major_version_is_refused_by_name(tmp_path):
    path = tmp_path / "b"
    write(path, 3, range(3))
    path.write_bytes(path.read_bytes().replace(b'"version":"1.0"', b'"version":"2.0"'))
    with pytest.raises(UnreadableBagError, match=r"version 2\.0"):
        read_bag(path)


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), BagWriter(tmp_path / "b", grid_of(3), 4):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_bag_names_nothing_but_the_documented_fields(tmp_path):
    write(tmp_path / "b", 3, range(3))
    raw = (tmp_path / "b").read_bytes()
    header = json.loads(raw[8:2048])
    assert set(header["__metadata__"]) == {
        "format", "version", "encoder_id", "fingerprint", "slide_sha256", "tile_px", "tile_mpp", "slide_mpp",
    }  # fmt: skip
