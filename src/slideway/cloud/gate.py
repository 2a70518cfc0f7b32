"""What every request passes: an id, limits on its body and on standing still, a line in the log, the drain."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slideway.cloud.logs import log, request_id
from slideway.cloud.metrics import Metrics
from slideway.sync.face import MARK

_UPLOADS = "/v1/uploads"
_LONG_POLL = "/v1/messages"
_REMEMBERED = 10_000  # addresses


class Drain:
    """Says that this process takes nothing new any more."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether it has."""
        return self._begun.is_set()

    def begin(self) -> None:
        """From now on; twice is once. Called in the event loop."""
        self._begun.set()

    async def wait(self) -> None:
        """Until it begins."""
        await self._begun.wait()


class Bucket:
    """So many in a minute for each address; who waits gets on."""

    def __init__(self, per_minute: int) -> None:
        self._most, self._per_second = float(per_minute), per_minute / 60
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, now: float) -> float:
        """Take one; 0 when there was one, else seconds until there is."""
        left, at = self._left.pop(who, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._left[who] = (left if wait else left - 1, now)
        while len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        return wait


@dataclass
class _Passage:
    """One request on its way."""

    id: str
    started: float
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    code: str = ""


class Gate:
    """ASGI middleware around everything."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        drain: Drain,
        max_body_bytes: int,
        idle_seconds: float,
        limits: dict[tuple[str, str], Bucket],
    ) -> None:
        """Guard an application.

        Args:
            app: The application.
            metrics: Counts.
            drain: Ends long polls and refuses what is new.
            max_body_bytes: Of requests that are no upload.
            idle_seconds: A body that stands still for so long is given up.
            limits: By method and first part of the path.
        """
        self._app, self._metrics, self._drain = app, metrics, drain
        self._max_body_bytes, self._idle_seconds, self._limits = max_body_bytes, idle_seconds, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(secrets.token_hex(8), time.monotonic())
        mark = request_id.set(passage.id)
        sender = self._sender(passage, send)
        try:
            await self._answer(scope, self._receiver(scope, passage, receive), sender, passage)
        except Exception as error:  # noqa: BLE001  # the request's outermost place: a bug is logged, and told as 500
            log("bug", level=logging.ERROR, error=error)
            await self._refuse(
                sender, passage, 500, "internal", "a bug in Slideway; the log has it under this request's id"
            )
        finally:
            self._note(scope, passage)
            request_id.reset(mark)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, passage: _Passage) -> None:
        path, method = scope["path"], scope["method"]
        if self._drain.has_begun and not path.startswith(("/health", "/metrics")):
            await self._refuse(send, passage, 503, "draining", "this process is going down; come again", retry=1)
            return
        for (own_method, own_path), bucket in self._limits.items():
            if method == own_method and path.rstrip("/") == own_path:
                who = scope["client"][0] if scope.get("client") else ""
                if wait := bucket.take(who, passage.started):
                    text = "too many from this address; wait"
                    await self._refuse(send, passage, 429, "too-many-requests", text, retry=int(wait) + 1)
                    return
        if not path.startswith(_UPLOADS) and _read_length(scope) > self._max_body_bytes:
            await self._refuse(send, passage, 413, "body-too-long", f"at most {self._max_body_bytes} bytes here")
            return
        if method == "GET" and path == _LONG_POLL:
            await self._answer_poll(scope, receive, send, passage)
            return
        await self._app(scope, receive, send)

    async def _answer_poll(self, scope: Scope, receive: Receive, send: Send, passage: _Passage) -> None:
        """A request that waits for messages ends when the process does."""
        answer = asyncio.ensure_future(self._app(scope, receive, send))
        ending = asyncio.ensure_future(self._drain.wait())
        try:
            await asyncio.wait({answer, ending}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() or passage.status:
                await answer
                return
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            await self._refuse(send, passage, 503, "draining", "this process is going down; come again", retry=1)
        finally:
            ending.cancel()
            answer.cancel()

    def _receiver(self, scope: Scope, passage: _Passage, receive: Receive) -> Receive:
        is_limited = not scope["path"].startswith(_UPLOADS)
        is_over = False

        async def take() -> Message:
            nonlocal is_over
            if is_over:  # the body is here: what comes now is only the end of the line
                return await receive()
            try:
                async with asyncio.timeout(self._idle_seconds):
                    message = await receive()
            except TimeoutError:
                is_over = True
                passage.code = "idle"
                return {"type": "http.disconnect"}
            passage.bytes_in += len(message.get("body", b""))
            is_over = not message.get("more_body", False)
            if is_limited and passage.bytes_in > self._max_body_bytes:
                raise HTTPException(413, f"at most {self._max_body_bytes} bytes here")
            return message

        return take

    def _sender(self, passage: _Passage, send: Send) -> Send:
        async def give(message: Message) -> None:
            if message["type"] == "http.response.start":
                passage.status = message["status"]
                headers = message.setdefault("headers", [])
                present = {name.lower() for name, _ in headers}
                headers += [(name, value) for name, value in _ALWAYS if name not in present]
                headers.append((b"slideway-request", passage.id.encode()))
            passage.bytes_out += len(message.get("body", b""))
            await send(message)

        return give

    async def _refuse(
        self, send: Send, passage: _Passage, status: int, code: str, text: str, *, retry: int | None = None
    ) -> None:
        if passage.status:
            return  # an answer has begun: nothing can be said any more
        passage.code = code
        body = json.dumps({"code": code, "message": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(b"connection", b"close")] if status in (413, 503) else []
        headers += [] if retry is None else [(b"retry-after", str(retry).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _note(self, scope: MutableMapping[str, Any], passage: _Passage) -> None:
        route, seconds = name_route(scope), time.monotonic() - passage.started
        method = scope["method"] if scope["method"] in _METHODS else "other"
        code = passage.code or scope.get("slideway.code", "")
        self._metrics.requests.labels(route, method, str(passage.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        self._metrics.bytes.labels("in").inc(passage.bytes_in)
        self._metrics.bytes.labels("out").inc(passage.bytes_out)
        if code:
            self._metrics.refusals.labels(code).inc()
        quiet = route in ("/health/live", "/health/ready", "/metrics")
        log(
            "request",
            level=logging.DEBUG if quiet else logging.INFO,
            method=method,
            route=route,
            status=passage.status,
            ms=round(seconds * 1000, 1),
            bytes_in=passage.bytes_in,
            bytes_out=passage.bytes_out,
            code=code,
        )


_ALWAYS = (
    *((name.lower().encode(), value.encode()) for name, value in MARK.items()),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every answer, beside its request's id."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def name_route(scope: MutableMapping[str, Any]) -> str:
    """The template of the route that answered; `other` when none did: a path may hold anything."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return "other"
    # A route knows its path below the router that it was included with.
    return f"/v1{path}" if scope["path"].startswith("/v1/") and not path.startswith("/v1") else str(path)


def _read_length(scope: Scope) -> int:
    """What the head says of the body's length; 0 when nothing."""
    said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(said) if said.isdigit() else 0
