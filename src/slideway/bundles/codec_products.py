"""Product quantisation: every four numbers become the index of the nearest of 256 centres.

Codebooks are those of a given basis or, when none is given, fitted on the slide; then they travel and are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from slideway.bundles.codec_basis import (
    CENTRES,
    PART_NUMBERS,
    FeatureBasis,
    count_parts,
    find_nearest,
    fit_codebooks,
    join_parts,
    split_parts,
)
from slideway.bundles.codec_bytes import SectionReader, SectionWriter
from slideway.core.errors import UnreadableBagError

Floats = NDArray[np.float32]

_FARTHEST = float(np.finfo(np.float16).max)


def write_products(writer: SectionWriter, vectors: Floats, basis: FeatureBasis | None) -> dict[str, Any]:
    """Mean, codebooks unless given, and one byte for every four numbers."""
    mean = vectors.mean(axis=0, dtype=np.float64).astype("<f2")
    writer.add(mean)
    centred = vectors - mean.astype(np.float32)
    is_given = basis is not None and basis.codebooks is not None
    if basis is not None and basis.codebooks is not None:
        codebooks = basis.codebooks
    else:
        codebooks = np.clip(fit_codebooks(centred), -_FARTHEST, _FARTHEST).astype("<f2")
        writer.add(codebooks)
    centres = codebooks.astype(np.float32)
    parts = split_parts(centred)
    writer.add(np.stack([find_nearest(part, centre) for part, centre in zip(parts, centres, strict=True)]))
    return {"codebooks_inside": not is_given}


def read_products(
    reader: SectionReader, n: int, width: int, header: dict[str, Any], basis: FeatureBasis | None
) -> Floats:
    """Inverse of `write_products`: each four numbers become their centre."""
    mean = reader.take_array("<f2", width).astype(np.float32)
    n_parts = count_parts(width)
    is_inside = header.get("codebooks_inside")
    if type(is_inside) is not bool:
        raise UnreadableBagError("the header does not state where the codebooks are; ask for the bundle again")
    if is_inside:
        centres = reader.take_array("<f2", n_parts, CENTRES, PART_NUMBERS).astype(np.float32)
    elif basis is not None and basis.codebooks is not None and len(basis.codebooks) == n_parts:
        centres = basis.codebooks
    else:
        raise UnreadableBagError("decoding needs the codebooks that it was encoded with; pass basis=")
    codes = reader.take_array(np.uint8, n_parts, n)
    return join_parts(np.take_along_axis(centres, codes[..., None].astype(np.int64), axis=1), width) + mean
