"""Serve a node until SIGTERM or Ctrl-C, with its pages; what is in hand then is finished or given back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from slideway.core.errors import WrongUseError
from slideway.edge.app import Edge
from slideway.edge.logs import log
from slideway.edge.settings import WebSettings
from slideway.edge.web.app import create_pages

_DRAIN_SECONDS = 15.0


class _Server(uvicorn.Server):
    """Leaves signals to `serve_edge`, which knows of workers too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
    finally:
        is_ended = edge.stop(within_seconds=_DRAIN_SECONDS)
        log("ended", whole=is_ended)


async def _serve(edge: Edge, on_ready: Callable[[str], None] | None) -> int:
    own = edge.node.settings.web
    listening = listen(own)
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
    server = _Server(config)
    _obey_signals(server)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if server.started:
        port = listening.getsockname()[1]
        host = f"[{own.host}]" if ":" in own.host else own.host
        url = f"http://{host}:{port}"
        edge.note_serving(url)
        edge.start()
        log("serving", port=port)
        if on_ready is not None:
            on_ready(url)
    await running
    return 0


def listen(web: WebSettings) -> socket.socket:
    """The socket that browsers come to.

    Raises:
        WrongUseError: The port is taken, or the address is not this computer's.
    """
    family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
    try:
        return socket.create_server((web.host, web.port), family=family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise WrongUseError(
            f"{web.host}, port {web.port}: cannot be listened on ({why}); stop what listens there, or set "
            "[web] host and port in edge.toml"
        ) from error


def _obey_signals(server: uvicorn.Server) -> None:
    def end(number: int) -> None:
        log("draining", signal=number)
        server.should_exit = True

    loop = asyncio.get_running_loop()
    names = ("SIGTERM", "SIGINT", "SIGBREAK")  # the last is what a Windows service manager sends
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        try:
            loop.add_signal_handler(number, end, number)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or a thread of a test
            with contextlib.suppress(ValueError):
                signal.signal(number, lambda n, _: loop.call_soon_threadsafe(end, n))
