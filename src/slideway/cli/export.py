"""`slideway export`: write a finished reading's bag for another program."""

from __future__ import annotations

from pathlib import Path

import click

from slideway.bundles import EXPORTS, export_bag, read_bag
from slideway.core.errors import WrongUseError
from slideway.heads import find_novelty, group_tiles


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "kinds", multiple=True, required=True, type=click.Choice(list(EXPORTS)),
              help="h5: TRIDENT, CLAM; h5ad: AnnData, scanpy; geojson: QuPath. May be repeated.")  # fmt: skip
def command(folder: Path, kinds: tuple[str, ...]) -> int:
    """Export the bag in FOLDER (an output folder of `slideway read`) into that folder.

    \b
    Example:
      slideway export slideway-out/biopsy --to geojson      then drag tiles.geojson into QuPath
    """
    path = folder / "bag.safetensors"
    if not path.is_file():
        raise WrongUseError(f"{folder}: no bag.safetensors in it; give an output folder of `slideway read`")
    bag = read_bag(path)
    groups = group_tiles(bag)
    novelty = find_novelty(bag)
    for kind in kinds:
        click.echo(str(export_bag(kind, folder, bag, groups, novelty)))
    return 0
