"""`slideway second-opinion`: another head, by a larger encoder, about the tiles that matter most."""

from __future__ import annotations

import json
from pathlib import Path

import click

from slideway.pipeline.second_opinion import ask_second_opinion, say_second_opinion
from slideway.pipeline.slide_library import open_read_slide
from slideway.registry.store import find_encoder


@click.command("second-opinion")
@click.argument("reading", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--slide", "slide_file", required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE",
              help="The slide's file; it counts only if its content is that of the reading.")  # fmt: skip
@click.option("--encoder", required=True, metavar="ID", help="The second encoder, or a folder with a model card.")
@click.option("--head", required=True, metavar="ID", help="The second head, of that encoder, or its folder.")
@click.option("--tiles", type=click.IntRange(1, 4096), default=64, show_default=True, help="Tiles to ask for.")
@click.option("--always", is_flag=True, help="Ask also where the first opinion is a plain answer.")
@click.option("--json", "as_json", is_flag=True, help="Print second-opinion.json.")
def command(
    reading: Path, *, slide_file: Path, encoder: str, head: str, tiles: int, always: bool, as_json: bool
) -> int:
    """Ask a second head about READING, an output folder of `slideway read` with findings.

    Only where the first opinion is no plain answer is anything asked. Then tiles are chosen (most attention, most
    novel, some by chance), read from the slide at the same places for the second encoder, packed as JPEG as they would
    travel to a centre, and unpacked again. Nothing leaves this computer: the command shows what asking would say, and
    what it would weigh.

    Prints both opinions and what they come to; a contradiction always goes to a person. Writes second-opinion.json
    into READING and the same in brief into its result.json.

    \b
    Examples:
      slideway second-opinion slideway-out/biopsy --slide biopsy.svs --encoder big --head big-head
      slideway second-opinion slideway-out/biopsy --slide biopsy.svs --encoder big --head big-head --always --json
    """
    told = ask_second_opinion(
        open_read_slide(reading),
        slide_file,
        encoder=find_encoder(encoder),
        head=head,
        tiles=tiles,
        always=always,
    )
    if as_json:
        click.echo(json.dumps(told.result if told.asked else {"asked": None, "words": told.words}, ensure_ascii=False))
    else:
        click.echo(say_second_opinion(told))
    return 0
