"""Search slides that are read for what looks like one slide, and put the answer into one folder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideway.core.bag import EmbeddingBag
from slideway.core.errors import SlidewayError, WrongUseError
from slideway.heads import QueryRegion, Similarity, SimilarRegion, find_novelty, find_similar, group_tiles
from slideway.pipeline.output import OutputFolder, folder_name
from slideway.pipeline.slide_library import Library, ReadSlide, SlideFiles, keep_encoder
from slideway.reports import ContactSheet, SheetRow, SheetTile, draw_contact_sheet, render_similar_page
from slideway.slides import open_slide

SCHEMA = "slideway-similar/1.0"

Pixels = NDArray[np.uint8]
Place = tuple[int, int]  # position of a slide (-1: the query), tile of its bag


@dataclass(frozen=True)
class SimilarAnswer:
    """What was found for one slide.

    Attributes:
        query: The slide that was asked about.
        library: The slides that were searched.
        similarity: What was found; positions are those of `library.slides`.
        folder: Where similar.json, similar.png and similar.html are.
        result: Contents of similar.json.
    """

    query: ReadSlide
    library: Library
    similarity: Similarity
    folder: Path
    result: dict[str, Any]


def find_similar_slides(
    query: ReadSlide, library: Library, *, out: Path, files: SlideFiles, top: int = 5, skip_foreign: bool = False
) -> SimilarAnswer:
    """Find the regions and slides of a library that look most like one slide, and draw them.

    Args:
        query: The slide, read.
        library: Slides to search; the query itself is left out if it is among them.
        out: Parent of the answer's folder, which is named `<slide>-similar`.
        files: Where the slides' pixels are; where they are not, the picture says so.
        top: Similar regions for each region, and similar slides.
        skip_foreign: Leave out bags of other encoders, counted, instead of refusing.

    Raises:
        FingerprintMismatchError: Bags of different encoders would have met.
        OutputError: The folder cannot be written; nothing half-written stays.
    """
    library = keep_encoder(library, query.bag.fingerprint, query.bag.encoder_id, skip_foreign=skip_foreign)
    groups, novelty = group_tiles(query.bag), find_novelty(query.bag)
    bags = [slide.bag for slide in library.slides]
    similarity = find_similar(query.bag, groups, bags, novelty=novelty, top=top)
    result = describe_similarity(query, library, similarity, top=top)
    sheet = _lay_sheet(query, library, similarity, _cut_tiles(query, library, similarity, files), top=top)
    name = f"{folder_name(Path(query.folder.name))}-similar"
    _require_free_place(out / name)
    with OutputFolder(out, name) as output:
        (output.path / "similar.png").write_bytes(_encode_png(draw_contact_sheet(sheet)))
        (output.path / "similar.html").write_text(render_similar_page(sheet), encoding="utf-8")
        text = json.dumps(result, indent=2, ensure_ascii=False)
        (output.path / "similar.json").write_text(text + "\n", encoding="utf-8")
        folder = output.commit()
    return SimilarAnswer(query, library, similarity, folder, result)


def _require_free_place(folder: Path) -> None:
    """An earlier answer is replaced; a slide's reading that happens to have the same name is not."""
    if folder.exists() and not (folder / "similar.json").is_file():
        raise WrongUseError(f"{folder}: holds something else than an earlier answer; choose another --out")


def load_similar_schema() -> dict[str, Any]:
    """The JSON Schema of similar.json that ships with this version."""
    text = resources.files("slideway.pipeline").joinpath("schemas/similar-1.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def describe_similarity(query: ReadSlide, library: Library, similarity: Similarity, *, top: int) -> dict[str, Any]:
    """The contents of similar.json."""
    slides, bag = library.slides, query.bag
    return {
        "schema": SCHEMA,
        "query": {"name": query.name, "sha256": bag.slide_sha256, "tiles": len(bag)},
        "encoder": {"id": bag.encoder_id, "fingerprint": bag.fingerprint},
        "library": {
            "slides_searched": len(similarity.cases),
            "tiles_searched": sum(len(slides[case.slide].bag) for case in similarity.cases),
            "left_out": {
                "itself": [slides[i].folder.name for i in similarity.itself],
                "repeated": [slides[i].folder.name for i in similarity.repeated],
                "foreign": library.foreign,
                "unreadable": list(library.unreadable),
            },
        },
        "cases": [
            {
                "rank": rank,
                **_name(slides[case.slide]),
                "score": round(case.score, 4),
                "best": [_describe_match(match, library) for match in case.best],
            }
            for rank, case in enumerate(similarity.cases[:top], start=1)
        ],
        "regions": [
            {
                "group": region.group,
                "is_novel": region.group is None,
                "share": round(region.share, 4),
                **_place(bag, region.tile),
                "matches": [_describe_match(match, library) for match in matches],
            }
            for region, matches in zip(similarity.regions, similarity.matches, strict=True)
        ],
    }


def _name(slide: ReadSlide) -> dict[str, str]:
    return {"slide": slide.name, "sha256": slide.bag.slide_sha256, "folder": str(slide.folder)}


def _describe_match(match: SimilarRegion, library: Library) -> dict[str, Any]:
    slide = library.slides[match.slide]
    named = {"slide": slide.name, "sha256": slide.bag.slide_sha256}
    return {**named, "cosine": round(match.cosine, 4), **_place(slide.bag, match.tile)}


def _place(bag: EmbeddingBag, tile: int) -> dict[str, Any]:
    """Where a tile is: its corner in level-0 pixels, its middle in millimetres from the slide's top-left corner."""
    x, y = (int(v) for v in bag.grid.xy_level0_px[tile])
    x_mm, y_mm = _middle_mm(bag, tile)
    return {"tile": tile, "x_level0_px": x, "y_level0_px": y, "x_mm": round(x_mm, 3), "y_mm": round(y_mm, 3)}


def _middle_mm(bag: EmbeddingBag, tile: int) -> tuple[float, float]:
    column, row = bag.grid.column_row[tile]
    return (float(column) + 0.5) * bag.grid.tile_um / 1000, (float(row) + 0.5) * bag.grid.tile_um / 1000


# --- pixels --------------------------------------------------------------------------------------------------------


def _cut_tiles(
    query: ReadSlide, library: Library, similarity: Similarity, files: SlideFiles
) -> dict[Place, Pixels | str]:
    """Pixels of every tile the sheet shows, or why there are none; each slide is opened once."""
    wanted: dict[int, list[int]] = {-1: [region.tile for region in similarity.regions]}
    for match in (match for matches in similarity.matches for match in matches):
        wanted.setdefault(match.slide, []).append(match.tile)
    shown: dict[Place, Pixels | str] = {}
    for slide, tiles in wanted.items():
        read = query if slide < 0 else library.slides[slide]
        for tile, pixels in _cut(read, sorted(set(tiles)), files):
            shown[slide, tile] = pixels
    return shown


def _cut(slide: ReadSlide, tiles: list[int], files: SlideFiles) -> Iterable[tuple[int, Pixels | str]]:
    path = files.find(slide)
    if isinstance(path, str):
        return [(tile, path) for tile in tiles]
    cut: dict[int, Pixels | str] = dict.fromkeys(tiles, "its file cannot be read")
    grid = slide.bag.grid.select(np.asarray(tiles, np.int64))
    try:
        with open_slide(path) as opened:
            for batch in opened.read_tiles(grid, as_seen=True) if tiles else ():
                for index, pixels in zip(batch.indices, batch.tiles, strict=True):
                    cut[tiles[int(index)]] = pixels.copy()
    except SlidewayError:
        pass  # what could not be read says so in its place on the sheet
    return list(cut.items())


# --- the sheet -----------------------------------------------------------------------------------------------------


def _lay_sheet(
    query: ReadSlide, library: Library, similarity: Similarity, shown: dict[Place, Pixels | str], *, top: int
) -> ContactSheet:
    rows = []
    for region, matches in zip(similarity.regions, similarity.matches, strict=True):
        asked = _tile(shown[-1, region.tile], _title(region), query.bag, region.tile)
        found = [
            _tile(shown[m.slide, m.tile], library.slides[m.slide].name, library.slides[m.slide].bag, m.tile, m.cosine)
            for m in matches
        ]
        rows.append(SheetRow(asked, tuple(found), region.share if region.group is not None else None))
    cases = tuple((library.slides[case.slide].name, case.score) for case in similarity.cases[:top])
    return ContactSheet(
        slide_name=query.name,
        slide_sha256=query.bag.slide_sha256,
        facts=tuple(_say_search(query, library, similarity)),
        cases=cases,
        rows=tuple(rows),
        columns=top,
        tile_um=query.bag.grid.tile_um,
        is_estimated=bool(query.result["estimated"]),
    )


def _title(region: QueryRegion) -> str:
    return "Novel tile" if region.group is None else f"Group {region.group + 1}"


def _tile(pixels: Pixels | str, title: str, bag: EmbeddingBag, tile: int, cosine: float | None = None) -> SheetTile:
    x_mm, y_mm = _middle_mm(bag, tile)
    missing = pixels if isinstance(pixels, str) else ""
    return SheetTile(None if isinstance(pixels, str) else pixels, missing, title, (x_mm, y_mm), cosine)


def _say_search(query: ReadSlide, library: Library, similarity: Similarity) -> Iterable[str]:
    """What was searched and what was left out, in sentences."""
    tiles = sum(len(library.slides[case.slide].bag) for case in similarity.cases)
    yield f"{len(similarity.cases):,} slides with {tiles:,} tiles were searched; encoder {query.bag.encoder_id}."
    if similarity.itself:
        yield "The slide itself is in the library and was left out."
    if similarity.repeated:
        yield f"{len(similarity.repeated)} repeated readings of the same slides were left out."
    if library.foreign:
        counted = ", ".join(f"{count} of {name}" for name, count in library.foreign.items())
        yield f"Left out, since other encoders read them: {counted}."
    if library.unreadable:
        yield f"{len(library.unreadable)} folders could not be read: {', '.join(library.unreadable[:3])}."
    if not len(query.bag):
        yield "This slide has no tiles: there is nothing to ask for."
    elif not similarity.cases:
        yield "There is nothing to compare: no other slide with tiles is in the library."
    elif len(similarity.cases) < 5:
        yield "With so few slides the library's centre is uncertain: cosines say little."
    if query.bag.sampling is not None or any(slide.bag.sampling is not None for slide in library.slides):
        yield "Some slides were read in part (thrifty): tissue that was not read cannot be found."


def _encode_png(picture: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
