"""result.json: the machine-readable answer about one slide. Its schema is `schemas/result-1.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from slideway.core.bag import EmbeddingBag
from slideway.core.findings import Novelty, TissueGroups
from slideway.core.slide import ResolutionSource, Slide
from slideway.core.tissue import QualityGrade, TissueMask

SCHEMA = "slideway-result/1.3"


def describe_slide(slide: Slide, sha256: str, n_bytes: int) -> dict[str, Any]:
    """The `slide` object of result.json; names of identifying fields, never their values."""
    return {
        "name": slide.name,
        "sha256": sha256,
        "bytes": n_bytes,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        "mpp": slide.resolution.mpp,
        "mpp_source": slide.resolution.source.value,
        "mpp_detail": slide.resolution.detail,
        "vendor": slide.vendor,
        "scanner": slide.scanner,
        "reader": slide.reader,
        "objective_power": slide.objective_power,
        "levels": [
            {"width_px": level.width_px, "height_px": level.height_px, "downsample": round(level.downsample, 6)}
            for level in slide.levels
        ],
        "side_images": list(slide.side_images),
        "identifiers": list(slide.identifiers),
        "icc_profile": slide.has_icc_profile,
    }


def describe_quality(quality: QualityGrade) -> dict[str, Any]:
    """The `quality` object of result.json."""
    return {
        "verdict": quality.verdict.value,
        "reasons": [{"code": reason.code, "text": reason.text} for reason in quality.reasons],
        "measures": {name: round(float(value), 6) for name, value in quality.measures.items()},
    }


def describe_reading(
    *,
    slide: Mapping[str, Any],
    quality: QualityGrade,
    mask: TissueMask,
    bag: EmbeddingBag,
    groups: TissueGroups,
    novelty: Novelty | None,
) -> dict[str, Any]:
    """The answer without encoder, timing and files, which the pipeline adds."""
    return {
        "schema": SCHEMA,
        "estimated": slide["mpp_source"] == ResolutionSource.ESTIMATED.value,
        "slide": dict(slide),
        "quality": describe_quality(quality),
        "tissue": {"area_mm2": round(mask.area_mm2, 4), "fraction": round(mask.fraction, 6)},
        "grid": {"tiles": len(bag.grid), "tile_px": bag.grid.tile_px, "mpp": bag.grid.tile_mpp},
        "groups": {"count": groups.count, "shares": [round(share, 4) for share in groups.shares]},
        "novelty": None
        if novelty is None
        else {"reference": novelty.reference, "novel_share": round(novelty.novel_share, 4)},
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write result.json."""
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read the answer in an output folder; None when there is none that this version understands."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_known = isinstance(result, dict) and str(result.get("schema", "")).startswith("slideway-result/1.")
    return result if is_known and _is_whole(result) else None


def _is_whole(result: dict[str, Any]) -> bool:
    """Whether a damaged or hand-made answer has what other commands build on."""
    needed = {"slide": {"name", "sha256", "mpp", "mpp_source"}, "encoder": {"id", "fingerprint"}}
    has_parts = all(isinstance(result.get(part), dict) and keys <= result[part].keys() for part, keys in needed.items())
    return has_parts and isinstance(result.get("files"), list) and isinstance(result.get("estimated"), bool)


def load_schema() -> dict[str, Any]:
    """The JSON Schema of result.json that ships with this version."""
    text = resources.files("slideway.pipeline").joinpath("schemas/result-1.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
