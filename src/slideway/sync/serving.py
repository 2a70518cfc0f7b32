"""A process that is talked to, node or cloud: the socket it listens on, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from slideway.core.errors import WrongUseError

_SIGNALS = ("SIGTERM", "SIGINT", "SIGBREAK")  # the last is what a Windows service manager sends


class QuietServer(uvicorn.Server):
    """Leaves signals to whoever runs it, who knows of workers too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listen(host: str, port: int, *, settings: str, backlog: int | None = None) -> socket.socket:
    """The socket that others come to.

    Args:
        host: Address.
        port: Port; 0 for any free one.
        settings: Where both are set, for the message, e.g. `[web] host and port in edge.toml`.
        backlog: Connections that may wait; None for the system's own.

    Raises:
        WrongUseError: The port is taken, or the address is not this computer's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise WrongUseError(
            f"{host}, port {port}: cannot be listened on ({why}); stop what listens there, or set {settings}"
        ) from error


def obey_signals(end: Callable[[int], None]) -> None:
    """Call `end` with the number of a signal that asks this process to end; inside a running event loop."""
    loop = asyncio.get_running_loop()
    for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
        try:
            loop.add_signal_handler(number, end, number)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or a thread of a test
            with contextlib.suppress(ValueError):
                signal.signal(number, lambda n, _: loop.call_soon_threadsafe(end, n))
