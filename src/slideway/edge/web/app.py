"""Routes of the pages, and what every request passes: the name it asks for, and headers that let nothing else load."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slideway.core.errors import PolicyError, SlidewayError, UnknownRecordError, WrongUseError
from slideway.edge.child import THUMBNAIL
from slideway.edge.consult import MAX_QUESTION_LETTERS, ask_specialist
from slideway.edge.logs import log
from slideway.edge.node import set_urgent
from slideway.edge.status import describe
from slideway.edge.web.views import (
    count_pages,
    first_list,
    view_form,
    view_recent,
    view_slide,
    view_worklist,
)
from slideway.edge.words import LEVELS, LINES, QUESTIONS, say_bytes, say_since
from slideway.store.consultations import Consultation
from slideway.store.work import Work

if TYPE_CHECKING:
    from slideway.edge.app import Edge

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PAGE_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# The report brings its own, stricter policy; this one holds where somebody changed the file.
_REPORT_CSP = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_ACTION = re.compile(r"/slides/[0-9a-f]{64}/(ask|urgent)")
_MOST_FORM_BYTES = 65_536
_PAGE_DIGITS = 7
_MOST = MAX_QUESTION_LETTERS
_STALE = "this page is of an earlier start of the node: go back, load it again, and send it once more"
LISTS = ("open", "refer", "reported", "rejected")


def create_pages(edge: Edge) -> ASGIApp:
    """The web application of a node."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = _Pages(edge)
    app.add_api_route("/", pages.worklist, response_class=HTMLResponse)
    app.add_api_route("/status", pages.status, response_class=HTMLResponse)
    app.add_api_route("/slides/{sha256}", pages.slide, response_class=HTMLResponse)
    app.add_api_route("/slides/{sha256}/ask", pages.ask, methods=["POST"])
    app.add_api_route("/slides/{sha256}/urgent", pages.urgent, methods=["POST"])
    app.add_api_route("/slides/{sha256}/report", pages.report, response_class=HTMLResponse)
    app.add_api_route("/slides/{sha256}/thumbnail", pages.thumbnail)
    app.add_api_route("/api/status", pages.status_json)
    app.add_api_route("/style.css", pages.style)
    app.add_exception_handler(SlidewayError, _say_not_now)
    app.add_exception_handler(404, pages.missing)
    own = edge.node.settings.web
    return _Door(app, names=(*_LOOPBACK, own.host, *own.names))


class _Pages:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        environment = Environment(
            loader=PackageLoader("slideway.edge.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        environment.filters["since"] = say_since
        environment.filters["size"] = say_bytes
        environment.globals["lines"] = LINES
        environment.globals["levels"] = LEVELS
        self._environment = environment
        self._style = resources.files("slideway.edge.web").joinpath("style.css").read_text(encoding="utf-8")

    def worklist(self, show: str = "", page: str = "1") -> Response:
        status = self._edge.status()
        shown = show if show in LISTS else first_list(status.slides)
        pages = count_pages(status.slides, shown)
        number = min(pages, max(1, int(page))) if page.isascii() and page.isdigit() and len(page) < _PAGE_DIGITS else 1
        node = self._edge.node
        with node.store.reading(node.tenant) as work:
            rows = view_worklist(work, node, status, shown, page=number)
        return self._render(
            "worklist.html", title="Worklist", rows=rows, status=status, shown=shown, lists=LISTS, page=number,
            pages=pages, token=self._edge.token,
        )  # fmt: skip

    def status(self) -> Response:
        status, node = self._edge.status(), self._edge.node
        with node.store.reading(node.tenant) as work:
            asked = view_recent(work)
        return self._render("status.html", title="Status", status=status, sentences=describe(status), asked=asked)

    def slide(self, sha256: str) -> Response:
        return self._show_slide(sha256)

    async def ask(self, sha256: str, request: Request) -> Response:
        return await run_in_threadpool(self._ask, sha256, await read_form(request), _wants_text(request))

    async def urgent(self, sha256: str, request: Request) -> Response:
        return await run_in_threadpool(self._make_urgent, sha256, await read_form(request), _wants_text(request))

    def _ask(self, sha256: str, form: Mapping[str, str], wants_text: bool) -> Response:
        if not self._is_ours(form):
            return PlainTextResponse(_STALE, 403)
        node, is_urgent = self._edge.node, form.get("urgent") == "yes"
        organ, question = form.get("organ", ""), form.get("question", "")

        def ask(work: Work) -> tuple[Consultation, bool]:
            return ask_specialist(work, node, sha256, organ=organ, question=question, is_urgent=is_urgent)

        try:
            asked, is_new = node.store.retrying(node.tenant, ask)
        except (PolicyError, WrongUseError, UnknownRecordError) as error:
            if wants_text:
                return PlainTextResponse(str(error), 422, headers={"Slideway-Error": error.code})
            typed = {"organ": organ, "question": question, "is_urgent": is_urgent, "error": str(error)}
            return self._show_slide(sha256, typed=typed)
        node.wake_pump()
        log("consultation-asked", slide=sha256[:12], new=is_new)
        if wants_text:
            return PlainTextResponse("asked" if is_new else f"asked before; it is {QUESTIONS[asked.state.value]}")
        return _go_to(f"/slides/{sha256}#asked")

    def _make_urgent(self, sha256: str, form: Mapping[str, str], wants_text: bool) -> Response:
        if not self._is_ours(form):
            return PlainTextResponse(_STALE, 403)
        node = self._edge.node
        try:
            is_new = node.store.retrying(node.tenant, lambda work: set_urgent(work, node, sha256))
        except UnknownRecordError as error:
            return PlainTextResponse(str(error), 422) if wants_text else self._show_slide(sha256)
        node.has_work.set()  # after the commit: whoever looked before it saw the old order
        node.wake_pump()
        if wants_text:
            return PlainTextResponse("urgent now" if is_new else "urgent already")
        return _go_to("/" if form.get("back") == "list" else f"/slides/{sha256}")

    def _is_ours(self, form: Mapping[str, str]) -> bool:
        """The form came from a page of this start: no other page can read what it must carry."""
        return hmac.compare_digest(form.get("token", "").encode(), self._edge.token.encode())

    def _show_slide(self, sha256: str, *, typed: Mapping[str, Any] | None = None) -> Response:
        node = self._edge.node
        status = self._edge.status()
        with node.store.reading(node.tenant) as work:
            found = work.slides.find(sha256) if _SHA256.fullmatch(sha256) else None
            if found is None:
                return self._render("missing.html", title="Not here", status=status, code=404)
            form = view_form(work, node, found, **typed) if typed is not None else None
            view = view_slide(work, node, found, form=form)
        title, code = f"Slide {sha256[:12]}", 200 if typed is None else 422
        return self._render(
            "slide.html", title=title, status=status, slide=view, token=self._edge.token, most=_MOST, code=code
        )

    def missing(self, _: Request, __: Exception) -> Response:
        return self._render("missing.html", title="Not here", status=self._edge.status(), code=404)

    def report(self, sha256: str) -> Response:
        content = self._read(sha256, "report.html")
        if content is None:
            return self._render("missing.html", title="Not here", status=self._edge.status(), code=404)
        return HTMLResponse(content, headers={"Content-Security-Policy": _REPORT_CSP, "X-Frame-Options": "SAMEORIGIN"})

    def thumbnail(self, sha256: str) -> Response:
        content = self._read(sha256, THUMBNAIL)
        if content is None:
            return Response(status_code=404)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def status_json(self) -> Response:
        content = self._edge.status().as_json()
        return Response(json.dumps(content, ensure_ascii=False), media_type="application/json")

    def style(self) -> Response:
        mark = hashlib.sha256(self._style.encode()).hexdigest()[:16]
        return Response(self._style, media_type="text/css", headers={"Cache-Control": "no-cache", "ETag": f'"{mark}"'})

    def _read(self, sha256: str, name: str) -> bytes | None:
        """A file of an answer; nothing but a hash ever becomes a part of a path."""
        if not _SHA256.fullmatch(sha256):
            return None
        path: Path = self._edge.node.places.answers / sha256 / name
        try:
            return path.read_bytes()
        except OSError:
            return None

    def _render(self, template: str, *, code: int = 200, **values: Any) -> Response:
        text = self._environment.get_template(template).render(**values)
        return HTMLResponse(text, status_code=code, headers={"Content-Security-Policy": _PAGE_CSP})


class _Door:
    """Lets in who asks for this computer by a name that it has.

    A page elsewhere cannot reach in by a name of its own that leads here (DNS rebinding). No other origin may read.
    """

    def __init__(self, app: ASGIApp, *, names: tuple[str, ...]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in self._names:
            await _say(send, 421, "this node is asked for by another name; see [web] names in edge.toml")
            return
        if scope["method"] == "POST" and _ACTION.fullmatch(scope["path"]):
            if not self._is_from_here(headers):
                await _say(send, 403, "this did not come from these pages")
                return
        elif scope["method"] not in ("GET", "HEAD"):
            await _say(send, 405, "these pages are only looked at")
            return
        await self._app(scope, receive, _guard(send))

    def _is_from_here(self, headers: Mapping[bytes, bytes]) -> bool:
        """A browser says where a form comes from; what does not say so, or says another place, is not let in."""
        origin = urlsplit(headers.get(b"origin", b"").decode("latin-1"))
        name = f"[{origin.hostname}]" if ":" in (origin.hostname or "") else origin.hostname
        is_same = headers.get(b"sec-fetch-site", b"same-origin") == b"same-origin"
        return is_same and origin.scheme in ("http", "https") and name in self._names


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, each once; none when it is no form, or larger than any of ours."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MOST_FORM_BYTES:
            return {}
    try:
        fields = parse_qs(content.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except (ValueError, UnicodeDecodeError):
        return {}
    return {name: values[-1] for name, values in fields.items()}


def _wants_text(request: Request) -> bool:
    """A program asks, not a browser."""
    return request.headers.get("accept") == "text/plain"


def _go_to(place: str) -> Response:
    """Let the browser ask for a page: to load it again sends nothing a second time."""
    return Response(status_code=303, headers={"Location": place})


async def _say_not_now(_: Request, error: Exception) -> Response:
    """The store or the disk does not answer now."""
    code = error.code if isinstance(error, SlidewayError) else "internal"
    log("page-failed", code=code)
    return PlainTextResponse(f"not now: {code}; reading goes on, try again in a moment", 503)


def _guard(send: Send) -> Send:
    async def give(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.setdefault("headers", [])
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in _ALWAYS if name not in present]
        await send(message)

    return give


_ALWAYS = (
    (b"content-security-policy", _PAGE_CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not `no-referrer`: a browser would then not say that a form comes from here. No address holds a name.
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


async def _say(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_ALWAYS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
