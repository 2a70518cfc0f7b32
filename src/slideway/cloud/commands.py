"""What an operator may tell a node to do: pause, resume, or take one slide before others; it knows nothing else."""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

from slideway.cloud.opinions import put_command
from slideway.core.errors import TransitionError, UnknownRecordError, WrongUseError
from slideway.store.database import Store
from slideway.store.nodes import Node, NodeState
from slideway.store.work import Work

_SHA256 = re.compile(r"[0-9a-f]{64}")
ORDERS = ("pause", "resume", "priority")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        id: Given twice under one id, it is one command.
        do: One of `ORDERS`.
        slide: For `priority`: hash of the slide; empty otherwise.
        is_urgent: For `priority`: urgent, or no longer.
    """

    id: str
    do: str
    slide: str = ""
    is_urgent: bool = True

    def __post_init__(self) -> None:
        fits = _SHA256.fullmatch(self.slide) if self.do == "priority" else not self.slide
        if self.do not in ORDERS or not fits:
            raise WrongUseError("a command is pause, resume, or priority with the hash of its slide")

    @property
    def body(self) -> dict[str, Any]:
        """As the node gets it."""
        return {"do": self.do} | ({"slide": self.slide, "urgent": self.is_urgent} if self.slide else {})


def make_id() -> str:
    """An id that no other command has."""
    return secrets.token_hex(8)


def command_node(store: Store, tenant: str, node: str, command: Command, *, actor: str) -> Node:
    """Let a command go to a node; a slide that gets priority also gets it here, where it is known already.

    Raises:
        UnknownRecordError: There is no such node.
        TransitionError: It is not enrolled: nobody would take the command.
        ConflictError: The id was given to another command.
    """

    def give(work: Work) -> Node:
        known = work.nodes.get(node)
        if known.state is not NodeState.ENROLLED:
            raise TransitionError(f"node {node} is {known.state}; only an enrolled node takes commands")
        put_command(work, node, f"command:{node}:{command.id}", command.body)
        if command.slide:
            with contextlib.suppress(UnknownRecordError):  # the node may know it before the cloud does
                work.slides.make_urgent(command.slide, is_urgent=command.is_urgent)
                work.jobs.make_urgent(command.slide, is_urgent=command.is_urgent)
        work.audit.append(
            "command-given", actor=actor, subject=node, details={"do": command.do, "slide": command.slide}
        )
        return known

    return store.retrying(tenant, give)
