"""Say in words what a head found: the answer, how sure it is, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slideway.core.opinion import Answer, Finding, Kind, Opinion

RESEARCH = "research starter, not validated"
OFF = "off by default"
OFF_BUT_ASKED = "off by default: shown because it was asked for"

_LONGEST_LIST, _LONGEST_REASON = 4, 90
_CHANCES = 6  # rows of probabilities; of thirty organs the last ones say nothing


@dataclass(frozen=True)
class Badge:
    """How far a finding goes, as a mark: shape and word first, colour second.

    Attributes:
        shape: One sign, different for each kind of answer.
        word: What it says.
        tone: Class of the style sheet: `ai`, `look` (amber) or `none` (grey).
    """

    shape: str
    word: str
    tone: str


@dataclass(frozen=True)
class Chance:
    """One row of a finding's probabilities.

    Attributes:
        label: The label, or what is summed up.
        probability: Calibrated, in [0, 1].
        is_named: The finding names this label.
    """

    label: str
    probability: float
    is_named: bool

    @property
    def text(self) -> str:
        """The probability as a person reads it."""
        return chance_text(self.probability)


def say_finding(finding: Finding) -> str:
    """A finding in one short line, for a picture or a list.

    Example:
        >>> from slideway.core.opinion import TaskQuestion
        >>> question = TaskQuestion("neoplastic", "Neoplastic?", Kind.BINARY, ("no", "yes"))
        >>> say_finding(Finding(question, Answer.ANSWER, ("yes",), {"no": 0.17, "yes": 0.83}, in_force=True))
        'Neoplastic?: yes, 0.83 (research starter, not validated)'
    """
    asides = []
    if finding.answer is Answer.ANSWER:
        asides.append(RESEARCH)
    elif finding.answer is not Answer.SET:
        asides += [_shorten(reason.text) for reason in finding.reasons[:1]]
    if not finding.in_force:
        asides.append(OFF)
    return f"{finding.task.title}: {say_answer(finding)}" + (f" ({'; '.join(asides)})" if asides else "")


def say_answer(finding: Finding) -> str:
    """The answer alone, with its probability where it is one label."""
    if finding.answer is Answer.NOT_READABLE:
        return "not readable"
    if finding.answer is Answer.REFER:
        return "cannot tell: refer to an expert"
    names = list_words(_by_probability(finding, finding.labels))
    certainty = say_certainty(finding) if finding.answer is Answer.ANSWER else ""
    return f"{names}, {certainty}" if certainty else names


def say_certainty(finding: Finding) -> str:
    """Probability of the labels that an answer or a set names; empty where the finding names none for certain."""
    if finding.answer not in {Answer.ANSWER, Answer.SET} or not finding.probabilities:
        return ""
    return chance_text(sum(finding.probabilities.get(label, 0.0) for label in finding.labels))


def badge_of(finding: Finding) -> Badge:
    """The mark of a finding: amber for whatever an expert must look at, grey for what was not read, never red or green.

    A plain answer is violet whatever it says, since what a head says is neither good nor bad news yet.
    """
    names = list_words(_by_probability(finding, finding.labels))
    return {
        Answer.ANSWER: Badge("●", f"Answer: {names}", "ai"),
        Answer.SET: Badge("◐", f"One of a set: {names}", "ai"),
        Answer.REFER: Badge("▲", "Refer to an expert", "look"),
        Answer.NOT_READABLE: Badge("○", "Not readable", "none"),
    }[finding.answer]


def chances_of(finding: Finding) -> tuple[Chance, ...]:
    """Rows of probabilities: most probable first, an ordered scale in its own order; the smallest summed up in one."""
    ranked = _by_probability(finding, finding.probabilities)
    shown = {*ranked[:_CHANCES], *finding.labels}
    if len(set(ranked) - shown) == 1:  # a row of its own takes no more room than a row that sums it up
        shown = set(ranked)
    order = ranked if finding.task.kind is not Kind.ORDINAL else [*finding.task.labels]
    rows = [
        Chance(label, finding.probabilities[label], label in finding.labels)
        for label in order
        if label in shown and label in finding.probabilities
    ]
    rest = [finding.probabilities[label] for label in ranked if label not in shown]
    return (*rows, Chance(f"{len(rest)} others together", sum(rest), is_named=False)) if rest else tuple(rows)


def say_condition(finding: Finding, opinion: Opinion) -> str:
    """On which answer a finding rests; empty when on none."""
    # The yes of a yes-or-no question already holds its parent's (heads/hierarchy.py); classes and grades do not.
    titles = {other.task.id: other.task.title for other in opinion.findings}
    if finding.task.kind is Kind.BINARY or finding.task.parent not in titles:
        return ""
    return f"It holds only if the answer to “{titles[finding.task.parent]}” is yes."


def say_strangeness(strangeness: float) -> str:
    """How unlike the head's own cases a slide is, in a sentence that rounds to neither none nor all.

    Example:
        >>> say_strangeness(0.92)
        'This slide is stranger than 92 % of the cases it learnt from.'
    """
    if strangeness <= 0:
        return "No case that it learnt from is less strange than this slide."
    if strangeness >= 1:
        return "This slide is stranger than every case it learnt from."
    share = min(max(round(strangeness * 100), 1), 99)
    return f"This slide is stranger than {share} % of the cases it learnt from."


def chance_text(probability: float) -> str:
    """A probability with two digits, never a certain 0 or 1 that it is not.

    Example:
        >>> chance_text(0.834), chance_text(0.9991), chance_text(0.0004)
        ('0.83', '> 0.99', '< 0.01')
    """
    if 0.995 <= probability < 1:
        return "> 0.99"
    return "< 0.01" if 0 < probability < 0.005 else f"{probability:.2f}"


def list_words(words: Sequence[str]) -> str:
    """Words as an alternative, long lists cut.

    Example:
        >>> list_words(["colon", "duodenum"]), list_words("abcdefg")
        ('colon or duodenum', 'a, b, c or 4 others')
    """
    shown = [*words]
    if len(shown) > _LONGEST_LIST:
        shown = [*shown[: _LONGEST_LIST - 1], f"{len(words) - _LONGEST_LIST + 1} others"]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _by_probability(finding: Finding, labels: Iterable[str]) -> list[str]:
    return sorted(labels, key=lambda label: -finding.probabilities.get(label, 0.0))


def _shorten(sentence: str) -> str:
    """A reason as an aside: no capital letter, no full stop, not longer than a line."""
    text = " ".join(sentence.split()).rstrip(".")
    first = text.split(" ")[0]
    if first.istitle() and first.isalpha():  # "Ki-67", "H&E" and "DAB" stay as they are
        text = text[0].lower() + text[1:]
    if len(text) <= _LONGEST_REASON:
        return text
    return text[:_LONGEST_REASON].rsplit(" ", 1)[0].rstrip(",;:") + " …"
