"""Nodes as the cloud sees them: their own TLS connection, session and uploads; plain asyncio, to leave cores to it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from bundles import Sendable
from slideway.sync.identity import Endpoint, Keys, check_receipt, sign_challenge
from slideway.sync.tus import CONTENT_TYPE, VERSION, metadata_of

_WITH_CREATION_BYTES = 16 * 2**10  # as sync/pump.py does
_CONNECT_SECONDS, _READ_SECONDS = 15.0, 60.0  # as sync/line.py does
_TRIES = 12
_MOST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Reply:
    """An answer of the cloud.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class RefusedError(Exception):
    """The cloud answered, but not as it should."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"{reply.status}: {reply.body[:200]!r}")
        self.reply = reply


class Connection:
    """One keep-alive connection, opened when it is needed."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host, self._port, self._tls = host, port, tls
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """One request; OSError or EOFError when the connection does not live through it."""
        if self._streams is None:
            opening = asyncio.open_connection(self._host, self._port, ssl=self._tls)
            self._streams = await asyncio.wait_for(opening, _CONNECT_SECONDS)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            writer.write("\r\n".join([*lines, "\r\n"]).encode() + body)
            head = (
                (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _READ_SECONDS)).decode("latin-1").split("\r\n")
            )
            found = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            size = 0 if method == "HEAD" else int(found.get("content-length", "0"))
            content = await reader.readexactly(size) if size else b""
        except BaseException:
            self.close()
            raise
        if found.get("connection") == "close":
            self.close()
        return Reply(int(head[0].split()[1]), found, content)

    def close(self) -> None:
        """Cut it; the next request opens another."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class Node:
    """One hospital's node."""

    def __init__(self, keys: Keys, endpoint: Endpoint, connection: Connection, troubles: Counter[str]) -> None:
        self.keys, self.endpoint, self.connection, self._troubles = keys, endpoint, connection, troubles
        self._token = ""

    async def begin_session(self) -> None:
        """Prove who it is."""
        who = {"tenant": self.endpoint.tenant, "node": self.endpoint.node}
        begun = json.loads((await self._ask_json("POST", "/v1/sessions", who, 201)).body)
        proof = {"signature": sign_challenge(self.keys.signing, begun["challenge"])}
        reply = await self._ask_json("PUT", f"/v1/sessions/{begun['session']}", proof, 200)
        self._token = json.loads(reply.body)["token"]

    async def send(self, bundle: Sendable, *, by_tier: bool) -> list[float]:
        """Send one bundle as the pump does; of each of its requests the seconds until its verified receipt."""
        plan, content = bundle.plan, bundle.content
        ends = plan.ends_bytes if by_tier else plan.ends_bytes[-1:]
        first = content[: ends[0]] if ends[0] <= _WITH_CREATION_BYTES else b""
        began, seconds = time.monotonic(), []
        reply = await self._ask_tus("POST", "/v1/uploads", self._creation(bundle, first), first, 201)
        path, offset = reply.headers["location"], int(reply.headers["upload-offset"])
        if first:
            self._check(bundle, reply, tier=0)
            seconds.append(time.monotonic() - began)
        for tier, end in enumerate(ends, start=3 - len(ends)):
            if offset < end:
                began = time.monotonic()
                part = content[offset:end]
                reply = await self._ask_tus(
                    "PATCH", path, _part_headers(part) | {"Upload-Offset": str(offset)}, part, 204
                )
                offset = int(reply.headers["upload-offset"])
                self._check(bundle, reply, tier=tier)
                seconds.append(time.monotonic() - began)
        return seconds

    async def resume(self, bundle: Sendable, path: str) -> None:
        """Go on with an upload from where the cloud says it is."""
        found = await self._ask_tus("HEAD", path, {}, b"", 200)
        offset = int(found.headers["upload-offset"])
        part = bundle.content[offset:]
        if not part:
            self._check(bundle, found)
            return
        headers = _part_headers(part) | {"Upload-Offset": str(offset)}
        self._check(bundle, await self._ask_tus("PATCH", path, headers, part, 204))

    async def begin(self, bundle: Sendable) -> tuple[str, int]:
        """Begin an upload with its first tier only; path and offset."""
        first = bundle.content[: bundle.plan.ends_bytes[0]]
        reply = await self._ask_tus("POST", "/v1/uploads", self._creation(bundle, first), first, 201)
        return reply.headers["location"], int(reply.headers["upload-offset"])

    async def poll(self, *, wait_seconds: float = 0) -> None:
        """Ask for messages."""
        reply = await self.connection.ask("GET", f"/v1/messages?wait={wait_seconds}", self._bearer())
        _expect(reply, 200)

    async def until_done(self, step: str, do: Callable[[], Awaitable[None]], random_: random.Random) -> None:
        """Do something until it works, pausing with full jitter as a node does; raises when it never does."""
        for attempt in range(_TRIES):
            try:
                if not self._token and step != "session":
                    await self.begin_session()
                await do()
                return
            except RefusedError as error:
                self._troubles[f"{step} {error.reply.status}"] += 1
                asked = error.reply.headers.get("retry-after", "")
                if error.reply.status == 401:
                    self._token = ""
                pause = float(asked) if asked.isdigit() else 0.0
            except (OSError, EOFError, TimeoutError) as error:
                self._troubles[f"{step} {type(error).__name__}"] += 1
                pause = 0.0
            await asyncio.sleep(pause + random_.uniform(0, min(_MOST_PAUSE_SECONDS, 2**attempt)))
        raise RuntimeError(f"{step}: did not recover")

    def _check(self, bundle: Sendable, reply: Reply, *, tier: int | None = None) -> None:
        """The receipt of a tier, or of the last one, as the pump verifies it."""
        said = dict(item.strip().split(" ", 1) for item in reply.headers.get("slideway-receipt", "").split(",") if item)
        sha256, last = bundle.plan.sha256, len(bundle.plan.ends_bytes) - 1 if tier is None else tier
        check_receipt(
            said[f"t{last}"],
            cloud_key=self.endpoint.cloud_key,
            tenant=self.endpoint.tenant,
            node=self.endpoint.node,
            key=f"bundle:{sha256}:t{last}",
            sha256=sha256,
        )

    def _creation(self, bundle: Sendable, first: bytes) -> dict[str, str]:
        headers = {"Upload-Length": str(len(bundle.content)), "Upload-Metadata": metadata_of(bundle.plan)}
        return headers | (_part_headers(first) if first else {})

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    async def _ask_tus(self, method: str, path: str, headers: dict[str, str], body: bytes, status: int) -> Reply:
        said = {"Tus-Resumable": VERSION, **self._bearer(), **headers}
        reply = await self.connection.ask(method, path, said, body)
        if reply.status == 401:  # a token lasts an hour
            await self.begin_session()
            reply = await self.connection.ask(method, path, said | self._bearer(), body)
        _expect(reply, status)
        return reply

    async def _ask_json(self, method: str, path: str, content: Mapping[str, str], status: int) -> Reply:
        body = json.dumps(content).encode()
        reply = await self.connection.ask(method, path, {"Content-Type": "application/json"}, body)
        _expect(reply, status)
        return reply


def _expect(reply: Reply, status: int) -> None:
    if reply.status != status:
        raise RefusedError(reply)


def _part_headers(part: bytes) -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha256(part).digest()).decode("ascii")
    return {"Content-Type": CONTENT_TYPE, "Upload-Checksum": f"sha256 {digest}"}
