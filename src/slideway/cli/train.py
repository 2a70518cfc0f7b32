"""`slideway train`: from a cohort file to a head with its evidence, card and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slideway.cli.progress import Steps
from slideway.cli.training import bind_to_sites, make_id, make_plan, require_free_folder, say_evaluation
from slideway.core.errors import WrongUseError
from slideway.registry.store import DEFAULT_ENCODER

SPLIT_WORDS = ("leave-one-case-out", "case-folds", "leave-site-out", "own-split")
EXTRAS = ("torch", "sklearn", "matplotlib", "threadpoolctl")


@click.command("train")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--cohort", "cohort_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Cohort file (docs/cohorts.md): slides or bags, cases, labels, sites.")  # fmt: skip
@click.option("--tiles", "tiles_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Tile table instead: single labelled tiles; makes a head that scores tiles.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-heads"), show_default=True,
              help="Parent of the head's folder.")  # fmt: skip
@click.option("--id", "head_id", metavar="ID", help="Id of the head.  [default: the cohort's name and the tasks]")
@click.option("--title", help="Its name in words.")
@click.option("--split", type=click.Choice(SPLIT_WORDS),
              help="How unseen cases are kept apart.  [default: the cohort's own fold column; else one case at a time "
                   "up to 60 cases, five folds beyond]")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 20), default=3, show_default=True, help="Networks that are averaged.")
@click.option("--epochs", type=click.IntRange(1, 1000),
              help="Passes over all slides.  [default: 40, or up to 600 steps if held-out cases ask]")  # fmt: skip
@click.option("--stain", default="H&E", show_default=True, help="Stain of the cohort.")
@click.option("--site", "sites", multiple=True, metavar="ID",
              help="Where in the body the cohort comes from, e.g. lung (slideway coverage); repeatable. The head then "
                   "refers slides of other sites, and counts as trained for these.")  # fmt: skip
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, metavar="ID",
              help="Encoder for slides that are not read yet.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), metavar="DIR",
              help="Where slides that are not read yet are read to.  [default: OUT/bags]")  # fmt: skip
@click.option("--no-curve", is_flag=True, help="Measure no learning curve.")
@click.option("--allow-confounded", is_flag=True,
              help="Accept a label that site, laboratory, scanner or stain tells.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print evaluation.json.")
def command(
    tasks: tuple[str, ...],
    *,
    cohort_file: Path | None,
    tiles_file: Path | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train a head for TASK, judge it on cases it has not seen, and write its card.

    TASK is a column of labels: NAME (yes or no, else classes), NAME:ordinal, or NAME:a<b<c. Several are learnt
    together; `malignant` is asked only of what is `neoplastic`, grade and subtype only of what is malignant.

    Every check of the cohort runs first; a wrong file stops here. Slides that are not read yet are read. Splits are by
    case, always. Beside the head two baselines are trained on the same folds. Makes OUT/ID with card.toml,
    head.safetensors, evaluation.html (look at this), evaluation.json and predictions.csv. Nothing is in force until you
    install the head and make it active; a task that does not beat its baselines stays off.

    \b
    Examples:
      slideway train malignant --cohort cohort.csv
      slideway train organ neoplastic malignant --cohort cohort.csv --out heads --id county-1
      slideway train grade:ordinal --cohort panda.csv --split case-folds
      slideway train tumour --tiles tiles.csv
    """
    if (cohort_file is None) == (tiles_file is None):
        raise WrongUseError("give --cohort FILE (slides) or --tiles FILE (single tiles), one of them")
    _require_extras()
    if tiles_file is not None:
        from slideway.cli.train_tiles import train_on_tiles

        folder = train_on_tiles(tasks, tiles_file, settings)
    else:
        assert cohort_file is not None
        folder = _train_on_slides(tasks, cohort_file, settings)
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    click.echo(json.dumps(evaluation, ensure_ascii=False) if as_json else say_evaluation(evaluation, folder))
    return 0


def _require_extras() -> None:
    from slideway.encoders.extras import require_library

    for name in EXTRAS:
        require_library(name, "training a head")


def _train_on_slides(tasks: tuple[str, ...], cohort_file: Path, settings: dict[str, Any]) -> Path:
    from slideway.bundles import read_bag
    from slideway.cli.cohort_bags import collect_bags
    from slideway.learning.cohort import read_cohort
    from slideway.learning.leakage import find_leaks, require_no_leaks
    from slideway.learning.questions import note_tasks, select_tasks
    from slideway.learning.report import write_evaluation_page, write_predictions
    from slideway.learning.sample import gather_sample
    from slideway.learning.train import train_head
    from slideway.pipeline.output import OutputFolder

    cohort = read_cohort(cohort_file)
    questions = bind_to_sites(select_tasks(cohort, tasks, allow_confounded=settings["allow_confounded"]), settings)
    for note in (*cohort.notes, *note_tasks(cohort, questions)):
        click.echo(f"note: {note}", err=True)
    head_id = settings["head_id"] or make_id(cohort_file, [question.id for question in questions])
    work = settings["work"] or settings["out"] / "bags"
    require_free_folder(settings["out"], head_id, beside=(work, *(row.path for row in cohort.rows)))
    plan = make_plan(head_id, settings, len(cohort.rows))
    bags = collect_bags(cohort, encoder=settings["encoder"], work=work)
    names = [row.name for row in cohort.rows]
    require_no_leaks(find_leaks([read_bag(path) for path in bags], cohort.cases), names, cohort.cases)
    sample = gather_sample(cohort, questions, bags)
    with Steps() as steps, OutputFolder(settings["out"], head_id) as output:
        trained = train_head(sample, plan, output.path, tell=steps.on_step)
        write_evaluation_page(output.path, card=trained.card, evaluation=trained.evaluation, judged=trained.judged)
        write_predictions(output.path / "predictions.csv", sample, trained.judged)
        return output.commit()
