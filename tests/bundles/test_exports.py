"""Exports, read back with the libraries of those who use them."""

import json

import h5py
import numpy as np
import pytest

from slideway.bundles import EXPORTS, export_bag
from slideway.core.bag import EmbeddingBag
from slideway.core.findings import Novelty, TissueGroups
from slideway.core.tissue import TileGrid

anndata = pytest.importorskip("anndata", reason="the test extra installs anndata")


@pytest.fixture
def bag():
    grid = TileGrid(np.array([[0, 0], [3, 0], [1, 2]], np.int32), 224, 0.5, 0.25)
    vectors = np.arange(12).reshape(3, 4).astype(np.float16)
    return EmbeddingBag(vectors, grid, np.array([0.5, np.nan, 0.7], np.float32), "e", "f" * 64, "a" * 64)


GROUPS = TissueGroups(np.array([0, 0, 1], np.int16), ((0,), (2,)))
NOVELTY = Novelty(np.array([10, 99.5, 50], np.float32), "atlas", 1 / 3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_anndata_reads_the_export_with_vectors_groups_and_centres(tmp_path, bag):
    adata = anndata.read_h5ad(export_bag("h5ad", tmp_path, bag, GROUPS, NOVELTY))
    assert np.array_equal(adata.X, bag.vectors)
    assert adata.obs["group"].tolist() == [0, 0, 1]
    assert adata.obsm["spatial"][1].tolist() == [3 * 448 + 224, 224]
    assert adata.uns["fingerprint"] == "f" * 64


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_anndata_reads_an_empty_bag(tmp_path, bag):
    empty = EmbeddingBag(bag.vectors[:0], bag.grid.select(np.zeros(3, bool)), bag.focus[:0], "e", "f", "s")
    adata = anndata.read_h5ad(export_bag("h5ad", tmp_path, empty))
    assert adata.shape == (0, 4)


def test_trident_layout_has_features_and_level0_coords(tmp_path, bag):
    with h5py.File(export_bag("h5", tmp_path, bag)) as file:
        assert file["features"].shape == (3, 4)
        assert file["coords"][:].tolist() == bag.grid.xy_level0_px.tolist()
        assert file["coords"].attrs["patch_size_level0"] == 448


def test_geojson_tiles_lie_where_the_grid_says(tmp_path, bag):
    collection = json.loads(export_bag("geojson", tmp_path, bag, GROUPS, NOVELTY).read_text(encoding="utf-8"))
    tile = collection["features"][2]
    assert tile["geometry"]["coordinates"][0][0] == [448, 896]
    assert tile["properties"]["objectType"] == "tile"
    assert tile["properties"]["classification"]["name"] == "Group 2"
    assert tile["properties"]["measurements"]["novelty_percentile"] == 50.0
    assert "focus" not in collection["features"][1]["properties"]["measurements"]  # NaN is no JSON number


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_failed_export_leaves_nothing(tmp_path, bag, kind, monkeypatch):
    def fail(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(EXPORTS, kind, ("x", fail))
    with pytest.raises(OSError, match="No space"):
        export_bag(kind, tmp_path, bag)
    assert list(tmp_path.iterdir()) == []
