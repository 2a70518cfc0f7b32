"""What operators do: tenants, invitations, revocations, commands, and the fleet in JSON and as a page."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from slideway.cloud.api.guards import Operator
from slideway.cloud.api.models import (
    CommandRequest,
    InvitationAnswer,
    InvitationRequest,
    NodeAnswer,
    NodeId,
    RevocationRequest,
    TenantId,
    TenantLine,
    TenantRequest,
)
from slideway.cloud.commands import Command, command_node
from slideway.cloud.enrolment import invite_node, revoke_node
from slideway.cloud.fleet import Fleet, render_fleet, view_fleet
from slideway.cloud.init import CloudFolder
from slideway.cloud.logs import log
from slideway.store.database import Store

_PLAIN_PAGE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def make_operators_router(store: Store, folder: CloudFolder) -> APIRouter:
    """Routes of the role `operator`."""
    router = APIRouter(tags=["operators"])

    @router.get("/fleet", summary="All nodes: how long ago heard of, what waits, what came")
    def give_fleet(_: Operator) -> Fleet:
        return view_fleet(store)

    @router.get("/tenants", summary="All tenants")
    def give_tenants(_: Operator) -> list[TenantLine]:
        with store.reading_of_all() as work:
            return [TenantLine.model_validate(row) for row in work.tenants.find_all()]

    @router.post("/tenants", status_code=201, summary="Add a tenant; one that is there stays as it is")
    def add_tenant(said: TenantRequest, person: Operator) -> TenantLine:
        store.add_tenant(said.tenant, name=said.name)
        log("tenant-added", tenant=said.tenant, person=person.name)
        with store.reading_of_all() as work:
            return next(TenantLine.model_validate(row) for row in work.tenants.find_all() if row.tenant == said.tenant)

    @router.post(
        "/tenants/{tenant}/nodes/{node}/invitation", status_code=201, summary="Invite a node: a code that works once"
    )
    def invite(tenant: TenantId, node: NodeId, said: InvitationRequest, person: Operator) -> InvitationAnswer:
        code = invite_node(store, tenant, node, ca_pem=folder.ca_pem, name=said.name, hours=said.hours)
        log("node-invited", tenant=tenant, node=node, person=person.name)
        return InvitationAnswer(code=code)

    @router.post("/tenants/{tenant}/nodes/{node}/revocation", summary="Let a node do nothing any more, at once")
    def revoke(tenant: TenantId, node: NodeId, said: RevocationRequest, person: Operator) -> NodeAnswer:
        revoked = revoke_node(store, tenant, node, reason=said.reason)
        log("node-revoked", tenant=tenant, node=node, person=person.name)
        return NodeAnswer.model_validate(revoked)

    @router.post("/tenants/{tenant}/nodes/{node}/commands", status_code=202, summary="Pause, resume, or give priority")
    def command(tenant: TenantId, node: NodeId, said: CommandRequest, person: Operator) -> NodeAnswer:
        order = Command(said.id, said.do, said.slide, said.urgent)
        known = command_node(store, tenant, node, order, actor=person.name)
        log("command-given", tenant=tenant, node=node, person=person.name)
        return NodeAnswer.model_validate(known)

    return router


def make_pages_router(store: Store) -> APIRouter:
    """The same for a browser; it asks for a name (any) and the token as password."""
    router = APIRouter(tags=["operators"])

    @router.get("/fleet", response_class=HTMLResponse, summary="The fleet as a page")
    def show_fleet(_: Operator) -> HTMLResponse:
        return HTMLResponse(render_fleet(view_fleet(store)), headers=_PLAIN_PAGE)

    return router
