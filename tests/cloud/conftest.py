"""A cloud that runs on loopback, nodes that are enrolled with it, and toy bundles that they sign and lock."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import imagecodecs
import numpy as np
import pytest

from slideway.bundles.build import BundleContent, build_bundle
from slideway.bundles.container import Part, pack_container
from slideway.bundles.lock import lock_parts
from slideway.bundles.read import REGION
from slideway.bundles.tiles_part import AXES
from slideway.cloud.app import Cloud, create_app, open_cloud
from slideway.cloud.enrolment import invite_node
from slideway.cloud.gate import Drain
from slideway.cloud.init import CONFIG, init_cloud, read_operator_token
from slideway.cloud.serve import _Server, make_config
from slideway.cloud.settings import CloudSettings, parse_settings
from slideway.cloud.worker import Worker
from slideway.core.bag import EmbeddingBag
from slideway.core.bundle import BriefFinding, BundleSummary
from slideway.core.tissue import TileGrid
from slideway.sync.identity import Endpoint, Keys, check_receipt, decode_key, make_keys
from slideway.sync.line import Line
from slideway.sync.outgoing import UploadPlan

SETTINGS = """
[server]
port = 0
tls = false
idle_seconds = 3
header_seconds = 1
drain_seconds = 5
enrols_per_minute = 1000
[store]
url = "{store}"
[blobs]
url = "{blobs}"
{more_blobs}
[uploads]
min_free_mb = 1
[worker]
isolate = false
"""
CASE = "KZ2QGX7LB3MWOA5T"  # the form of a pseudonym
FINGERPRINT = "fe" * 32


def write_bundle(
    keys: Keys,
    receiver: object,
    *,
    seed: int = 0,
    n: int = 60,
    width: int = 16,
    lock: bool = True,
    with_vectors: bool = True,
    bag: EmbeddingBag | None = None,
    **summary: object,
) -> bytes:
    """A toy bundle, signed by a node and locked to the cloud; the slide follows from the seed."""
    random = np.random.default_rng(seed)
    if bag is None:
        place = np.stack([np.arange(n) % 18, np.arange(n) // 18], axis=1).astype(np.int32)
        slide = hashlib.sha256(str(seed).encode()).hexdigest()
        vectors = random.normal(size=(n, width)).astype(np.float16)
        grid = TileGrid(place, 224, 0.5, 0.25)
        focus = np.full(n, 100, np.float32)
        bag = EmbeddingBag(vectors, grid, focus, "toy-encoder", FINGERPRINT, slide)
    n = len(bag)
    facts = BundleSummary(
        slide_sha256=bag.slide_sha256,
        case=CASE,
        site="lung",
        width_px=8192,
        height_px=8192,
        mpp=0.25,
        is_mpp_estimated=False,
        tissue_mm2=12.5,
        verdict="readable",
        reasons=(),
        tile_px=bag.grid.tile_px,
        tile_mpp=bag.grid.tile_mpp,
        tiles=n,
        tiles_left_out=0,
        tissue_tiles=n,
        is_sampled=False,
        novel_share=None,
        encoder_id=bag.encoder_id,
        fingerprint=bag.fingerprint,
        codec="",
        findings=(BriefFinding("neoplastic", "refer", ("yes", "no"), 0.6, False),),
    )
    content = BundleContent(
        bag=bag,
        summary=replace(facts, **summary),
        opinion={"findings": [], "quality": {"verdict": "readable"}},
        thumbnail=np.full((24, 32, 3), 220, np.uint8),
        attention=random.random(n).astype(np.float32),
        novelty=None,
        representatives=(tuple(range(min(n, 4))),),
    )
    parts = [part for part in build_bundle(content, codec="steps").parts if with_vectors or not _is_vectors(part.name)]
    if not lock:
        return pack_container(parts, signer=keys.signing)
    locked, how = lock_parts(parts, receiver)
    return pack_container(locked, lock=how, signer=keys.signing)


def _is_vectors(name: str) -> bool:
    """Whether a policy that keeps features keeps this part."""
    return name == AXES or name.startswith("tiles-")


def write_region(
    keys: Keys,
    receiver: object,
    slide: str,
    rectangle: tuple[int, ...] = (0, 0, 64, 64),
    *,
    lock: bool = True,
    picture: bytes | None = None,
    place: bytes | None = None,
) -> tuple[bytes, bytes]:
    """A region as a node lets it leave, and the picture in it."""
    if picture is None:
        pixels = np.full((rectangle[3], rectangle[2], 3), 200, np.uint8)
        picture = bytes(imagecodecs.webp_encode(pixels, level=None, lossless=True))
    place = place or json.dumps({"slide": slide, "rectangle": list(rectangle)}).encode()
    parts = [Part("place", 3, place), Part(REGION, 3, picture)]
    if not lock:
        return pack_container(parts, signer=keys.signing), picture
    locked, how = lock_parts(parts, receiver)
    return pack_container(locked, lock=how, signer=keys.signing), picture


def send_region(node: Node, region: bytes, slide: str) -> dict[int, str]:
    """Send a region and give the receipts."""
    plan = UploadPlan("region", hashlib.sha256(region).hexdigest(), slide, (len(region),))
    progress = node.line.begin_upload(plan)
    return dict(node.line.send_part(progress.path, 0, region).receipts)


def plan_of(content: bytes, slide: str = "") -> UploadPlan:
    """What a node says of a bundle when its upload begins."""
    import io

    from slideway.bundles.container import read_head

    head, ends = read_head(io.BytesIO(content), "toy"), []
    for tier in range(3):
        ends.append((ends[-1] if ends else 0) + head.bytes_of_tier(tier))
    return UploadPlan("bundle", hashlib.sha256(content).hexdigest(), slide, tuple(ends))


@dataclass
class Node:
    """A node that is enrolled."""

    tenant: str
    node: str
    keys: Keys
    endpoint: Endpoint
    line: Line

    def pack(self, **facts: object) -> bytes:
        return write_bundle(self.keys, self.endpoint.receiver, **facts)

    def plan(self, content: bytes) -> UploadPlan:
        return plan_of(content)

    def send(self, content: bytes, *, upto: int | None = None) -> dict[int, str]:
        """Send a bundle and give the receipts, each verified."""
        plan = plan_of(content)
        progress = self.line.begin_upload(plan)
        end = len(content) if upto is None else plan.ends_bytes[upto]
        if progress.offset_bytes < end:
            progress = self.line.send_part(progress.path, progress.offset_bytes, content[progress.offset_bytes : end])
        for tier, receipt in progress.receipts.items():
            check_receipt(
                receipt,
                cloud_key=self.endpoint.cloud_key,
                tenant=self.tenant,
                node=self.node,
                key=f"bundle:{plan.sha256}:t{tier}",
                sha256=plan.sha256,
            )
        return dict(progress.receipts)

    def fetch(self, kind: str = "") -> list[dict[str, object]]:
        """Bodies of the messages that wait, without taking them."""
        return [
            {"kind": item.message.kind, **item.message.body}
            for item in self.line.receive_messages()
            if kind in ("", item.message.kind)
        ]


class House:
    """A cloud that runs."""

    def __init__(self, cloud: Cloud, url: str, drain: Drain, server: _Server) -> None:
        self.cloud, self.url, self.drain, self.server = cloud, url, drain, server
        self._lines: list[Line] = []

    @property
    def folder(self) -> Path:
        return self.cloud.folder.path

    @property
    def operator(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {read_operator_token(self.folder)}"}

    def client(self, **more: object) -> httpx.Client:
        verify: ssl.SSLContext | bool = False
        if self.url.startswith("https"):
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            verify.load_verify_locations(cadata=self.cloud.folder.ca_pem.decode())
        return httpx.Client(base_url=self.url, verify=verify, timeout=20, trust_env=False, **more)

    def enrol(self, tenant: str, node: str) -> Node:
        self.cloud.store.add_tenant(tenant)
        code, keys = invite_node(self.cloud.store, tenant, node, ca_pem=self.cloud.folder.ca_pem), make_keys()
        said = {"code": code, "public_key": keys.public_key, "receiving_key": keys.receiving_key, "version": "0.1.0"}
        with self.client() as client:
            told = client.post("/v1/enrol", json=said).raise_for_status().json()
        endpoint = Endpoint(
            self.url,
            told["tenant"],
            told["node"],
            decode_key(told["cloud_key"]),
            decode_key(told["cloud_receiving_key"]),
            told["ca_pem"] if self.url.startswith("https") else "",
        )
        line = Line(endpoint, keys)
        self._lines.append(line)
        return Node(tenant, node, keys, endpoint, line)

    def person(
        self, name: str = "dr-weber", role: str = "specialist", organs: str = "lung", **more: str
    ) -> dict[str, str]:
        words = [organs] if organs else []
        return {"Authorization": f"Bearer {self.cloud.people.add(name, role, organs=words, **more)}"}

    def work(self) -> int:
        """Do all jobs that are due; how many."""
        worker, count = Worker(self.cloud.tools, "toy", threading.Event()), 0
        while worker.work_once():
            count += 1
        return count

    def close(self) -> None:
        for line in self._lines:
            line.close()


@contextmanager
def run_cloud(settings: CloudSettings) -> Iterator[House]:
    """Run a cloud without workers in a thread, on a free port; `House.work` does its jobs."""
    cloud, drain = open_cloud(settings), Drain()
    server = _Server(make_config(cloud, create_app(cloud, role="all", drain=drain)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "the cloud did not start"
        assert thread.is_alive(), "the cloud ended"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    house = House(cloud, f"{'https' if settings.server.tls else 'http'}://127.0.0.1:{port}", drain, server)
    try:
        yield house
    finally:
        house.close()
        server.should_exit = True
        thread.join(20)
        cloud.close()


@pytest.fixture(scope="session")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "cloud"
    init_cloud(folder)
    settings = parse_settings(SETTINGS.format(store="sqlite:///slideway.db", blobs="file:blobs", more_blobs=""), folder)
    open_cloud(settings).close()  # migrated once
    return folder


@pytest.fixture
def cloud_folder(made_folder: Path, tmp_path: Path) -> Path:
    """A cloud's folder with an empty store."""
    return Path(shutil.copytree(made_folder, tmp_path / "cloud"))


@pytest.fixture
def write_settings(cloud_folder: Path) -> Callable[..., CloudSettings]:
    """Settings for tests, with further lines."""

    def write(
        more: str = "", *, store: str = "sqlite:///slideway.db", blobs: str = "file:blobs", more_blobs: str = ""
    ) -> CloudSettings:
        text = SETTINGS.format(store=store, blobs=blobs, more_blobs=more_blobs) + more
        (cloud_folder / CONFIG).write_text(text)
        return parse_settings(text, cloud_folder)

    return write


@pytest.fixture
def house(write_settings: Callable[..., CloudSettings]) -> Iterator[House]:
    """A cloud on SQLite and a folder."""
    with run_cloud(write_settings()) as running:
        yield running


@pytest.fixture(scope="session")
def shared_house(made_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One cloud for all tests that look at their own tenant only: to start one takes longer than most of them."""
    folder = Path(shutil.copytree(made_folder, tmp_path_factory.mktemp("shared") / "cloud"))
    text = SETTINGS.format(store="sqlite:///slideway.db", blobs="file:blobs", more_blobs="")
    (folder / CONFIG).write_text(text)
    with run_cloud(parse_settings(text, folder)) as running:
        yield running


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """A tenant of this test alone."""
    return f"t-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
