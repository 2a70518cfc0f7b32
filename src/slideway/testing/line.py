"""Bad lines for tests: a relay that delays, throttles, stalls, resets and cuts, and one that knows HTTP and repeats.

`BadLine` passes bytes on whatever they are, TLS too. `MeanRelay` reads plain HTTP/1.1 and delivers requests twice,
late, out of order, by halves, or swallows the answer: what a network, a proxy and an impatient client do between them.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_CHUNK_BYTES = 1400  # about one packet: so that chances are chances for each packet
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Weather:
    """How a line is at a moment.

    Attributes:
        delay_seconds: Added to each packet on its way, in both directions.
        jitter_seconds: Added on top, uniform from 0.
        bytes_per_second: Width in each direction, all connections together; 0 for any.
        stall_chance: That a packet is lost: it comes `stall_seconds` later, as after a retransmission.
        stall_seconds: How long that takes.
        reset_chance: That a packet breaks its connection.
        is_cut: Nobody answers, and what is open hears nothing more.
    """

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0
    stall_chance: float = 0.0
    stall_seconds: float = 0.3
    reset_chance: float = 0.0
    is_cut: bool = False


GOOD = Weather()
CUT = Weather(is_cut=True)
SLOW = Weather(bytes_per_second=8000)  # 64 kbit/s
LOSSY = Weather(stall_chance=0.05, reset_chance=0.005)
FAR = Weather(delay_seconds=1.0)  # a second each way: two for an answer


class BadLine:
    """A TCP relay on loopback whose weather can change at any time.

    Attributes:
        weather: As it is now; set it.
        host: Where clients connect to.
        port: There.
        entrance: Empty: clients stand where the relay stands.
        seen: What happened, by name: connections, packets, stalls, resets, refused.
        carried_bytes: Up (to the server) and down.
    """

    entrance: tuple[str, ...] = ()

    def __init__(self, target_port: int, *, seed: int = 0, listening: socket.socket | None = None) -> None:
        """Listen.

        Args:
            target_port: Where bytes go, on 127.0.0.1.
            seed: Of what is left to chance.
            listening: Where clients connect to; None for a free port of 127.0.0.1.
        """
        self.weather = GOOD
        self.seen: Counter[str] = Counter()
        self.carried_bytes = {"up": 0, "down": 0}
        self._target = "127.0.0.1", target_port
        self._random = random.Random(seed)  # noqa: S311  # not a secret
        self._free_at = {"up": 0.0, "down": 0.0}
        self._lock = threading.Lock()
        self._is_open = True
        self._sockets: set[socket.socket] = set()
        self._listening = listening or socket.create_server(("127.0.0.1", 0), backlog=256)
        self.host, self.port = self._listening.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Break every connection and stop listening."""
        self._is_open = False
        _shut(self._listening)
        for one in list(self._sockets):
            _shut(one)

    def _accept(self) -> None:
        while self._is_open:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.weather.is_cut:
                self.seen["refused"] += 1
                _shut(client)
                continue
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                self.seen["refused"] += 1
                _shut(client)
                continue
            self.seen["connections"] += 1
            server.settimeout(None)
            self._sockets |= {client, server}
            for source, target, way in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pass_on, args=(source, target, way), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str) -> None:
        try:
            while chunk := source.recv(_CHUNK_BYTES):
                if self._hold(len(chunk), way):
                    target.sendall(chunk)
                    self.carried_bytes[way] += len(chunk)
        except OSError:
            pass
        finally:
            for one in (source, target):
                _shut(one)
                self._sockets.discard(one)

    def _hold(self, n_bytes: int, way: str) -> bool:
        """Wait as long as the weather wants it."""
        weather = self.weather
        while weather.is_cut:
            if not self._is_open:
                raise ConnectionResetError
            time.sleep(_LOOK_SECONDS)
            weather = self.weather
            if not weather.is_cut:
                raise ConnectionResetError  # what was open through an outage is not open after it
        with self._lock:
            self.seen["packets"] += 1
            drawn, jitter = self._random.random(), self._random.random()
            wait = weather.delay_seconds + jitter * weather.jitter_seconds
            if drawn < weather.reset_chance:
                self.seen["resets"] += 1
                raise ConnectionResetError
            if drawn < weather.reset_chance + weather.stall_chance:
                self.seen["stalls"] += 1
                wait += weather.stall_seconds
            if weather.bytes_per_second:
                now = time.monotonic()
                self._free_at[way] = max(self._free_at[way], now) + n_bytes / weather.bytes_per_second
                wait += self._free_at[way] - now
        if wait > 0:
            time.sleep(wait)
        return True


@dataclass(frozen=True)
class Malice:
    """How often, of a hundred requests, each of these happens to one.

    Attributes:
        lost: It never arrives.
        halved: Only its first half arrives.
        unanswered: It arrives, its answer does not.
        doubled: It arrives twice, one after the other; the second answer is given.
        raced: It arrives twice at the same time; one of the answers is given.
        late: It arrives, and once more after a while.
        delayed: The client hears nothing, and it arrives only after a while, behind what the client sent since.
        longest_seconds: The longest such while.
    """

    lost: float = 4
    halved: float = 3
    unanswered: float = 8
    doubled: float = 8
    raced: float = 4
    late: float = 10
    delayed: float = 5
    longest_seconds: float = 5.0

    @property
    def chances(self) -> dict[str, float]:
        """By name, as parts of 1."""
        names = ("lost", "halved", "unanswered", "doubled", "raced", "late", "delayed")
        return {name: float(getattr(self, name)) / 100 for name in names}


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class _Response:
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class MeanRelay:
    """An HTTP/1.1 relay on loopback that delivers requests twice, late, out of order, by halves, or not at all.

    Attributes:
        malice: How often what happens; None for never.
        port: Where clients connect to, on 127.0.0.1.
        seen: How often what happened.
    """

    def __init__(self, target_port: int, *, seed: int = 0, malice: Malice | None = None) -> None:
        self.malice, self.seen = malice, Counter[str]()
        self._target_port = target_port
        self._random = random.Random(seed)  # noqa: S311  # not a secret
        self._lock = threading.Lock()
        self._pending = 0
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def pending(self) -> int:
        """Requests that are still to be delivered late."""
        return self._pending

    def close(self) -> None:
        """Stop listening."""
        _shut(self._listening)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError), client, client.makefile("rb") as read:
            while (request := _read_request(read)) is not None:
                answer = self._carry(request)
                if answer is None:
                    break
                client.sendall(_write_response(request, answer))
        _shut(client)

    def _draw(self) -> tuple[str, float]:
        malice = self.malice
        if malice is None:
            return "passed", 0.0
        with self._lock:
            drawn, share = self._random.random(), self._random.random()
        for name, chance in malice.chances.items():
            if drawn < chance:
                return name, 0.05 + share * malice.longest_seconds
            drawn -= chance
        return "passed", 0.0

    def _carry(self, request: _Request) -> _Response | None:
        what, seconds = self._draw()
        self.seen[what] += 1
        if what == "lost":
            return None
        if what == "halved":
            self._deliver(request, half=True)
            return None
        if what == "unanswered":
            self._deliver(request)
            return None
        if what == "doubled":
            self._deliver(request)
        elif what == "raced":
            self._deliver_later(request, 0.0)
        elif what == "late":
            self._deliver_later(request, seconds)
        elif what == "delayed":
            self._deliver_later(request, seconds)
            return None
        return self._deliver(request)

    def _deliver_later(self, request: _Request, seconds: float) -> None:
        def deliver() -> None:
            self._deliver(request)
            with self._lock:
                self._pending -= 1

        with self._lock:
            self._pending += 1
        timer = threading.Timer(seconds, deliver)
        timer.daemon = True
        timer.start()

    def _deliver(self, request: _Request, *, half: bool = False) -> _Response | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._target_port, timeout=70)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                connection.putheader(name, value)
            connection.endheaders()
            if half:
                connection.send(request.body[: len(request.body) // 2])
                return None
            if request.body:
                connection.send(request.body)
            answer = connection.getresponse()
            return _Response(answer.status, answer.reason, tuple(answer.getheaders()), answer.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _read_request(file: object) -> _Request | None:
    lines = _read_lines(file)
    first = next(lines, "")
    if not first:
        return None
    method, path, _ = first.split(" ", 2)
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.strip(), value.strip()))
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    body = file.read(length) if length else b""  # type: ignore[attr-defined]
    if len(body) < length:
        return None
    return _Request(method, path, tuple(headers), body)


def _read_lines(file: object) -> Iterator[str]:
    while line := file.readline(65_536).decode("latin-1").rstrip("\r\n"):  # type: ignore[attr-defined]
        yield line


def _write_response(request: _Request, answer: _Response) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
    kept = [(name, value) for name, value in answer.headers if name.lower() not in ("transfer-encoding", "connection")]
    if not any(name.lower() == "content-length" for name, _ in kept) and answer.status not in (204, 304):
        kept.append(("Content-Length", str(len(answer.body))))
    lines += [f"{name}: {value}" for name, value in kept]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if request.method == "HEAD" else head + answer.body


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()
