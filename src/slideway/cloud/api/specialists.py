"""What specialists do: see the questions of their organs, take them, look at pixels, answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from slideway.bundles.read import read_bundle, read_region
from slideway.cloud.api.guards import Specialist
from slideway.cloud.api.models import (
    AnswerRequest,
    ConsultationDetail,
    ConsultationId,
    ConsultationLine,
    RegionLine,
    Sha256,
    TenantId,
)
from slideway.cloud.consult import Desk
from slideway.core.errors import UnknownRecordError
from slideway.store.blobs import Blobs
from slideway.store.consultations import Consultation, ConsultationState
from slideway.store.database import Store, now_ms
from slideway.sync.identity import Keys

# Of what the store knows of a slide; nodes and bundles are no matter of a specialist's.
_SHOWN = ("verdict", "site", "tissue_mm2", "tiles", "encoder_id", "fingerprint", "mpp", "width_px", "height_px",
          "novel_share", "edge_findings", "level")  # fmt: skip
# Pictures came from elsewhere: a browser is to take them for pictures and for nothing else.
_AS_PICTURE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
_LIVE = (ConsultationState.OPEN, ConsultationState.TAKEN)


def make_specialists_router(store: Store, blobs: Blobs, keys: Keys, desk: Desk) -> APIRouter:
    """Routes of the role `specialist`; what is not theirs is as if it were not there."""
    router = APIRouter(prefix="/consultations", tags=["specialists"])

    @router.get("", summary="Questions that wait for you, or that you took: urgent first, then by the time due")
    def give_waiting(
        person: Specialist,
        taken: Annotated[Literal["me"] | None, Query(description="`me`: what you took and have not answered")] = None,
    ) -> list[ConsultationLine]:
        rows = desk.list_taken(person) if taken else desk.list_for(person)
        return [describe(row) for row in rows]

    @router.get("/{tenant}/{consultation}", summary="A question, with what is known of its slide")
    def give_one(tenant: TenantId, consultation: ConsultationId, person: Specialist) -> ConsultationDetail:
        return _describe_fully(store, desk.get(person, tenant, consultation))

    @router.post("/{tenant}/{consultation}/taking", summary="Take a question; twice is once")
    def take(tenant: TenantId, consultation: ConsultationId, person: Specialist) -> ConsultationLine:
        return describe(desk.take(person, tenant, consultation))

    @router.delete("/{tenant}/{consultation}/taking", summary="Give a question back for others")
    def give_back(tenant: TenantId, consultation: ConsultationId, person: Specialist) -> ConsultationLine:
        return describe(desk.give_back(person, tenant, consultation))

    @router.put("/{tenant}/{consultation}/answer", summary="Answer a question that you took; it is never changed")
    def answer(
        tenant: TenantId, consultation: ConsultationId, said: AnswerRequest, person: Specialist
    ) -> ConsultationLine:
        content = {"text": said.text, "label": said.label, "certainty": said.certainty}
        return describe(desk.answer(person, tenant, consultation, content))

    @router.get(
        "/{tenant}/{consultation}/thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "The slide in small"}},
        summary="The slide in small, where the hospital's policy let it leave",
    )
    def give_thumbnail(tenant: TenantId, consultation: ConsultationId, person: Specialist) -> Response:
        row = desk.get(person, tenant, consultation)
        with store.reading(tenant) as work:
            bundle = work.slides.get(row.slide_sha256).facts.get("bundle", "")
        picture = read_bundle(blobs.get(tenant, bundle), key=keys.receiving).thumbnail if bundle else None
        if picture is None:
            raise UnknownRecordError("no thumbnail of this slide is here")
        return Response(picture, media_type="image/webp", headers=_AS_PICTURE)

    @router.get(
        "/{tenant}/{consultation}/regions/{sha256}",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}, "description": "The pixels"}},
        summary="Pixels of a region that was asked for",
    )
    def give_region(tenant: TenantId, consultation: ConsultationId, sha256: Sha256, person: Specialist) -> Response:
        row = desk.get(person, tenant, consultation)
        with store.reading(tenant) as work:
            pixels = work.slides.get(row.slide_sha256).facts.get("pixels", {})
        if sha256 not in pixels or not _is_region(pixels[sha256]):
            raise UnknownRecordError("no such region of this slide")
        picture = read_region(blobs.get(tenant, sha256), key=keys.receiving)
        return Response(picture, media_type="image/webp", headers=_AS_PICTURE)

    return router


def _is_region(pixels: Mapping[str, Any]) -> bool:
    """Whether these are a region's, verified when they came; what an older version kept unread is not given."""
    return pixels.get("kind") == "region" and "rectangle" in pixels


def describe(row: Consultation) -> ConsultationLine:
    """A question as the API gives it; which node asked stays with us."""
    return ConsultationLine.model_validate(_as_json(row))


def _as_json(row: Consultation) -> dict[str, Any]:
    question = {key: value for key, value in row.question.items() if key != "node"}
    overdue = row.state in _LIVE and row.due_ms < now_ms()
    return {**vars(row), "question": question, "state": row.state.value, "overdue": overdue}


def _describe_fully(store: Store, row: Consultation) -> ConsultationDetail:
    with store.reading(row.tenant) as work:
        facts = work.slides.get(row.slide_sha256).facts
        findings = [dict(kept.content) for kept in work.findings.of_slide(row.slide_sha256, place="cloud")]
    named = facts.get("regions", {})
    regions = [
        RegionLine(
            sha256=sha256,
            kind=str(pixels["kind"]),
            n_bytes=int(pixels["bytes"]),
            rectangle=list(pixels["rectangle"]),
            mpp=named.get(sha256, {}).get("mpp"),
        )
        for sha256, pixels in facts.get("pixels", {}).items()
        if _is_region(pixels)
    ]
    slide = {name: facts[name] for name in _SHOWN if name in facts}
    return ConsultationDetail(**_as_json(row), slide=slide, findings=findings, regions=regions)
