"""`slideway evaluate`: how a finished head does on cases it has not learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from slideway.cli.progress import Steps
from slideway.cli.training import say_evaluation
from slideway.core.errors import WrongUseError
from slideway.registry.store import DEFAULT_ENCODER


@click.command("evaluate")
@click.argument("head_name", metavar="HEAD")
@click.option("--cohort", "cohort_file", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Cohort file with other cases than the head learnt from.")  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="TASK",
              help="Only this question of the head; repeatable. Default: all that the cohort has.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-evaluations"), show_default=True,
              help="Parent of the evaluation's folder, HEAD-on-COHORT.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), metavar="DIR",
              help="Where slides that are not read yet are read to.  [default: OUT/bags]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print evaluation.json.")
def command(
    head_name: str,
    *,
    cohort_file: Path,
    tasks: tuple[str, ...],
    out: Path,
    work: Path | None,
    as_json: bool,
) -> int:
    """Evaluate HEAD, an installed head or a head's folder, on a cohort it has not learnt from.

    Nothing is trained and the head is not changed. A case that the head learnt from stops the run. Makes
    OUT/HEAD-on-COHORT with evaluation.html (look at this), evaluation.json and predictions.csv.

    \b
    Examples:
      slideway evaluate county-1 --cohort other-hospital.csv
      slideway evaluate slideway-heads/county-1 --cohort test.csv --task malignant
    """
    from slideway.encoders.extras import require_library

    for name in ("sklearn", "matplotlib"):
        require_library(name, "evaluating a head")
    from slideway.cli.cohort_bags import collect_bags
    from slideway.heads.head import load_head, require_bag_fits
    from slideway.learning.cohort import read_cohort
    from slideway.learning.external import evaluate_head, match_labels, require_judgeable, require_unseen
    from slideway.learning.report import write_evaluation_page, write_predictions
    from slideway.learning.sample import gather_labelled
    from slideway.pipeline.output import OutputFolder
    from slideway.registry.heads import find_head

    card, cohort = find_head(head_name), read_cohort(cohort_file)
    head = load_head(card)
    wanted = tasks or tuple(q.id for q in head.questions if q.id in cohort.tasks)
    questions = [q for q in head.questions if q.id in wanted]
    if not questions or len(questions) < len(wanted):
        raise WrongUseError(
            f"{card.id} answers {', '.join(q.id for q in head.questions)}; {cohort_file.name} has columns "
            f"{', '.join(cohort.tasks) or 'none'}: nothing to compare, or a task that the head does not answer"
        )
    labels = {question.id: match_labels(cohort, question) for question in questions}
    encoder = card.input.encoder_id or DEFAULT_ENCODER
    bags = collect_bags(cohort, encoder=encoder, work=work or out / "bags")
    sample = gather_labelled(cohort, questions, labels, bags)
    require_judgeable(sample)
    require_bag_fits(card, sample.bag(0))  # before anything is compared with its vectors (invariant I7)
    require_unseen(head, sample)
    place = f"{card.id}-on-{cohort_file.stem}"
    if (out / place).exists() and not (out / place / "evaluation.json").is_file():
        raise WrongUseError(f"{out / place} is there already and is no evaluation; choose another --out")
    with Steps() as steps, OutputFolder(out, place) as output:
        evaluation, judged = evaluate_head(card, head, sample, tell=lambda d, of: steps.on_step("judging", d, of))
        text = json.dumps(evaluation, indent=1, ensure_ascii=False)
        (output.path / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        write_evaluation_page(output.path, card=card, evaluation=evaluation, judged=judged)
        write_predictions(output.path / "predictions.csv", sample, judged)
        folder = output.commit()
    click.echo(text if as_json else say_evaluation(evaluation, folder))
    return 0
