"""Count what really goes over the line: request and status lines, headers, bodies, and what TLS adds, estimated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import local

import httpx

# Estimates from memory of RFC 8446, for TLS 1.3 with AES-GCM: a record carries at most 16 KiB and adds a header of 5,
# a content type of 1 and a tag of 16; a full handshake with one small certificate is about 2 KB in, half of that out.
RECORD_BYTES, RECORD_OVERHEAD_BYTES = 16_384, 22
HANDSHAKE_OUT_BYTES, HANDSHAKE_IN_BYTES = 700, 2_000


@dataclass
class Traffic:
    """Bytes of one request, or of several.

    Attributes:
        out_bytes: What we sent: request line, headers, body.
        in_bytes: What came back: status line, headers, body.
        tls_out_bytes: Of what we sent, what encryption added (estimated).
        tls_in_bytes: Of what came, what encryption added (estimated).
    """

    out_bytes: int = 0
    in_bytes: int = 0
    tls_out_bytes: int = 0
    tls_in_bytes: int = 0

    @property
    def all_out_bytes(self) -> int:
        """All that left."""
        return self.out_bytes + self.tls_out_bytes

    @property
    def all_in_bytes(self) -> int:
        """All that came."""
        return self.in_bytes + self.tls_in_bytes

    def add(self, other: Traffic) -> None:
        """Add another's bytes."""
        self.out_bytes += other.out_bytes
        self.in_bytes += other.in_bytes
        self.tls_out_bytes += other.tls_out_bytes
        self.tls_in_bytes += other.tls_in_bytes


class LineMeter(httpx.BaseTransport):
    """A transport that counts what goes through another; each thread counts for itself."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport
        self._local = local()

    def take(self) -> Traffic:
        """What this thread has sent and received since it last asked; also of requests that failed."""
        traffic: Traffic = getattr(self._local, "traffic", Traffic())
        self._local.traffic = Traffic()
        return traffic

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and count."""
        traffic = self._current()
        is_tls = request.url.scheme == "https"
        target = request.url.raw_path
        _count_out(traffic, len(request.method) + len(target) + 12 + _header_bytes(request.headers), is_tls=is_tls)
        assert isinstance(request.stream, httpx.SyncByteStream)
        counted = _CountedOut(request.stream, traffic, is_tls=is_tls)
        seen: list[str] = []
        extensions = {**request.extensions, "trace": lambda name, _: seen.append(name)}
        response = self._transport.handle_request(
            httpx.Request(request.method, request.url, headers=request.headers, stream=counted, extensions=extensions)
        )
        if "connection.start_tls.complete" in seen:
            traffic.tls_out_bytes += HANDSHAKE_OUT_BYTES
            traffic.tls_in_bytes += HANDSHAKE_IN_BYTES
        reason = response.extensions.get("reason_phrase", b"")
        _count_in(traffic, 15 + len(reason) + _header_bytes(response.headers), is_tls=is_tls)
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _CountedIn(response.stream, traffic, is_tls=is_tls)
        return response

    def close(self) -> None:
        """Close what is under it."""
        self._transport.close()

    def _current(self) -> Traffic:
        if not hasattr(self._local, "traffic"):
            self._local.traffic = Traffic()
        traffic: Traffic = self._local.traffic
        return traffic


class _CountedOut(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, traffic: Traffic, *, is_tls: bool) -> None:
        self._stream, self._traffic, self._is_tls = stream, traffic, is_tls

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if chunk:
                _count_out(self._traffic, len(chunk), is_tls=self._is_tls)
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _CountedIn(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, traffic: Traffic, *, is_tls: bool) -> None:
        self._stream, self._traffic, self._is_tls = stream, traffic, is_tls

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            _count_in(self._traffic, len(chunk), is_tls=self._is_tls)
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _header_bytes(headers: httpx.Headers) -> int:
    """`name: value` and a line's end each, and the empty line."""
    return sum(len(name) + len(value) + 4 for name, value in headers.raw) + 2


def _count_out(traffic: Traffic, n_bytes: int, *, is_tls: bool) -> None:
    traffic.out_bytes += n_bytes
    traffic.tls_out_bytes += _records(n_bytes) if is_tls else 0


def _count_in(traffic: Traffic, n_bytes: int, *, is_tls: bool) -> None:
    traffic.in_bytes += n_bytes
    traffic.tls_in_bytes += _records(n_bytes) if is_tls else 0


def _records(n_bytes: int) -> int:
    return -(-n_bytes // RECORD_BYTES) * RECORD_OVERHEAD_BYTES
