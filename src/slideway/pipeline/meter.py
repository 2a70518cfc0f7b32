"""Count what a slide's bundle takes, tier by tier, and hold it against what else could have been sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideway.bundles import read_bag
from slideway.bundles.container import read_head
from slideway.core.bag import EmbeddingBag
from slideway.core.errors import BrokenBundleError, SlideAccessError, WrongUseError
from slideway.pipeline.baselines import Baselines, Estimate
from slideway.pipeline.folder import find_slides
from slideway.pipeline.result import read_result
from slideway.slides.files import files_of_slide, hash_slide

BUNDLE, RESULT = "bundle.swb", "result.json"
_COARSE = 1.5  # times the pixel size of the encoder: from here on a slide's file holds less than half of its pixels


@dataclass(frozen=True)
class BundleBytes:
    """What the bundle of one slide takes.

    Attributes:
        name: File name of the slide.
        folder: Its output folder.
        slide_sha256: Its identity.
        file_bytes: Its file, or files, as they are.
        bundle_bytes: The whole bundle.
        tiers: Bytes of tiers 0, 1 and 2; what stands before the parts counts to tier 0.
        codec: How vectors are coded.
        is_over_budget: Even the coarsest useful precision takes more than the mission's bound.
        width_px: Width of level 0.
        height_px: Height of level 0.
        mpp: Microns per pixel at level 0.
        tile_mpp: Microns per pixel that the encoder read.
        tiles: Tiles in the bag.
        tissue_mm2: Tissue area.
        profile: How much of the tissue was read.
    """

    name: str
    folder: Path
    slide_sha256: str
    file_bytes: int
    bundle_bytes: int
    tiers: tuple[int, int, int]
    codec: str
    is_over_budget: bool
    width_px: int
    height_px: int
    mpp: float
    tile_mpp: float
    tiles: int
    tissue_mm2: float
    profile: str

    @property
    def percent_of_file(self) -> float:
        """The bundle in percent of the file."""
        return 100 * self.bundle_bytes / self.file_bytes

    @property
    def file_bits_per_px(self) -> float:
        """How strongly the file is compressed already: bits of the file for a pixel of level 0; 24 when not at all."""
        return 8 * self.file_bytes / (self.width_px * self.height_px)

    @property
    def file_mb_per_cm2(self) -> float:
        """Megabytes (10⁶) of the file for a square centimetre of the scan, glass included."""
        return self.file_bytes / 1e6 / (self.width_px * self.height_px * (self.mpp * 1e-4) ** 2)

    @property
    def is_coarse(self) -> bool:
        """Whether the slide was scanned, or made smaller, to clearly fewer pixels than the encoder reads."""
        return self.mpp > _COARSE * self.tile_mpp

    def bag(self) -> EmbeddingBag:
        """Embeddings of the reading; says where its tissue is."""
        return read_bag(self.folder / "bag.safetensors")


@dataclass(frozen=True)
class Comparison:
    """The bundle against one other way to send the slide.

    Attributes:
        id: Stable word.
        title: What is sent, in words.
        n_bytes: What that takes, with its interval.
        bundle_bytes: What the bundle takes.
    """

    id: str
    title: str
    n_bytes: Estimate
    bundle_bytes: int

    @property
    def percent(self) -> float | None:
        """The bundle in percent of it; None of nothing, on a slide without tissue."""
        return 100 * self.bundle_bytes / self.n_bytes.n_bytes if self.n_bytes.n_bytes else None

    @property
    def percent_interval(self) -> tuple[float, float] | None:
        """95 % interval of that percentage; None when there is none."""
        if self.n_bytes.low <= 0:
            return None
        return 100 * self.bundle_bytes / self.n_bytes.high, 100 * self.bundle_bytes / self.n_bytes.low

    @property
    def saved_percent(self) -> float | None:
        """What the bundle saves against it; below 0 when the bundle is larger."""
        return None if self.percent is None else 100 - self.percent


def find_readings(folders: Sequence[Path]) -> list[Path]:
    """Output folders of `slideway read` at or below these, each once, in the order of their names."""
    found: dict[Path, None] = {}
    for folder in folders:
        for path in [folder / RESULT] if (folder / RESULT).is_file() else sorted(folder.rglob(RESULT)):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                found.setdefault(path.parent.resolve())
    return list(found)


def count_bundle(folder: Path) -> BundleBytes:
    """Count the bytes of the bundle in an output folder, from the bundle itself.

    Raises:
        WrongUseError: No bundle is there, or no answer of this version.
        BrokenBundleError: The bundle is damaged or cut off.
    """
    result, path = read_result(folder), folder / BUNDLE
    if result is None or not path.is_file() or "bytes" not in result:
        raise WrongUseError(
            f"{folder.name}: no bundle beside the answer; it was read by an older Slideway, read the slide again with "
            f"`slideway read SLIDE --out {folder.parent} --again`"
        )
    with path.open("rb") as file:
        head = read_head(file, path.name)
    n_bytes = path.stat().st_size
    if n_bytes != head.total_bytes:
        raise BrokenBundleError(
            f"{folder.name}/{path.name}: {n_bytes:,} bytes, its list says {head.total_bytes:,}: cut off or damaged; "
            "read the slide again"
        )
    slide, grid = result["slide"], result["grid"]
    return BundleBytes(
        name=slide["name"],
        folder=folder,
        slide_sha256=slide["sha256"],
        file_bytes=slide["bytes"],
        bundle_bytes=n_bytes,
        tiers=(head.bytes_of_tier(0), head.bytes_of_tier(1), head.bytes_of_tier(2)),
        codec=result["bytes"]["codec"],
        is_over_budget=result["bytes"]["over_budget"],
        width_px=slide["width_px"],
        height_px=slide["height_px"],
        mpp=slide["mpp"],
        tile_mpp=grid["mpp"],
        tiles=grid["tiles"],
        tissue_mm2=result["tissue"]["area_mm2"],
        profile=result.get("profile", {}).get("name", ""),
    )


class SlidePlaces:
    """Finds the file of a slide that was read by its content; names play no part."""

    def __init__(self, places: Sequence[Path]) -> None:
        self._by_size: dict[int, list[Path]] = {}
        for path in find_slides(places):
            size = sum(file.stat().st_size for file in files_of_slide(path))
            self._by_size.setdefault(size, []).append(path)

    def find(self, bundle: BundleBytes) -> Path | None:
        """The slide's file; None when it is not among them."""
        for path in self._by_size.get(bundle.file_bytes, []):
            if hash_slide(path) == bundle.slide_sha256:
                return path
        return None


def find_reading_of(slide: Path, readings: Sequence[Path]) -> Path:
    """The output folder that a slide file was read into.

    Raises:
        WrongUseError: It was not read, or not into one of these.
    """
    if not slide.exists():
        raise SlideAccessError(f"{slide.name}: no such file or folder; check the path")
    sha256 = hash_slide(slide)
    for folder in readings:
        result = read_result(folder)
        if result is not None and result["slide"]["sha256"] == sha256:
            return folder
    raise WrongUseError(
        f"{slide.name}: not read yet, or its answer is elsewhere; read it with `slideway read {slide.name}`, or name "
        "the folder of its answer with --out"
    )


def compare(bundle: BundleBytes, baselines: Baselines) -> tuple[Comparison, ...]:
    """The bundle against every baseline, the file first."""
    codecs = baselines.codecs
    file = Estimate(bundle.file_bytes, bundle.file_bytes, bundle.file_bytes, 0, 0)
    ways = {
        "file": ("the file as it is", file),
        "jpeg": (f"tissue tiles as JPEG q{codecs.jpeg_quality}, {bundle.tile_mpp:g} µm/px", baselines.jpeg),
        "jpeg2000": (f"tissue as JPEG 2000, visually lossless ({codecs.jpeg2000_ratio:g}:1)", baselines.jpeg2000),
        "jpeg2000-limit": (
            f"tissue as JPEG 2000, artefacts visible ({codecs.jpeg2000_limit_ratio:g}:1)",
            baselines.jpeg2000_limit,
        ),
        "jpegxl": (
            f"tissue as JPEG XL, visually lossless (distance {codecs.jpegxl_distance:g})",
            baselines.jpegxl,
        ),
        "viewing": ("tiles streamed for an ordinary reading, a model", baselines.viewing),
    }
    return tuple(Comparison(id_, title, n_bytes, bundle.bundle_bytes) for id_, (title, n_bytes) in ways.items())


def explain_ratio(bundle: BundleBytes) -> Iterator[str]:
    """Why the bundle's share of the file is what it is, where something must be said."""
    yield (
        f"{bundle.width_px:,} x {bundle.height_px:,} px at {bundle.mpp:.3g} µm/px; {bundle.tissue_mm2:.1f} mm² of "
        f"tissue, {bundle.tiles:,} tiles; the file holds {bundle.file_bits_per_px:.2f} bit a pixel, "
        f"{bundle.file_mb_per_cm2:.1f} MB/cm² of scan"
    )
    if bundle.is_over_budget:
        yield "over budget: its tissue takes more than 0.5 % of the file even at the coarsest useful precision"
    if bundle.is_coarse:
        fewer = (bundle.mpp / bundle.tile_mpp) ** 2
        yield (
            f"a coarse slide: the file holds {fewer:.0f} times fewer pixels of this tissue than a scan at "
            f"{bundle.tile_mpp:g} µm/px would, and the bundle is as large as that scan's; "
            "enlarged to the encoder's resolution, its JPEG tiles are a baseline that is too large"
        )
    if bundle.profile == "thrifty":
        yield "read in profile thrifty: only a part of its tiles was encoded"


def describe_bundle(bundle: BundleBytes, baselines: Baselines | None) -> dict[str, Any]:
    """One slide for JSON."""
    return {
        "slide": bundle.name,
        "sha256": bundle.slide_sha256,
        "width_px": bundle.width_px,
        "height_px": bundle.height_px,
        "mpp": bundle.mpp,
        "tissue_mm2": bundle.tissue_mm2,
        "tiles": bundle.tiles,
        "file_bytes": bundle.file_bytes,
        "file_bits_per_px": round(bundle.file_bits_per_px, 3),
        "file_mb_per_cm2": round(bundle.file_mb_per_cm2, 2),
        "bundle_bytes": bundle.bundle_bytes,
        "tier_bytes": list(bundle.tiers),
        "codec": bundle.codec,
        "over_budget": bundle.is_over_budget,
        "percent_of_file": round(bundle.percent_of_file, 4),
        "saved_percent": round(100 - bundle.percent_of_file, 4),
        "notes": list(explain_ratio(bundle)),
        "baselines": None if baselines is None else describe_baselines(bundle, baselines),
    }


def describe_baselines(bundle: BundleBytes, baselines: Baselines) -> dict[str, Any]:
    """Baselines for JSON, with all that was assumed."""
    return {
        "sample": baselines.sample,
        "seed": baselines.seed,
        "compared": [_describe_comparison(one) for one in compare(bundle, baselines)],
        "psnr_db": baselines.psnr_db,
        "viewing": [
            {
                "objective": viewed.level.objective,
                "mpp": round(viewed.mpp, 4),
                "share": viewed.level.share,
                "source": viewed.level.source,
                "bytes": round(viewed.n_bytes),
                "all_tiles": _describe_estimate(viewed.all_tiles),
            }
            for viewed in baselines.viewed
        ],
    }


def _describe_comparison(one: Comparison) -> dict[str, Any]:
    interval = one.percent_interval
    return {
        "id": one.id,
        "title": one.title,
        **_describe_estimate(one.n_bytes),
        "bundle_percent": None if one.percent is None else round(one.percent, 4),
        "bundle_percent_95": None if interval is None else [round(end, 4) for end in interval],
        "saved_percent": None if one.saved_percent is None else round(one.saved_percent, 4),
    }


def _describe_estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "bytes": estimate.n_bytes,
        "bytes_95": [estimate.low, estimate.high],
        "tiles": estimate.tiles,
        "counted": estimate.counted,
        "exact": estimate.is_exact,
    }
