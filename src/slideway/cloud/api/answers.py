"""Every error as JSON with a code: the one place where the tree of errors meets HTTP."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from slideway.cloud.api.models import ErrorBody
from slideway.core.errors import (
    BlobError,
    ConflictError,
    MessageTooLargeError,
    MissingBlobError,
    SlidewayError,
    TransitionError,
    UnknownRecordError,
    UnknownTenantError,
    WrongUseError,
)
from slideway.sync.face import answer_error

STATUS: dict[type[SlidewayError], int] = {
    UnknownRecordError: 404,
    UnknownTenantError: 404,
    MissingBlobError: 404,
    ConflictError: 409,
    TransitionError: 409,
    MessageTooLargeError: 422,
    BlobError: 503,
    WrongUseError: 422,
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "Refused; `code` says why"},
    "5XX": {"model": ErrorBody, "description": "Not now: come again after `Retry-After`, or a bug"},
}
_CODES = {404: "route-unknown", 405: "method-unknown", 400: "request-malformed", 413: "body-too-long"}


def add_error_answers(app: FastAPI) -> None:
    """Let an application answer every error in this form."""

    @app.exception_handler(SlidewayError)
    async def _(request: Request, error: SlidewayError) -> Response:
        return answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        # Where, not what: the value may be anything that somebody sent.
        places = {".".join(str(part) for part in found["loc"][:3])[:80] for found in error.errors()[:5]}
        known = sorted(place for place in places if place.isascii())
        return _refuse(request, 422, "request-malformed", f"not of its form: {', '.join(known) or 'body'}")

    @app.exception_handler(UnicodeError)
    async def _(request: Request, error: UnicodeError) -> Response:  # noqa: ARG001
        return _refuse(request, 422, "text-malformed", "a text holds what is no letter")

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "refused")
        return _refuse(request, error.status_code, code, str(error.detail)[:200], dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return _refuse(request, 500, "internal", "a bug in Slideway; the log has it under this request's id")


def answer(request: Request, error: SlidewayError) -> Response:
    """The answer to an error of our own."""
    for kind, status in STATUS.items():
        if isinstance(error, kind):
            return _refuse(request, status, error.code, str(error), {"Retry-After": "30"} if status == 503 else {})
    response = answer_error(error)
    request.scope["slideway.code"] = getattr(error, "refusal", "") or error.code
    return response


def _refuse(request: Request, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    request.scope["slideway.code"] = code
    body = json.dumps({"code": code, "message": message}).encode()
    return Response(body, status, headers or {}, "application/json")
