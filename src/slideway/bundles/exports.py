"""Write a bag in the formats other programs read: TRIDENT's HDF5, AnnData, QuPath's GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slideway.core.bag import EmbeddingBag
from slideway.core.findings import Novelty, TissueGroups

# Okabe and Ito's colours, safe for colour-blind readers; groups beyond eight do not occur.
_GROUP_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (90, 90, 90),
)  # fmt: skip


def write_trident_h5(path: Path, bag: EmbeddingBag, groups: TissueGroups | None, novelty: Novelty | None) -> None:
    """Write `features` and `coords` as TRIDENT and CLAM lay them out, for MIL training code.

    Source: mahmoodlab/TRIDENT, patch feature files: coords are level-0 top-left corners, attributes on `coords`.
    """
    import h5py

    del groups, novelty
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.asarray(bag.vectors, np.float32))
        coords = file.create_dataset("coords", data=bag.grid.xy_level0_px.astype(np.int64))
        coords.attrs["patch_size"] = bag.grid.tile_px
        coords.attrs["patch_size_level0"] = round(bag.grid.tile_level0_px)
        coords.attrs["target_mpp"] = bag.grid.tile_mpp
        coords.attrs["level0_mpp"] = bag.grid.slide_mpp
        coords.attrs["overlap"] = 0
        file["features"].attrs["encoder"] = bag.encoder_id
        file["features"].attrs["fingerprint"] = bag.fingerprint


def write_anndata(path: Path, bag: EmbeddingBag, groups: TissueGroups | None, novelty: Novelty | None) -> None:
    """Write an AnnData file: X = vectors, obs = tiles, obsm["spatial"] = tile centres in level-0 pixels.

    Written with h5py, so that an edge PC needs no pandas; read back with anndata in the tests.
    Source: AnnData on-disk format, encoding-version 0.1.0 (anndata) / 0.2.0 (dataframe, array).
    """
    import h5py

    columns: dict[str, Any] = {
        "column": bag.grid.column_row[:, 0],
        "row": bag.grid.column_row[:, 1],
        "focus": bag.focus,
    }
    if groups is not None:
        columns["group"] = groups.group
    if novelty is not None:
        columns["novelty_percentile"] = novelty.percentile
    centres = bag.grid.xy_level0_px + bag.grid.tile_level0_px / 2
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        _write_array(file, "X", np.asarray(bag.vectors, np.float32))
        _write_frame(file, "obs", [f"tile{i}" for i in range(len(bag))], columns)
        _write_frame(file, "var", [f"e{i}" for i in range(bag.width)], {})
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            file.create_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        _write_array(file["obsm"], "spatial", centres.astype(np.float64))
        facts = {
            "encoder_id": bag.encoder_id,
            "fingerprint": bag.fingerprint,
            "tile_px": bag.grid.tile_px,
            "tile_mpp": bag.grid.tile_mpp,
            "slide_mpp": bag.grid.slide_mpp,
        }
        for name, value in facts.items():
            kind = "string" if isinstance(value, str) else "numeric-scalar"
            file["uns"].create_dataset(name, data=value).attrs.update(
                {"encoding-type": kind, "encoding-version": "0.2.0"}
            )


def _write_array(parent: Any, name: str, values: Any, kind: str = "array") -> None:
    import h5py

    dtype = h5py.string_dtype() if kind == "string-array" else None
    dataset = parent.create_dataset(name, data=values, dtype=dtype)
    dataset.attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})


def _write_frame(file: Any, name: str, index: list[str], columns: dict[str, Any]) -> None:
    import h5py

    frame = file.create_group(name)
    frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    frame.attrs.create("column-order", list(columns), dtype=h5py.string_dtype(), shape=(len(columns),))
    _write_array(frame, "_index", index, "string-array")
    for column, values in columns.items():
        _write_array(frame, column, values)


def write_geojson(path: Path, bag: EmbeddingBag, groups: TissueGroups | None, novelty: Novelty | None) -> None:
    """Write every tile as a QuPath tile object: polygon in level-0 pixels, group as class, measurements.

    Source: QuPath documentation, "Exporting annotations", GeoJSON with `objectType`.
    """
    xy, edge = bag.grid.xy_level0_px.tolist(), bag.grid.tile_level0_px
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for i, (x, y) in enumerate(xy):
            right, bottom = round(x + edge), round(y + edge)
            properties: dict[str, Any] = {"objectType": "tile", "name": f"tile{i}"}
            measurements = {"focus": float(bag.focus[i])} if np.isfinite(bag.focus[i]) else {}
            if groups is not None:
                group = int(groups.group[i])
                colour = list(_GROUP_COLOURS[group % len(_GROUP_COLOURS)])
                properties["classification"] = {"name": f"Group {group + 1}", "color": colour}
            if novelty is not None:
                measurements["novelty_percentile"] = float(novelty.percentile[i])
            properties["measurements"] = measurements
            ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
            feature = {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
            file.write(("," if i else "") + json.dumps(feature, separators=(",", ":")))
        file.write("]}\n")


Export = Callable[[Path, EmbeddingBag, TissueGroups | None, Novelty | None], None]
EXPORTS: dict[str, tuple[str, Export]] = {
    "h5": ("bag.h5", write_trident_h5),
    "h5ad": ("bag.h5ad", write_anndata),
    "geojson": ("tiles.geojson", write_geojson),
}


def export_bag(
    kind: str, folder: Path, bag: EmbeddingBag, groups: TissueGroups | None = None, novelty: Novelty | None = None
) -> Path:
    """Write a bag as `kind` (h5, h5ad or geojson) into `folder`, all or nothing; returns the file."""
    name, write = EXPORTS[kind]
    part = folder / f".{name}.part"
    try:
        write(part, bag, groups, novelty)
        part.replace(folder / name)
    finally:
        part.unlink(missing_ok=True)
    return folder / name
