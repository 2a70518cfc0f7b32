"""What each kind of message from a node does, inside the transaction that takes it in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slideway.cloud.consult import Desk
from slideway.cloud.slides import accept_slide, end_slide
from slideway.core.errors import LineRefusedError
from slideway.store.slides import ENDS, SlideState
from slideway.store.work import Work
from slideway.sync.mailbox import Arrival, Handler

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_MOST_WORDS = 64
_MOST_REGIONS = 256
_MOST_NAMED = 1024  # of one slide, over all messages
_MOST_MPP = 1_000


def make_handlers(desk: Desk) -> dict[str, Handler]:
    """What each kind does; a kind that is not here is refused."""
    return {
        "status": note_status,
        "slide-accepted": note_accepted,
        "slide-ended": note_ended,
        "regions": note_regions,
        "consult-request": desk.take_request,
        "withdrawn": desk.take_withdrawal,
    }


def note_status(work: Work, arrival: Arrival) -> None:
    """Keep what a node says of itself: numbers and single words, so that no sentence with a name in it is kept."""
    if not arrival.is_newest:
        return
    said = _keep_words(arrival.message.body)
    work.nodes.note_seen(arrival.sender, version=str(said.get("version", "")), status=said)


def note_accepted(work: Work, arrival: Arrival) -> None:
    """A slide will come; or, of one that is known, that it is urgent now."""
    body = arrival.message.body
    slide, is_urgent = read_slide(body), body.get("urgent") is True
    known = accept_slide(work, slide, arrival.sender, is_urgent=is_urgent)
    if is_urgent and not known.is_urgent:
        work.slides.make_urgent(slide)
        work.jobs.make_urgent(slide)


def note_ended(work: Work, arrival: Arrival) -> None:
    """A slide ended at its node."""
    body = arrival.message.body
    slide, word = read_slide(body), body.get("state")
    if word not in {state.value for state in ENDS}:
        raise refuse("state is one of reported, referred, rejected")
    reason = str(body.get("reason", ""))
    accept_slide(work, slide, arrival.sender)
    kept = reason if _WORD.fullmatch(reason) else "said-by-node"
    end_slide(work, slide, SlideState(word), node=arrival.sender, reason=kept)


def note_regions(work: Work, arrival: Arrival) -> None:
    """Say which uploads are which regions of a slide."""
    body = arrival.message.body
    slide, regions = read_slide(body), body.get("regions")
    if not isinstance(regions, list) or len(regions) > _MOST_REGIONS:
        raise refuse(f"regions is a list of at most {_MOST_REGIONS}")
    rows = [_read_region(region) for region in regions]
    found = accept_slide(work, slide, arrival.sender).facts.get("regions", {})
    named = {**found, **{row["sha256"]: row for row in rows}}
    if len(named) > _MOST_NAMED:
        raise refuse(f"a slide has at most {_MOST_NAMED} regions")
    work.slides.add_facts(slide, {"regions": named})


def read_slide(body: Mapping[str, Any]) -> str:
    """The slide that a message is about.

    Raises:
        LineRefusedError: It names none.
    """
    slide = body.get("slide")
    if not isinstance(slide, str) or not _SHA256.fullmatch(slide):
        raise refuse("slide is a sha256 in hex")
    return slide


def refuse(what: str) -> LineRefusedError:
    """The refusal of a message that is not of its form."""
    return LineRefusedError(f"message: {what}", status=422, refusal="message-malformed")


def _read_region(region: Any) -> dict[str, Any]:
    if not isinstance(region, dict):
        raise refuse("a region is an object")
    sha256, box, mpp = region.get("sha256"), region.get("rectangle"), region.get("mpp")
    is_box = isinstance(box, list) and len(box) == 4 and all(type(edge) is int and abs(edge) < 2**31 for edge in box)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or not is_box:
        raise refuse("a region has sha256 and rectangle [x, y, width, height]")
    kept = float(mpp) if isinstance(mpp, int | float) and 0 < mpp < _MOST_MPP else None
    return {"sha256": sha256, "rectangle": box, "mpp": kept}


def _keep_words(body: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and single words of a status, one level deep; what else it says is not kept."""
    kept: dict[str, Any] = {}
    for key, value in list(body.items())[:_MOST_WORDS]:
        if not _WORD.fullmatch(key):
            continue
        if isinstance(value, dict):
            kept[key] = {
                name: word for name, word in list(value.items())[:_MOST_WORDS] if _is_word(name) and _is_word(word)
            }
        elif _is_word(value):
            kept[key] = value
    return kept


def _is_word(value: Any) -> bool:
    if isinstance(value, str):
        return not value or _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 2**60)
