"""`slideway coverage`: what share of new cancers is catalogued, has a trained head, has a validated head."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slideway.core.catalogue import Catalogue, Site, SiteTask, load_catalogue
from slideway.core.coverage import Coverage, SiteCoverage, TrainedTask, describe_coverage, measure_coverage
from slideway.core.errors import WrongUseError
from slideway.core.files import write_whole

if TYPE_CHECKING:
    from slideway.registry.head_records import HeadCard

# One sign for each percent, so that a terminal without colour, and a file, say the same.
_SIGNS = {"validated": "#", "trained": "=", "catalogued": "-", "listed": "."}
_FULL = 50  # signs of a bar of 100 %


@click.command("coverage")
@click.option("--site", "site_id", metavar="ID", help="One site: what grows there, what is asked, which heads answer.")
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also draw the chart: FILE.svg or FILE.png.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(*, site_id: str | None, chart: Path | None, as_json: bool) -> int:
    """Show what share of new cancers is catalogued, trained and validated.

    \b
      catalogued  the catalogue says what grows at the site and what is asked
      trained     a head installed here was trained for that very site
      validated   it is in force and its card shows enough: docs/catalogue.md

    All shares are of all new cancer cases in China in 2022, whether read on slides or not.

    \b
    Examples:
      slideway coverage
      slideway coverage --site lung
      slideway coverage --chart coverage.svg
    """
    from slideway.registry.heads import list_heads

    if chart is not None and chart.suffix.lower() not in (".svg", ".png"):
        raise WrongUseError(f"{chart.name}: a chart is written as .svg or .png")
    catalogue = load_catalogue()
    site = catalogue.find_site(site_id) if site_id is not None else None
    coverage = measure_coverage(catalogue, gather_trained(list_heads()))
    if chart is not None:
        write_chart(coverage, chart)
    if site is not None:
        covered = next(one for one in coverage.sites if one.site.id == site.id)
        click.echo(_dump(describe_site(covered)) if as_json else _site_in_words(catalogue, covered))
    else:
        click.echo(_dump(describe_coverage(coverage)) if as_json else _in_words(coverage))
    if chart is not None:
        click.echo(f"chart: {chart}", err=True)
    return 0


def gather_trained(cards: Iterable[HeadCard]) -> tuple[TrainedTask, ...]:
    """What the meter needs to know of heads, from their cards."""
    return tuple(
        TrainedTask(
            head_id=card.id,
            task=task.question.id,
            sites=task.question.sites,
            in_force=card.is_in_force(task),
            cases=task.evidence.cases if task.evidence else 0,
            split=task.evidence.split if task.evidence else "",
            sensitivity_low=task.evidence.sensitivity.low if task.evidence and task.evidence.sensitivity else None,
            specificity_low=task.evidence.specificity.low if task.evidence and task.evidence.specificity else None,
        )
        for card in cards
        for task in card.tasks
    )


def write_chart(coverage: Coverage, path: Path) -> None:
    """Write the chart whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    from slideway.pipeline.output import explain_write_error
    from slideway.reports.coverage_chart import draw_coverage, render_coverage_svg

    if path.suffix.lower() == ".svg":
        content = render_coverage_svg(coverage).encode()
    else:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(draw_coverage(coverage)).save(buffer, "PNG")
        content = buffer.getvalue()
    try:
        write_whole(path, content)
    except OSError as error:
        raise explain_write_error(error, path.parent) from error


def describe_site(covered: SiteCoverage) -> dict[str, Any]:
    """One site for JSON: coverage, entities and tasks."""
    site = covered.site
    return {
        "id": site.id,
        "title": site.title,
        "icd10": list(site.icd10),
        "topography": list(site.topography),
        "incidence": {
            "new_cases_x10000": site.incidence.new_cases_x10000,
            "share_percent": site.incidence.share_percent,
            "source": site.incidence.source,
            "checked": site.incidence.checked,
        },
        "stage": covered.stage,
        "trained_by": list(covered.trained_by),
        "validated_by": list(covered.validated_by),
        "why_not_validated": list(covered.why_not_validated),
        "entities": [
            {
                "morphology": entity.morphology,
                "behaviour": entity.behaviour,
                "title": entity.title,
                "checked": entity.checked,
                "note": entity.note,
            }
            for entity in site.entities
        ],
        "tasks": [_describe_task(task) for task in site.tasks],
        "not_asked": dict(site.not_asked),
        "note": site.note,
    }


def _describe_task(task: SiteTask) -> dict[str, Any]:
    return {
        "id": task.question.id,
        "topic": task.topic.id,
        "title": task.question.title,
        "kind": task.question.kind.value,
        "labels": list(task.question.labels),
        "parent": task.question.parent,
        "stain": task.stain,
        "system": task.system,
        "level": task.topic.level,
        "sensitivity_above": task.topic.bar.sensitivity,
        "specificity_above": task.topic.bar.specificity,
        "note": task.note,
    }


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)


def _in_words(coverage: Coverage) -> str:
    lines = [f"Share of all {coverage.catalogue.population}", ""]
    totals = {
        "catalogued": coverage.catalogued_percent,
        "trained": coverage.trained_percent,
        "validated": coverage.validated_percent,
    }
    for stage, percent in totals.items():
        bar = _SIGNS[stage] * _count_signs(percent, _FULL)
        lines.append(f"{stage:12} {percent:6.2f} %  |{bar:{_FULL}}|")
    lines += ["", *_site_lines(coverage), ""]
    lines += [f"{sign} {stage}" for stage, sign in _SIGNS.items() if stage != "listed"]
    lines += [". listed only: its share never counts", "* figure from memory, not compared with its source"]
    lines.append(f"Figures: {coverage.catalogue.population_source}.")
    lines.append("The bar of validation is Slideway's own, not a regulator's (docs/catalogue.md).")
    return "\n".join(lines)


def _site_lines(coverage: Coverage) -> list[str]:
    wide = max(len(covered.site.id) for covered in coverage.sites)
    longest = max(_count_signs(covered.site.incidence.share_percent, 100) for covered in coverage.sites)
    lines = []
    for covered in coverage.sites:
        percent = covered.site.incidence.share_percent
        mark = " " if covered.site.incidence.is_checked else "*"
        bar = _SIGNS[covered.stage] * _count_signs(percent, 100)
        lines.append(f"{covered.site.id:{wide}} {percent:6.2f}{mark} {bar:{longest}}  {_say_stage(covered)}")
        if covered.is_trained and not covered.is_validated:
            lines += [f"{'':{wide}}         not validated: {reason}" for reason in covered.why_not_validated]
    other = max(0.0, 100 - coverage.listed_percent)
    bar = _SIGNS["listed"] * _count_signs(other, 100)
    return [*lines, f"{'(all others)':{wide}} {other:6.2f}  {bar:{longest}}  outside the catalogue"]


def _count_signs(percent: float, full: int) -> int:
    """Never no sign for something that is there."""
    return max(1, round(percent * full / 100)) if percent > 0 else 0


def _say_stage(covered: SiteCoverage) -> str:
    heads = ", ".join(covered.validated_by or covered.trained_by)
    return f"{covered.stage} ({heads})" if heads else covered.stage


def _site_in_words(catalogue: Catalogue, covered: SiteCoverage) -> str:
    site = covered.site
    incidence = site.incidence
    lines = [f"{site.id}: {site.title}", f"  ICD-10      {', '.join(site.icd10)}"]
    lines.append(f"  ICD-O-3     {', '.join(site.topography)}")
    lines.append(
        f"  incidence   {incidence.new_cases_x10000:.2f} x 10,000 new cases, {incidence.share_percent:.2f} % of all "
        f"{catalogue.population}"
    )
    lines += [f"              {incidence.source}", f"              compared with the source: {incidence.checked}"]
    lines.append(f"  coverage    {_say_stage(covered)}")
    lines += [f"              not validated: {reason}" for reason in covered.why_not_validated]
    if site.note:
        lines.append(f"  note        {site.note}")
    lines += ["", "  what grows there (ICD-O-3.2)", *_entity_lines(site)]
    lines += ["", "  what is asked", *_task_lines(site.tasks)]
    lines += [f"    {topic}: not asked. {reason}" for topic, reason in site.not_asked.items()]
    return "\n".join(lines)


def _entity_lines(site: Site) -> list[str]:
    return [
        f"    {entity.morphology}  {entity.behaviour:10} {entity.title}"
        + ("" if entity.checked else f"  (not checked: {entity.note})")
        for entity in site.entities
    ]


def _task_lines(tasks: Sequence[SiteTask]) -> list[str]:
    if not tasks:
        return ["    nothing: it is not read on slides"]
    lines = []
    for task in tasks:
        bar, question = task.topic.bar, task.question
        lines.append(f"    {question.id}: {question.title}")
        system = f" by {task.system}" if task.system else ""
        lines.append(f"      {question.kind.value}: {', '.join(question.labels)}{system}")
        bounds = f"lower bounds above {bar.sensitivity:.2f} sensitivity, {bar.specificity:.2f} specificity"
        lines.append(f"      on {task.stain}; evidence {task.topic.level}; {bounds}")
        if task.note:
            lines.append(f"      {task.note}")
    return lines
