"""The HTTP face of sync, for a web application to mount: sessions, uploads (tus) and messages, all under `/v1`.

Nothing here knows more than HTTP; what is decided, is decided in `tus`, `mailbox` and `sessions`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from slideway.core.errors import LineRefusedError, NodeRevokedError, SlidewayError, StoreError
from slideway.registry.keys import SigningKey
from slideway.store.database import Store
from slideway.store.work import Work
from slideway.sync.mailbox import Handler, accept_messages, acknowledge, next_messages, read_numbers
from slideway.sync.messages import MAX_BATCH_BYTES, pack_json, parse_messages, unpack_json
from slideway.sync.sessions import Sender, Sessions
from slideway.sync.tus import Answer, Reception, TusServer

MARK = {"Slideway": "1"}
"""On every answer: a portal or a proxy that answers in our place does not have it."""
MAX_WAIT_SECONDS = 55.0
_RING_SECONDS = 1.0
_HUSH_SECONDS = 5.0  # after a ring for nothing but what a node refused, which is there all the time
_NUMBERS_LENGTH = 8000
_HELD_BYTES = 2**18
_METHODS = ("OPTIONS", "POST", "HEAD", "PATCH", "DELETE")
_UPLOADS, _ONE_UPLOAD = SimpleNamespace(path="/uploads"), SimpleNamespace(path="/uploads/{upload_id}")  # as routes say
ZSTD_JSON = "application/vnd.slideway+zstd"


@dataclass(frozen=True)
class Face:
    """What the routes need.

    Attributes:
        store: The cloud's store.
        sessions: Knows who sends.
        tus: Takes uploads.
        handlers: What each kind of message does.
        signing: Signs receipts.
    """

    store: Store
    sessions: Sessions
    tus: TusServer
    handlers: Mapping[str, Handler]
    signing: SigningKey


def make_router(face: Face) -> APIRouter:
    """All routes of sync; mount with the prefix `/v1`."""
    router = APIRouter()
    _add_sessions(router, face)
    _add_uploads(router, face)
    _add_messages(router, face)
    return router


def answer_error(error: SlidewayError) -> Response:
    """An error as JSON, with the status that fits; for the cloud's other routes too."""
    headers: dict[str, str] = {}
    if isinstance(error, NodeRevokedError):
        status, code = 403, error.code
    elif isinstance(error, LineRefusedError):
        status, code = error.status, error.refusal
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    elif isinstance(error, StoreError):
        status, code, headers = 503, error.code, {"Retry-After": "30"}
    else:
        status, code = 422, error.code
    return _json(status, {"code": code, "message": str(error)}, headers)


async def find_sender(sessions: Sessions, request: Request) -> Sender:
    """Who sends a request; for the cloud's other routes of nodes too.

    Raises:
        LineRefusedError: No valid token.
        NodeRevokedError: The node may do nothing any more.
    """
    return await run_in_threadpool(sessions.find_sender, request.headers.get("authorization", ""))


def _add_sessions(router: APIRouter, face: Face) -> None:
    @router.post("/sessions", status_code=201, summary="Begin a session: a challenge to sign")
    async def begin_session(content: Annotated[dict[str, Any], Body()]) -> Response:
        tenant, node = content.get("tenant"), content.get("node")
        if not all(isinstance(name, str) and name.isascii() and name.isprintable() for name in (tenant, node)) or (
            len(f"{tenant}{node}") > 200
        ):
            return answer_error(LineRefusedError("tenant and node as texts", status=422, refusal="session-malformed"))
        challenge = face.sessions.begin(str(tenant), str(node))
        return _json(201, {"session": challenge.session, "challenge": challenge.challenge})

    @router.put("/sessions/{session}", summary="Prove who you are: the signed challenge for a token")
    async def prove_session(session: str, content: Annotated[dict[str, Any], Body()]) -> Response:
        try:
            token = await run_in_threadpool(face.sessions.prove, session, str(content.get("signature", "")))
        except SlidewayError as error:
            return answer_error(error)
        return _json(200, {"token": token.token, "seconds": token.seconds})


def _add_uploads(router: APIRouter, face: Face) -> None:
    @router.api_route("/uploads", methods=["OPTIONS", "POST"], summary="tus 1.0.0: begin an upload", status_code=201)
    async def uploads(request: Request) -> Response:
        return await _answer_upload(face, request, None)

    @router.api_route(
        "/uploads/{upload_id}",
        methods=["OPTIONS", "HEAD", "PATCH", "DELETE", "POST"],
        summary="tus 1.0.0: where an upload is, its next bytes, its end",
        status_code=204,
    )
    async def upload(request: Request, upload_id: str) -> Response:
        return await _answer_upload(face, request, upload_id)


class UploadsFirst:
    """Answers uploads itself and leaves all else to the application that describes them too.

    Uploads are most of what a cloud is asked for, and need nothing of a web framework: the way through it costs as much
    as all else that the event loop does for one (measured by bench/cloud/load.py).
    """

    def __init__(self, app: ASGIApp, face: Face, *, root: str = "/v1/uploads") -> None:
        self._app, self._face, self._root = app, face, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method, path = scope.get("method", ""), scope.get("path", "")
        found = self._root == path or (
            path.startswith(f"{self._root}/") and path.count("/") == self._root.count("/") + 1
        )
        upload_id = path[len(self._root) + 1 :]
        if scope["type"] != "http" or not found or method not in _METHODS or (path != self._root and not upload_id):
            await self._app(scope, receive, send)
            return
        scope["route"] = _ONE_UPLOAD if upload_id else _UPLOADS
        response = await _answer_upload(self._face, Request(scope, receive), upload_id or None)
        await response(scope, receive, send)


async def _answer_upload(face: Face, request: Request, upload_id: str | None) -> Response:
    method = request.headers.get("x-http-method-override", request.method).upper()
    if method == "OPTIONS":
        return _as_response(face.tus.options())
    return await _answer_tus(face, method, upload_id, request)


async def _answer_tus(face: Face, method: str, upload_id: str | None, request: Request) -> Response:
    """One tus request; the disk and the store are waited for in threads, the client's bytes are not."""
    headers = dict(request.headers)
    try:
        if _comes_at_once(method, upload_id, headers):
            return await _answer_at_once(face, method, upload_id, request, headers)
        begun = await run_in_threadpool(_begin, face, method, upload_id, headers)
    except SlidewayError as error:
        return answer_error(error)
    if isinstance(begun, Answer):
        return _as_response(begun)
    held = bytearray()  # each way into a thread costs more than what a few kilobytes have to do there
    try:
        async for chunk in request.stream():
            held += chunk
            if len(held) >= _HELD_BYTES:
                content, held = bytes(held), bytearray()
                await run_in_threadpool(begun.write, content)
    except ClientDisconnect:
        await run_in_threadpool(_cut, begun, bytes(held))
        return _as_response(Answer(400))  # nobody hears it
    return _as_response(await run_in_threadpool(_finish, begun, bytes(held)))


def _comes_at_once(method: str, upload_id: str | None, headers: Mapping[str, str]) -> bool:
    """Whether the body is so short that it is waited for before the store is asked: one way into a thread, not two."""
    if method == "HEAD" and upload_id is not None:
        return True
    said = headers.get("content-length", "")
    is_short = said.isascii() and said.isdigit() and len(said) < 16 and int(said) <= _HELD_BYTES
    return is_short and "transfer-encoding" not in headers and method == ("POST" if upload_id is None else "PATCH")


async def _answer_at_once(
    face: Face, method: str, upload_id: str | None, request: Request, headers: dict[str, str]
) -> Response:
    claim, held = face.sessions.read_claim(headers.get("authorization", "")), bytearray()

    def admit(work: Work) -> Sender:
        return face.sessions.admit(work, claim)

    if method == "HEAD" and upload_id is not None:
        return _as_response(await run_in_threadpool(face.tus.head_whole, claim.tenant, admit, upload_id, headers))
    is_cut = False
    try:
        async for chunk in request.stream():
            held += chunk
    except ClientDisconnect:
        is_cut = True
        if not held or "upload-checksum" in headers:
            return _as_response(Answer(400))  # nobody hears it
    answer = await run_in_threadpool(face.tus.take_whole, claim.tenant, admit, upload_id, headers, bytes(held))
    return _as_response(Answer(400) if is_cut else answer)


def _cut(reception: Reception, content: bytes) -> None:
    if content:
        reception.write(content)
    reception.cut()


def _finish(reception: Reception, content: bytes) -> Answer:
    if content:
        reception.write(content)
    return reception.finish()


def _begin(face: Face, method: str, upload_id: str | None, headers: dict[str, str]) -> Reception | Answer:
    sender = face.sessions.find_sender(headers.get("authorization", ""))
    return _begin_tus(face.tus, method, sender, upload_id, headers)


def _begin_tus(
    tus: TusServer, method: str, sender: Sender, upload_id: str | None, headers: dict[str, str]
) -> Reception | Answer:
    if upload_id is None:
        return tus.begin_create(sender, headers) if method == "POST" else Answer(405, {"Allow": "POST, OPTIONS"})
    if method == "PATCH":
        return tus.begin_patch(sender, upload_id, headers)
    if method == "DELETE":
        return tus.terminate(sender, upload_id, headers)
    return Answer(405, {"Allow": "HEAD, PATCH, DELETE, OPTIONS"})


def _add_messages(router: APIRouter, face: Face) -> None:
    doorbell = Doorbell(face.store)

    @router.post("/messages", summary="Messages of a node, as one zstd frame of JSON; receipts come back")
    async def take(request: Request) -> Response:
        try:
            sender = await find_sender(face.sessions, request)
            packed = await _read_body(request)
            content = await run_in_threadpool(_accept, face, sender, packed)
        except SlidewayError as error:
            return answer_error(error)
        except ClientDisconnect:  # the line broke in the middle of the batch: it comes again, whole
            return _as_response(Answer(400))  # nobody hears it
        return _packed(content)

    @router.get("/messages", summary="Messages for a node; waits until there is one")
    async def give(
        request: Request,
        taken: Annotated[str, Query(max_length=4000, description="Numbers that are durably taken, as in 4-6,9")] = "",
        without: Annotated[
            str, Query(alias="not", max_length=_NUMBERS_LENGTH, description="Numbers that this node refused")
        ] = "",
        wait: Annotated[float, Query(ge=0, le=3600, description="Seconds to wait for a message")] = 0,
    ) -> Response:
        try:
            sender = await find_sender(face.sessions, request)
            refused = frozenset(read_numbers(without, name="not"))
            content = await run_in_threadpool(_give, face.store, sender, read_numbers(taken), refused)
            ends = time.monotonic() + min(wait, MAX_WAIT_SECONDS)
            while not content["messages"] and (left := ends - time.monotonic()) > 0:
                if not await doorbell.wait(sender, left):
                    break
                content = await run_in_threadpool(_give, face.store, sender, [], refused)
                if not content["messages"]:
                    await asyncio.sleep(min(_HUSH_SECONDS, max(0.0, ends - time.monotonic())))
        except SlidewayError as error:
            return answer_error(error)
        return _packed(content)


class Doorbell:
    """Wakes whoever waits for messages: one look into the store each second, however many wait."""

    def __init__(self, store: Store, *, ring_seconds: float = _RING_SECONDS) -> None:
        self._store, self._ring_seconds = store, ring_seconds
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        self._look: asyncio.Task[None] | None = None

    async def wait(self, sender: Sender, seconds: float) -> bool:
        """Wait until something is there for a node; False when the time is over."""
        bell, key = asyncio.Event(), (sender.tenant, sender.node)
        self._waiting.setdefault(key, set()).add(bell)
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_now_and_then())
        try:
            await asyncio.wait_for(bell.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._waiting[key].discard(bell)
            if not self._waiting[key]:
                del self._waiting[key]
        return True

    async def _look_now_and_then(self) -> None:
        while self._waiting:
            try:
                found = await run_in_threadpool(self._find)
            except StoreError:  # away for a moment: those who wait go on waiting
                found = set()
            for key in found & self._waiting.keys():
                for bell in self._waiting[key]:
                    bell.set()
            await asyncio.sleep(self._ring_seconds)

    def _find(self) -> set[tuple[str, str]]:
        with self._store.reading_of_all() as work:
            return work.outbox.peers_with_open()


def _accept(face: Face, sender: Sender, packed: bytes) -> dict[str, Any]:
    content = unpack_json(packed)
    messages = parse_messages(content.get("messages") if isinstance(content, dict) else None)
    receipts, refused = accept_messages(face.store, sender.tenant, sender.node, messages, face.handlers, face.signing)
    return {"receipts": receipts, "refused": {key: vars(refusal) for key, refusal in refused.items()}}


def _give(store: Store, sender: Sender, taken: list[int], without: Collection[int] = ()) -> dict[str, Any]:
    if taken:
        store.retrying(sender.tenant, lambda work: acknowledge(work, sender.node, taken))
    with store.reading(sender.tenant) as work:
        deliveries = next_messages(work, sender.node, without=without)
    return {"messages": [{"number": item.number, **item.message.content} for item in deliveries]}


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BATCH_BYTES:
            raise LineRefusedError("messages: too many at once", status=413, refusal="message-malformed")
    return bytes(body)


def _packed(content: dict[str, Any]) -> Response:
    return Response(pack_json(content), 200, {"Cache-Control": "no-store", **MARK}, ZSTD_JSON)


def _json(status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(content).encode("utf-8")
    return Response(body, status, {"Cache-Control": "no-store", **MARK, **(headers or {})}, "application/json")


def _as_response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, {"Tus-Resumable": "1.0.0", **MARK, **answer.headers})
