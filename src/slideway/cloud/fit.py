"""Make an opinion fit into a message: answers and probabilities always travel, explanations as far as there is room."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from slideway.store.schema import canonical_json
from slideway.sync.messages import MAX_MESSAGE_BYTES, Message

# What explains a finding and is no part of its answer: the first class goes before anything of the second.
_EVIDENCE = ("for", "against", "nearest_cases", "change")
_WORDS = ("cautions", "reasons")
_LEFT_OUT = "Explanations were left out, because the opinion was too long for one message: {}."


@dataclass(frozen=True)
class _Part:
    """A part of a finding that may be left out.

    Attributes:
        owner: The object that holds it.
        name: Its key there.
        task: Of the finding.
        is_last: Goes only when all evidence is gone.
    """

    owner: dict[str, Any]
    name: str
    task: str
    is_last: bool

    @property
    def size_bytes(self) -> int:
        """What leaving it out saves, nearly."""
        return len(canonical_json(self.owner[self.name]).encode("utf-8"))

    def leave_out(self) -> None:
        """Put an empty value of the same kind in its place."""
        self.owner[self.name] = type(self.owner[self.name])()


def fit_opinion(message: Message, *, most_bytes: int = MAX_MESSAGE_BYTES) -> Message:
    """The message, without as many explanations as keep it from fitting, the longest first; `silent` names their tasks.

    One that does not fit without any is given as it is then: who puts it is told so.

    Args:
        message: An opinion.
        most_bytes: So large it may be.
    """
    if message.size_bytes <= most_bytes:
        return message
    body = copy.deepcopy(dict(message.body))
    silent, tasks = list(body.get("silent", [])), dict[str, None]()
    fitting = message
    for part in sorted(_list_parts(body), key=lambda part: (part.is_last, -part.size_bytes)):
        part.leave_out()
        tasks[part.task] = None
        body["silent"] = [*silent, _LEFT_OUT.format(", ".join(tasks))]
        fitting = replace(message, body=body)
        if fitting.size_bytes <= most_bytes:
            break
    return fitting


def _list_parts(body: dict[str, Any]) -> Iterator[_Part]:
    """What may be left out and is there."""
    for finding in body.get("findings", []):
        evidence, task = finding.get("evidence") or {}, str(finding["task"])
        yield from (_Part(evidence, name, task, is_last=False) for name in _EVIDENCE if evidence.get(name))
        head = finding.get("head") or {}
        yield from (_Part(head, name, task, is_last=True) for name in ("evidence",) if head.get(name))
        yield from (_Part(finding, name, task, is_last=True) for name in _WORDS if finding.get(name))
