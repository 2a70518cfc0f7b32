"""The one place where a cloud is put together: settings in, application and workers out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

import slideway
from slideway.cloud.api.answers import ERRORS, add_error_answers
from slideway.cloud.api.health import make_health_router
from slideway.cloud.api.nodes import make_nodes_router
from slideway.cloud.api.openapi import describe_api
from slideway.cloud.api.operators import make_operators_router, make_pages_router
from slideway.cloud.api.specialists import make_specialists_router
from slideway.cloud.arrivals import make_handlers
from slideway.cloud.consult import Desk
from slideway.cloud.enrolment import Newcomer, enrol_node
from slideway.cloud.fleet import gauge_fleet
from slideway.cloud.gate import Bucket, Drain, Gate
from slideway.cloud.ingest import Ingest
from slideway.cloud.init import CloudFolder, open_folder
from slideway.cloud.metrics import Metrics
from slideway.cloud.people import People
from slideway.cloud.settings import CloudSettings
from slideway.cloud.worker import Crew, Tools
from slideway.store.blobs import Blobs, open_blobs
from slideway.store.database import Store, open_store
from slideway.sync import folder as folder_room
from slideway.sync.face import Face, UploadsFirst, make_router
from slideway.sync.folder import Imported
from slideway.sync.sessions import Sender, Sessions
from slideway.sync.shelf import Shelf
from slideway.sync.tus import TusServer

ROLES = ("api", "worker", "all")


@dataclass(frozen=True)
class Cloud:
    """A cloud that is open: everything that its parts share.

    Attributes:
        settings: As they were read.
        folder: Keys and certificates.
        store: The database.
        blobs: Where bundles lie.
        people: Who may call.
        metrics: Counts of this process.
    """

    settings: CloudSettings
    folder: CloudFolder
    store: Store
    blobs: Blobs
    people: People
    metrics: Metrics

    def close(self) -> None:
        """Close the store; twice is once."""
        self.store.close()

    @property
    def tools(self) -> Tools:
        """What workers need."""
        return Tools(self.store, self.blobs, self.folder.keys, self.settings, self.metrics)

    def hire(self) -> Crew:
        """Workers, not begun yet; in a file's database the only ones, so that leases of a killed process end now."""
        if self.settings.is_embedded:
            with self.store.transaction_of_all() as work:
                work.jobs.free_all()
        return Crew(self.tools)


def open_cloud(settings: CloudSettings, *, allow_without_backup: bool = False) -> Cloud:
    """Open what the settings name.

    Args:
        settings: Of the cloud.
        allow_without_backup: Migrate PostgreSQL: the operator has a backup.

    Raises:
        WrongUseError: The folder holds no cloud.
        StoreError: The database is not there, locked, or of another version.
        BlobError: The place for blobs cannot be opened.
    """
    folder = open_folder(settings.folder)
    blobs = open_blobs_of(settings)
    store = open_store(settings.store_url, allow_without_backup=allow_without_backup)
    return Cloud(settings, folder, store, blobs, folder.people, Metrics())


def open_blobs_of(settings: CloudSettings) -> Blobs:
    """The place for blobs that the settings name."""
    own = settings.blobs
    return open_blobs(
        settings.blobs_url,
        endpoint=own.endpoint,
        region=own.region,
        access_key_id=own.access_key_id,
        secret_access_key=own.secret_access_key,
    )


def create_app(cloud: Cloud, *, role: str = "all", drain: Drain | None = None) -> ASGIApp:
    """The application of a role; `worker` serves health and figures only.

    Args:
        cloud: Open.
        role: `api`, `worker` or `all`.
        drain: Begun at a shutdown.
    """
    drain = drain or Drain()
    settings = cloud.settings
    api = make_api(cloud, role=role, drain=drain)
    app: ASGIApp = api if role == "worker" else UploadsFirst(api, api.state.face)
    server = settings.server
    limits = {
        ("POST", "/v1/enrol"): Bucket(server.enrols_per_minute),
        ("POST", "/v1/sessions"): Bucket(server.sessions_per_minute),
    }
    return Gate(
        app,
        metrics=cloud.metrics,
        drain=drain,
        max_body_bytes=server.max_body_bytes,
        idle_seconds=server.idle_seconds,
        limits=limits,
    )


def make_api(cloud: Cloud, *, role: str, drain: Drain) -> FastAPI:
    """All routes of a role, without the gate around them."""
    settings = cloud.settings
    app = FastAPI(
        title="Slideway cloud",
        version=slideway.__version__,
        description="Nodes send case bundles and get opinions; specialists answer; operators see the fleet.",
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    app.state.people, app.state.open_metrics = cloud.people, settings.server.open_metrics
    add_error_answers(app)
    uploads = settings.uploads_folder
    uploads.mkdir(parents=True, exist_ok=True)
    app.include_router(_make_health(cloud, uploads, drain))
    if role != "worker":
        _add_routes(app, cloud)
    cloud.metrics.watch(lambda: gauge_fleet(cloud.store, uploads))
    describe_api(app)
    return app


def _make_health(cloud: Cloud, uploads: Path, drain: Drain) -> APIRouter:
    return make_health_router(
        cloud.store,
        cloud.blobs,
        uploads,
        cloud.metrics,
        min_free_bytes=cloud.settings.uploads.min_free_mb * 2**20,
        is_draining=lambda: drain.has_begun,
    )


def make_shelf(cloud: Cloud) -> Shelf:
    """Where uploads grow, and what is done with them: over the line as from a folder."""
    settings, keys = cloud.settings, cloud.folder.keys
    ingest = Ingest(cloud.store, cloud.blobs, keys, settings, cloud.metrics)
    kept_seconds = settings.uploads.kept_days * 86_400
    return Shelf(cloud.store, settings.uploads_folder, signing=keys.signing, intake=ingest, kept_seconds=kept_seconds)


def import_packets(cloud: Cloud, folder: Path) -> Imported:
    """Take in what nodes without a line wrote into a folder, and write receipts and messages for them beside it."""
    handlers = make_handlers(Desk(cloud.store, cloud.settings.consultations))

    def enrol(said: folder_room.Newcomer) -> Sender:
        node = enrol_node(cloud.store, Newcomer(said.code, said.public_key, said.version, said.signature))
        return Sender(node.tenant, node.node)

    shelf = make_shelf(cloud)
    return folder_room.import_from_folder(cloud.store, cloud.folder.keys, shelf, handlers, folder, enrol=enrol)


def _add_routes(app: FastAPI, cloud: Cloud) -> None:
    settings, folder, store = cloud.settings, cloud.folder, cloud.store
    shelf, desk = make_shelf(cloud), Desk(store, settings.consultations)
    face = Face(
        store=store,
        sessions=Sessions(store, secret=folder.session_secret),
        tus=TusServer(shelf, max_bytes=settings.uploads.max_bytes),
        handlers=make_handlers(desk),
        signing=folder.keys.signing,
    )
    app.state.face = face
    app.include_router(make_router(face), prefix="/v1", tags=["nodes"])
    app.include_router(make_nodes_router(store, folder), prefix="/v1")
    app.include_router(make_specialists_router(store, cloud.blobs, folder.keys, desk), prefix="/v1")
    app.include_router(make_operators_router(store, folder), prefix="/v1")
    app.include_router(make_pages_router(store))
