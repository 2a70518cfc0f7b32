"""`slideway recalibrate`: a head's certainty fitted to one site's own labelled cases, as a new head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slideway.cli.training import name_command, require_free_folder
from slideway.core.errors import WrongUseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slideway.learning.recalibrate import RecalibratedTask

EXTRAS = ("torch", "sklearn", "threadpoolctl")


@click.command("recalibrate")
@click.argument("head_name", metavar="HEAD")
@click.option("--cohort", "cohort_file", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Cohort file (docs/cohorts.md) of the site's own labelled cases.")  # fmt: skip
@click.option("--id", "new_id", required=True, metavar="NEW", help="Id of the new head.")
@click.option("--site", metavar="NAME",
              help="The site; of a cohort with several, only its cases are taken.  [default: the cohort's only site, "
                   "else the file's name]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-heads"), show_default=True,
              help="Parent of the new head's folder.")  # fmt: skip
@click.option("--work", type=click.Path(path_type=Path), metavar="DIR",
              help="Where slides that are not read yet are read to.  [default: OUT/bags]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what became of each question as JSON.")
def command(
    head_name: str,
    *,
    cohort_file: Path,
    new_id: str,
    site: str | None,
    out: Path,
    work: Path | None,
    as_json: bool,
) -> int:
    """Fit the certainty of HEAD, an installed head or a head's folder, to one site's labelled cases.

    Makes OUT/NEW, a head with the same network whose probabilities mean what they say at the site. A question needs 20
    cases and 5 of each label, and keeps the head's own scaling unless another describes cases left out better. Where no
    question can be fitted, nothing is written. The cases must be others than the head learnt from.

    The new head is a candidate: nothing is in force before you install it and make it active. Its figures are still
    those from before; judge it with `slideway evaluate` on further cases.

    \b
    Examples:
      slideway recalibrate county-1 --cohort ours.csv --id county-1-ours
      slideway recalibrate county-1 --cohort all.csv --site north --id county-1-north
    """
    from slideway.encoders.extras import require_library

    for name in EXTRAS:
        require_library(name, "recalibrating a head")
    from slideway.cli.cohort_bags import collect_bags
    from slideway.heads.head import load_head, require_bag_fits
    from slideway.learning import recalibrate as work_on
    from slideway.learning.cohort import read_cohort
    from slideway.learning.external import match_labels, require_unseen
    from slideway.learning.sample import gather_labelled
    from slideway.pipeline.output import OutputFolder
    from slideway.registry.heads import find_head

    card = find_head(head_name)
    work_on.require_recalibratable(card, new_id)
    require_free_folder(out, new_id)
    cohort, head = read_cohort(cohort_file), load_head(card)
    questions = [question for question in head.questions if question.id in cohort.tasks]
    if not questions:
        raise WrongUseError(
            f"{card.id} answers {', '.join(q.id for q in head.questions)}; {cohort_file.name} has columns "
            f"{', '.join(cohort.tasks) or 'none'}: no label to fit to"
        )
    labels = {question.id: match_labels(cohort, question) for question in questions}
    site_name, _ = work_on.choose_site(cohort.values("site"), site, cohort_file.stem)
    bags = collect_bags(cohort, encoder=card.input.encoder_id, work=work or out / "bags")
    whole = gather_labelled(cohort, questions, labels, bags)
    sample = whole.select(work_on.choose_site(whole.facts["site"], site, cohort_file.stem)[1])
    require_bag_fits(card, sample.bag(0))  # before anything is compared with its vectors (invariant I7)
    require_unseen(head, sample)
    tasks = work_on.recalibrate_tasks(card, head, sample)
    work_on.require_change(tasks, site_name)
    with OutputFolder(out, new_id) as output:
        work_on.write_recalibrated(
            output.path,
            card,
            head,
            tasks,
            new_id=new_id,
            site=site_name,
            command=name_command(),
            cohort_sha256=cohort.sha256,
        )
        folder = output.commit()
    if as_json:
        told: dict[str, Any] = {"head": new_id, "from": card.id, "site": site_name}
        told["tasks"] = {task.question.id: work_on.describe_task(task) for task in tasks}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        click.echo(_in_words(tasks, new_id, folder))
    return 0


def _in_words(tasks: Sequence[RecalibratedTask], new_id: str, folder: Path) -> str:
    lines = [f"{new_id}: recalibrated"]
    for task in tasks:
        gain = f" Left-out cases: {task.fitted.gain:+.3f} of log-likelihood a case." if task.fitted.is_changed else ""
        lines.append(f"  {task.question.title} {task.fitted.reason}{gain}")
    return "\n".join(
        [
            *lines,
            "  the figures on its card were measured before; judge it on further cases:",
            f"  evaluate  slideway evaluate {folder} --cohort OTHER-CASES.csv",
            f"  install   slideway models add {folder}",
        ]
    )
