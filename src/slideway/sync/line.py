"""The line from a node to its cloud: sessions, uploads part by part, messages; says plainly why it does not work."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urljoin
from urllib.request import getproxies, proxy_bypass

import httpx

from slideway.core.errors import CaptivePortalError, LineDownError, LineRefusedError, NodeRevokedError
from slideway.sync.certificate import UtcNow, explain_dates, find_refusal, utc_now
from slideway.sync.identity import Endpoint, Keys, sign_challenge
from slideway.sync.mailbox import MAX_NUMBERS, Delivery, Refusal, write_numbers
from slideway.sync.messages import Message, pack_json, parse_message, unpack_json
from slideway.sync.meter import LineMeter, Traffic
from slideway.sync.outgoing import UploadPlan
from slideway.sync.pace import Limit, Monotonic, Sleep
from slideway.sync.tus import CONTENT_TYPE, VERSION, metadata_of, read_receipts, write_checksum

CONNECT_SECONDS = 15.0
ANSWER_SECONDS = 60.0
_MOST_LETTERS = 8000  # of numbers in an address: so many the cloud reads
_AWAY = (502, 503, 504, 507, 408, 425, 429)
_LOGIN = (511, 407)
# Refusals of one new upload, not of the line: those that are open must go on, or none would ever end.
_OF_ONE_UPLOAD = ("uploads-too-many", "uploads-too-large")


@dataclass(frozen=True)
class LineSettings:
    """How a node uses its line.

    Attributes:
        bytes_per_second: Limit on what is sent; None for none.
        proxy: Address of a proxy; None for what the environment says (`HTTPS_PROXY`).
        answer_seconds: How long an answer may take, beside the time that the bytes need.
        with_checksums: Send a checksum with every part: a damaged one is noticed at once.
    """

    bytes_per_second: float | None = None
    proxy: str | None = None
    answer_seconds: float = ANSWER_SECONDS
    with_checksums: bool = True


@dataclass(frozen=True)
class Progress:
    """How an upload stands at the cloud.

    Attributes:
        path: Where it is found there.
        offset_bytes: What is durably there: go on from here.
        receipts: Tier to receipt, not yet verified.
        stop: First tier that is not wanted; None to go on.
    """

    path: str
    offset_bytes: int
    receipts: Mapping[int, str]
    stop: int | None


@dataclass(frozen=True)
class Acknowledged:
    """What the cloud answered to a batch of messages.

    Attributes:
        receipts: By message id, not yet verified.
        refused: By message id.
    """

    receipts: Mapping[str, str]
    refused: Mapping[str, Refusal] = field(default_factory=dict)


class Line:
    """A node's line to its cloud; threads may share it.

    Every method raises `LineDownError` when nobody answers or not now, `CaptivePortalError` when somebody else does,
    `ClockWrongError` when its certificate does not hold at the time that this computer tells, `LineRefusedError` when
    the cloud refuses, `NodeRevokedError` when it takes nothing of this node any more.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        keys: Keys,
        settings: LineSettings | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        monotonic: Monotonic = time.monotonic,
        sleep: Sleep = time.sleep,
        now: UtcNow = utc_now,
    ) -> None:
        """Make a line; nothing is sent yet.

        Args:
            endpoint: Of the cloud.
            keys: Of this node.
            settings: How to use the line.
            transport: Carries requests; None for the network.
            monotonic: Seconds that only go on.
            sleep: Waits.
            now: What this computer's clock tells; for a message only.
        """
        self.endpoint, self._now = endpoint, now
        self._keys, self._settings, self._monotonic = keys, settings or LineSettings(), monotonic
        self._limit = Limit(self._settings.bytes_per_second, monotonic=monotonic, sleep=sleep)
        self._meter = LineMeter(transport or _network(endpoint, self._settings))
        timeout = httpx.Timeout(self._settings.answer_seconds, connect=CONNECT_SECONDS)
        headers = {"User-Agent": "slideway", "Accept-Encoding": "identity"}
        self._client = httpx.Client(
            base_url=endpoint.url, transport=self._meter, timeout=timeout, headers=headers, trust_env=False
        )
        self._token, self._token_ends, self._session_lock = "", 0.0, Lock()

    def close(self) -> None:
        """Close it; a request that waits ends with an error."""
        self._client.close()

    def take_traffic(self) -> Traffic:
        """What this thread has sent and received over the line since it last asked."""
        return self._meter.take()

    def begin_upload(self, plan: UploadPlan, first_bytes: bytes = b"") -> Progress:
        """Begin an upload, or find it where it stopped; twice is once.

        Args:
            plan: The file.
            first_bytes: Its first bytes, to save a round; the cloud passes over them when it has them.
        """
        headers = {
            "Tus-Resumable": VERSION,
            "Upload-Length": str(plan.length_bytes),
            "Upload-Metadata": metadata_of(plan),
        }
        if first_bytes:
            headers |= self._part_headers(first_bytes)
        answer = self._ask("POST", "/v1/uploads", headers=headers, body=first_bytes)
        self._expect(answer, 201)
        return _read_progress(answer, answer.headers.get("location", ""))

    def find_upload(self, path: str) -> Progress:
        """Where an upload stands."""
        answer = self._ask("HEAD", path, headers={"Tus-Resumable": VERSION})
        self._expect(answer, 200)
        return _read_progress(answer, path)

    def send_part(self, path: str, offset_bytes: int, content: bytes) -> Progress:
        """Send the next bytes of an upload; when this returns they are durably there."""
        headers = {"Tus-Resumable": VERSION, "Upload-Offset": str(offset_bytes), **self._part_headers(content)}
        answer = self._ask("PATCH", path, headers=headers, body=content)
        self._expect(answer, 204)
        return _read_progress(answer, path)

    def end_upload(self, path: str) -> None:
        """Give an upload up."""
        self._expect(self._ask("DELETE", path, headers={"Tus-Resumable": VERSION}), 204)

    def send_messages(self, messages: Sequence[Message]) -> Acknowledged:
        """Send a batch; a message with neither receipt nor refusal is to be sent again."""
        body = pack_json({"messages": [message.content for message in messages]})
        content = self._ask_json("POST", "/v1/messages", body=body)
        receipts, refused = content.get("receipts"), content.get("refused", {})
        if not isinstance(receipts, dict) or not isinstance(refused, dict):
            raise _captive("the answer to messages is not ours")
        refusals = {
            str(key): Refusal(str(value.get("code", "")), str(value.get("message", "")))
            for key, value in refused.items()
            if isinstance(value, dict)
        }
        return Acknowledged({str(key): str(value) for key, value in receipts.items()}, refusals)

    def receive_messages(
        self, taken: Sequence[int] = (), *, wait_seconds: float = 0, without: Sequence[int] = ()
    ) -> list[Delivery]:
        """Fetch what waits for this node.

        Args:
            taken: Numbers of messages that are durably here: they do not come again.
            wait_seconds: Wait so long for a message when there is none.
            without: Numbers of messages that were refused here, at most `MAX_NUMBERS`: others come in their place.
        """
        said = {"taken": write_numbers(taken), "wait": f"{wait_seconds:g}", "not": _write_some(without)}
        query = {name: value for name, value in said.items() if value}
        content = self._ask_json("GET", "/v1/messages", query=query, more_seconds=wait_seconds)
        items = content.get("messages")
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and isinstance(item.get("number"), int) for item in items
        ):
            raise _captive("the list of messages is not ours")
        return _read_deliveries(items)

    def _part_headers(self, content: bytes) -> dict[str, str]:
        headers = {"Content-Type": CONTENT_TYPE}
        return headers | ({"Upload-Checksum": write_checksum(content)} if self._settings.with_checksums else {})

    def _ask_json(
        self, method: str, path: str, *, body: bytes = b"", query: dict[str, str] | None = None, more_seconds: float = 0
    ) -> dict[str, Any]:
        answer = self._ask(method, path, headers={}, body=body, query=query, more_seconds=more_seconds)
        self._expect(answer, 200)
        try:
            content = unpack_json(answer.content)
        except LineRefusedError as error:
            raise _captive("what came back is not ours") from error
        if not isinstance(content, dict):
            raise _captive("what came back is not ours")
        return content

    def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        query: dict[str, str] | None = None,
        more_seconds: float = 0,
    ) -> httpx.Response:
        """One request with a token; once more with a new one when the old one is not taken any more."""
        token = self._get_token()
        answer = self._send(method, path, headers, body, query, more_seconds, token)
        if answer.status_code == 401:
            answer = self._send(method, path, headers, body, query, more_seconds, self._get_token(not_this=token))
        return answer

    def _get_token(self, *, not_this: str = "") -> str:
        with self._session_lock:
            if self._token and self._token != not_this and self._monotonic() < self._token_ends:
                return self._token
            names = {"tenant": self.endpoint.tenant, "node": self.endpoint.node}
            begun = self._send_json("POST", "/v1/sessions", names, 201)
            try:
                signature = sign_challenge(self._keys.signing, str(begun["challenge"]))
                proven = self._send_json("PUT", f"/v1/sessions/{begun['session']}", {"signature": signature}, 200)
                token, seconds = str(proven["token"]), float(proven["seconds"])
            except (KeyError, TypeError, ValueError) as error:
                raise _captive("the answer to a session is not ours") from error
            # Renewed a little early: a long request begins with a token that lasts.
            self._token, self._token_ends = token, self._monotonic() + seconds * 0.9
            return self._token

    def _send_json(self, method: str, path: str, content: dict[str, Any], status: int) -> dict[str, Any]:
        body = json.dumps(content).encode("utf-8")
        answer = self._send(method, path, {"Content-Type": "application/json"}, body, None, 0, "")
        self._expect(answer, status)
        try:
            found = answer.json()
        except ValueError as error:
            raise _captive("the answer to a session is not ours") from error
        if not isinstance(found, dict):
            raise _captive("the answer to a session is not ours")
        return found

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        query: dict[str, str] | None,
        more_seconds: float,
        token: str,
    ) -> httpx.Response:
        all_headers = (
            {**headers, "Content-Length": str(len(body))} if body or method in ("POST", "PATCH") else {**headers}
        )
        if token:
            all_headers["Authorization"] = f"Bearer {token}"
        answer_seconds = self._settings.answer_seconds + more_seconds
        timeout = httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS)
        try:
            return self._client.request(
                method,
                path,
                headers=all_headers,
                content=self._paced(body) if body else None,
                params=query,
                timeout=timeout,
                follow_redirects=False,
            )
        except httpx.ConnectError as error:
            wrong_clock = explain_dates(error, url=self.endpoint.url, ca_pem=self.endpoint.ca_pem, now=self._now)
            if wrong_clock is not None:
                raise wrong_clock from error
            if _is_wrong_certificate(error):
                raise _captive("the certificate is not signed by the cloud's authority") from error
            raise LineDownError(f"{self._host}: nobody answers ({type(error).__name__})") from error
        except httpx.ProxyError as error:
            raise _captive(f"the proxy refuses ({error})") from error
        except (httpx.TransportError, httpx.DecodingError, OSError) as error:
            raise LineDownError(f"{self._host}: the line broke off ({type(error).__name__})") from error
        except RuntimeError as error:
            if not self._client.is_closed:
                raise
            raise LineDownError(f"{self._host}: this line was closed") from error

    def _paced(self, body: bytes) -> Iterator[bytes]:
        step = self._limit.step_bytes
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            self._limit.take(len(piece))
            yield piece

    @property
    def _host(self) -> str:
        return self._client.base_url.host

    def _expect(self, answer: httpx.Response, status: int) -> None:
        """Let through only what the cloud itself answered, with the status that was expected."""
        code = answer.status_code
        is_ours = answer.headers.get("slideway") == "1"
        if code in _AWAY and not (is_ours and _read_refusal(answer)[0] in _OF_ONE_UPLOAD):
            asked = _read_retry_after(answer.headers.get("retry-after", ""))
            raise LineDownError(f"{self._host}: not now (HTTP {code})", retry_after_seconds=asked)
        if code in _LOGIN or not is_ours:
            raise _captive(f"HTTP {code} without the cloud's mark")
        if code == status:
            return
        if code >= 500 and _read_refusal(answer)[0] not in _OF_ONE_UPLOAD:
            raise LineDownError(f"{self._host}: the cloud has a fault (HTTP {code})")
        refusal, message = _read_refusal(answer)
        if refusal == NodeRevokedError.code:
            raise NodeRevokedError(f"{self._host}: {message}")
        raise LineRefusedError(f"{self._host}: HTTP {code}: {message or refusal}", status=code, refusal=refusal)


def _network(endpoint: Endpoint, settings: LineSettings) -> httpx.BaseTransport:
    """The network: TLS that believes the cloud's own authority only, through a proxy where there is one."""
    context: ssl.SSLContext | bool = True
    if endpoint.ca_pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=endpoint.ca_pem)
    proxy = settings.proxy or _proxy_of_environment(endpoint.url)
    return httpx.HTTPTransport(verify=context, proxy=httpx.Proxy(proxy) if proxy else None, retries=0)


def _proxy_of_environment(url: str) -> str | None:
    parts = httpx.URL(url)
    return None if proxy_bypass(parts.host) else getproxies().get(parts.scheme)


def _read_progress(answer: httpx.Response, path: str) -> Progress:
    offset, stop = answer.headers.get("upload-offset", ""), answer.headers.get("slideway-stop", "")
    if not (offset.isascii() and offset.isdigit()) or not path:
        raise _captive("the answer to an upload is not ours")
    receipts = read_receipts(answer.headers.get("slideway-receipt", ""))
    path = httpx.URL(urljoin("http://any/", path)).raw_path.decode("ascii")
    return Progress(path, int(offset), receipts, int(stop) if stop.isascii() and stop.isdigit() else None)


def _write_some(numbers: Sequence[int]) -> str:
    """Numbers as short text: the smallest, as many as the cloud reads."""
    text = write_numbers(sorted(numbers)[:MAX_NUMBERS])
    return text if len(text) <= _MOST_LETTERS else text[: text.rindex(",", 0, _MOST_LETTERS + 1)]


def _read_deliveries(items: Sequence[Any]) -> list[Delivery]:
    """What can be read of a list; one that cannot stands in nobody's way, and is refused once it is alone."""
    found: list[Delivery] = []
    refused: LineRefusedError | None = None
    for item in items:
        try:
            found.append(Delivery(item["number"], parse_message(item)))
        except LineRefusedError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return found


def _read_refusal(answer: httpx.Response) -> tuple[str, str]:
    try:
        content = answer.json()
        return str(content["code"]), str(content["message"])
    except (ValueError, KeyError, TypeError):
        return "", ""


def _read_retry_after(header: str) -> float | None:
    """Seconds; a date is passed over, because the two clocks need not agree."""
    return float(header) if header.isascii() and header.isdigit() and len(header) < 6 else None


def _is_wrong_certificate(error: BaseException) -> bool:
    return find_refusal(error) is not None or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _captive(reason: str) -> CaptivePortalError:
    return CaptivePortalError(
        f"somebody else answers in place of the cloud ({reason}); log in to this network from a browser, or have the "
        "proxy let the cloud's address through"
    )
