"""How a node comes to its cloud: the authority's certificate, and enrolment with a one-time code."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from slideway.cloud.api.models import EnrolAnswer, EnrolRequest
from slideway.cloud.enrolment import Newcomer, enrol_node
from slideway.cloud.init import CloudFolder
from slideway.cloud.logs import log
from slideway.store.database import Store


def make_nodes_router(store: Store, folder: CloudFolder) -> APIRouter:
    """Routes without a token: a node has none yet."""
    router = APIRouter(tags=["nodes"])

    @router.get(
        "/ca",
        response_class=PlainTextResponse,
        summary="Certificate of the authority (PEM), to be compared with the pin",
    )
    def give_authority() -> Response:
        return Response(folder.ca_pem, media_type="application/x-pem-file")

    @router.post("/enrol", status_code=201, summary="Turn a one-time code into a node with a key")
    def enrol(said: EnrolRequest) -> EnrolAnswer:
        node = enrol_node(store, Newcomer(said.code, said.public_key, said.version, said.signature))
        log("node-enrolled", tenant=node.tenant, node=node.node, version=node.version)
        return EnrolAnswer(
            tenant=node.tenant,
            node=node.node,
            cloud_key=folder.keys.public_key,
            cloud_receiving_key=folder.keys.receiving_key,
            ca_pem=folder.ca_pem.decode("ascii"),
        )

    return router
