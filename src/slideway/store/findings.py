"""What heads and people found on a slide; a finding that is kept never changes (invariant I2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slideway.core.errors import ConflictError
from slideway.store.facet import Facet, hash_json
from slideway.store.schema import FINDINGS

Place = Literal["edge", "cloud", "person"]


@dataclass(frozen=True)
class FindingRecord:
    """A finding as it is kept.

    Attributes:
        tenant: Whose it is.
        finding_id: Sha256 over tenant, slide, place, head, encoder and question.
        slide_sha256: The slide.
        place: Where it was found.
        head_id: Id of the head, or of the person.
        head_version: Its version; empty for a person.
        head_sha256: Hash of its weights; of a person's finding the hash of their id.
        fingerprint: Fingerprint of the encoder; empty for a person.
        task: Id of the question.
        content: The finding itself.
        content_sha256: Hash of its canonical JSON.
        created_ms: When it was kept.
    """

    tenant: str
    finding_id: str
    slide_sha256: str
    place: str
    head_id: str
    head_version: str
    head_sha256: str
    fingerprint: str
    task: str
    content: Mapping[str, Any]
    content_sha256: str
    created_ms: int


class Findings(Facet):
    """Findings of a tenant."""

    def record(
        self,
        slide_sha256: str,
        task: str,
        content: Mapping[str, Any],
        *,
        place: Place,
        head_id: str,
        head_version: str,
        head_sha256: str,
        fingerprint: str,
    ) -> FindingRecord:
        """Keep a finding; the same finding twice is one.

        Raises:
            ConflictError: This head on this encoder said something else of this slide before.
        """
        finding_id = hash_json([self._own, slide_sha256, place, head_sha256, fingerprint, task])
        content, content_sha256 = dict(content), hash_json(content)
        self._insert(
            FINDINGS,
            finding_id=finding_id,
            slide_sha256=slide_sha256,
            place=place,
            head_id=head_id,
            head_version=head_version,
            head_sha256=head_sha256,
            fingerprint=fingerprint,
            task=task,
            content=content,
            content_sha256=content_sha256,
            created_ms=self._clock(),
        )
        kept = self.get(finding_id)
        if kept.content_sha256 != content_sha256:
            raise ConflictError(
                f"slide {slide_sha256[:12]}: {head_id} answered {task} otherwise before; the first answer is kept, and "
                "a changed head needs a new version"
            )
        return kept

    def get(self, finding_id: str) -> FindingRecord:
        """The finding of an id."""
        return self._get(FindingRecord, FINDINGS, finding_id=finding_id)

    def of_slide(self, slide_sha256: str, *, place: Place | None = None) -> list[FindingRecord]:
        """Findings on a slide, oldest first."""
        where = [self._key(FINDINGS, slide_sha256=slide_sha256)]
        where += [] if place is None else [FINDINGS.c.place == place]
        order = [FINDINGS.c.created_ms.asc(), FINDINGS.c.finding_id.asc()]
        return self._list(FindingRecord, FINDINGS, *where, order=order)
