"""Enrolment: of what answers, only the authority that the code names is ever believed."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from slideway.cli.edge import command
from slideway.cloud.pki import make_authority, pin_of
from slideway.core.errors import CaptivePortalError, ClockWrongError, LineDownError
from slideway.edge import enrol
from slideway.edge.init import init_edge
from slideway.sync.identity import make_keys


def answer_with(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(enrol, "_send", lambda *_: httpx.Response(200, text=text))


@pytest.mark.parametrize("_", range(4))  # with and without padding at the end of the base64
def test_second_authority_behind_the_pinned_one_is_not_believed(_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = make_authority().pem, make_authority().pem
    answer_with(monkeypatch, (ours + theirs).decode())
    try:
        believed = enrol._fetch_authority("https://cloud.example:8443", pin_of(ours))
    except CaptivePortalError:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=believed)
    assert context.get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(ours.decode())]


def test_pinned_authority_is_believed_and_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make_authority().pem
    answer_with(monkeypatch, ours.decode())
    assert pin_of(enrol._fetch_authority("https://cloud.example:8443", pin_of(ours)).encode()) == pin_of(ours)
    with pytest.raises(CaptivePortalError, match="not the one that the code names"):
        enrol._fetch_authority("https://cloud.example:8443", pin_of(make_authority().pem))


class Proxy(threading.Thread):
    """A proxy that notes what it is asked for, and lets nobody through."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        with self._socket, self._socket.accept()[0] as connection:
            self.asked.append(connection.recv(4096).split(b"\r\n")[0].decode())
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


def test_enrolment_goes_by_the_proxy_of_the_settings(tmp_path: Path) -> None:
    init_edge(tmp_path)
    proxy = Proxy()
    proxy.start()
    config = tmp_path / "edge.toml"
    config.write_text(config.read_text("utf-8").replace('# proxy = ""', f'proxy = "{proxy.url}"'), "utf-8")
    words = ["enrol", "https://cloud.example:8443", f"code.{'0' * 20}", "--config", str(config)]
    done = CliRunner().invoke(command, words)
    proxy.join(5)
    assert isinstance(done.exception, LineDownError)
    assert proxy.asked == ["CONNECT cloud.example:8443 HTTP/1.1"]


def test_enrolment_proves_that_this_node_holds_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, keys, sent = make_authority().pem, make_keys(), {}

    def answer(method: str, url: str, context: object, content: dict[str, str] | None, proxy: str) -> httpx.Response:
        if content is None:
            return httpx.Response(200, text=ours.decode())
        sent.update(content)
        told = {"tenant": "t", "node": "n", "cloud_key": keys.public_key, "cloud_receiving_key": keys.receiving_key}
        return httpx.Response(201, json=told)

    monkeypatch.setattr(enrol, "_send", answer)
    enrol.enrol_edge("https://cloud.example", f"secret.{pin_of(ours)}", keys, tmp_path / "endpoint.toml")
    key = Ed25519PublicKey.from_public_bytes(keys.signing.public_bytes)
    key.verify(base64.b64decode(sent["signature"]), b"slideway-enrol/1\nsecret")


def test_clock_that_is_wrong_is_named_at_the_enrolment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed: certificate is not yet valid")
    refused.verify_code = 9

    def fail(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("tls") from refused

    monkeypatch.setattr(httpx.Client, "request", fail)
    with pytest.raises(ClockWrongError, match="this computer's clock says"):
        enrol._send("POST", "https://127.0.0.1:9/v1/enrol", ssl.create_default_context(), {}, "")
