"""`slideway similar`: what looks like a slide among slides that are already read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slideway.cli.progress import Terminal
from slideway.core.errors import UnknownEncoderError
from slideway.pipeline.folder import read_slides
from slideway.pipeline.similar import SimilarAnswer, find_similar_slides
from slideway.pipeline.slide_library import (
    BAG,
    Library,
    ReadSlide,
    SlideFiles,
    choose_encoder,
    open_library,
    open_read_slide,
)
from slideway.registry.card import ModelCard
from slideway.registry.store import list_encoders

# Slides that are asked about as files are read in here: a reading of the user's is never replaced for a question.
QUERIES = "asked"


@click.command("similar")
@click.argument("slide", type=click.Path(path_type=Path, exists=True))
@click.option("--library", "library_folder", required=True, metavar="DIR",
              type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of output folders of `slideway read`; searched through.")  # fmt: skip
@click.option("--slides", "slide_folders", multiple=True, metavar="DIR",
              type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Where the slide files are, to show their tiles; a file counts only if its sha256 is right. "
                   "May be repeated.")  # fmt: skip
@click.option("--top", type=click.IntRange(1, 20), default=5, show_default=True,
              help="Similar places for each place asked, and similar slides.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-out"), show_default=True,
              help="Parent of the answer's folder, NAME-similar.")  # fmt: skip
@click.option("--skip-foreign", is_flag=True,
              help="Leave out slides that another encoder read, and count them, instead of refusing.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0.05, 20),
              help="Microns per pixel of a slide file that does not state it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print similar.json.")
def command(
    slide: Path,
    *,
    library_folder: Path,
    slide_folders: tuple[Path, ...],
    top: int,
    out: Path,
    skip_foreign: bool,
    mpp: float | None,
    as_json: bool,
) -> int:
    """Find tissue and slides that look like SLIDE among slides that are already read.

    SLIDE is an output folder of `slideway read`, the bag in it, or a slide file: that is read first, with the library's
    encoder, into the folder `asked` below --out. Writes similar.png (a contact sheet), similar.html and similar.json.

    Every tile of the library is compared, exactly. The slide itself is left out. Bags of different encoders never meet:
    with a mixed library the run stops and says which slides are in the way, unless --skip-foreign leaves them out.

    Alike to the encoder does not mean the same diagnosis.

    \b
    Examples:
      slideway similar slideway-out/biopsy --library slideway-out --slides scans/
      slideway similar new.svs --library archive/ --top 8
      slideway similar new.svs --library archive/ --json | jq .cases
    """
    library = open_library(library_folder)
    known: dict[str, Path] = {}
    if slide.name == BAG or (slide.is_dir() and (slide / BAG).is_file()):
        query = open_read_slide(slide if slide.is_dir() else slide.parent)
    else:
        query = _read_first(slide, library, out=out / QUERIES, skip_foreign=skip_foreign, mpp=mpp)
        known[query.bag.slide_sha256] = slide
    files = SlideFiles(slide_folders, known=known)
    answer = find_similar_slides(query, library, out=out, files=files, top=top, skip_foreign=skip_foreign)
    click.echo(json.dumps(answer.result, ensure_ascii=False) if as_json else _in_words(answer))
    return 0


def _read_first(slide: Path, library: Library, *, out: Path, skip_foreign: bool, mpp: float | None) -> ReadSlide:
    """Read a slide file with the library's encoder; what is already read is kept."""
    card = _find_card(*choose_encoder(library, skip_foreign=skip_foreign))
    with Terminal() as terminal:
        for outcome in read_slides(
            [slide],
            out=out,
            card=card,
            progress=terminal,
            mpp=mpp,
            watch=lambda path, number, count: terminal.on_slide(path.name, number, count),
        ):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.folder is not None
            if outcome.instead_of:
                click.echo(f"{slide.name}: read again instead of {outcome.instead_of}", err=True)
            return open_read_slide(outcome.folder)
    raise AssertionError("one slide gives one outcome")


def _find_card(fingerprint: str, encoder_id: str) -> ModelCard:
    for card in list_encoders():
        if card.fingerprint == fingerprint:
            return card
    raise UnknownEncoderError(
        f"the library was read with {encoder_id} ({fingerprint[:12]}), which is not installed here; install it, or "
        "give an output folder of a slide that was read with it"
    )


def _in_words(answer: SimilarAnswer) -> str:
    library: dict[str, Any] = answer.result["library"]
    lines = [
        f"{answer.query.name}: {library['slides_searched']:,} slides with {library['tiles_searched']:,} tiles searched"
    ]
    left_out = library["left_out"]
    if left_out["itself"]:
        lines.append("  the slide itself was left out")
    lines += [f"  left out: {count} read with {name}" for name, count in left_out["foreign"].items()]
    lines += [f"  left out, cannot be read: {name}" for name in left_out["unreadable"]]
    lines += [f"  {case['rank']}. {case['score']:+.2f}  {case['slide']}" for case in answer.result["cases"]]
    if not answer.result["query"]["tiles"]:
        lines.append("  the slide itself has no tiles: there is nothing to ask for")
    elif not answer.result["cases"]:
        lines.append("  nothing to compare: no other slide with tiles is in the library")
    return "\n".join([*lines, f"  {answer.folder / 'similar.html'}"])
