"""Render the evaluation of a head as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from slideway.reports.page import LARGEST_PAGE_BYTES, clean, templates


@dataclass(frozen=True)
class EvaluationPlot:
    """One plot.

    Attributes:
        title: What it shows.
        svg: The drawing, complete in itself.
        width_px: Width at which its letters have the page's size.
        height_px: Height at that width.
        alt: What it shows in words and figures, for who cannot see it.
        caption: How to read it.
    """

    title: str
    svg: str
    width_px: int
    height_px: int
    alt: str
    caption: str


@dataclass(frozen=True)
class EvaluationTable:
    """One table; the first cell of each row names it, the others are figures.

    Attributes:
        caption: What it holds.
        columns: Heads of the columns.
        rows: Cells of each row, as shown.
        note: How to read it; empty for nothing.
        strong_row: Row that is the head's own; None for none.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    strong_row: int | None = None


@dataclass(frozen=True)
class EvaluatedTask:
    """One question as the page shows it.

    Attributes:
        title: The question.
        is_in_force: It is answered by default.
        state: Whether it is in force, and what that depends on, in words.
        facts: What it was judged on, in sentences.
        tables: Headline figures first.
        plots: In the order of reading.
        missed: What got through, in sentences; empty where the question has no yes and no.
    """

    title: str
    is_in_force: bool
    state: str
    facts: tuple[str, ...]
    tables: tuple[EvaluationTable, ...]
    plots: tuple[EvaluationPlot, ...]
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationContent:
    """All that the page says.

    Attributes:
        title: Name of the head.
        warnings: What to know before any figure.
        facts: Name, value and note of what was judged.
        overview: All questions in one table.
        tasks: The questions.
        settings: Name and value of how it was trained and judged.
        limits: What the head cannot do, from its card.
        notes: Name and text: what it is for, data, licence and the like, from its card.
        command: What made it.
        fingerprints: Name and hash.
        program: Name and version of what wrote the page.
    """

    title: str
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]
    overview: EvaluationTable
    tasks: tuple[EvaluatedTask, ...]
    settings: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]
    command: str
    fingerprints: tuple[tuple[str, str], ...]
    program: str


@dataclass(frozen=True)
class _Figure:
    """A plot as the page holds it."""

    plot: EvaluationPlot
    data_uri: str


@dataclass(frozen=True)
class _Section:
    """One question, with what is left of its plots."""

    task: EvaluatedTask
    figures: tuple[_Figure, ...]
    left_out: int


def render_evaluation(content: EvaluationContent) -> str:
    """Render an evaluation as a self-contained HTML page: no script, nothing fetched, every text escaped.

    Returns:
        HTML, below `LARGEST_PAGE_BYTES` as UTF-8 for any number of plots: the last questions lose theirs first, and
        the page says so. The same content gives the same page.
    """
    sections = [_show(task) for task in content.tasks]
    page = _render(content, sections)
    for last in reversed(range(len(sections))):
        if len(page.encode()) < LARGEST_PAGE_BYTES:
            break
        sections[last] = replace(sections[last], figures=(), left_out=len(sections[last].figures))
        page = _render(content, sections)
    return page


def _show(task: EvaluatedTask) -> _Section:
    return _Section(task, tuple(_Figure(plot, _svg_uri(plot.svg)) for plot in task.plots), 0)


def _svg_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8", "replace")).decode("ascii")


def _render(content: EvaluationContent, sections: Sequence[_Section]) -> str:
    style = "".join(
        templates().get_template(name).render(short_id="") for name in ("report.css.j2", "evaluation.css.j2")
    )
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = templates().get_template("evaluation.html.j2")
    return clean(template.render(content=content, sections=sections, style=style, style_hash=style_hash))
