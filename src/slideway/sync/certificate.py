"""When a certificate is refused for its dates: say what the clock here tells, and when the certificate holds.

No two clocks are compared anywhere else. TLS does compare: a computer whose clock is wrong by years finds its cloud's
certificate not yet valid or expired, and the true cause must be named.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
from cryptography import x509

from slideway.core.errors import ClockWrongError

UtcNow = Callable[[], datetime]
_SECONDS = 10.0
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL. The chain is built and its signatures are
# checked all the same: a stranger's certificate gives another code.
_NOT_YET, _EXPIRED = 9, 10


def utc_now() -> datetime:
    """What this computer's clock tells."""
    return datetime.now(UTC)


def find_refusal(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """The refused certificate among the causes of an error; None when it is about something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def explain_dates(error: BaseException, *, url: str, ca_pem: str, now: UtcNow = utc_now) -> ClockWrongError | None:
    """The true cause when a certificate was refused for its dates; None when it was not.

    Args:
        error: What the request raised.
        url: Root of the cloud's address.
        ca_pem: The authority that is believed.
        now: What this computer's clock tells.
    """
    refused = find_refusal(error)
    code = getattr(refused, "verify_code", 0)  # only what OpenSSL itself raised has one
    if code not in (_NOT_YET, _EXPIRED):
        return None
    said = now()
    which, dates = _find_dates(url, ca_pem, said, code)
    word = "not valid yet" if code == _NOT_YET else "not valid any more"
    told = f"valid from {dates[0]:%Y-%m-%d %H:%M} to {dates[1]:%Y-%m-%d %H:%M} UTC" if dates else word
    return ClockWrongError(
        f"{httpx.URL(url).host}: this computer's clock says {said:%Y-%m-%d %H:%M} UTC; {which} is {told}. Set the "
        "clock of this computer; if it is right, the cloud's operator makes a new certificate: slideway cloud init "
        "FOLDER --renew"
    )


def _find_dates(url: str, ca_pem: str, said: datetime, code: int) -> tuple[str, tuple[datetime, datetime] | None]:
    """Which certificate it is, and when it holds: the server's, or else the authority's."""
    found = [("the cloud's certificate", pem) for pem in (_fetch(url),) if pem]
    found += [("the cloud's authority", ca_pem)] if ca_pem else []
    for name, pem in found:
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
        dates = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if said < dates[0] if code == _NOT_YET else said > dates[1]:
            return name, dates
    return "the cloud's certificate", None


def _fetch(url: str) -> str:
    """The certificate that is shown there, for its dates only; empty when it cannot be had."""
    parts = httpx.URL(url)
    try:
        return ssl.get_server_certificate((parts.host, parts.port or 443), timeout=_SECONDS)
    except (OSError, ValueError):
        return ""
