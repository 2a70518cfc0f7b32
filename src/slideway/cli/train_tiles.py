"""Train a head of single tiles: encode the tiles of a table once, then learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from slideway.cli.progress import Steps
from slideway.cli.training import bind_to_sites, make_id, make_plan, require_free_folder
from slideway.core.errors import WrongUseError
from slideway.encoders import Encoder, load_encoder
from slideway.learning.questions import note_tasks, select_tasks
from slideway.learning.report import write_evaluation_page, write_predictions
from slideway.learning.tile_heads import require_learnable_tiles, train_tile_head
from slideway.learning.tile_table import TileReader, TileTable, read_tile_table
from slideway.learning.train import EncoderFacts
from slideway.pipeline.machine import count_cores
from slideway.pipeline.output import OutputFolder
from slideway.pipeline.tile_archive import fit_tile
from slideway.registry.store import find_encoder

_TOGETHER = 32


def train_on_tiles(tasks: tuple[str, ...], file: Path, settings: dict[str, Any]) -> Path:
    """Make a head of single tiles; returns its folder."""
    if len(tasks) != 1:
        raise WrongUseError("a head of single tiles answers one question; name one TASK")
    table = read_tile_table(file)
    questions = bind_to_sites(select_tasks(table, tasks, allow_confounded=settings["allow_confounded"]), settings)
    for note in (*table.notes, *note_tasks(table, questions)):
        click.echo(f"note: {note}", err=True)
    head_id = settings["head_id"] or make_id(file, [question.id for question in questions])
    require_free_folder(settings["out"], head_id, beside=(file,))
    require_learnable_tiles(table, questions[0])
    plan = make_plan(head_id, settings, 1)
    encoder = load_encoder(find_encoder(settings["encoder"]), threads=count_cores())
    card = encoder.card
    with Steps() as steps, OutputFolder(settings["out"], head_id) as output:
        vectors = encode_table(table, encoder, steps)
        facts = EncoderFacts(card.id, card.fingerprint, encoder.width)
        trained = train_tile_head(table, vectors, questions[0], facts, plan, output.path, tell=steps.on_step)
        write_evaluation_page(output.path, card=trained.card, evaluation=trained.evaluation, judged=trained.judged)
        write_predictions(output.path / "predictions.csv", trained.sample, trained.judged)
        return output.commit()


def encode_table(table: TileTable, encoder: Encoder, steps: Steps) -> NDArray[np.float16]:
    """(n_tiles, width) embeddings of a table's tiles."""
    vectors = np.empty((len(table.tiles), encoder.width), np.float16)
    with TileReader(table.path.parent) as reader:
        for start in range(0, len(table.tiles), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(table.tiles)))
            tiles = np.stack([fit_tile(reader.read(table.tiles[i]), float(table.mpp[i]), encoder.card) for i in some])
            vectors[some.start : some.stop] = encoder.encode(tiles)
            steps.on_step("encoding tiles", some.stop, len(table.tiles))
    return vectors
