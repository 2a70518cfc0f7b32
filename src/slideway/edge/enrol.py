"""Enrol a node: the code of the cloud's operator is used once, and its second half pins the cloud's authority."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx

import slideway
from slideway.core.errors import CaptivePortalError, LineDownError, LineRefusedError, WrongUseError
from slideway.sync.certificate import explain_dates
from slideway.sync.identity import Endpoint, Keys, decode_key, write_endpoint
from slideway.sync.invitation import pin_content, sign_code, split_code

_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def enrol_edge(url: str, code: str, keys: Keys, endpoint_file: Path, *, name: str = "", proxy: str = "") -> Endpoint:
    """Enrol with a cloud and write the endpoint file.

    Args:
        url: Root of the cloud's address, e.g. `https://cloud.example:8443`.
        code: The one line that `slideway cloud invite` printed.
        keys: Of this node.
        endpoint_file: Where to write.
        name: Of this node, for the people at the cloud.
        proxy: Address of a proxy; empty for what the environment says.

    Raises:
        LineDownError: Nobody answers.
        ClockWrongError: The cloud's certificate does not hold at the time that this computer's clock tells.
        CaptivePortalError: Somebody else answers: the authority is not the one that the code names.
        LineRefusedError: The cloud does not take the code.
        WrongUseError: The code or the address is not of its form.
    """
    secret, pin = split_code(code)
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise WrongUseError(f"{url}: give the cloud's address as https://HOST:PORT")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise WrongUseError("http:// is taken on this computer only; ask the cloud's operator for the https:// address")
    root = f"{parts.scheme}://{parts.netloc}"
    ca_pem = _fetch_authority(root, pin, proxy)
    content = {
        "code": secret,
        "public_key": keys.public_key,
        "receiving_key": keys.receiving_key,
        "name": name,
        "version": slideway.__version__,
        # Whoever holds the key asks: so the cloud may end what this node was before, under another name.
        "signature": sign_code(keys, secret),
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    answer = _ask("POST", f"{root}/v1/enrol", context, content, proxy)
    try:
        endpoint = Endpoint(
            url=root,
            tenant=str(answer["tenant"]),
            node=str(answer["node"]),
            cloud_key=decode_key(str(answer["cloud_key"])),
            cloud_receiving_key=decode_key(str(answer["cloud_receiving_key"])),
            ca_pem=ca_pem if parts.scheme == "https" else "",
        )
    except KeyError as error:
        raise CaptivePortalError(f"{parts.hostname}: its answer lacks {error}; is this a Slideway cloud?") from error
    write_endpoint(endpoint, endpoint_file)
    return endpoint


def _fetch_authority(root: str, pin: str, proxy: str = "") -> str:
    """The cloud's own authority, believed only because the code names its hash."""
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE  # what comes is compared with the pin in the code before it is used
    pem = _send("GET", f"{root}/v1/ca", unchecked, None, proxy).text
    try:
        der = ssl.PEM_cert_to_DER_cert(pem.strip())
    except ValueError as error:
        raise CaptivePortalError(f"{root}: no cloud of Slideway answers there; check the address") from error
    found = pin_content(der)
    if found != pin:
        raise CaptivePortalError(
            f"{root}: its authority is not the one that the code names ({found}, not {pin}): a wrong "
            "address, or somebody between you and the cloud; nothing was sent"
        )
    # Only what was hashed: behind the padding of its base64 the text may hold a second authority, somebody else's.
    return ssl.DER_cert_to_PEM_cert(der)


def _ask(method: str, url: str, context: ssl.SSLContext, content: dict[str, str], proxy: str) -> dict[str, object]:
    answer = _send(method, url, context, content, proxy)
    try:
        found = answer.json()
    except ValueError as error:
        raise CaptivePortalError(f"{url}: not an answer of a Slideway cloud") from error
    if not isinstance(found, dict):
        raise CaptivePortalError(f"{url}: not an answer of a Slideway cloud")
    if answer.status_code != 201:
        code, message = str(found.get("code", "")), str(found.get("message", ""))
        if code == "record-unknown":
            message = "the code is not known, was used already, or is too old; ask for a new one: slideway cloud invite"
        raise LineRefusedError(f"the cloud refuses: {message or code}", status=answer.status_code, refusal=code)
    return found


def _send(method: str, url: str, context: ssl.SSLContext, content: dict[str, str] | None, proxy: str) -> httpx.Response:
    try:
        with httpx.Client(verify=context, timeout=_SECONDS, follow_redirects=False, proxy=proxy or None) as client:
            answer = client.request(method, url, json=content)
    except httpx.TransportError as error:
        wrong_clock = explain_dates(error, url=url, ca_pem="")
        if wrong_clock is not None:
            raise wrong_clock from error
        raise LineDownError(
            f"{urlsplit(url).netloc}: nobody answers there ({type(error).__name__}); check host and port, and that "
            "`slideway cloud serve` runs there, then run this again: the code has not been used"
        ) from error
    if answer.status_code >= 500 or answer.status_code == 429:
        raise LineDownError(f"{urlsplit(url).hostname}: not now (HTTP {answer.status_code}); try again in a minute")
    return answer
