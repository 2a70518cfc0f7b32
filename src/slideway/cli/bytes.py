"""`slideway bytes`: what each slide's bundle takes, against what else could have been sent; what went over the line."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slideway.cli.progress import Steps
from slideway.core.errors import WrongUseError
from slideway.core.files import write_whole
from slideway.pipeline.baselines import DEFAULT_SAMPLE, Baselines, Estimate, measure_baselines
from slideway.pipeline.meter import (
    RESULT,
    BundleBytes,
    Comparison,
    SlidePlaces,
    compare,
    count_bundle,
    describe_bundle,
    explain_ratio,
    find_reading_of,
    find_readings,
)
from slideway.reports.page import size_text

if TYPE_CHECKING:
    from slideway.reports.bytes_chart import ByteGroup

Metered = list[tuple[BundleBytes, Baselines | None]]


@click.command("bytes")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True), metavar="[READING|FOLDER|SLIDE]...")
@click.option("--baselines", "places", multiple=True, type=click.Path(path_type=Path, exists=True), metavar="SLIDE|DIR",
              help="Compress the tissue of these slides in other ways and compare; a file counts only if its sha256 is "
                   "that of a reading. May be repeated.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("slideway-out"),
              show_default=True, metavar="DIR", help="Where slide files that are given were read to.")  # fmt: skip
@click.option("--sample", type=click.IntRange(2), default=DEFAULT_SAMPLE, show_default=True,
              help="Tiles to compress for a baseline, drawn at random; figures then have a 95 % interval.")  # fmt: skip
@click.option("--all", "take_all", is_flag=True, help="Compress every tile: exact, and slow on a large slide.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random sample.")
@click.option("--store", "store_url", metavar="URL",
              help="Also show what a node sent and received, from its store; without paths, only that. Default: "
                   "SLIDEWAY_STORE, else that of the node whose edge.toml lies here.")  # fmt: skip
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also draw bars on a logarithmic axis: FILE.svg or FILE.png.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    paths: tuple[Path, ...],
    *,
    places: tuple[Path, ...],
    out: Path,
    sample: int,
    take_all: bool,
    seed: int,
    store_url: str | None,
    chart: Path | None,
    as_json: bool,
) -> int:
    """Count the bytes of each slide's bundle, tier by tier, and compare them with what else could have been sent.

    READING is an output folder of `slideway read`, FOLDER one that holds several, SLIDE a slide file that was read.
    Without any, the ledger of a node's store is shown: payload and overhead by slide, tier and direction.

    \b
    Baselines (docs/bytes.md says how and why):
      the file as it is
      its tissue tiles as JPEG quality 80, as the encoder reads them
      its tissue as JPEG 2000 and as JPEG XL at visually lossless quality
      the tiles a doctor would stream during an ordinary reading: a model

    \b
    Examples:
      slideway bytes slideway-out
      slideway bytes slideway-out --baselines scans/ --chart bytes.svg
      slideway bytes biopsy.svs --baselines biopsy.svs --all
      slideway bytes --store sqlite:///node/state/slideway.db
    """
    if chart is not None and chart.suffix.lower() not in (".svg", ".png"):
        raise WrongUseError(f"{chart.name}: a chart is written as .svg or .png")
    if not paths and (places or chart is not None):
        raise WrongUseError("name the readings, or the folder that holds them, e.g. `slideway bytes slideway-out`")
    metered = _measure(_gather(paths, out), places, sample=None if take_all else sample, seed=seed)
    ledger = _read_ledger(store_url or default_store_url()) if store_url is not None or not paths else None
    if chart is not None:
        _write_chart(metered, chart)
    click.echo(_dump(metered, ledger) if as_json else _in_words(metered, ledger))
    if chart is not None:
        click.echo(f"chart: {chart}", err=True)
    return 0


def default_store_url() -> str:
    """Where a node keeps its store: `SLIDEWAY_STORE`, else what the `edge.toml` of this folder says.

    Raises:
        WrongUseError: There is neither, or the settings are not understood.
    """
    from slideway.edge.settings import CONFIG, read_settings

    if named := os.environ.get("SLIDEWAY_STORE"):
        return named
    config = Path(CONFIG)
    if not config.exists():
        raise WrongUseError(
            f"no {CONFIG} here, so no node's store is known: name one, as --store sqlite:///node/state/slideway.db, or "
            "name readings, e.g. `slideway bytes slideway-out`"
        )
    return read_settings(config).places.store_url


def _gather(paths: Sequence[Path], out: Path) -> list[BundleBytes]:
    """Bundles of all readings that the paths name, each slide once."""
    readings, slides = [], []
    for path in paths:
        found = find_readings([path]) if path.is_dir() else []
        readings += found
        if not found:
            slides.append(path)
    if slides:
        known = readings + (find_readings([out]) if out.is_dir() else [])
        readings += [find_reading_of(slide, known) for slide in _list_slides(slides)]
    bundles = [count_bundle(folder) for folder in dict.fromkeys(readings)]
    return list({bundle.slide_sha256: bundle for bundle in bundles}.values())


def _list_slides(places: Sequence[Path]) -> list[Path]:
    from slideway.pipeline.folder import find_slides

    slides = find_slides(places)
    if not slides:
        raise WrongUseError(
            f"{places[0].name}: neither a reading ({RESULT}) nor a slide is in there; read slides first with "
            "`slideway read SLIDE`"
        )
    return slides


def _measure(bundles: list[BundleBytes], places: Sequence[Path], *, sample: int | None, seed: int) -> Metered:
    if not places:
        return [(bundle, None) for bundle in bundles]
    known = SlidePlaces(places)
    metered: Metered = []
    for bundle in bundles:
        path = known.find(bundle)
        if path is None:
            metered.append((bundle, None))
            continue
        with Steps() as steps:
            baselines = measure_baselines(path, bundle.bag(), sample=sample, seed=seed, progress=steps.on_step)
        metered.append((bundle, baselines))
    if not any(baselines for _, baselines in metered):
        raise WrongUseError(
            "none of the readings' slides is in --baselines: no file there has the sha256 of one; name where they are"
        )
    return metered


@dataclass(frozen=True)
class LedgerRow:
    """Bytes of one slide, tier and direction.

    Attributes:
        slide_sha256: Slide; empty for what belongs to none.
        tier: 0 to 4; None for what belongs to no tier.
        direction: `out` or `in`.
        payload_bytes: What was meant.
        overhead_bytes: What went with it.
        transfers: How many.
    """

    slide_sha256: str
    tier: int | None
    direction: str
    payload_bytes: int
    overhead_bytes: int
    transfers: int


def _read_ledger(url: str) -> list[LedgerRow]:
    from slideway.store.database import open_store

    rows = []
    with open_store(url, read_only=True) as store, store.reading_of_all() as work:
        for slide in work.bytes.totals("slide"):
            for direction in ("out", "in"):
                totals = work.bytes.totals("tier", slide_sha256=str(slide), direction=direction)
                for tier, total in totals.items():
                    number = None if tier is None else int(tier)
                    rows.append(
                        LedgerRow(
                            str(slide), number, direction, total.payload_bytes, total.overhead_bytes, total.entries
                        )
                    )
    return rows


def _dump(metered: Metered, ledger: list[LedgerRow] | None) -> str:
    content: dict[str, Any] = {
        "slides": [describe_bundle(bundle, baselines) for bundle, baselines in metered],
        "totals": [
            {
                "id": one.id,
                "bytes": one.n_bytes.n_bytes,
                "bundle_bytes": one.bundle_bytes,
                "bundle_percent": one.percent,
            }
            for one, _ in _add_up(metered)
        ],
        "ledger": None if ledger is None else [vars(row) for row in ledger],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _in_words(metered: Metered, ledger: list[LedgerRow] | None) -> str:
    lines = _table(metered) if metered else []
    if any(baselines for _, baselines in metered):
        lines += [line for bundle, baselines in metered if baselines for line in _baseline_lines(bundle, baselines)]
        lines += _total_lines(metered)
        lines += ["", *_say_method(metered)]
        lines += [f"no baselines of {bundle.name}: its file is not there" for bundle, one in metered if one is None]
    if ledger is not None:
        lines += ([""] if lines else []) + _ledger_lines(ledger, {bundle.slide_sha256: bundle for bundle, _ in metered})
    return "\n".join(lines)


def _table(metered: Metered) -> list[str]:
    rows: list[tuple[str, ...]] = [("slide", "file", "bundle", "T0", "T1", "T2", "of file", "saved")]
    rows += [_table_row(bundle.name, bundle.file_bytes, bundle.bundle_bytes, bundle.tiers) for bundle, _ in metered]
    if len(metered) > 1:
        tiers = [sum(bundle.tiers[tier] for bundle, _ in metered) for tier in range(3)]
        file, packed = (sum(getattr(b, name) for b, _ in metered) for name in ("file_bytes", "bundle_bytes"))
        rows.append(_table_row(f"{len(metered)} slides", file, packed, tiers))
    lines = _align(rows)
    notes = {bundle.name: list(explain_ratio(bundle)) for bundle, _ in metered}
    return [*lines, "", *(f"{name}: {note}" for name, said in notes.items() for note in said)]


def _table_row(name: str, file_bytes: int, bundle_bytes: int, tiers: Sequence[int]) -> tuple[str, ...]:
    percent = 100 * bundle_bytes / file_bytes
    sizes = [size_text(n) for n in (file_bytes, bundle_bytes, *tiers)]
    return (name, *sizes, f"{percent:.3f} %", f"{100 - percent:.3f} %")


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(wide[0]), *(cell.rjust(w) for cell, w in zip(row[1:], wide[1:], strict=True))])
        for row in rows
    ]


def _baseline_lines(bundle: BundleBytes, baselines: Baselines) -> list[str]:
    rows = [(bundle.name, "bytes", "95 %", "bundle is", "95 %", "saved")]
    return ["", *_align(rows + [_baseline_row(one) for one in compare(bundle, baselines)])]


def _baseline_row(one: Comparison) -> tuple[str, ...]:
    said = (f"  {one.title}", size_text(one.n_bytes.n_bytes))
    if one.percent is None or one.saved_percent is None:
        return (*said, "", "no tissue", "", "")
    interval = one.percent_interval
    if one.n_bytes.is_exact or interval is None:
        return (*said, "exact", f"{one.percent:.3f} %", "", f"{one.saved_percent:.2f} %")
    spread = f"{size_text(one.n_bytes.low)} to {size_text(one.n_bytes.high)}"
    return (
        *said,
        spread,
        f"{one.percent:.3f} %",
        f"{interval[0]:.3f} to {interval[1]:.3f}",
        f"{one.saved_percent:.2f} %",
    )


def _add_up(metered: Metered) -> list[tuple[Comparison, int]]:
    """Comparisons over all slides with baselines, each with the number of slides."""
    compared = [compare(bundle, baselines) for bundle, baselines in metered if baselines]
    totals = []
    for column in zip(*compared, strict=True):
        n_bytes = sum(one.n_bytes.n_bytes for one in column)
        half = sum((one.n_bytes.high - one.n_bytes.n_bytes) ** 2 for one in column) ** 0.5
        tiles, counted = (sum(getattr(one.n_bytes, name) for one in column) for name in ("tiles", "counted"))
        estimate = Estimate(n_bytes, max(0, round(n_bytes - half)), round(n_bytes + half), tiles, counted)
        packed = sum(one.bundle_bytes for one in column)
        totals.append((Comparison(column[0].id, column[0].title, estimate, packed), len(column)))
    return totals


def _total_lines(metered: Metered) -> list[str]:
    totals = _add_up(metered)
    if totals[0][1] < 2:
        return []
    rows = [(f"all {totals[0][1]} slides with baselines", "bytes", "95 %", "bundles are", "95 %", "saved")]
    return ["", *_align(rows + [_baseline_row(one) for one, _ in totals])]


def _say_method(metered: Metered) -> list[str]:
    baselines = next(one for _, one in metered if one)
    if baselines.sample is None:
        drawn = "every tile was compressed: exact"
    else:
        drawn = f"at most {baselines.sample} tiles for each figure, drawn at random with seed {baselines.seed}"
    shares = ", ".join(f"{100 * level.share:.0f} % at {level.objective}" for level in baselines.model.levels)
    return [
        f"Baselines: {drawn}; --all counts every tile.",
        f"Streamed viewing is a model, of the tissue {shares}; a slide is not shown finer than it was scanned.",
        "Sources and limits: docs/bytes.md.",
    ]


def _ledger_lines(ledger: list[LedgerRow], known: dict[str, BundleBytes]) -> list[str]:
    if not ledger:
        return ["Nothing went over a line yet."]
    rows: list[tuple[str, ...]] = [("over the line", "tier", "direction", "payload", "overhead", "transfers")]
    rows += [_ledger_row(_say_slide(row.slide_sha256, known), row) for row in ledger]
    for direction in ("out", "in"):
        ours = [row for row in ledger if row.direction == direction]
        payload, overhead = sum(row.payload_bytes for row in ours), sum(row.overhead_bytes for row in ours)
        rows.append(
            ("all", "", direction, size_text(payload), size_text(overhead), f"{sum(row.transfers for row in ours):,}")
        )
    lines = _align(rows)
    for sha256, bundle in known.items():
        sent = sum(
            row.payload_bytes + row.overhead_bytes
            for row in ledger
            if row.slide_sha256 == sha256 and row.direction == "out"
        )
        if sent:
            share = f"{100 * sent / bundle.file_bytes:.3f} % of its file"
            lines.append(f"{bundle.name}: {size_text(sent)} sent with overhead, {share}")
    return lines


def _ledger_row(name: str, row: LedgerRow) -> tuple[str, ...]:
    tier = "none" if row.tier is None else f"T{row.tier}"
    return (
        name,
        tier,
        row.direction,
        size_text(row.payload_bytes),
        size_text(row.overhead_bytes),
        f"{row.transfers:,}",
    )


def _say_slide(sha256: str, known: dict[str, BundleBytes]) -> str:
    return known[sha256].name if sha256 in known else sha256[:12] or "(no slide)"


def _write_chart(metered: Metered, path: Path) -> None:
    """Write the chart whole or not at all."""
    from slideway.pipeline.output import explain_write_error
    from slideway.reports.bytes_chart import draw_bytes, render_bytes_svg

    groups = [_group(bundle, baselines) for bundle, baselines in metered]
    note = " ".join(_say_method(metered)) if any(one for _, one in metered) else ""
    if path.suffix.lower() == ".svg":
        content = render_bytes_svg(groups, note=note).encode()
    else:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(draw_bytes(groups, note=note)).save(buffer, "PNG")
        content = buffer.getvalue()
    try:
        write_whole(path, content)
    except OSError as error:
        raise explain_write_error(error, path.parent) from error


def _group(bundle: BundleBytes, baselines: Baselines | None) -> ByteGroup:
    from slideway.reports.bytes_chart import ByteBar, ByteGroup

    bars = [ByteBar("the file as it is", bundle.file_bytes, "file")]
    if baselines is not None:
        others = compare(bundle, baselines)[1:]
        bars += [ByteBar(one.title, one.n_bytes.n_bytes, "other") for one in others if one.n_bytes.n_bytes]
    bars.append(ByteBar("bundle", bundle.bundle_bytes, "bundle"))
    bars.append(ByteBar("T0 and T1", bundle.tiers[0] + bundle.tiers[1], "part"))
    bars.append(ByteBar("T0", bundle.tiers[0], "part"))
    return ByteGroup(bundle.name, tuple(bars))
