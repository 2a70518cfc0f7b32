"""One transaction, seen by what it is about: `work.slides`, `work.jobs`, `work.outbox` and the rest."""

from __future__ import annotations

from sqlalchemy import Connection

from slideway.store.audit import Audit
from slideway.store.byte_ledger import ByteLedger
from slideway.store.cases import Cases
from slideway.store.consultations import Consultations
from slideway.store.facet import Clock
from slideway.store.findings import Findings
from slideway.store.inbox import Inbox
from slideway.store.jobs import Jobs
from slideway.store.nodes import Nodes, Tenants
from slideway.store.outbox import Outbox
from slideway.store.reports import Reports
from slideway.store.slides import Slides
from slideway.store.uploads import Uploads


class Work:
    """What one transaction of one tenant may read and write; all of it is kept, or none.

    Attributes:
        tenant: Whose; None in the operator's view of all.
    """

    def __init__(self, connection: Connection, tenant: str | None, clock: Clock) -> None:
        self.tenant = tenant
        self.cases = Cases(connection, tenant, clock)
        self.slides = Slides(connection, tenant, clock)
        self.jobs = Jobs(connection, tenant, clock)
        self.outbox = Outbox(connection, tenant, clock)
        self.inbox = Inbox(connection, tenant, clock)
        self.findings = Findings(connection, tenant, clock)
        self.reports = Reports(connection, tenant, clock)
        self.consultations = Consultations(connection, tenant, clock)
        self.nodes = Nodes(connection, tenant, clock)
        self.uploads = Uploads(connection, tenant, clock)
        self.audit = Audit(connection, tenant, clock)
        self.bytes = ByteLedger(connection, tenant, clock)

    def finish(self) -> None:
        """Do what is left for the end of the transaction."""
        self.audit.write()


class WorkOfAll(Work):
    """The operator's view: lists and counts run over all tenants, single rows are reached through `of`."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        super().__init__(connection, None, clock)
        self.tenants = Tenants(connection, None, clock)
        self._connection, self._clock = connection, clock
        self._parts: dict[str, Work] = {}

    def of(self, tenant: str) -> Work:
        """The same transaction, as one tenant sees it."""
        if tenant not in self._parts:
            self._parts[tenant] = Work(self._connection, tenant, self._clock)
        return self._parts[tenant]

    def finish(self) -> None:
        """Do what is left, tenants in one order, so that two operators never wait for each other in a circle."""
        for tenant in sorted(self._parts):
            self._parts[tenant].finish()
