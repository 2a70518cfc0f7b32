"""What one node may take of the cloud: memory, lengths by kind, open uploads; and what stays of an unfinished one."""

from __future__ import annotations

import base64
import hashlib
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from slideway.core.errors import ConflictError, LineRefusedError, NodeRevokedError
from slideway.store.database import Store, open_store
from slideway.store.uploads import UploadState
from slideway.sync import shelf as shelf_module
from slideway.sync import tus
from slideway.sync.identity import make_keys
from slideway.sync.line import Line
from slideway.sync.outgoing import Piece, UploadPlan
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Intake, Quota, Shelf, name_upload
from slideway.sync.tus import CONTENT_TYPE, TusServer, metadata_of
from slideway.testing.postgres import serve_or_skip

from .conftest import NODE, SLIDE, TENANT, Clock, Cloud, KeepingIntake, a_file, a_plan

TUS = {"tus-resumable": "1.0.0"}
PATCH = {**TUS, "content-type": CONTENT_TYPE}
NORTH = Sender(TENANT, NODE)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        with open_store(f"sqlite:///{tmp_path / 'limits.db'}") as store:
            store.add_tenant(TENANT)
            yield store
        return
    with serve_or_skip() as server, open_store(server.add_database("limits", owner="slideway")) as store:
        store.add_tenant(TENANT)
        yield store


def checksum(content: bytes) -> str:
    return "sha1 " + base64.b64encode(hashlib.sha1(content).digest()).decode()


def announce(content: bytes, *ends: int, kind: str = "bundle") -> dict[str, str]:
    return {
        **TUS,
        "upload-length": str(len(content)),
        "upload-metadata": metadata_of(a_plan(content, *ends, kind=kind)),
        "content-length": "0",
    }


def test_a_part_with_a_checksum_is_never_whole_in_memory(cloud: Cloud) -> None:
    piece, n_pieces = a_file(2**18), 128  # 32 MiB
    digest, sha256 = hashlib.sha1(), hashlib.sha256()
    for _ in range(n_pieces):
        digest.update(piece)
        sha256.update(piece)
    length = len(piece) * n_pieces
    cloud.shelf._intake = Intake()  # the one that keeps copies would need them all
    plan = UploadPlan("slide", sha256.hexdigest(), SLIDE, (length,))
    begun = cloud.shelf.begin(cloud.sender, plan, length)
    headers = {
        **PATCH,
        "upload-offset": "0",
        "upload-checksum": "sha1 " + base64.b64encode(digest.digest()).decode(),
    }
    reception = cloud.tus.begin_patch(cloud.sender, begun.upload_id, headers)
    assert isinstance(reception, tus.Reception)
    tracemalloc.start()
    try:
        for _ in range(n_pieces):
            reception.write(piece)
        answer = reception.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(length))
    assert peak < 12 * 2**20


def test_a_part_that_breaks_off_between_slices_goes_on_at_a_true_offset(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tus, "_SLICE_BYTES", 1_000)
    content = a_file(2_500)
    at = cloud.tus.create(cloud.sender, announce(content)).headers["Location"].rsplit("/", 1)[1]
    writes: list[int] = []

    def write(file: object, chunk: bytes) -> None:
        writes.append(len(chunk))
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        file.write(chunk)  # type: ignore[attr-defined]

    monkeypatch.setattr(cloud.shelf, "_write", write)
    headers = {**PATCH, "upload-offset": "0", "upload-checksum": checksum(content)}
    assert cloud.tus.patch(cloud.sender, at, headers, [content]).status == 507
    assert cloud.tus.head_whole(TENANT, lambda _: cloud.sender, at, TUS).headers["Upload-Offset"] == "1000"
    rest = {**PATCH, "upload-offset": "1000", "upload-checksum": checksum(content[1_000:])}
    assert cloud.tus.patch(cloud.sender, at, rest, [content[1_000:]]).headers["Upload-Offset"] == "2500"
    assert list(cloud.intake.kept.values()) == [content]


def test_each_kind_has_a_longest_file_and_says_so_when_it_begins(cloud: Cloud) -> None:
    server = TusServer(cloud.shelf, most_bytes={"bundle": 1_000, "slide": 3_000})
    for kind, length, status in (
        ("bundle", 1_000, 201), ("bundle", 1_001, 413), ("slide", 3_000, 201), ("slide", 3_001, 413),
        ("region", 3_002, 201),
    ):  # fmt: skip
        answer = server.create(cloud.sender, announce(a_file(length), kind=kind))
        assert answer.status == status, (kind, length)
    assert (
        b"a slide of 3,001 bytes; at most 3,000"
        in server.create(cloud.sender, announce(a_file(3_001), kind="slide")).body
    )
    assert max(tus.MOST_BYTES["bundle"], tus.MOST_BYTES["region"]) <= 256 * 2**20  # they are read whole into memory


def test_a_node_has_so_many_open_uploads_and_goes_on_with_those(store: Store, tmp_path: Path) -> None:
    quota = Quota(node_uploads=2, node_bytes=10**6, tenant_uploads=3, tenant_bytes=10**6)
    shelf = Shelf(store, tmp_path / "parts", signing=make_keys().signing, quota=quota)
    files = [a_file(100, seed=seed) for seed in range(5)]
    plans = [a_plan(content) for content in files]
    first = shelf.begin(NORTH, plans[0], 100)
    shelf.begin(NORTH, plans[1], 100)
    with pytest.raises(LineRefusedError) as refused:
        shelf.begin(NORTH, plans[2], 100)
    assert (refused.value.status, refused.value.refusal) == (429, "uploads-too-many")
    assert refused.value.wait_seconds == 60
    assert shelf.begin(NORTH, plans[0], 100) == first  # what is open may be found again
    other = Sender(TENANT, "node-2")
    third = shelf.begin(other, plans[2], 100)
    with pytest.raises(LineRefusedError, match="unfinished"):
        shelf.begin(Sender(TENANT, "node-3"), plans[3], 100)  # the tenant's turn to be full
    shelf.end(third)
    assert shelf.settle(NORTH, shelf.append(first, 0, files[0])).receipts.keys() == {0}
    shelf.begin(NORTH, plans[4], 100)  # one is complete: there is room again
    with pytest.raises(LineRefusedError):
        shelf.begin(NORTH, plans[2], 100)


def test_a_node_has_so_many_bytes_in_unfinished_uploads(store: Store, tmp_path: Path) -> None:
    quota = Quota(node_uploads=9, node_bytes=150, tenant_uploads=9, tenant_bytes=220)
    shelf = Shelf(store, tmp_path / "parts", signing=make_keys().signing, quota=quota)
    contents = [a_file(200, seed=seed) for seed in range(4)]
    one = shelf.begin(NORTH, a_plan(contents[0]), 200)
    shelf.append(one, 0, contents[0][:140])
    two = shelf.begin(NORTH, a_plan(contents[1]), 200)  # 140 of 150
    shelf.append(two, 0, contents[1][:20])
    with pytest.raises(LineRefusedError) as refused:
        shelf.begin(NORTH, a_plan(contents[2]), 200)
    assert (refused.value.status, refused.value.refusal) == (507, "uploads-too-large")
    other = Sender(TENANT, "node-2")
    three = shelf.begin(other, a_plan(contents[2]), 200)
    shelf.append(three, 0, contents[2][:80])
    with pytest.raises(LineRefusedError):
        shelf.begin(Sender(TENANT, "node-3"), a_plan(contents[3]), 200)
    again = shelf.begin(NORTH, a_plan(contents[0]), 200)
    assert again.offset_bytes == 140
    shelf.end(shelf.append(again, 140, contents[0][140:]))
    assert shelf.begin(NORTH, a_plan(contents[3]), 200).state is UploadState.OPEN


def test_an_upload_that_was_given_up_counts_when_it_begins_again(store: Store, tmp_path: Path) -> None:
    shelf = Shelf(store, tmp_path / "parts", signing=make_keys().signing, quota=Quota(node_uploads=1))
    plans = [a_plan(a_file(100, seed=seed)) for seed in range(2)]
    shelf.end(shelf.begin(NORTH, plans[0], 100))
    shelf.begin(NORTH, plans[1], 100)
    with pytest.raises(LineRefusedError):
        shelf.begin(NORTH, plans[0], 100)


def test_a_full_quota_lets_the_node_end_what_it_began(cloud: Cloud, line: Line) -> None:
    cloud.shelf._quota = Quota(node_uploads=1)
    contents = [a_file(400, seed=seed) for seed in range(2)]
    plans = [a_plan(content, 100, 400) for content in contents]
    progress = line.begin_upload(plans[0], contents[0][:100])
    with pytest.raises(LineRefusedError) as refused:  # this file waits; a line that is down would stop all others too
        line.begin_upload(plans[1], contents[1][:100])
    assert (refused.value.status, refused.value.refusal) == (429, "uploads-too-many")
    assert set(line.send_part(progress.path, 100, contents[0][100:]).receipts) == {0, 1}
    assert line.begin_upload(plans[1], contents[1][:100]).offset_bytes == 100


def test_a_full_quota_says_when_to_come_again(cloud: Cloud, url: str) -> None:
    from slideway.sync.identity import sign_challenge

    cloud.shelf._quota = Quota(node_uploads=0)
    challenge = cloud.sessions.begin(TENANT, NODE)
    proof = sign_challenge(cloud.node_keys.signing, challenge.challenge)
    bearer = f"Bearer {cloud.sessions.prove(challenge.session, proof).token}"
    headers = announce(a_file(10)) | {"authorization": bearer}
    answer = httpx.post(f"{url}/v1/uploads", headers=headers)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
    assert answer.json()["code"] == "uploads-too-many"


class RescuingIntake(KeepingIntake):
    def __init__(self) -> None:
        super().__init__()
        self.rescued: list[tuple[str, bytes]] = []

    def rescue(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        self.rescued.append((piece.key, path.read_bytes()[: piece.end_bytes]))


def test_what_was_acknowledged_is_kept_when_an_unfinished_upload_expires(cloud: Cloud) -> None:
    intake = RescuingIntake()
    cloud.shelf._intake = intake
    content = a_file(1_000)
    plan = a_plan(content, 100, 400, 1_000)
    upload = cloud.shelf.begin(cloud.sender, plan, 1_000)
    assert set(cloud.shelf.settle(cloud.sender, cloud.shelf.append(upload, 0, content[:450])).receipts) == {0, 1}
    bare = cloud.shelf.begin(cloud.sender, a_plan(a_file(50, seed=9)), 50)  # of which nothing was acknowledged
    cloud.shelf.append(bare, 0, a_file(50, seed=9)[:20])
    clock = cloud.store._clock
    assert isinstance(clock, Clock)
    clock.move(31 * 86_400)
    assert cloud.shelf.remove_expired(TENANT) == 2
    assert intake.rescued == [(plan.pieces[1].key, content[:400])]
    assert not list(cloud.folder.rglob("*.part"))


def test_an_upload_whose_bytes_cannot_be_kept_elsewhere_does_not_expire(cloud: Cloud) -> None:
    class Away(KeepingIntake):
        def rescue(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
            from slideway.core.errors import BlobError

            raise BlobError("the place for blobs does not answer")

    content = a_file(1_000)
    upload = cloud.shelf.begin(cloud.sender, a_plan(content, 100, 1_000), 1_000)
    cloud.shelf.settle(cloud.sender, cloud.shelf.append(upload, 0, content[:100]))
    cloud.shelf._intake = Away()
    clock = cloud.store._clock
    assert isinstance(clock, Clock)
    clock.move(31 * 86_400)
    assert cloud.shelf.remove_expired(TENANT) == 0
    found = cloud.shelf.find(cloud.sender, upload.upload_id)
    assert found is not None
    assert found.state is UploadState.OPEN
    assert len(list(cloud.folder.rglob("*.part"))) == 1


def test_a_token_from_a_clock_that_was_years_ahead_is_none(cloud: Cloud) -> None:
    from slideway.sync.identity import sign_challenge
    from slideway.sync.sessions import Sessions

    now = [2_000_000_000.0]
    sessions = Sessions(cloud.store, secret=b"s" * 32, clock=lambda: now[0])
    challenge = sessions.begin(TENANT, NODE)
    token = sessions.prove(challenge.session, sign_challenge(cloud.node_keys.signing, challenge.challenge)).token
    assert sessions.find_sender(f"Bearer {token}") == NORTH
    now[0] -= 10 * 365 * 86_400
    with pytest.raises(LineRefusedError, match="not a valid"):
        sessions.find_sender(f"Bearer {token}")


def test_a_revoked_node_adds_no_byte_with_a_token_that_is_still_good(cloud: Cloud, line: Line) -> None:
    content = a_file(300)
    progress = line.begin_upload(a_plan(content, 100, 300), content[:100])
    with cloud.store.transaction(TENANT) as work:
        work.nodes.revoke(NODE, reason="stolen")
    with pytest.raises(NodeRevokedError):
        line.send_part(progress.path, 100, content[100:])
    with pytest.raises(LineRefusedError, match="403"):  # an answer to HEAD has no body that could say more
        line.find_upload(progress.path)
    with pytest.raises(NodeRevokedError):
        line.begin_upload(a_plan(a_file(50)), a_file(50))
    found = cloud.shelf.find(cloud.sender, progress.path.rsplit("/", 1)[1])
    assert found is not None
    assert found.offset_bytes == 100


def test_a_request_without_a_good_token_is_401_and_says_how(cloud: Cloud, url: str) -> None:
    headers = {**announce(a_file(10)), "authorization": "Bearer no.thing"}
    answer = httpx.post(f"{url}/v1/uploads", headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    gone = cloud.sessions._seal({"what": "token", "tenant": "gone", "node": NODE, "key": "", "until": time.time() + 60})
    answer = httpx.post(f"{url}/v1/uploads", headers=headers | {"authorization": f"Bearer {gone}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "token-invalid")
    assert not list(cloud.folder.rglob("*.part"))


def test_a_short_part_that_was_cut_off_keeps_what_came_unless_a_checksum_says_otherwise(cloud: Cloud) -> None:
    content = a_file(1_000)
    at = cloud.tus.create(cloud.sender, announce(content)).headers["Location"].rsplit("/", 1)[1]
    headers = {**PATCH, "upload-offset": "0", "content-length": "1000"}
    cloud.tus.take_whole(TENANT, lambda _: cloud.sender, at, headers, content[:300])
    assert cloud.tus.head_whole(TENANT, lambda _: cloud.sender, at, TUS).headers["Upload-Offset"] == "300"
    wrong = {**PATCH, "upload-offset": "300", "upload-checksum": checksum(content[300:])}
    assert cloud.tus.take_whole(TENANT, lambda _: cloud.sender, at, wrong, content[300:500]).status == 460
    assert cloud.tus.head_whole(TENANT, lambda _: cloud.sender, at, TUS).headers["Upload-Offset"] == "300"


def expire(cloud: Cloud) -> None:
    clock = cloud.store._clock
    assert isinstance(clock, Clock)
    clock.move(31 * 86_400)


def test_a_part_file_whose_row_cannot_be_seen_yet_is_left_alone_until_it_is_old(cloud: Cloud) -> None:
    """As of an upload that is just being created: its file is there before its row."""
    content = a_file(1_000)
    upload = cloud.shelf.begin(cloud.sender, a_plan(content), 1_000)
    cloud.shelf.append(upload, 0, content[:500])
    (known,) = cloud.folder.rglob("*.part")
    left = known.with_name("0" * 40 + ".part")
    left.write_bytes(content)
    cloud.shelf.remove_expired(TENANT)
    assert left.exists()
    os.utime(left, (time.time() - 7_200,) * 2)
    os.utime(known, (time.time() - 7_200,) * 2)
    cloud.shelf.remove_expired(TENANT)
    assert not left.exists()
    assert known.exists()


def test_an_upload_that_begins_again_while_left_files_are_removed_keeps_its_bytes(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = a_file(1_000)
    plan = a_plan(content)
    upload = cloud.shelf.append(cloud.shelf.begin(cloud.sender, plan, 1_000), 0, content[:500])
    (path,) = cloud.folder.rglob("*.part")
    cloud.shelf.end(upload)
    path.write_bytes(content[:500])  # a killed process left it

    def begin_again(_: Path) -> float:
        cloud.shelf.append(cloud.shelf.begin(cloud.sender, plan, 1_000), 0, content[:700])
        return time.time()

    monkeypatch.setattr(shelf_module, "_read_clock", begin_again)
    cloud.shelf.remove_expired(TENANT)
    assert path.read_bytes() == content[:700]


def test_bytes_of_an_upload_are_gone_when_its_end_is_committed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    content = a_file(1_000)
    upload = cloud.shelf.append(cloud.shelf.begin(cloud.sender, a_plan(content), 1_000), 0, content[:500])
    (path,) = cloud.folder.rglob("*.part")
    seen, retrying = list[bool](), cloud.store.retrying

    def look(tenant: str, do: Any) -> object:
        result = retrying(tenant, do)
        seen.append(path.exists())
        return result

    monkeypatch.setattr(cloud.store, "retrying", look)
    cloud.shelf.end(upload)
    assert seen == [False]


class Meanwhile(KeepingIntake):
    """Something happens while what was acknowledged is kept elsewhere."""

    def __init__(self, *do: Callable[[], object]) -> None:
        super().__init__()
        self.rescued: list[str] = []
        self._do = list(do)

    def rescue(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
        self.rescued.append(piece.key)
        if self._do:
            self._do.pop()()


def test_an_upload_that_grows_while_it_expires_goes_on(cloud: Cloud) -> None:
    content = a_file(1_000)
    plan = a_plan(content, 100, 1_000)
    upload = cloud.shelf.append(cloud.shelf.begin(cloud.sender, plan, 1_000), 0, content[:100])
    cloud.shelf.settle(cloud.sender, upload)
    expire(cloud)
    cloud.shelf._intake = Meanwhile(lambda: cloud.shelf.append(upload, 100, content[100:600]))
    assert cloud.shelf.remove_expired(TENANT) == 0
    (path,) = cloud.folder.rglob("*.part")
    assert path.read_bytes() == content[:600]
    done = cloud.shelf.settle(cloud.sender, cloud.shelf.append(cloud.shelf._reload(upload), 600, content[600:]))
    assert set(done.receipts) == {0, 1}


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_receipt_that_is_given_while_an_upload_ends_is_kept_too(cloud: Cloud, is_asked: bool) -> None:
    content = a_file(1_000)
    plan = a_plan(content, 100, 400, 1_000)
    upload = cloud.shelf.append(cloud.shelf.begin(cloud.sender, plan, 1_000), 0, content[:100])
    cloud.shelf.settle(cloud.sender, upload)
    upload = cloud.shelf.append(upload, 100, content[100:450])  # and its request breaks off
    intake = Meanwhile(lambda: cloud.shelf.settle(cloud.sender, upload))
    cloud.shelf._intake = intake
    if is_asked:
        cloud.shelf.give_up(upload)
    else:
        expire(cloud)
        assert cloud.shelf.remove_expired(TENANT) == 0
        assert list(cloud.folder.rglob("*.part"))
        assert cloud.shelf.remove_expired(TENANT) == 1
    assert intake.rescued == [plan.pieces[0].key, plan.pieces[1].key]
    assert not list(cloud.folder.rglob("*.part"))


def test_no_receipt_is_given_for_an_upload_that_ended_meanwhile(cloud: Cloud) -> None:
    content = a_file(1_000)
    plan = a_plan(content, 100, 1_000)
    upload = cloud.shelf.append(cloud.shelf.begin(cloud.sender, plan, 1_000), 0, content[:100])
    seen = cloud.shelf.look(TENANT, lambda work: cloud.shelf.see(work, cloud.sender, upload))
    cloud.shelf.end(upload)
    cloud.shelf._intake = Intake()
    with pytest.raises(ConflictError, match="given up meanwhile"):
        cloud.shelf.settle(cloud.sender, upload, seen)
    with cloud.store.reading(TENANT) as work:
        assert work.inbox.find(NODE, plan.pieces[0].key) is None


@pytest.mark.parametrize("error", [PermissionError("no"), ConflictError("elsewhere"), KeyError("bug")])
def test_an_upload_that_cannot_expire_does_not_stop_the_others(cloud: Cloud, error: Exception) -> None:
    class Failing(KeepingIntake):
        def rescue(self, sender: Sender, plan: UploadPlan, piece: Piece, path: Path) -> None:
            if plan.sha256 == plans[0].sha256:
                raise error

    plans = []
    for seed in range(3):
        content = a_file(1_000, seed=seed)
        plans.append(a_plan(content, 100, 1_000))
        upload = cloud.shelf.append(cloud.shelf.begin(cloud.sender, plans[-1], 1_000), 0, content[:100])
        cloud.shelf.settle(cloud.sender, upload)
    cloud.shelf._intake = Failing()
    expire(cloud)
    assert cloud.shelf.remove_expired(TENANT) == 2
    assert [path.stem for path in cloud.folder.rglob("*.part")] == [name_upload(cloud.sender, plans[0])]
