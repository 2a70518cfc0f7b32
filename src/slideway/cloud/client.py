"""Ask the cloud that runs on this machine, as its operator: where its database is a file, only it may write there."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from slideway.cloud.init import CloudFolder, read_operator_token
from slideway.cloud.settings import CloudSettings
from slideway.core.errors import LineDownError, LineRefusedError

_SECONDS = 30.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # what listens everywhere is reached on loopback


def ask_cloud(settings: CloudSettings, folder: CloudFolder, method: str, path: str, content: dict[str, Any]) -> Any:
    """One request with the operator's token of this folder.

    Raises:
        LineDownError: Nobody answers.
        LineRefusedError: It refuses.
    """
    server = settings.server
    host = _ANY.get(server.host, server.host)
    url = f"{'https' if server.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{server.port}"
    context: ssl.SSLContext | bool = False
    if server.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=folder.ca_pem.decode("ascii"))
    headers = {"Authorization": f"Bearer {read_operator_token(folder.path)}"}
    try:
        with httpx.Client(base_url=url, verify=context, headers=headers, timeout=_SECONDS, trust_env=False) as client:
            answer = client.request(method, path, json=content)
    except httpx.TransportError as error:
        raise LineDownError(
            f"{url}: another process has the store, and no cloud answers here ({type(error).__name__}); stop that "
            "process, or wait until it serves"
        ) from error
    try:
        told = answer.json()
        refusal = (str(told["code"]), str(told["message"])) if answer.status_code >= 400 else None
    except (ValueError, KeyError, TypeError) as error:
        raise LineDownError(f"{url}: what answers there is no Slideway cloud; see [server] in cloud.toml") from error
    if refusal is not None:
        raise LineRefusedError(f"{url}: {refusal[1]}", status=answer.status_code, refusal=refusal[0])
    return told
