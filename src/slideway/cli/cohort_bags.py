"""Bring every slide of a cohort to its bag: kept, read, or encoded from tile images."""

from __future__ import annotations

from pathlib import Path

from slideway.bundles import read_bag
from slideway.cli.progress import Terminal
from slideway.core.errors import CohortError
from slideway.encoders import Encoder, load_encoder
from slideway.learning.cohort import BAG, Cohort, CohortRow, SlideKind
from slideway.pipeline.folder import read_slides
from slideway.pipeline.machine import count_cores
from slideway.pipeline.output import distinct_folder_names, folder_name
from slideway.pipeline.tile_archive import encode_tile_archive
from slideway.registry.card import ModelCard
from slideway.registry.store import find_encoder, list_encoders


def collect_bags(cohort: Cohort, *, encoder: str, work: Path) -> tuple[Path, ...]:
    """Path of each slide's bag, in the order of the cohort; what is not read yet is read into `work`.

    Raises:
        CohortError: A slide cannot be read, or the bags at hand are another encoder's than the one asked for.
    """
    if all(row.bag_path is not None for row in cohort.rows):
        return tuple(row.bag_path for row in cohort.rows if row.bag_path is not None)  # nothing to read: no encoder
    card = _choose_encoder(cohort, encoder)
    places = _choose_places(cohort, work)
    paths: list[Path] = []
    with Terminal() as terminal:
        loaded: Encoder | None = None
        for number, row in enumerate(cohort.rows, start=1):
            if row.bag_path is not None:
                paths.append(row.bag_path)
                continue
            terminal.on_slide(row.path.name, number, len(cohort.rows))
            if row.kind is SlideKind.TILES:
                loaded = loaded or load_encoder(card, threads=count_cores())
                assert row.mpp is not None
                terminal.on_step("encode")
                paths.append(
                    encode_tile_archive(
                        row.path, mpp=row.mpp, encoder=loaded, out=places[row.path], threads=count_cores()
                    )
                )
            else:
                paths.append(_read(row, card, places[row.path], terminal))
    return tuple(paths)


def _choose_places(cohort: Cohort, work: Path) -> dict[Path, Path]:
    """Where each slide that is not read yet is read into; two files of one name get a folder of their own."""
    names = distinct_folder_names([row.path for row in cohort.rows if row.bag_path is None])
    return {path: work if name == folder_name(path) else work / name for path, name in names.items()}


def _choose_encoder(cohort: Cohort, encoder: str) -> ModelCard:
    """The encoder of the bags at hand, or the one asked for where there are none."""
    made = next((read_bag(row.bag_path) for row in cohort.rows if row.bag_path is not None), None)
    if made is None:
        return find_encoder(encoder)
    card = next((card for card in list_encoders() if card.fingerprint == made.fingerprint), None)
    if card is None:
        unread = sum(row.bag_path is None for row in cohort.rows)
        raise CohortError(
            f"{cohort.path.name}: its bags were made by {made.encoder_id} ({made.fingerprint[:12]}), which is not "
            f"installed here, and {unread} slides are still to be read; install it, or read all slides with one encoder"
        )
    return card


def _read(row: CohortRow, card: ModelCard, work: Path, terminal: Terminal) -> Path:
    for outcome in read_slides(
        [row.path], out=work, card=card, progress=terminal, mpp=row.mpp, heads=(), any_heads=True
    ):
        if outcome.error is not None:
            raise CohortError(
                f"line {row.line}: {outcome.error} ({outcome.error.code}); mend the slide, or delete the line"
            ) from outcome.error
        assert outcome.folder is not None
        return outcome.folder / BAG
    raise AssertionError("one slide gives one outcome")
