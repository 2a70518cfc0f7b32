"""Cases with their specimens and blocks, as the laboratory numbers them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from slideway.core.errors import ConflictError, UnknownRecordError
from slideway.store.facet import Facet
from slideway.store.schema import BLOCKS, CASES, SPECIMENS


@dataclass(frozen=True)
class Case:
    """Everything under one accession.

    Attributes:
        tenant: Whose it is.
        case_id: Our pseudonym, the only name that leaves the hospital.
        accession: The laboratory's number; None where it is not known, as in the cloud.
        site: Id of the catalogue's site; empty when not given.
        is_urgent: Goes before all others.
        created_ms: When it was first heard of.
    """

    tenant: str
    case_id: str
    accession: str | None
    site: str
    is_urgent: bool
    created_ms: int


@dataclass(frozen=True)
class Specimen:
    """A part of tissue received."""

    tenant: str
    specimen_id: str
    case_id: str
    site: str


@dataclass(frozen=True)
class Block:
    """A paraffin block cut from a specimen."""

    tenant: str
    block_id: str
    specimen_id: str


class Cases(Facet):
    """Cases of a tenant."""

    def add(self, case_id: str, *, accession: str | None = None, site: str = "", is_urgent: bool = False) -> Case:
        """Add a case, or give the one that is there.

        Raises:
            ConflictError: The case has another accession number, or the number belongs to another case.
        """
        case: Case | None = None
        with suppress(UnknownRecordError):  # not inserted, and not under this id: its number is another's
            case, _ = self._add(
                Case,
                CASES,
                {"case_id": case_id},
                accession=accession,
                site=site,
                is_urgent=is_urgent,
                created_ms=self._clock(),
            )
        if case is None or (accession is not None and case.accession != accession):
            raise ConflictError(
                f"case {case_id}: the accession number belongs to another case, or the case has another"
            )
        return case

    def add_specimen(self, specimen_id: str, *, case_id: str, site: str = "") -> Specimen:
        """Add a specimen of a case, or give the one that is there."""
        self._insert(SPECIMENS, specimen_id=specimen_id, case_id=case_id, site=site, created_ms=self._clock())
        specimen = self._get(Specimen, SPECIMENS, specimen_id=specimen_id)
        if specimen.case_id != case_id:
            raise ConflictError(f"specimen {specimen_id} belongs to case {specimen.case_id}, not to {case_id}")
        return specimen

    def add_block(self, block_id: str, *, specimen_id: str) -> Block:
        """Add a block of a specimen, or give the one that is there."""
        self._insert(BLOCKS, block_id=block_id, specimen_id=specimen_id, created_ms=self._clock())
        block = self._get(Block, BLOCKS, block_id=block_id)
        if block.specimen_id != specimen_id:
            raise ConflictError(f"block {block_id} belongs to specimen {block.specimen_id}, not to {specimen_id}")
        return block

    def get(self, case_id: str) -> Case:
        """The case of an id."""
        return self._get(Case, CASES, case_id=case_id)

    def find(self, case_id: str) -> Case | None:
        """The case of an id, or None."""
        return self._find(Case, CASES, self._key(CASES, case_id=case_id))

    def find_by_accession(self, accession: str) -> Case | None:
        """The case of a laboratory's number, or None."""
        return self._find(Case, CASES, self._key(CASES, accession=accession))

    def make_urgent(self, case_id: str) -> None:
        """Put the case before all others; its slides, jobs and messages are made urgent by those who own them."""
        self.get(case_id)
        self._change(CASES, self._key(CASES, case_id=case_id), is_urgent=True)

    def specimens(self, case_id: str) -> list[Specimen]:
        """Specimens of a case, by id."""
        return self._list(
            Specimen, SPECIMENS, self._key(SPECIMENS, case_id=case_id), order=[SPECIMENS.c.specimen_id.asc()]
        )

    def blocks(self, specimen_id: str) -> list[Block]:
        """Blocks of a specimen, by id."""
        return self._list(Block, BLOCKS, self._key(BLOCKS, specimen_id=specimen_id), order=[BLOCKS.c.block_id.asc()])

    def find_all(self, *, limit: int | None = None) -> list[Case]:
        """Cases, urgent first, then oldest first."""
        order = [CASES.c.is_urgent.desc(), CASES.c.created_ms.asc(), CASES.c.case_id.asc()]
        return self._list(Case, CASES, order=order, limit=limit)
