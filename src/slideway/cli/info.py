"""`slideway info`: what a slide file says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slideway.core.slide import Slide
from slideway.pipeline.result import describe_slide
from slideway.slides import open_slide
from slideway.slides.files import files_of_slide, hash_slide
from slideway.slides.resolution import decide_resolution, load_profiles


@click.command("info")
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="Configuration with scanner profiles.")
@click.option("--hash", "with_hash", is_flag=True, help="Also compute the sha256 (reads the whole file).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(slide: Path, *, config: Path | None, with_hash: bool, as_json: bool) -> int:
    """Show a slide's levels, resolution, vendor, side images and identifying fields.

    Identifying fields are named, their values are never shown. Nothing is written.
    """
    with open_slide(slide) as opened:
        described = decide_resolution(opened.slide, given=None, profiles=load_profiles(config), path=slide)
    n_bytes = sum(file.stat().st_size for file in files_of_slide(slide))
    facts = describe_slide(described, hash_slide(slide) if with_hash else "", n_bytes)
    if as_json:
        if not with_hash:
            del facts["sha256"]
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print_table(described, facts)
    return 0


def _print_table(slide: Slide, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    resolution = slide.resolution
    stated = f"{resolution.mpp:.4f} µm/px" if resolution.mpp else "unknown: say it with --mpp when reading"
    size_mm = ""
    if resolution.mpp:
        size_mm = f"  ({slide.width_px * resolution.mpp / 1000:.1f} × {slide.height_px * resolution.mpp / 1000:.1f} mm)"
    rows = {
        "slide": slide.name,
        "format": f"{slide.vendor}, read by {slide.reader}",
        "scanner": slide.scanner or "not stated",
        "size": f"{slide.width_px:,} × {slide.height_px:,} px{size_mm}",
        "file": f"{facts['bytes'] / 1e6:,.1f} MB",
        "resolution": f"{stated}  [{resolution.source.value}{': ' + resolution.detail if resolution.detail else ''}]",
        "objective": f"{slide.objective_power:g}×" if slide.objective_power else "not stated",
        "levels": "\n".join(
            f"{i}: {level.width_px:,} × {level.height_px:,} px, 1/{level.downsample:.4g}"
            for i, level in enumerate(slide.levels)
        ),
        "side images": ", ".join(slide.side_images) or "none",
        "identifying fields": ", ".join(slide.identifiers) or "none found",
        "ICC profile": "yes, applied to what people see" if slide.has_icc_profile else "no",
    }
    if facts["sha256"]:
        rows["sha256"] = facts["sha256"]
    for name, value in rows.items():
        table.add_row(name, value, style=None)
    Console(highlight=False, markup=False).print(table)
