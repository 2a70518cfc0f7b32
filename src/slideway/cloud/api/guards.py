"""Who may call a route: a person with a role. Nodes prove themselves in `sync.face`, asked of the store every time."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from slideway.cloud.people import People, Person
from slideway.core.errors import LineRefusedError

_scheme = HTTPBearer(auto_error=False, scheme_name="person", description="Token of `slideway cloud user add`")


def require_specialist(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]) -> Person:
    """A specialist."""
    return find_person(request, "specialist")


def require_operator(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_scheme)]) -> Person:
    """An operator."""
    return find_person(request, "operator")


def require_scraper(request: Request) -> None:
    """An operator, unless the settings say that only Prometheus reaches this."""
    if not request.app.state.open_metrics:
        find_person(request, "operator")


def find_person(request: Request, role: str) -> Person:
    """Who calls, when they have this role.

    Raises:
        LineRefusedError: No token, one that nobody has, or one of another role.
    """
    people: People = request.app.state.people
    token = _read_token(request.headers.get("authorization", ""), is_looking=request.method in ("GET", "HEAD"))
    person = people.find(token) if token else None
    if person is None:
        code = "token-invalid" if token else "token-missing"
        raise LineRefusedError("this needs a person's token", status=401, refusal=code)
    if person.role != role:
        raise LineRefusedError(f"this is for the role {role}", status=403, refusal="role-other")
    return person


def _read_token(authorization: str, *, is_looking: bool) -> str:
    """The token of a Bearer header, or the password of a Basic one: what a browser asks for.

    A browser sends a Basic header by itself, also when a page elsewhere makes it ask: so it lets people look, no more.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic" or not is_looking:
        return ""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


Specialist = Annotated[Person, Depends(require_specialist)]
Operator = Annotated[Person, Depends(require_operator)]
