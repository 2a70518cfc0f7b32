"""How a node proves who it is, without comparing clocks: a challenge to sign, then a token for an hour."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slideway.core.errors import LineRefusedError, NodeRevokedError, UnknownRecordError, UnknownTenantError
from slideway.store.database import Store
from slideway.store.nodes import Node, NodeState
from slideway.store.work import Work
from slideway.sync.identity import decode_key, has_answered

TOKEN_SECONDS = 3600
SESSION_SECONDS = 120


@dataclass(frozen=True)
class Sender:
    """Who sent a request.

    Attributes:
        tenant: Whose node it is.
        node: Id of the node.
        public_key: (base64) Its key, as the store had it when this request began; empty when it was not looked up.
        seen_ms: When it was last heard of, as the store had it then; None when never, or not looked up.
        transport: How what it sends came: `tus` over the line, `folder` on a stick.
    """

    tenant: str
    node: str
    public_key: str = field(default="", compare=False)
    seen_ms: int | None = field(default=None, compare=False)
    transport: str = field(default="tus", compare=False)


@dataclass(frozen=True)
class Claim:
    """What a valid token says; whether its node may still do anything, only the store says: `Sessions.admit`.

    Attributes:
        tenant: Whose node it is.
        node: Id of the node.
        key: Begin of its key's hash when the token was given.
    """

    tenant: str
    node: str
    key: str


@dataclass(frozen=True)
class Challenge:
    """What a node must sign: `session` names it, `challenge` is the text."""

    session: str
    challenge: str


@dataclass(frozen=True)
class Token:
    """What a node shows with every request, and for how long."""

    token: str
    seconds: int


class Sessions:
    """Sessions of nodes; nothing is kept, so every process that knows the secret accepts what another gave out.

    Only this side's own clock is read: when it jumps, tokens end early or late, and a node then proves itself again.
    """

    def __init__(
        self, store: Store, *, secret: bytes, clock: Callable[[], float] = time.time, token_seconds: int = TOKEN_SECONDS
    ) -> None:
        if len(secret) < 32:
            raise ValueError("a secret of at least 32 bytes")
        self._store, self._secret, self._clock, self._token_seconds = store, secret, clock, token_seconds

    def begin(self, tenant: str, node: str) -> Challenge:
        """Give a challenge; also to a node that does not exist, so that nobody learns which do."""
        challenge = secrets.token_urlsafe(24)
        until = self._clock() + SESSION_SECONDS
        content = {"what": "session", "tenant": tenant, "node": node, "challenge": challenge, "until": until}
        return Challenge(self._seal(content), challenge)

    def prove(self, session: str, signature: str) -> Token:
        """Turn a signed challenge into a token.

        Raises:
            LineRefusedError: The session is too old or none, or the signature is not this node's.
            NodeRevokedError: The node may do nothing any more.
        """
        content = self._open(session, "session")
        node = self._find_node(content["tenant"], content["node"])
        if node is None or node.state is NodeState.INVITED:
            raise _unproven()
        if not has_answered(decode_key(node.public_key), content["challenge"], signature):
            raise _unproven()
        _check_state(node)
        until = self._clock() + self._token_seconds
        key = hashlib.sha256(node.public_key.encode("utf-8")).hexdigest()[:16]
        token = {"what": "token", "tenant": node.tenant, "node": node.node, "key": key, "until": until}
        return Token(self._seal(token), self._token_seconds)

    def find_sender(self, authorization: str) -> Sender:
        """Who sends a request with this `Authorization` header; asks the store every time, so revoking works at once.

        Raises:
            LineRefusedError: No token, or one that is not valid (any more).
            NodeRevokedError: The node may do nothing any more.
        """
        claim = self.read_claim(authorization)
        try:
            with self._store.reading(claim.tenant) as work:
                return self.admit(work, claim)
        except UnknownTenantError as error:
            raise _unproven() from error

    def read_claim(self, authorization: str) -> Claim:
        """What an `Authorization` header claims, and was once proven; does not ask the store.

        Raises:
            LineRefusedError: No token, or one that is not valid (any more).
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise LineRefusedError("this needs a token: begin a session", status=401, refusal="token-missing")
        content = self._open(token.strip(), "token")
        return Claim(content["tenant"], content["node"], content["key"])

    def admit(self, work: Work, claim: Claim) -> Sender:
        """Who sends, as this transaction sees it: one that it needs anyway, so that revoking works at once.

        Raises:
            LineRefusedError: There is no such node, or it has another key by now.
            NodeRevokedError: The node may do nothing any more.
        """
        node = work.nodes.find(claim.node)
        if node is None:
            raise _unproven()
        _check_state(node)
        if claim.key != hashlib.sha256(node.public_key.encode("utf-8")).hexdigest()[:16]:
            raise _unproven()
        return Sender(node.tenant, node.node, node.public_key, node.seen_ms)

    def _find_node(self, tenant: str, node: str) -> Node | None:
        try:
            with self._store.reading(tenant) as work:
                return work.nodes.get(node)
        except (UnknownTenantError, UnknownRecordError):
            return None

    def _seal(self, content: dict[str, Any]) -> str:
        body = base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode("utf-8"))
        return f"{body.decode('ascii')}.{self._sign(body)}"

    def _open(self, sealed: str, what: str) -> dict[str, Any]:
        body, _, signature = sealed.partition(".")
        try:
            given, own = signature.encode("ascii"), self._sign(body.encode("ascii")).encode("ascii")
            if not hmac.compare_digest(given, own):
                raise _unproven()
            content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body))
        except (UnicodeEncodeError, binascii.Error, ValueError) as error:
            raise _unproven() from error
        # Another process's clock may be a little ahead of ours; but what one gave out that was years ahead is none.
        left, most = content["until"] - self._clock(), 2 * max(self._token_seconds, SESSION_SECONDS)
        if content["what"] != what or not 0 <= left <= most:
            raise _unproven()
        return content

    def _sign(self, body: bytes) -> str:
        return hmac.new(self._secret, body, hashlib.sha256).hexdigest()


def _check_state(node: Node) -> None:
    if node.state is NodeState.REVOKED:
        raise NodeRevokedError(f"node {node.node} was revoked; ask the operator for a new invitation")
    if node.state is not NodeState.ENROLLED:
        raise _unproven()


def _unproven() -> LineRefusedError:
    return LineRefusedError("not a valid session or token; begin a new session", status=401, refusal="token-invalid")
