"""Serve a node until SIGTERM or Ctrl-C, with its pages; what is in hand then is finished or given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import uvicorn

from slideway.core.errors import SlidewayError
from slideway.edge.app import Edge
from slideway.edge.logs import log
from slideway.edge.web.app import create_pages
from slideway.sync.serving import QuietServer, listen, obey_signals

_DRAIN_SECONDS = 15.0


def serve_edge(edge: Edge, *, on_ready: Callable[[str], None] | None = None) -> int:
    """Serve; the exit code.

    Args:
        edge: Open; closed at the end.
        on_ready: Called with the address of the pages once they are there.

    Raises:
        WrongUseError: The pages' port is taken, or the address is not this computer's.
    """
    try:
        return asyncio.run(_serve(edge, on_ready))
    except SlidewayError as error:
        log("not-started" if not edge.is_started else "failed", level=logging.ERROR, code=error.code)
        raise
    finally:
        was_started = edge.is_started
        is_ended = edge.stop(within_seconds=_DRAIN_SECONDS)
        if was_started:
            log("ended", whole=is_ended)


async def _serve(edge: Edge, on_ready: Callable[[str], None] | None) -> int:
    own = edge.node.settings.web
    listening = listen(own.host, own.port, settings="[web] host and port in edge.toml")
    config = uvicorn.Config(
        create_pages(edge),
        host=own.host,
        port=own.port,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = QuietServer(config)

    def end(number: int) -> None:
        log("draining", signal=number)
        server.should_exit = True

    obey_signals(end)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        port = listening.getsockname()[1]
        host = f"[{own.host}]" if ":" in own.host else own.host
        url = f"http://{host}:{port}"
        edge.start()
        edge.note_serving(url)
        log("serving", port=port)
        if on_ready is not None:
            on_ready(url)
    await running
    return 0
