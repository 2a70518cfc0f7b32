"""Run a cloud's process: TLS, slow clients cut off, and a drain on SIGTERM that ends with 0 within a bound."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from asyncio import sslproto
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

import slideway
from slideway.cloud.app import Cloud, create_app, make_shelf, open_cloud
from slideway.cloud.chores import Chore
from slideway.cloud.gate import Drain
from slideway.cloud.init import EVERYWHERE, SERVER, SERVER_KEY
from slideway.cloud.logs import log
from slideway.cloud.pki import choose_host, read_hosts
from slideway.cloud.settings import CloudSettings
from slideway.cloud.worker import Crew
from slideway.core.errors import UnreachableStoreError, WrongUseError
from slideway.sync.serving import QuietServer, listen, obey_signals
from slideway.sync.shelf import Shelf

_EXPIRE_SECONDS = 600.0
_GOODBYE_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # so often a database that is not there yet is looked for
_BACKLOG = 2048
# Requests that may use the store at a time: no more than the pool keeps connections. More threads only wait for each
# other (measured by bench/cloud/load.py), and connections beyond the pool are opened anew for each transaction.
_THREADS = 8
# What asyncio keeps for each TLS connection to read into: 256 KiB of its own accord, most of what an idle node costs.
_TLS_READ_BYTES = 32 * 2**10
KEEP_ALIVE_SECONDS = 75  # longer than most proxies keep an idle connection, so that they close it, not we


class _PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for the head of a request."""

    header_seconds = 20.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begin counting at the first byte of a head, stop at its last; between requests keep-alive counts."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        is_between = self.conn.their_state is h11.DONE or (self.cycle is not None and not self.conn.trailing_data[0])
        if is_answering or is_between:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self._cut)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._deadline = None
        log("head-too-slow")
        self.transport.close()


class _Server(QuietServer):
    """Does not wait for clients to say goodbye."""

    async def _wait_tasks_to_complete(self) -> None:
        """Wait for requests in hand and for their last bytes, but not for the other half of a TLS goodbye."""
        while self.server_state.tasks and not self.force_exit:
            await asyncio.sleep(0.05)
        await asyncio.sleep(_GOODBYE_SECONDS)
        while self.server_state.connections and not self.force_exit:
            for connection in list(self.server_state.connections):
                transport: asyncio.WriteTransport = connection.transport
                if transport.get_write_buffer_size() == 0:
                    transport.abort()
            await asyncio.sleep(0.05)


def open_patiently(
    settings: CloudSettings,
    *,
    allow_without_backup: bool = False,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Cloud:
    """Open a cloud whose database may still be starting, as where one command starts both.

    Args:
        settings: Of the cloud.
        allow_without_backup: Migrate PostgreSQL: the operator has a backup.
        wait: Waits some seconds.
        clock: Seconds.

    Raises:
        UnreachableStoreError: It did not answer within `[store] wait_seconds`.
    """
    until = clock() + (0.0 if settings.is_embedded else settings.store.wait_seconds)
    while True:
        try:
            return open_cloud(settings, allow_without_backup=allow_without_backup)
        except UnreachableStoreError as error:
            left = until - clock()
            if left <= 0:
                raise
            log("waiting-for-database", level=logging.WARNING, code=error.code, seconds=round(left))
            wait(min(_LOOK_SECONDS, left))


def serve_cloud(cloud: Cloud, *, role: str = "all", on_ready: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; the exit code.

    Args:
        cloud: Open; closed at the end.
        role: `api`, `worker` or `all`.
        on_ready: Called with the address once it is listened on.

    Raises:
        WrongUseError: A role apart with a database that only one process may write.
    """
    if role != "all" and cloud.settings.is_embedded:
        raise WrongUseError("a SQLite store has one process: serve with --role all, or set [store] url to PostgreSQL")
    try:
        return asyncio.run(_serve(cloud, role, on_ready))
    finally:
        cloud.close()


async def _serve(cloud: Cloud, role: str, on_ready: Callable[[str], None] | None) -> int:
    _limit_threads()
    _limit_tls_memory()
    own = cloud.settings.server
    listening = listen(own.host, own.port, settings="[server] host and port in cloud.toml", backlog=_BACKLOG)
    drain, crew = Drain(), cloud.hire() if role in ("worker", "all") else None
    server = _Server(make_config(cloud, create_app(cloud, role=role, drain=drain)))
    _obey_signals(server, drain)
    if crew is not None:
        crew.start()
    running = asyncio.create_task(server.serve(sockets=[listening]))
    chores = asyncio.create_task(_expire(cloud)) if role != "worker" else None
    await _tell_when_ready(server, running, listening, cloud, on_ready)
    try:
        await running
    finally:
        if chores is not None:
            chores.cancel()
    return await _end(cloud, crew, running)


def _limit_threads() -> None:
    """Of this event loop: those in which requests use store and disk."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS


def _limit_tls_memory() -> None:
    """Of this process: thousands of nodes are connected, and few of them send at a time."""
    if hasattr(sslproto.SSLProtocol, "max_size"):  # asyncio's own, not in its documentation
        sslproto.SSLProtocol.max_size = _TLS_READ_BYTES


def make_config(cloud: Cloud, app: Any) -> uvicorn.Config:
    """How uvicorn is to serve an application of this cloud."""
    own = cloud.settings.server
    protocol = type("_Protocol", (_PatientProtocol,), {"header_seconds": own.header_seconds})
    tls: dict[str, Any] = {}
    if own.tls:
        tls = {"ssl_certfile": cloud.folder.path / SERVER, "ssl_keyfile": cloud.folder.path / SERVER_KEY}
    config = uvicorn.Config(
        app,
        host=own.host,
        port=own.port,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=own.connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(own.drain_seconds)),
        backlog=_BACKLOG,
        proxy_headers=bool(own.proxy_addresses),
        forwarded_allow_ips=list(own.proxy_addresses),
        **tls,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def _obey_signals(server: uvicorn.Server, drain: Drain) -> None:
    def end(number: int) -> None:
        if drain.has_begun:
            server.force_exit = True  # asked twice: what is in hand is dropped, and comes again
        log("draining", signal=number)
        drain.begin()
        server.should_exit = True

    obey_signals(end)


async def _tell_when_ready(
    server: uvicorn.Server,
    running: asyncio.Task[None],
    listening: socket.socket,
    cloud: Cloud,
    on_ready: Callable[[str], None] | None,
) -> None:
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if not server.started:
        return
    port = listening.getsockname()[1]
    log("serving", port=port, version=slideway.__version__)
    if on_ready is not None:
        on_ready(name_address(cloud, port))


def name_address(cloud: Cloud, port: int) -> str:
    """The address to type: of a process that listens everywhere, with a name of the certificate."""
    own, host = cloud.settings.server, cloud.settings.server.host
    if host in EVERYWHERE:
        host = choose_host(read_hosts((cloud.folder.path / SERVER).read_bytes()))
    return f"{'https' if own.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def _end(cloud: Cloud, crew: Crew | None, running: asyncio.Task[None]) -> int:
    """Let workers finish what they hold; 0 unless the server itself could not start."""
    if crew is not None:
        ended = await asyncio.to_thread(crew.stop, within_seconds=cloud.settings.server.drain_seconds)
        if not ended:
            log("workers-did-not-end", level=logging.WARNING)
    log("ended")
    return 6 if running.cancelled() or running.exception() is not None else 0


async def _expire(cloud: Cloud) -> None:
    """Throw away uploads that did not grow for too long."""
    shelf = make_shelf(cloud)

    chore, wait = Chore("expiry", lambda: expire_all(cloud, shelf), every_seconds=_EXPIRE_SECONDS), _EXPIRE_SECONDS
    while True:
        await asyncio.sleep(wait)
        wait = await asyncio.to_thread(chore.run)


def expire_all(cloud: Cloud, shelf: Shelf) -> None:
    """Expire uploads of all tenants; the first failure is raised once the others are done."""
    with cloud.store.reading_of_all() as work:
        tenants = [row.tenant for row in work.tenants.find_all()]
    failures: list[Exception] = []
    for tenant in tenants:
        try:
            shelf.remove_expired(tenant)
        except Exception as error:  # noqa: BLE001  # one tenant's failure must not fill the disk with the others'
            failures.append(error)
    if failures:
        raise failures[0]
