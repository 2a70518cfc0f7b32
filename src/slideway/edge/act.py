"""Do from a command line what a person does on a node's pages: through the node while it serves, else directly."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from slideway.core.errors import PolicyError, SlidewayError, UnknownTenantError, WrongUseError
from slideway.edge.consult import ask_specialist, ask_when_referred
from slideway.edge.node import Node, set_urgent
from slideway.edge.rights import make_rights
from slideway.edge.settings import EdgeSettings
from slideway.edge.shelves import ALONE, Outgoing, open_own_store
from slideway.edge.words import QUESTIONS
from slideway.store.database import Store
from slideway.store.work import Work
from slideway.sync.identity import read_endpoint

_SECONDS = 30.0
_LEAST_PREFIX = 6


def ask(settings: EdgeSettings, slide: str, *, organ: str, question: str, is_urgent: bool = False) -> str:
    """Ask a specialist about a slide; what came of it, in words.

    Args:
        settings: Of the node.
        slide: Beginning of its hash, its file, or the file's name.
        organ: Whom, as a site of the catalogue.
        question: Without names.
        is_urgent: Goes before others.

    Raises:
        WrongUseError: No such slide or organ, or the text is not one that may leave.
        PolicyError: The policy does not let it leave.
    """
    sha256 = find_slide(settings, slide)
    fields = {"organ": organ, "question": question, "urgent": "yes" if is_urgent else ""}
    told = _post(settings, f"/slides/{sha256}/ask", fields)
    if told is not None:
        return told
    with open_own_store(settings.places) as store:
        node = stand_in(settings, store)
        kept, is_new = store.retrying(
            node.tenant,
            lambda work: ask_specialist(work, node, sha256, organ=organ, question=question, is_urgent=is_urgent),
        )
    state = QUESTIONS[kept.state.value]
    return "asked; it leaves when the node serves" if is_new else f"asked before; it is {state}"


def make_urgent(settings: EdgeSettings, slide: str) -> str:
    """Put a slide before all others; what came of it, in words."""
    sha256 = find_slide(settings, slide)
    told = _post(settings, f"/slides/{sha256}/urgent", {})
    if told is not None:
        return told
    with open_own_store(settings.places) as store:
        node = stand_in(settings, store)
        is_new = store.retrying(node.tenant, lambda work: set_urgent(work, node, sha256))
    return "urgent now" if is_new else "urgent already"


def find_slide(settings: EdgeSettings, named: str) -> str:
    """Hash of a slide that a person names by the beginning of its hash, by its file, or by the file's name.

    Raises:
        WrongUseError: None or several are named so.
    """
    try:
        with open_own_store(settings.places, read_only=True) as store, store.reading(_tenant(settings)) as work:
            found = _find_by_hash(work, named) or _find_by_place(work, named)
    except UnknownTenantError:  # it has not served yet
        found = []
    if len(found) != 1:
        many = "several slides are" if found else "no slide is"
        raise WrongUseError(
            f"{named}: {many} known here by that; give the beginning of its hash, at least {_LEAST_PREFIX} digits, as "
            "the slide's page shows it"
        )
    return found[0]


def _find_by_hash(work: Work, named: str) -> list[str]:
    prefix = named.lower()
    if not _LEAST_PREFIX <= len(prefix) <= 64 or not set(prefix) <= set("0123456789abcdef"):
        return []
    return [slide.slide_sha256 for slide in work.slides.find_by_prefix(prefix)]


def _find_by_place(work: Work, named: str) -> list[str]:
    full = Path(named).expanduser().resolve()
    found = set()
    for slide in work.slides.walk():
        for place in map(Path, slide.facts.get("places", {})):
            if place == full or place.name == named:
                found.add(slide.slide_sha256)
    return sorted(found)


def _post(settings: EdgeSettings, path: str, fields: Mapping[str, str]) -> str | None:
    """Send a form to the node that serves; None when none does."""
    try:
        serving = json.loads(settings.places.serving.read_text(encoding="utf-8"))
        url, token = str(serving["url"]), str(serving["token"])
    except (OSError, ValueError, KeyError):
        return None
    if not url.startswith("http://"):
        return None
    content = urllib.parse.urlencode({**fields, "token": token}).encode("ascii")
    request = urllib.request.Request(url + path, content, {"Origin": url, "Accept": "text/plain"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return str(answer.read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode("utf-8", "replace")
        if error.code == 422:
            is_refused = error.headers.get("Slideway-Error") == PolicyError.code
            raise (PolicyError if is_refused else WrongUseError)(said) from error
        raise SlidewayError(f"the node that serves does not do it now: {said}") from error
    except OSError:
        return None  # it was killed and left its address behind


def _tenant(settings: EdgeSettings) -> str:
    places = settings.places
    return read_endpoint(places.endpoint).tenant if places.endpoint.exists() else ALONE


def stand_in(settings: EdgeSettings, store: Store) -> Node:
    """A node that neither watches, reads nor sends: enough of it to write something down.

    Args:
        settings: Of the node.
        store: Its own, open for writing.
    """
    places = settings.places
    rights = make_rights(settings)
    node = Node(settings, store, _tenant(settings), rights, Outgoing(places.outgoing), model="")
    node.after_referral = ask_when_referred if settings.edge.ask_when_referred else None
    return node
