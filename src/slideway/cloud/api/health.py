"""Whether this process lives, whether it is ready, and its figures for Prometheus."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Depends, Response

from slideway.cloud.api.guards import require_scraper
from slideway.cloud.api.models import HealthAnswer
from slideway.cloud.metrics import CONTENT_TYPE, Metrics
from slideway.core.errors import SlidewayError
from slideway.store.blobs import Blobs
from slideway.store.database import Store

_PROBE = "0" * 64  # a blob that nobody has: to ask for it shows that the place answers


def make_health_router(
    store: Store, blobs: Blobs, folder: Path, metrics: Metrics, *, min_free_bytes: int, is_draining: Callable[[], bool]
) -> APIRouter:
    """Routes for those who run the process."""
    router = APIRouter(tags=["health"])

    @router.get("/health/live", summary="The process answers")
    async def live() -> HealthAnswer:
        return HealthAnswer(status="live")

    @router.get("/health/ready", summary="Database, blobs and disk are there, and it is not going down")
    def ready(response: Response) -> HealthAnswer:
        checks = check_ready(store, blobs, folder, min_free_bytes=min_free_bytes)
        if is_draining():
            checks["process"] = "draining"
        is_ready = all(said == "ok" for said in checks.values())
        response.status_code = 200 if is_ready else 503
        return HealthAnswer(status="ready" if is_ready else "not-ready", checks=checks)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Figures as Prometheus reads them"}},
        dependencies=[Depends(require_scraper)],
        summary="Figures for Prometheus",
    )
    def figures() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return router


def check_ready(store: Store, blobs: Blobs, folder: Path, *, min_free_bytes: int) -> dict[str, str]:
    """What works, by name: `ok`, or the code of what does not."""
    checks = {}
    try:
        with store.reading_of_all() as work:
            work.tenants.find_all()
        checks["database"] = "ok"
    except SlidewayError as error:
        checks["database"] = error.code
    try:
        blobs.exists("ready", _PROBE)
        checks["blobs"] = "ok"
    except SlidewayError as error:
        checks["blobs"] = error.code
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    checks["disk"] = "ok" if free >= min_free_bytes else "disk-full"
    return checks
