"""Tell OpenAPI what FastAPI cannot see: the routes of sync read and write bytes and headers themselves."""

from __future__ import annotations

import warnings
from typing import Any

from fastapi import FastAPI

NODE = "node"
_TEXT = {"type": "string"}
_SESSION = {"type": "object", "required": ["tenant", "node"], "properties": {"tenant": _TEXT, "node": _TEXT}}
_PROOF = {"type": "object", "required": ["signature"], "properties": {"signature": _TEXT}}
_CHALLENGE = {
    "type": "object",
    "required": ["session", "challenge"],
    "properties": {"session": _TEXT, "challenge": _TEXT},
}
_TOKEN = {
    "type": "object",
    "required": ["token", "seconds"],
    "properties": {"token": _TEXT, "seconds": {"type": "integer"}},
}
_FRAME = "application/vnd.slideway+zstd"
_BYTES = {"type": "string", "format": "binary"}
_PART = "application/offset+octet-stream"
_TUS = {
    "Upload-Offset": {"description": "Bytes that are durably here", "schema": {"type": "integer"}},
    "Slideway-Receipt": {"description": "Signed receipts of the tiers that are durably here", "schema": _TEXT},
    "Slideway-Stop": {"description": "First tier that is not wanted (any more)", "schema": {"type": "integer"}},
}
_VERSION = {"type": "string", "enum": ["1.0.0"]}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**40}
_SENT: dict[str, dict[str, dict[str, Any]]] = {  # what a client sends, by method
    "post": {"Tus-Resumable": _VERSION, "Upload-Length": _NUMBER},
    "patch": {"Tus-Resumable": _VERSION, "Upload-Offset": _NUMBER},
    "head": {"Tus-Resumable": _VERSION},
    "delete": {"Tus-Resumable": _VERSION},
}
_MAY_BE_SENT = {"post": ("Upload-Metadata", "Upload-Checksum"), "patch": ("Upload-Checksum",)}


def describe_api(app: FastAPI) -> None:
    """Complete the description the first time that somebody asks for it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            with warnings.catch_warnings():
                # A route of several methods gives all of them one id; `complete` gives each its own.
                warnings.filterwarnings("ignore", "Duplicate Operation ID")
                app.openapi_schema = complete(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def complete(schema: dict[str, Any]) -> dict[str, Any]:
    """The description with bodies, answers and the token of the routes of sync."""
    paths = schema.get("paths", {})
    schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes[NODE] = {"type": "http", "scheme": "bearer", "description": "Token of a session, see /v1/sessions"}
    for path, methods in paths.items():
        for method, operation in methods.items():
            operation["operationId"] = f"{method} {path}"
            if path == "/v1/sessions":
                _say(
                    operation, "201", {"application/json": {"schema": _CHALLENGE}}, body=("application/json", _SESSION)
                )
            elif path == "/v1/sessions/{session}":
                _say(operation, "200", {"application/json": {"schema": _TOKEN}}, body=("application/json", _PROOF))
            elif path == "/v1/messages":
                body = (_FRAME, _BYTES) if method == "post" else None
                _say(operation, "200", {_FRAME: {"schema": _BYTES}}, body=body, is_of_node=True)
            elif path.startswith("/v1/uploads"):
                _say_tus(operation, method)
    return schema


def _say(
    operation: dict[str, Any],
    status: str,
    content: dict[str, Any],
    *,
    body: tuple[str, dict[str, Any]] | None = None,
    is_of_node: bool = False,
) -> None:
    answer = operation["responses"].setdefault(status, {"description": "Done"})
    answer["content"] = content
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {body[0]: {"schema": body[1]}}}
    if is_of_node:
        operation["security"] = [{NODE: []}]


def _say_tus(operation: dict[str, Any], method: str) -> None:
    operation["externalDocs"] = {"url": "https://tus.io/protocols/resumable-upload", "description": "tus 1.0.0"}
    for answer in operation["responses"].values():
        if answer.get("description") == "Successful Response":
            answer["headers"] = _TUS
            answer.pop("content", None)
    parameters = operation.setdefault("parameters", [])
    for name, schema in _SENT.get(method, {}).items():
        parameters.append({"name": name, "in": "header", "required": True, "schema": schema})
    for name in _MAY_BE_SENT.get(method, ()):
        parameters.append({"name": name, "in": "header", "required": False, "schema": _TEXT})
    if method in ("post", "patch"):
        operation["requestBody"] = {"content": {_PART: {"schema": _BYTES}}}
    if method != "options":
        operation["security"] = [{NODE: []}]
