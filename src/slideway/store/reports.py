"""Reports in versions: a draft is edited, what is signed stands, and an amendment is a new version (invariant I2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from slideway.core.errors import ConflictError, TransitionError
from slideway.store.facet import Facet, hash_json
from slideway.store.schema import REPORTS


class ReportState(StrEnum):
    """What a version of a report is."""

    DRAFT = "draft"
    SIGNED = "signed"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class ReportRecord:
    """One version of a report.

    Attributes:
        tenant: Whose it is.
        report_id: The report, over all its versions.
        version: 1, 2, 3 …
        case_id: Case that it reports.
        state: Draft, signed, or superseded by a later signed version.
        content: The report itself.
        content_sha256: Hash of its canonical JSON: what a person is shown and what that person signs.
        signed_by: Who signed; None of a draft.
        signed_ms: When; None of a draft.
        created_ms: When the version was begun.
    """

    tenant: str
    report_id: str
    version: int
    case_id: str
    state: ReportState
    content: Mapping[str, Any]
    content_sha256: str
    signed_by: str | None
    signed_ms: int | None
    created_ms: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", ReportState(self.state))


class Reports(Facet):
    """Reports of a tenant."""

    def draft(self, report_id: str, *, case_id: str, content: Mapping[str, Any]) -> ReportRecord:
        """Begin a report, or replace the content of its draft.

        Raises:
            TransitionError: The newest version is signed: `amend` it.
            ConflictError: The report belongs to another case.
        """
        newest = self.newest(report_id)
        if newest is None:
            return self._begin(report_id, 1, case_id, content)
        if newest.case_id != case_id:
            raise ConflictError(f"report {report_id} belongs to case {newest.case_id}, not to {case_id}")
        if newest.state is not ReportState.DRAFT:
            raise TransitionError(f"report {report_id} version {newest.version} is {newest.state}: amend it instead")
        self._change(
            REPORTS,
            self._key(REPORTS, report_id=report_id, version=newest.version),
            content=dict(content),
            content_sha256=hash_json(content),
            changed_ms=self._clock(),
        )
        return self.get(report_id, newest.version)

    def sign(self, report_id: str, version: int, *, shown_sha256: str, signed_by: str) -> ReportRecord:
        """Sign exactly what was shown; the version signed before is superseded.

        Args:
            report_id: The report.
            version: The version that is signed.
            shown_sha256: `content_sha256` of what the person saw.
            signed_by: Id of the person.

        Raises:
            ConflictError: The draft changed after it was shown, or another person signed it.
            TransitionError: It is superseded.
        """
        report = self.get(report_id, version)
        if report.content_sha256 != shown_sha256:
            raise ConflictError(f"report {report_id} version {version} changed after it was shown; show it again")
        if report.state is ReportState.SIGNED and report.signed_by == signed_by:
            return report
        if report.state is not ReportState.DRAFT:
            raise TransitionError(f"report {report_id} version {version} is {report.state} and cannot be signed again")
        now = self._clock()
        earlier = self._key(REPORTS, report_id=report_id, state=ReportState.SIGNED.value)
        self._change(REPORTS, earlier, state=ReportState.SUPERSEDED.value, changed_ms=now)
        self._change(
            REPORTS,
            self._key(REPORTS, report_id=report_id, version=version),
            state=ReportState.SIGNED.value,
            signed_by=signed_by,
            signed_ms=now,
            changed_ms=now,
        )
        return self.get(report_id, version)

    def amend(self, report_id: str, *, content: Mapping[str, Any]) -> ReportRecord:
        """Begin a new version of a signed report; until it is signed the old one stands.

        Raises:
            TransitionError: Nothing is signed yet, or an amendment is begun already: `draft` changes it.
        """
        newest = self.newest(report_id)
        if newest is None or newest.state is not ReportState.SIGNED:
            raise TransitionError(f"report {report_id}: only a signed report is amended; change the draft instead")
        return self._begin(report_id, newest.version + 1, newest.case_id, content)

    def get(self, report_id: str, version: int) -> ReportRecord:
        """One version of a report."""
        return self._get(ReportRecord, REPORTS, report_id=report_id, version=version)

    def newest(self, report_id: str) -> ReportRecord | None:
        """The newest version, signed or not; None when there is none."""
        versions = self.versions(report_id)
        return versions[-1] if versions else None

    def signed(self, report_id: str) -> ReportRecord | None:
        """The version that holds; None when none is signed."""
        return self._find(
            ReportRecord, REPORTS, self._key(REPORTS, report_id=report_id, state=ReportState.SIGNED.value)
        )

    def versions(self, report_id: str) -> list[ReportRecord]:
        """All versions of a report, oldest first."""
        where = self._key(REPORTS, report_id=report_id)
        return self._list(ReportRecord, REPORTS, where, order=[REPORTS.c.version.asc()])

    def of_case(self, case_id: str) -> list[ReportRecord]:
        """All versions of all reports of a case, oldest first."""
        where = self._key(REPORTS, case_id=case_id)
        order = [REPORTS.c.created_ms.asc(), REPORTS.c.report_id.asc(), REPORTS.c.version.asc()]
        return self._list(ReportRecord, REPORTS, where, order=order)

    def _begin(self, report_id: str, version: int, case_id: str, content: Mapping[str, Any]) -> ReportRecord:
        now = self._clock()
        is_mine = self._insert(
            REPORTS,
            report_id=report_id,
            version=version,
            case_id=case_id,
            state=ReportState.DRAFT.value,
            content=dict(content),
            content_sha256=hash_json(content),
            created_ms=now,
            changed_ms=now,
        )
        if not is_mine:
            raise ConflictError(f"report {report_id} version {version} was begun by someone else just now; look again")
        return self.get(report_id, version)
