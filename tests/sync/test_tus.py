"""The tus 1.0.0 protocol over a real socket: what the specification asks for, an independent client, and cuts."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from slideway.store.database import open_store
from slideway.sync.identity import sign_challenge
from slideway.sync.line import Line
from slideway.sync.sessions import Sender, Sessions
from slideway.sync.tus import CONTENT_TYPE, metadata_of, read_metadata, read_plan, write_metadata

from .conftest import NODE, SLIDE, TENANT, Cloud, a_file, a_plan, effects, enrol

TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Content-Type": CONTENT_TYPE}


def get_token(url: str, cloud: Cloud) -> str:
    return token_of(cloud.sessions, TENANT, NODE, cloud)


def token_of(sessions: Sessions, tenant: str, node: str, cloud: Cloud) -> str:
    challenge = sessions.begin(tenant, node)
    return sessions.prove(challenge.session, sign_challenge(cloud.node_keys.signing, challenge.challenge)).token


@pytest.fixture
def client(url: str, cloud: Cloud) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {get_token(url, cloud)}"}) as client:
        yield client


def create(client: httpx.Client, content: bytes, *ends: int) -> str:
    plan = a_plan(content, *ends)
    headers = {**TUS, "Upload-Length": str(len(content)), "Upload-Metadata": metadata_of(plan)}
    answer = client.post("/v1/uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def test_options_says_what_the_server_can_do_without_token_or_version(url: str) -> None:
    answer = httpx.options(f"{url}/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert set(answer.headers["Tus-Extension"].split(",")) == {
        "creation", "creation-with-upload", "checksum", "termination", "expiration",
    }  # fmt: skip
    assert "sha1" in answer.headers["Tus-Checksum-Algorithm"].split(",")
    assert int(answer.headers["Tus-Max-Size"]) > 0


def test_upload_in_two_parts_says_its_offset_and_when_it_expires(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(10_000)
    at = create(client, content)
    assert client.head(at, headers=TUS).headers["Upload-Offset"] == "0"
    first = client.patch(at, content=content[:4_000], headers={**PATCH, "Upload-Offset": "0"})
    assert (first.status_code, first.headers["Upload-Offset"]) == (204, "4000")
    assert first.headers["Upload-Expires"].endswith("GMT")
    assert first.headers["Tus-Resumable"] == "1.0.0"
    where = client.head(at, headers=TUS)
    assert (where.headers["Upload-Offset"], where.headers["Upload-Length"]) == ("4000", "10000")
    assert where.headers["Cache-Control"] == "no-store"
    last = client.patch(at, content=content[4_000:], headers={**PATCH, "Upload-Offset": "4000"})
    assert last.headers["Upload-Offset"] == "10000"
    assert last.headers["Slideway-Receipt"].startswith("t0 ")
    assert list(cloud.intake.kept.values()) == [content]


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0.1"])
def test_other_version_is_412_and_nothing_is_done(client: httpx.Client, version: str | None) -> None:
    content = a_file(100)
    at = create(client, content)
    headers = {"Content-Type": CONTENT_TYPE, "Upload-Offset": "0"} | ({"Tus-Resumable": version} if version else {})
    answer = client.patch(at, content=content, headers=headers)
    assert (answer.status_code, answer.headers["Tus-Version"]) == (412, "1.0.0")
    assert client.head(at).status_code == 412
    assert client.head(at, headers=TUS).headers["Upload-Offset"] == "0"


def test_wrong_requests_get_the_statuses_of_the_specification(client: httpx.Client) -> None:
    content = a_file(100)
    at = create(client, content)

    def patch(headers: dict[str, str], body: bytes = content) -> int:
        return client.patch(at, content=body, headers={**PATCH, "Upload-Offset": "0", **headers}).status_code

    assert patch({"Upload-Offset": "7"}) == 409
    assert patch({"Content-Type": "application/json"}) == 415
    assert patch({"Upload-Checksum": "sha256 " + base64.b64encode(b"0" * 32).decode()}) == 460
    assert patch({"Upload-Checksum": "md4 AAAA"}) == 400
    assert patch({"Upload-Checksum": "sha256 !"}) == 400
    assert patch({"Upload-Offset": "-1"}) == 400
    assert patch({}, content + b"1") == 413
    assert client.head(at, headers=TUS).headers["Upload-Offset"] == "0"
    unknown = client.head("/v1/uploads/" + "0" * 40, headers=TUS)
    assert (unknown.status_code, unknown.headers.get("Upload-Offset")) == (404, None)
    assert client.post("/v1/uploads", headers=TUS).status_code == 400
    assert client.post("/v1/uploads", headers={**TUS, "Upload-Length": "-5"}).status_code == 400
    assert client.post("/v1/uploads", headers={**TUS, "Upload-Length": str(10**14)}).status_code == 413
    assert client.put(at, headers=TUS).status_code == 405


def test_right_checksums_of_both_kinds_are_taken(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(200)
    at = create(client, content)
    sha1 = "sha1 " + base64.b64encode(hashlib.sha1(content[:100]).digest()).decode()
    sha256 = "sha256 " + base64.b64encode(hashlib.sha256(content[100:]).digest()).decode()
    one = client.patch(at, content=content[:100], headers={**PATCH, "Upload-Offset": "0", "Upload-Checksum": sha1})
    two = client.patch(at, content=content[100:], headers={**PATCH, "Upload-Offset": "100", "Upload-Checksum": sha256})
    assert (one.status_code, two.status_code) == (204, 204)
    assert list(cloud.intake.kept.values()) == [content]


def test_creation_is_idempotent_and_takes_first_bytes_once(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(300)
    plan = a_plan(content, 100, 300)
    headers = {**PATCH, "Upload-Length": "300", "Upload-Metadata": metadata_of(plan)}
    first = client.post("/v1/uploads", headers=headers, content=content[:100])
    again = client.post("/v1/uploads", headers=headers, content=content[:100])
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.headers["Location"] == again.headers["Location"]
    assert first.headers["Upload-Offset"] == again.headers["Upload-Offset"] == "100"
    assert first.headers["Slideway-Receipt"] == again.headers["Slideway-Receipt"]
    assert effects(cloud.store, "took") == [plan.pieces[0].key]
    other = {**headers, "Upload-Metadata": metadata_of(a_plan(content, 50, 300))}
    assert client.post("/v1/uploads", headers=other).status_code == 409


def test_termination_frees_the_bytes_and_the_same_file_may_begin_again(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(300)
    at = create(client, content)
    client.patch(at, content=content[:100], headers={**PATCH, "Upload-Offset": "0"})
    assert client.delete(at, headers=TUS).status_code == 204
    assert client.head(at, headers=TUS).status_code == 410
    assert client.patch(at, content=content, headers={**PATCH, "Upload-Offset": "100"}).status_code == 410
    assert not list(cloud.folder.rglob("*.part"))
    assert create(client, content) == at
    assert client.head(at, headers=TUS).headers["Upload-Offset"] == "0"


def test_method_override_stands_in_for_patch_delete_and_head(client: httpx.Client) -> None:
    content = a_file(300)
    at = create(client, content)
    headers = {**PATCH, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert client.post(at, content=content[:100], headers=headers).headers["Upload-Offset"] == "100"
    assert client.post(at, headers={**TUS, "X-HTTP-Method-Override": "HEAD"}).headers["Upload-Offset"] == "100"
    assert client.post(at, headers={**TUS, "X-HTTP-Method-Override": "DELETE"}).status_code == 204


def test_upload_that_does_not_grow_expires(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(300)
    at = create(client, content)
    client.patch(at, content=content[:100], headers={**PATCH, "Upload-Offset": "0"})
    assert cloud.shelf.remove_expired(TENANT) == 0
    cloud.store._clock.move(31 * 86_400)  # type: ignore[attr-defined]
    assert cloud.shelf.remove_expired(TENANT) == 1
    assert client.head(at, headers=TUS).status_code == 410


def test_file_with_another_hash_than_announced_is_thrown_away(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(300)
    at = create(client, content)
    answer = client.patch(at, content=content[:299] + b"x", headers={**PATCH, "Upload-Offset": "0"})
    assert (answer.status_code, answer.json()["code"]) == (410, "blob-broken")
    assert not cloud.intake.kept
    assert create(client, content) == at
    done = client.patch(at, content=content, headers={**PATCH, "Upload-Offset": "0"})
    assert "Slideway-Receipt" in done.headers


def test_cut_request_keeps_what_came_and_resumes_there(client: httpx.Client, cloud: Cloud, url: str) -> None:
    content = a_file(500_000)
    at = create(client, content)
    token = get_token(url, cloud)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = f"PATCH {at} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nUpload-Offset: 0\r\n"
        head += f"Tus-Resumable: 1.0.0\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: 500000\r\n\r\n"
        raw.sendall(head.encode() + content[:123_456])
        time.sleep(0.2)
    deadline = time.monotonic() + 5
    while (offset := int(client.head(at, headers=TUS).headers["Upload-Offset"])) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert offset == 123_456
    client.patch(at, content=content[offset:], headers={**PATCH, "Upload-Offset": str(offset)})
    assert list(cloud.intake.kept.values()) == [content]


def test_of_concurrent_patches_one_wins_and_bytes_never_mix(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(200_000)
    at = create(client, content)
    statuses: list[int] = []

    def send() -> None:
        offset = 0
        with httpx.Client(base_url=client.base_url, headers=client.headers) as mine:
            while offset < len(content):
                body = content[offset : offset + 20_000]
                answer = mine.patch(at, content=body, headers={**PATCH, "Upload-Offset": str(offset)})
                statuses.append(answer.status_code)
                offset = int(mine.head(at, headers=TUS).headers["Upload-Offset"])

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(204) >= 10
    assert set(statuses) <= {204, 409, 413}
    assert list(cloud.intake.kept.values()) == [content]
    assert len(effects(cloud.store, "took")) == 1


def test_other_node_and_other_tenant_find_nothing(client: httpx.Client, cloud: Cloud, url: str) -> None:
    content = a_file(300)
    at = create(client, content)
    for tenant, node in ((TENANT, "node-2"), ("south", "node-1")):
        enrol(cloud.store, cloud.node_keys, tenant=tenant, node=node)
        token = token_of(cloud.sessions, tenant, node, cloud)
        headers = {**TUS, "Authorization": f"Bearer {token}"}
        assert httpx.head(url + at, headers=headers).status_code == 404
        patch = {**headers, "Content-Type": CONTENT_TYPE, "Upload-Offset": "0"}
        assert httpx.patch(url + at, headers=patch, content=content).status_code == 404
        assert httpx.delete(url + at, headers=headers).status_code == 404
    assert client.head(at, headers=TUS).status_code == 200


def test_full_disk_is_507_and_the_upload_goes_on_when_there_is_space(cloud: Cloud, line: Line, url: str) -> None:
    full = True

    def write(file: object, content: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        file.write(content)  # type: ignore[attr-defined]

    cloud.shelf._write = write
    content = a_file(300)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {get_token(url, cloud)}"}) as client:
        at = create(client, content)
        answer = client.patch(at, content=content, headers={**PATCH, "Upload-Offset": "0"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (507, "60")
        assert client.head(at, headers=TUS).headers["Upload-Offset"] == "0"
        full = False
        assert client.patch(at, content=content, headers={**PATCH, "Upload-Offset": "0"}).status_code == 204


def test_part_file_that_was_lost_begins_again(client: httpx.Client, cloud: Cloud) -> None:
    content = a_file(300)
    at = create(client, content)
    client.patch(at, content=content[:100], headers={**PATCH, "Upload-Offset": "0"})
    for part in cloud.folder.rglob("*.part"):
        part.unlink()
    assert client.patch(at, content=content[100:], headers={**PATCH, "Upload-Offset": "100"}).status_code == 410
    create(client, content)
    assert client.patch(at, content=content, headers={**PATCH, "Upload-Offset": "0"}).status_code == 204


@pytest.mark.parametrize(
    "metadata",
    [
        "sha256 !!!",
        "a YQ==,a YQ==",
        write_metadata({"sha256": "xy"}),
        write_metadata({"sha256": "0" * 64, "tiers": "5,3"}),
    ],
)
def test_metadata_that_contradicts_itself_is_refused(client: httpx.Client, metadata: str) -> None:
    headers = {**TUS, "Upload-Length": "3", "Upload-Metadata": metadata}
    assert client.post("/v1/uploads", headers=headers).status_code == 400


def test_metadata_survives_the_line() -> None:
    plan = a_plan(b"abc", 1, 3)
    assert read_plan(metadata_of(plan), 3) == plan
    assert read_metadata("empty,key d29ybGQ=") == {"empty": "", "key": "world"}


def test_tuspy_uploads_is_cut_and_resumes(url: str, cloud: Cloud) -> None:
    tusclient = pytest.importorskip("tusclient.client", reason="tuspy is not installed")
    content = a_file(100_000)
    plan = a_plan(content, 1_000, 100_000)
    client = tusclient.TusClient(f"{url}/v1/uploads", headers={"Authorization": f"Bearer {get_token(url, cloud)}"})
    metadata = {"kind": plan.kind, "sha256": plan.sha256, "slide": SLIDE, "tiers": "1000,100000"}
    uploader = client.uploader(
        file_stream=io.BytesIO(content), chunk_size=30_000, metadata=metadata, upload_checksum=True
    )
    uploader.upload(stop_at=30_000)
    assert uploader.offset == 30_000
    later = client.uploader(file_stream=io.BytesIO(content), chunk_size=30_000, url=uploader.url, upload_checksum=True)
    assert later.offset == 30_000
    later.upload()
    assert cloud.intake.kept[plan.pieces[1].key] == content
    assert effects(cloud.store, "took") == [piece.key for piece in plan.pieces]


@pytest.mark.slow
def test_tus_js_client_uploads_is_cut_and_resumes(url: str, cloud: Cloud, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if not npm or not node:
        pytest.skip("node and npm are not installed")
    fetched = subprocess.run(
        [npm, "install", "--silent", "tus-js-client@4"], cwd=tmp_path, check=False, capture_output=True
    )
    if fetched.returncode != 0:
        pytest.skip("npm cannot fetch tus-js-client here")
    content = a_file(300_000)
    plan = a_plan(content, 1_000, 300_000)
    (tmp_path / "content.bin").write_bytes(content)
    (tmp_path / "upload.js").write_text(JS_UPLOAD)
    metadata = f"{plan.kind},{plan.sha256},{SLIDE}"
    command = [node, "upload.js", f"{url}/v1/uploads", get_token(url, cloud), metadata]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stdout
    assert cloud.intake.kept[plan.pieces[1].key] == content


JS_UPLOAD = """
const fs = require('fs'), tus = require('tus-js-client');
const [endpoint, token, facts] = process.argv.slice(2);
const [kind, sha256, slide] = facts.split(',');
const content = fs.readFileSync('content.bin');
const options = {
  endpoint, chunkSize: 50000, retryDelays: [0, 100], headers: {Authorization: `Bearer ${token}`},
  metadata: {kind, sha256, slide, tiers: '1000,300000'},
};
let cut = false;
const first = new tus.Upload(content, {
  ...options, onError: (error) => { throw error; }, onSuccess: () => { if (!cut) throw new Error('not cut'); },
  onChunkComplete: (size, accepted) => {
    if (accepted < 100000 || cut) return;
    cut = true;
    first.abort().then(() => {
      const again = new tus.Upload(content, {
        ...options, uploadUrl: first.url, onError: (error) => { throw error; },
        onProgress: (sent) => { if (sent >= 100000) console.log('resumed'); }, onSuccess: () => process.exit(0),
      });
      again.start();
    });
  },
});
first.start();
"""


KILLS = """
import os, pathlib, sys
from slideway.store.database import open_store
from slideway.sync.identity import make_keys
from slideway.sync.outgoing import UploadPlan
from slideway.sync.sessions import Sender
from slideway.sync.shelf import Intake, Shelf

folder, tenant, node, sha256, slide, content = pathlib.Path(sys.argv[1]), *sys.argv[2:6], bytes.fromhex(sys.argv[6])
plan, sender, keys = UploadPlan("bundle", sha256, slide, (100, 300)), Sender(tenant, node), make_keys()

class Noting(Intake):
    def take(self, work, sender, plan, piece):
        work.audit.append("took", actor=sender.node, subject=piece.key)

def upload():
    store = open_store(f"sqlite:///{folder}/cloud.db")
    shelf = Shelf(store, folder / "parts", signing=keys.signing, intake=Noting())
    upload = shelf.begin(sender, plan, 300)
    standing = shelf.settle(sender, upload)
    while standing.upload.offset_bytes < 300:
        at = standing.upload.offset_bytes
        standing = shelf.settle(sender, shelf.append(standing.upload, at, content[at : at + 100]))
    print(standing.upload.state, sorted(standing.receipts), flush=True)
    store.close()

for place in sys.argv[7:]:
    if os.fork() == 0:
        os.environ["SLIDEWAY_CRASH_AT"] = place
        upload()
        os._exit(0)
    _, status = os.wait()
    print(place, os.WIFSIGNALED(status), flush=True)
upload()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_server_killed_at_every_step_goes_on_and_lets_each_tier_take_effect_once(cloud: Cloud) -> None:
    content = a_file(300)
    plan = a_plan(content, 100, 300)
    cloud.store.close()
    # In the order in which they are passed: each kill comes a little further than the one before.
    places = ["tus.after-begin", "tus.after-write", "tus.after-advance", "tus.after-keep", "tus.after-take"]
    places += ["tus.after-write", "tus.after-advance", "tus.after-advance", "tus.after-keep", "tus.after-take"]
    command = [sys.executable, "-c", KILLS, str(cloud.folder), TENANT, NODE, plan.sha256, SLIDE, content.hex(), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{place} True" for place in places] + ["complete [0, 1]"], done.stderr
    with open_store(f"sqlite:///{cloud.folder / 'cloud.db'}") as store:
        assert effects(store, "took") == [piece.key for piece in plan.pieces]
    assert not list(cloud.folder.rglob("*.part"))


def test_answer_is_read_also_by_a_plain_http_client(url: str, cloud: Cloud) -> None:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "0"})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Slideway"]) == (401, "1")
    answer.read()
    connection.close()


def test_empty_file_is_complete_when_it_begins(client: httpx.Client, cloud: Cloud) -> None:
    at = create(client, b"")
    assert client.head(at, headers=TUS).headers["Slideway-Receipt"].startswith("t0 ")


def test_two_processes_with_one_secret_know_each_others_tokens(cloud: Cloud) -> None:
    other = Sessions(cloud.store, secret=b"s" * 32)
    assert other.find_sender(f"Bearer {token_of(cloud.sessions, TENANT, NODE, cloud)}") == Sender(TENANT, NODE)


def test_upload_about_which_nothing_is_said_is_refused_in_words(client: httpx.Client, cloud: Cloud) -> None:
    for headers in ({**TUS, "Upload-Length": "5"}, {**TUS, "Upload-Length": "5", "Upload-Metadata": "filename eA=="}):
        answer = client.post("/v1/uploads", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "metadata-wrong")
        assert "Upload-Metadata with kind, sha256" in answer.json()["message"]
    whole = client.post("/v1/uploads", headers={**PATCH, "Upload-Length": "5"}, content=b"12345")
    assert whole.status_code == 400
    assert not list(cloud.folder.rglob("*.part"))
    with cloud.store.reading(TENANT) as work:
        assert work.uploads.count_open(NODE)[0].count == 0


def test_upload_about_which_nothing_is_said_is_kept_as_it_came_where_it_is_taken(
    client: httpx.Client, cloud: Cloud
) -> None:
    cloud.tus._takes_nameless = True
    answer = client.post("/v1/uploads", headers={**TUS, "Upload-Length": "5"})
    done = client.patch(answer.headers["Location"], content=b"12345", headers={**PATCH, "Upload-Offset": "0"})
    assert (done.status_code, done.headers["Upload-Offset"]) == (204, "5")
    assert "Slideway-Receipt" not in done.headers
    upload_id = answer.headers["Location"].rpartition("/")[2]
    found = cloud.shelf.find(Sender(TENANT, NODE), upload_id)
    assert found is not None
    assert found.sha256 == hashlib.sha256(b"12345").hexdigest()
