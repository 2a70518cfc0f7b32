"""Routes of the pages, and what every request passes: the name it asks for, and headers that let nothing else load."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slideway.core.errors import SlidewayError
from slideway.edge.child import THUMBNAIL
from slideway.edge.logs import log
from slideway.edge.status import describe
from slideway.edge.web.views import first_list, view_slide, view_worklist
from slideway.edge.words import LEVELS, LINES, say_bytes, say_since

if TYPE_CHECKING:
    from slideway.edge.app import Edge

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PAGE_CSP = (
    "default-src 'none'; style-src 'self'; img-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The report brings its own, stricter policy; this one holds where somebody changed the file.
_REPORT_CSP = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LISTS = ("open", "refer", "reported", "rejected")


def create_pages(edge: Edge) -> ASGIApp:
    """The web application of a node."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = _Pages(edge)
    app.add_api_route("/", pages.worklist, response_class=HTMLResponse)
    app.add_api_route("/status", pages.status, response_class=HTMLResponse)
    app.add_api_route("/slides/{sha256}", pages.slide, response_class=HTMLResponse)
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

    def worklist(self, show: str = "") -> Response:
        status = self._edge.status()
        shown = show if show in LISTS else first_list(status.slides)
        node = self._edge.node
        with node.store.reading(node.tenant) as work:
            rows = view_worklist(work, node, status, shown)
        return self._render("worklist.html", title="Worklist", rows=rows, status=status, shown=shown, lists=LISTS)

    def status(self) -> Response:
        status = self._edge.status()
        return self._render("status.html", title="Status", status=status, sentences=describe(status))

    def slide(self, sha256: str) -> Response:
        node = self._edge.node
        status = self._edge.status()
        with node.store.reading(node.tenant) as work:
            found = work.slides.find(sha256) if _SHA256.fullmatch(sha256) else None
            if found is None:
                return self._render("missing.html", title="Not here", status=status, code=404)
            view = view_slide(work, node, found)
        return self._render("slide.html", title=f"Slide {sha256[:12]}", status=status, slide=view)

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
        if scope["method"] not in ("GET", "HEAD"):
            await _say(send, 405, "these pages are only looked at")
            return
        await self._app(scope, receive, _guard(send))


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
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


async def _say(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_ALWAYS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
