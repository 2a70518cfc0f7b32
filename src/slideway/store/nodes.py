"""Tenants and their nodes: invited by a code that works once, enrolled with a key, revoked when need be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from slideway.core.errors import ConflictError, TransitionError, UnknownRecordError
from slideway.store.facet import Facet
from slideway.store.schema import NODES, TENANTS

TENANT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Tenant:
    """A hospital, or whoever else owns cases."""

    tenant: str
    name: str
    created_ms: int


class NodeState(StrEnum):
    """What a node may do."""

    INVITED = "invited"
    ENROLLED = "enrolled"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Node:
    """One edge installation.

    Attributes:
        tenant: Whose it is.
        node: Its id.
        name: Its name for people.
        state: What it may do.
        public_key: Key that it signs with; empty until it is enrolled.
        version: Version that it said it runs; empty when never seen.
        status: What it last said of itself; no patient data.
        enrolled_ms: When it was enrolled; None until then.
        seen_ms: When it was last heard of, by our clock; None when never.
        reason: Why it was revoked.
    """

    tenant: str
    node: str
    name: str
    state: NodeState
    public_key: str
    version: str
    status: Mapping[str, Any]
    enrolled_ms: int | None
    seen_ms: int | None
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", NodeState(self.state))


class Tenants(Facet):
    """All tenants; only in the transaction of all."""

    def find_all(self) -> list[Tenant]:
        """Tenants by their ids."""
        return self._list(Tenant, TENANTS, order=[TENANTS.c.tenant.asc()])


class Nodes(Facet):
    """Nodes of a tenant; in the transaction of all, the fleet."""

    def invite(self, node: str, *, code_sha256: str, within_seconds: float, name: str = "") -> Node:
        """Let a node enrol once, with a code whose hash this is.

        A revoked node, or one that lost its key, is invited again under its old id; its old key ends with that.
        """
        now = self._clock()
        values = {
            "state": NodeState.INVITED.value,
            "code_sha256": code_sha256,
            "code_expires_ms": now + round(within_seconds * 1000),
            "public_key": "",
            "reason": "",
        }
        if not self._insert(NODES, node=node, name=name, created_ms=now, **values):
            if self._find(Node, NODES, self._key(NODES, node=node)) is None:
                raise ConflictError(f"node {node}: the code was given out before; make a new one")
            self._change(NODES, self._key(NODES, node=node), **values)
        return self.get(node)

    def enrol(self, code_sha256: str, *, public_key: str) -> Node:
        """Turn a code into a node with a key; in the transaction of all, whichever tenant's code it is.

        Raises:
            UnknownRecordError: No such code, it was used, or it is too old: the caller cannot tell which.
        """
        is_valid = NODES.c.code_expires_ms > self._clock()
        node = self._find(Node, NODES, NODES.c.code_sha256 == code_sha256, is_valid, lock=True)
        if node is None:
            raise UnknownRecordError("this code does not enrol a node (any more): ask for a new one")
        here = (NODES.c.tenant == node.tenant) & (NODES.c.node == node.node)
        self._change(
            NODES,
            here,
            state=NodeState.ENROLLED.value,
            code_sha256=None,
            code_expires_ms=None,
            public_key=public_key,
            enrolled_ms=self._clock(),
        )
        enrolled = self._find(Node, NODES, here)
        assert enrolled is not None  # locked above
        return enrolled

    def revoke(self, node: str, *, reason: str) -> Node:
        """Let a node do nothing any more."""
        self.get(node)
        here = self._key(NODES, node=node)
        self._change(NODES, here, state=NodeState.REVOKED.value, code_sha256=None, code_expires_ms=None, reason=reason)
        return self.get(node)

    def note_seen(self, node: str, *, version: str, status: Mapping[str, Any]) -> Node:
        """Keep what a node says of itself.

        Raises:
            TransitionError: It is not enrolled.
        """
        if self.get(node).state is not NodeState.ENROLLED:
            raise TransitionError(f"node {node} is not enrolled")
        here = self._key(NODES, node=node)
        self._change(NODES, here, version=version, status=dict(status), seen_ms=self._clock())
        return self.get(node)

    def get(self, node: str) -> Node:
        """The node of an id."""
        return self._get(Node, NODES, node=node)

    def find(self, node: str) -> Node | None:
        """The node of an id, or None; never held, so that requests of one node do not wait for each other."""
        return self._find_key(Node, NODES, node=node)

    def find_by_key(self, public_key: str) -> list[Node]:
        """The enrolled nodes of a key, by tenant and id; in the transaction of all, whichever tenant's they are."""
        is_enrolled = NODES.c.state == NodeState.ENROLLED.value
        order = [NODES.c.tenant.asc(), NODES.c.node.asc()]
        return self._list(Node, NODES, NODES.c.public_key == public_key, is_enrolled, order=order)

    def find_all(self) -> list[Node]:
        """Nodes by tenant and id."""
        return self._list(Node, NODES, order=[NODES.c.tenant.asc(), NODES.c.node.asc()])
