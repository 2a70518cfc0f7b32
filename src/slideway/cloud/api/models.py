"""What the API takes and gives, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _require_plain(text: str) -> str:
    """Refuse lone surrogates, which no database and no encoder takes."""
    text.encode("utf-8")
    return text


Plain = Annotated[str, AfterValidator(_require_plain)]
TenantId = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Lower-case id of a tenant")
]
NodeId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Lower-case id of a node")]
ConsultationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Sha256 in hex")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class ErrorBody(_Given):
    """Every error: a stable code (docs/errors.md, docs/cloud.md) and a sentence without patient data."""

    code: str
    message: str


class EnrolRequest(_Strict):
    """What a node says of itself when it enrols."""

    code: Annotated[Plain, Field(min_length=8, max_length=200, description="One-time code, with or without the pin")]
    public_key: Annotated[Plain, Field(max_length=64, description="Ed25519 key, base64")]
    receiving_key: Annotated[Plain, Field(max_length=64, description="X25519 key, base64")] = ""
    name: Annotated[Plain, Field(max_length=120)] = ""
    version: Annotated[Plain, Field(max_length=64)] = ""
    signature: Annotated[
        Plain,
        Field(max_length=128, description="Of the key, base64, over `slideway-enrol/1`, a line feed and the code"),
    ] = ""


class EnrolAnswer(_Given):
    """What a node keeps in its endpoint file."""

    tenant: str
    node: str
    cloud_key: Annotated[str, Field(description="Ed25519 key that receipts are signed with, base64")]
    cloud_receiving_key: Annotated[str, Field(description="X25519 key that bundles are locked to, base64")]
    ca_pem: Annotated[str, Field(description="The only authority to believe")]


class TenantRequest(_Strict):
    """A new tenant."""

    tenant: TenantId
    name: Annotated[Plain, Field(max_length=120)] = ""


class TenantLine(_Given):
    """A tenant."""

    tenant: str
    name: str
    created_ms: int


class InvitationRequest(_Strict):
    """An invitation."""

    name: Annotated[Plain, Field(max_length=120)] = ""
    hours: Annotated[float, Field(gt=0, le=24 * 90, description="How long the code works")] = 72.0


class InvitationAnswer(_Given):
    """The one line that a node's operator types."""

    code: str


class RevocationRequest(_Strict):
    """Why a node may do nothing any more."""

    reason: Annotated[Plain, Field(min_length=1, max_length=120)]


class CommandRequest(_Strict):
    """A command to a node; it knows these three and no other."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Given twice, it is one command")]
    do: Annotated[str, Field(pattern=r"^(pause|resume|priority)$")]
    slide: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$", description="For `priority`: which slide")] = ""
    urgent: Annotated[bool, Field(description="For `priority`: urgent, or no longer")] = True

    @model_validator(mode="after")
    def _require_slide(self) -> Self:
        if (self.do == "priority") is not bool(self.slide):
            raise ValueError("priority names its slide, pause and resume name none")
        return self


class NodeAnswer(_Given):
    """A node."""

    tenant: str
    node: str
    state: str
    reason: str


class ConsultationLine(_Given):
    """A question to a specialist."""

    tenant: str
    consultation_id: str
    slide_sha256: str
    organ: str
    centre: str
    question: dict[str, Any]
    is_urgent: bool
    state: str
    specialist: str | None
    answer: dict[str, Any] | None
    asked_ms: int
    due_ms: int
    overdue: bool


class RegionLine(_Given):
    """Pixels of a slide that are here."""

    sha256: str
    kind: str
    n_bytes: int
    rectangle: list[int] | None
    mpp: float | None


class ConsultationDetail(ConsultationLine):
    """A question with what is known of its slide."""

    slide: Annotated[dict[str, Any], Field(description="Quality, tissue, encoder, findings of the node in brief")]
    findings: Annotated[list[dict[str, Any]], Field(description="The cloud's findings, as in result.json")]
    regions: list[RegionLine]


class AnswerRequest(_Strict):
    """A specialist's answer."""

    text: Annotated[Plain, Field(min_length=1, max_length=20_000)]
    label: Annotated[Plain, Field(max_length=200, description="In a word, where one fits")] = ""
    certainty: Annotated[str, Field(pattern=r"^(|certain|probable|open)$")] = ""


class HealthAnswer(_Given):
    """Whether it lives, or is ready."""

    status: str
    checks: dict[str, str] = {}
