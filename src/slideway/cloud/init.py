"""Make a cloud's folder: authority, certificate, keys, secrets and `cloud.toml`; made once, never overwritten."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slideway.cloud.people import People
from slideway.cloud.pki import LOOPBACK, Certificate, make_authority, make_server_certificate, pin_of, read_hosts
from slideway.core.errors import WrongUseError
from slideway.registry.secret_file import keep_secret, read_secret
from slideway.sync.identity import Keys, load_keys

CONFIG, PEOPLE, SECRET, OPERATOR = "cloud.toml", "people.json", "session-secret", "operator-token"
CA, CA_KEY, SERVER, SERVER_KEY = "ca.pem", "ca-key.pem", "server.pem", "server-key.pem"
FIRST_OPERATOR = "operator"
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # addresses to listen on that nobody can be told

_CONFIG = """\
# Settings of this cloud. What is not set here has the value that docs/cloud.md names.
# Relative paths begin at this file's folder. "env:NAME" takes a value from the environment.

[server]
# Address and port to listen on; 127.0.0.1 is this computer only.
host = "{host}"
port = 8443

[store]
# One process, for trials. For real: "postgresql+psycopg://slideway@host/slideway", and a role without superuser rights.
url = "sqlite:///slideway.db"

[blobs]
# A folder, or "s3://bucket/folder" with endpoint, region and keys.
url = "file:blobs"

[uploads]
# Grows until it is whole; on a disk that outlives a restart.
folder = "uploads"

[worker]
# Slides at a time.
count = 1
# Heads that also speak as research opinions, e.g. ["slideway-atlas"]; without it only what is in force speaks.
heads = []
"""


@dataclass(frozen=True)
class CloudFolder:
    """What lies in a cloud's folder.

    Attributes:
        path: The folder.
        ca_pem: Certificate of the authority.
        keys: Signing and receiving key.
        session_secret: Seals the tokens of nodes.
    """

    path: Path
    ca_pem: bytes
    keys: Keys
    session_secret: bytes

    @property
    def people(self) -> People:
        """Who may call the cloud."""
        return People(self.path / PEOPLE)


@dataclass(frozen=True)
class Initiation:
    """What `init_cloud` did.

    Attributes:
        made: Names of the files that were made now; empty when all were there.
        hosts: Names and addresses of the server's certificate.
        pin: What enrolment codes carry of the authority.
        folder: The folder.
    """

    made: tuple[str, ...]
    hosts: tuple[str, ...]
    pin: str
    folder: Path


def init_cloud(folder: Path, *, hosts: Sequence[str] = (), renew: bool = False) -> Initiation:
    """Make what is missing in a cloud's folder; what is there stays as it is.

    Args:
        folder: Made (0700) when it is not there.
        hosts: Names and addresses of the server, beside those of loopback.
        renew: Make a new server certificate, also when there is one; the authority stays, so nodes notice nothing.

    Raises:
        WrongUseError: The certificate that is there is for other hosts, and `renew` was not asked for.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = {path.name for path in folder.iterdir()}
    if not before:  # made by somebody else for this: what comes into it, the database too, is for its user only
        with contextlib.suppress(PermissionError):
            folder.chmod(0o700)
    authority = _load_pair(folder, CA, CA_KEY, "authority") or _keep_pair(folder, CA, CA_KEY, make_authority())
    kept = None if renew else _load_pair(folder, SERVER, SERVER_KEY, "server certificate")
    if kept is None:
        wanted = tuple(dict.fromkeys((*hosts, *(_old_hosts(folder) if not hosts else ()), *LOOPBACK)))
        made = make_server_certificate(authority, wanted)
        (folder / SERVER).unlink(missing_ok=True)
        (folder / SERVER_KEY).unlink(missing_ok=True)
        kept = _keep_pair(folder, SERVER, SERVER_KEY, made)
    elif missing := set(hosts) - set(read_hosts(kept.pem)):
        raise WrongUseError(
            f"the certificate in {folder.name} is for {', '.join(read_hosts(kept.pem))}, not for "
            f"{', '.join(sorted(missing))}; add --renew to make a new one, nodes notice nothing"
        )
    load_keys(folder)
    _keep_text(folder / SECRET, secrets.token_hex(32))
    _keep_operator(folder)
    _keep_text(folder / CONFIG, _CONFIG.format(host="0.0.0.0" if hosts else "127.0.0.1"))  # noqa: S104  # nodes are elsewhere
    after = {path.name for path in folder.iterdir()}
    made_now = after - before | ({SERVER, SERVER_KEY} if renew else set())
    return Initiation(tuple(sorted(made_now)), read_hosts(kept.pem), pin_of(authority.pem), folder)


def open_folder(folder: Path) -> CloudFolder:
    """Read what `init_cloud` made.

    Raises:
        WrongUseError: It is not there, or others may read a secret.
    """
    ca_pem = read_secret(folder / CA, "certificate")
    secret = read_secret(folder / SECRET, "session secret")
    if ca_pem is None or secret is None:
        raise WrongUseError(f"{folder.name}: no cloud was made here; run: slideway cloud init {folder.name}")
    return CloudFolder(folder, ca_pem, load_keys(folder), bytes.fromhex(secret.decode("ascii")))


def read_operator_token(folder: Path) -> str:
    """The token that `init_cloud` made for this machine's own command line.

    Raises:
        WrongUseError: It is not there.
    """
    token = read_secret(folder / OPERATOR, "operator token")
    if token is None:
        raise WrongUseError(f"{OPERATOR} is not there; run `slideway cloud init` again, which makes a new one")
    return token.decode("ascii").strip()


def _load_pair(folder: Path, name: str, key_name: str, what: str) -> Certificate | None:
    pem, key = read_secret(folder / name, what), read_secret(folder / key_name, f"key of the {what}")
    if pem is None and key is None:
        return None
    if pem is None or key is None:
        raise WrongUseError(
            f"of {name} and {key_name} only one is in {folder.name}; bring the other back from a backup, or remove both"
        )
    return Certificate(pem, key)


def _keep_pair(folder: Path, name: str, key_name: str, made: Certificate) -> Certificate:
    keep_secret(folder / key_name, made.key_pem)
    keep_secret(folder / name, made.pem)
    return made


def _old_hosts(folder: Path) -> tuple[str, ...]:
    pem = read_secret(folder / SERVER, "server certificate")
    return () if pem is None else read_hosts(pem)


def _keep_text(path: Path, text: str) -> None:
    if not path.exists():
        keep_secret(path, text.encode("utf-8"))


def _keep_operator(folder: Path) -> None:
    if not (folder / OPERATOR).exists():
        token = People(folder / PEOPLE).add(FIRST_OPERATOR, "operator")
        _keep_text(folder / OPERATOR, f"{token}\n")
