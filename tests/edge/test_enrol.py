"""Enrolment: of what answers, only the authority that the code names is ever believed."""

from __future__ import annotations

import ssl

import httpx
import pytest

from slideway.cloud.pki import make_authority, pin_of
from slideway.core.errors import CaptivePortalError
from slideway.edge import enrol


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
