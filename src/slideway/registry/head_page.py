"""Write a head's page for the documentation from its card alone: Markdown, the same each time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from slideway.registry.head_records import Bounds, HeadCard, HeadTask, TaskEvidence

_UNKNOWN = "–"
_FORMS = {"abmil": "gated attention over all tiles of a slide", "instance": "a score of each tile"}
_KINDS = {"binary": "yes or no", "classes": "one of several", "ordinal": "a step on a scale"}
_MEASURES = {"auroc": "AUROC", "accuracy": "mean accuracy"}
_SPLITS = {
    "leave-one-case-out": "each case was judged by networks that had seen all others, but not it",
    "case-folds": "cases were dealt into folds, and each judged by networks that had not seen its fold",
    "leave-site-out": "each hospital was judged by networks that had seen no case of it",
    "own-split": "the public cohort's own split",
    "tiles": "single tiles of a set that names no cases: optimistic",
}


def write_head_page(card: HeadCard) -> str:
    """One page on a head: what it answers, how well on unseen cases, what is in force, limits, and how to use it.

    Every text of the card is escaped, so that it is shown and never taken for Markdown or HTML.
    """
    return join_blocks(
        f"# {escape(card.title)}",
        "<!-- Written from the head's card by `slideway models show`; change the card, not this page. -->",
        "A research starter, not a medical device, and no diagnosis: nothing in it has been clinically validated.",
        list_facts(
            ("Id", f"`{card.id}`, version {escape(card.version)}, {card.state}"),
            ("Kind", f"head, {_FORMS[card.weights.form]}; {card.weights.parameters:,} parameters"),
            ("Reads", f"bags of `{card.input.encoder_id}` with at least {card.input.min_tiles} tiles"),
            ("Stain", escape(card.input.stain)),
            ("Licence", f"{escape(card.licence.id)}. {escape(card.licence.note)}"),
        ),
        "## Questions",
        draw_table(("question", "id", "kind", "answers", "asked below", "sites", "state"), _question_rows(card)),
        *_say_off(card),
        "## For, and not for",
        f"**For:** {escape(card.use.intended)}",
        f"**Not for:** {escape(card.use.not_intended)}",
        "## Evidence",
        *_say_evidence(card),
        "## Limits",
        list_points(card.limits),
        "## Training",
        f"**Data:** {escape(card.training.data)}",
        f"**How:** {escape(card.training.note)}",
        *show_command(card.metrics.get("command")),
        "## How to use it",
        show_code(
            "\n".join(
                (
                    "slideway models add FOLDER                  # unless it came with Slideway",
                    f"slideway read SLIDE --head {card.id}",
                    f"slideway models state {card.id} active",
                )
            )
        ),
        "The second reads one slide and shows every question, also those that are off, marked so. The third makes it "
        "one that is asked by default: then the questions that are in force are answered, and no other.",
        "## Fingerprints",
        list_facts(
            ("Head", f"`{card.fingerprint}`"),
            ("Weights (sha256)", f"`{card.weights.sha256}`, {card.weights.bytes:,} bytes"),
            ("Encoder", f"`{card.input.encoder_fingerprint}`; bags of another are refused"),
        ),
    )


def _question_rows(card: HeadCard) -> Iterator[tuple[str, ...]]:
    for task in card.tasks:
        question = task.question
        yield (
            escape(question.title),
            f"`{question.id}`",
            _KINDS[question.kind.value],
            escape(", ".join(question.labels)),
            escape(question.parent) or _UNKNOWN,
            escape(", ".join(question.sites)) or "any",
            _say_state(card, task),
        )


def _say_state(card: HeadCard, task: HeadTask) -> str:
    if card.is_in_force(task):
        return "**in force**"
    return f"in force once active (it is {card.state})" if task.in_force else "off"


def _say_off(card: HeadCard) -> Iterator[str]:
    """Why questions are off, or in force against their figures."""
    said = []
    for task in card.tasks:
        title = escape(task.question.title)
        if not task.in_force:
            said.append(f"- **{title}** is off: {escape(task.off_because) or 'the card does not say why.'}")
        elif task.evidence is None or not task.evidence.beats_baseline:
            said.append(f"- **{title}** was switched on by a person: its figures do not show that it beats a baseline.")
    if said:
        yield "\n".join(said)


def _say_evidence(card: HeadCard) -> Iterator[str]:
    rows = [
        (escape(task.question.title), *_evidence_row(task.evidence)) for task in card.tasks if task.evidence is not None
    ]
    if not rows:
        yield "None: it was not evaluated on unseen cases."
        return
    yield (
        "On cases it had not learnt from, with 95 % intervals over cases; the baseline is the better of those trained "
        "on the same folds. After training a question is off unless its lower bound is above the baseline's figure."
    )
    yield draw_table(
        (
            *("question", "measure", "this head", "baseline", "which", "cases", "of them yes", "hospitals"),
            *("sensitivity", "specificity", "calibration error", "answered"),
        ),
        rows,
    )
    splits = dict.fromkeys(task.evidence.split for task in card.tasks if task.evidence is not None)
    yield "\n".join(f"Split `{split}`: {_SPLITS.get(split, 'see the card')}." for split in splits)
    for task in card.tasks:
        yield from _compare_methods(card, task)


def _compare_methods(card: HeadCard, task: HeadTask) -> Iterator[str]:
    """The head and all its baselines, from the card's metrics, where it holds them."""
    of_tasks = card.metrics.get("tasks")
    figures = of_tasks.get(task.question.id) if isinstance(of_tasks, Mapping) else None
    methods = figures.get("methods") if isinstance(figures, Mapping) else None
    if task.evidence is None or not isinstance(figures, Mapping) or not isinstance(methods, Mapping):
        return
    measure = task.evidence.measure
    rows = [
        (
            "this head" if name in ("abmil", figures.get("method")) else escape(str(name)),
            _say_figure(own.get(measure)),
            *(_say_figure(own.get(key)) for key in ("ece", "brier", "aurc")),
        )
        for name, own in methods.items()
        if isinstance(own, Mapping)
    ]
    yield f"All methods on the same folds, **{escape(task.question.title)}**:"
    yield draw_table(("method", _MEASURES[measure], "calibration error (ECE)", "Brier", "AURC"), rows)


def _say_figure(figure: object) -> str:
    if isinstance(figure, Mapping):
        bounds = [one for key in ("value", "low", "high") if isinstance(one := figure.get(key), int | float)]
        return say_bounds(Bounds(*bounds)) if len(bounds) == 3 else _UNKNOWN
    return f"{figure:.3f}" if isinstance(figure, int | float) else _UNKNOWN


def _evidence_row(evidence: TaskEvidence) -> tuple[str, ...]:
    return (
        _MEASURES[evidence.measure],
        say_bounds(evidence.value),
        say_bounds(evidence.baseline_value),
        escape(evidence.baseline),
        str(evidence.cases),
        str(evidence.positives) if evidence.measure == "auroc" else _UNKNOWN,
        str(evidence.sites or "unknown"),
        say_bounds(evidence.sensitivity),
        say_bounds(evidence.specificity),
        f"{evidence.ece:.3f}",
        f"{evidence.answered:.1%}",
    )


def say_bounds(bounds: Bounds | None) -> str:
    """A figure with its interval.

    Example:
        >>> say_bounds(Bounds(0.6254, 0.4552, 0.7958)), say_bounds(None)
        ('0.625 (0.455–0.796)', '–')
    """
    return _UNKNOWN if bounds is None else f"{bounds.value:.3f} ({bounds.low:.3f}–{bounds.high:.3f})"


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line: no markup, no HTML, no formula, no cell of a table.

    Example:
        >>> escape("a|b <script>\n# *x*")
        'a\\|b &lt;script&gt; # \\*x\\*'
    """
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text).split())
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]{}|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)  # in_word is no emphasis
    # At the start a sign or number would begin a heading, a list or a rule.
    return re.sub(r"^(\d*)([-+=#]|[.)](?=\s|$))", r"\1\\\2", line)


def join_blocks(*blocks: str) -> str:
    """Blocks of Markdown with an empty line between."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def list_facts(*facts: tuple[str, str]) -> str:
    """Names and values, already escaped, as a list."""
    return "\n".join(f"- **{name}:** {value}" for name, value in facts)


def list_points(texts: Sequence[str]) -> str:
    """Plain sentences as a list."""
    return "\n".join(f"- {escape(text)}" for text in texts) or "None stated."


def draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    """A table of cells that are already escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show_command(command: object) -> Iterator[str]:
    """The command that measured a card's figures, if it names one."""
    if isinstance(command, str) and command.strip():
        yield "Made by:"
        yield show_code(" ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", command).split()))


def show_code(text: str) -> str:
    """Text as code, in a fence longer than any inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
