"""Let nodes in and out: an invitation is a code that works once; revoking works at once, on every request."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from slideway.cloud.pki import pin_of
from slideway.core.errors import UnknownRecordError, WrongUseError
from slideway.store.audit import Detail
from slideway.store.database import Store
from slideway.store.nodes import TENANT_NAME, Node
from slideway.store.work import Work
from slideway.sync.identity import decode_key
from slideway.sync.invitation import ENROL_AS

INVITED_HOURS = 72.0
MOVED = "enrolled-elsewhere"
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,120}")
_REASON = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Newcomer:
    """What a node says of itself when it enrols.

    Attributes:
        code: One-time code.
        public_key: (base64) Ed25519 key that it signs with.
        version: That it runs.
        signature: (base64) Of the key over `slideway-enrol/1`, a line feed and the code; empty from older nodes.
    """

    code: str
    public_key: str
    version: str
    signature: str = ""


def invite_node(
    store: Store, tenant: str, node: str, *, ca_pem: bytes, name: str = "", hours: float = INVITED_HOURS
) -> str:
    """Invite a node; returns the one line that its operator types, `CODE.PIN`. The code itself is not kept.

    Raises:
        WrongUseError: The id or the name is not of its form.
        UnknownTenantError: There is no such tenant.
    """
    require_node_id(node)
    if not _TEXT.fullmatch(name):
        raise WrongUseError("the name of a node is one line of at most 120 letters")
    code = secrets.token_urlsafe(18)
    while not code[0].isalnum():  # a command line would take it for an option
        code = secrets.token_urlsafe(18)
    with store.transaction(tenant) as work:
        work.nodes.invite(node, code_sha256=_hash(code), within_seconds=hours * 3600, name=name)
        work.audit.append("node-invited", actor="operator", subject=node)
    return f"{code}.{pin_of(ca_pem)}"


def enrol_node(store: Store, newcomer: Newcomer) -> Node:
    """Turn an invitation into a node with a key.

    A node that proves its key and is enrolled under another tenant or id as well has moved: it ends there. Without the
    proof nothing of another tenant is touched, for anybody could name a foreign key.

    Raises:
        UnknownRecordError: The code is not one, or not any more.
        WrongUseError: The key is none, or the signature is not the key's.
    """
    key, code = decode_key(newcomer.public_key), newcomer.code.partition(".")[0]
    if newcomer.signature and not _has_proven(key, code, newcomer.signature):
        raise WrongUseError("the signature over the code is not the key's; run `slideway edge enrol` again")
    with store.transaction_of_all() as work:
        before = work.nodes.find_by_key(newcomer.public_key) if newcomer.signature else []
        node = work.nodes.enrol(_hash(code), public_key=newcomer.public_key)
        own = work.of(node.tenant)
        version = newcomer.version if _REASON.fullmatch(newcomer.version) else ""
        own.nodes.note_seen(node.node, version=version, status={})
        own.audit.append("node-enrolled", actor=node.node, subject=node.node, details={"key": newcomer.public_key})
        for old in before:
            if (old.tenant, old.node) != (node.tenant, node.node):
                _end_moved(work.of(old.tenant), old)
    return node


def _end_moved(work: Work, node: Node) -> None:
    """A node has moved to another tenant or id: what waited for it here is not for it any more.

    Its slides, opinions and questions stay where they are: they are this tenant's, not the node's.
    """
    work.nodes.revoke(node.node, reason=MOVED)
    count = work.outbox.withdraw_all(peer=node.node, reason=MOVED)
    details: dict[str, Detail] = {"reason": MOVED, "messages": count}
    work.audit.append("node-revoked", actor=node.node, subject=node.node, details=details)


def _has_proven(key: bytes, code: str, signature: str) -> bool:
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(key).verify(raw, ENROL_AS + code.encode("utf-8", "replace"))
    except (InvalidSignature, ValueError):
        return False
    return True


def revoke_node(store: Store, tenant: str, node: str, *, reason: str) -> Node:
    """Let a node do nothing any more, from its next request on.

    Raises:
        UnknownRecordError: There is no such node.
    """
    if not reason.strip() or not _TEXT.fullmatch(reason):
        raise WrongUseError("say why, in one line of at most 120 letters: --reason stolen")
    with store.transaction(tenant) as work:
        try:
            revoked = work.nodes.revoke(node, reason=reason.strip())
        except UnknownRecordError as error:
            told = f"tenant {tenant} has no node {node!r}; `slideway cloud fleet` lists them"
            raise UnknownRecordError(told) from error
        code = reason.strip() if _REASON.fullmatch(reason.strip()) else "see-node"
        work.audit.append("node-revoked", actor="operator", subject=node, details={"reason": code})
    return revoked


def require_node_id(node: str) -> None:
    """Refuse what cannot be a node's id.

    Raises:
        WrongUseError: It is not.
    """
    if not TENANT_NAME.fullmatch(node):
        raise WrongUseError(f"node {node!r}: 1 to 63 lower-case letters, digits and hyphens")


def _hash(code: str) -> str:
    return hashlib.sha256(code.strip().encode("utf-8", "replace")).hexdigest()
