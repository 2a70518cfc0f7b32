"""The cloud's settings: `cloud.toml`, frozen once read; a word that is not known is refused with its line."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

from slideway.core.errors import WrongUseError
from slideway.core.settings_file import read_sections

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerSettings:
    """`[server]`: where nodes and people reach the cloud.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        tls: Speak TLS with the certificate that `cloud init` made; false only on loopback, or behind a proxy that does.
        behind_proxy: A proxy in front does TLS; only then may `tls` be false on another address than loopback.
        proxy_addresses: Addresses or networks of proxies in front, e.g. `["10.0.0.2", "10.1.0.0/24"]`: only what comes
            from these is asked for whom it comes (`X-Forwarded-For`). Without, all who come through a proxy count as
            one address.
        connections: Most connections at a time; further ones get 503.
        header_seconds: A client that has not sent a request's head after so long is cut off.
        idle_seconds: A request whose body stands still for so long is cut off; what came of an upload stays.
        drain_seconds: After SIGTERM, requests and jobs in hand get so long.
        max_body_bytes: Largest body of a request that is no upload.
        enrols_per_minute: Enrolments that one address may try.
        sessions_per_minute: Sessions that one address may begin; a hospital's nodes may share one address.
        open_metrics: Give `/metrics` without an operator's token, where only Prometheus reaches it.
    """

    host: str = "127.0.0.1"
    port: int = 8443
    tls: bool = True
    behind_proxy: bool = False
    proxy_addresses: tuple[str, ...] = ()
    connections: int = 4096
    header_seconds: float = 20.0
    idle_seconds: float = 60.0
    drain_seconds: float = 30.0
    max_body_bytes: int = 4 * 2**20
    enrols_per_minute: int = 20
    sessions_per_minute: int = 3000
    open_metrics: bool = False


@dataclass(frozen=True)
class StoreSettings:
    """`[store]`: the database.

    Attributes:
        url: `sqlite:///slideway.db` (one process, for trials; relative to this file) or
            `postgresql+psycopg://user@host/database`.
        wait_seconds: At the start, wait so long for a database that does not answer yet; 0 to end at once.
    """

    url: str = "sqlite:///slideway.db"
    wait_seconds: float = 60.0


@dataclass(frozen=True)
class BlobSettings:
    """`[blobs]`: where bundles lie.

    Attributes:
        url: `file:///folder` (`file:blobs` is relative to this file) or `s3://bucket/folder`.
        endpoint: URL of an S3 server that is not Amazon's.
        region: Of the bucket.
        access_key_id: For S3; empty for what the environment or the machine's role says.
        secret_access_key: Likewise.
    """

    url: str = "file:blobs"
    endpoint: str = ""
    region: str = "us-east-1"
    access_key_id: str = ""
    secret_access_key: str = ""


@dataclass(frozen=True)
class UploadSettings:
    """`[uploads]`: what grows until it is whole.

    Attributes:
        folder: Of the part files; all processes of the role `api` share it, and it outlives a restart.
        max_bytes: Largest file that is taken.
        kept_days: An upload that does not grow for so long is thrown away; tiers of it that were acknowledged are kept
            as blobs.
        min_free_mb: With less free disk the cloud says that it is not ready.
        require_lock: Refuse bundles that are not locked to this cloud's key.
    """

    folder: str = "uploads"
    max_bytes: int = 8 * 2**30
    kept_days: float = 30.0
    min_free_mb: int = 1024
    require_lock: bool = True


@dataclass(frozen=True)
class WorkerSettings:
    """`[worker]`: who diagnoses.

    Attributes:
        count: Slides at a time in one process of `cloud serve`.
        isolate: Compute in child processes: a bundle that kills one harms nothing else. False for trials and tests.
        threads: Threads of each child for linear algebra.
        lease_seconds: A worker that is not heard of for so long loses its job to another.
        job_seconds: Longest that one slide may take.
        heads: Ids of heads that also speak as research opinions, whether in force or not.
        explain: Also say what speaks for and against; costs several times the answer.
        provisional_after_seconds: When tier 1 is here and tier 2 is not after so long, answer by what is here; 0 never.
    """

    count: int = 1
    isolate: bool = True
    threads: int = 1
    lease_seconds: float = 120.0
    job_seconds: float = 900.0
    heads: tuple[str, ...] = ()
    explain: bool = True
    provisional_after_seconds: float = 60.0


@dataclass(frozen=True)
class RegionSettings:
    """`[regions]`: pixels that the cloud asks for.

    Attributes:
        ask: Ask when a finding is a set or a referral and the node says that its policy lets regions leave.
        count: At most so many tiles for a slide.
        for_research: Ask for heads that are not in force too.
    """

    ask: bool = True
    count: int = 12
    for_research: bool = False


@dataclass(frozen=True)
class ConsultationSettings:
    """`[consultations]`: second opinions by people.

    Attributes:
        within_hours: By when a question is due.
        urgent_within_hours: By when an urgent one is.
    """

    within_hours: float = 48.0
    urgent_within_hours: float = 4.0


@dataclass(frozen=True)
class CloudSettings:
    """All settings of a cloud.

    Attributes:
        folder: Where `cloud.toml`, keys and certificates lie; relative paths begin here.
        server: Where it is reached.
        store: The database.
        blobs: Where bundles lie.
        uploads: What grows until it is whole.
        worker: Who diagnoses.
        regions: Pixels that it asks for.
        consultations: Second opinions by people.
    """

    folder: Path
    server: ServerSettings = field(default_factory=ServerSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    blobs: BlobSettings = field(default_factory=BlobSettings)
    uploads: UploadSettings = field(default_factory=UploadSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    regions: RegionSettings = field(default_factory=RegionSettings)
    consultations: ConsultationSettings = field(default_factory=ConsultationSettings)

    def __post_init__(self) -> None:
        server = self.server
        if not (server.tls or server.behind_proxy or server.host in _LOOPBACK):
            raise WrongUseError(
                "[server] tls = false on an address that others reach: set behind_proxy = true when a proxy in front "
                "does TLS, or host to 127.0.0.1"
            )
        _require_addresses(server.proxy_addresses)
        least = {"count": self.worker.count, "threads": self.worker.threads, "connections": server.connections}
        for name, value in least.items():
            if value < 1:
                raise WrongUseError(f"{name} = {value}: at least 1")

    @property
    def store_url(self) -> str:
        """URL of the database, a relative file taken from this folder."""
        head = "sqlite:///"
        url = self.store.url
        if (
            url.startswith(head)
            and not url.startswith("sqlite:////")
            and not Path(url.removeprefix(head)).is_absolute()
        ):
            return f"{head}{(self.folder / url.removeprefix(head)).resolve()}"
        return url

    @property
    def is_embedded(self) -> bool:
        """One process only: the database is a file."""
        return self.store.url.startswith("sqlite:")

    @property
    def blobs_url(self) -> str:
        """URL of the place for blobs, a relative folder taken from this folder."""
        url = self.blobs.url
        if url.startswith("file:") and not url.startswith("file:/"):
            return (self.folder / url.removeprefix("file:")).resolve().as_uri()
        return url

    @property
    def uploads_folder(self) -> Path:
        """Folder of the part files."""
        return (self.folder / self.uploads.folder).resolve()


def _require_addresses(addresses: tuple[str, ...]) -> None:
    """Refuse what uvicorn would take for a name that no client has, and `*`: anybody could name any address then."""
    for address in addresses:
        try:
            ipaddress.ip_network(address)
        except ValueError as error:
            raise WrongUseError(
                f"[server] proxy_addresses: {address!r} is neither an address nor a network such as 10.1.0.0/24"
            ) from error


SECTIONS = tuple(item.name for item in fields(CloudSettings) if item.name != "folder")


def read_settings(path: Path) -> CloudSettings:
    """Read `cloud.toml`.

    Raises:
        WrongUseError: Not there, not TOML, or a word or value that is not understood; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongUseError(
            f"{path}: cannot be read ({error.strerror}); name yours with --config, or `slideway cloud init FOLDER` "
            "writes one"
        ) from error
    return parse_settings(text, path.resolve().parent, path.name)


def parse_settings(text: str, folder: Path, source: str = "cloud.toml") -> CloudSettings:
    """Read settings from their text.

    Raises:
        WrongUseError: It is not understood to the last word.
    """
    types = get_type_hints(CloudSettings)
    kinds = {name: types[name] for name in SECTIONS}
    return CloudSettings(folder=folder, **read_sections(text, kinds, source=source, takes_environment=True))
