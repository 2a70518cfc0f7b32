"""Blobs: whole and verified, or not there; in a folder, in memory, in a real S3 server."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

pytest.importorskip("obstore", reason="obstore is not installed")

from slideway.core.errors import BlobError, BrokenBlobError, MissingBlobError, WrongUseError
from slideway.store import blobs as module
from slideway.store.blobs import open_blobs
from slideway.testing.s3 import BUCKET, WHY_NOT, find_weed, run_s3

SMALL = b"a few bytes"
LARGE = bytes(range(256)) * 50_000  # 12.8 MB: three parts


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="session")
def s3():
    """Endpoint of a real S3 server."""
    program = find_weed()
    if program is None:
        pytest.skip(WHY_NOT)
    with run_s3(program) as endpoint:
        yield endpoint


def open_s3(endpoint, folder):
    return open_blobs(f"s3://{BUCKET}/{folder}", endpoint=endpoint, access_key_id="any", secret_access_key="any")


@pytest.fixture(params=["folder", "memory", "s3"])
def blobs(request, tmp_path):
    if request.param == "folder":
        return open_blobs((tmp_path / "my blobs").as_uri())
    if request.param == "memory":
        return open_blobs("memory:///")
    return open_s3(request.getfixturevalue("s3"), tmp_path.name)


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_what_was_put_comes_back_whole(blobs, tmp_path, content, as_file):
    sha256 = sha256_of(content)
    (tmp_path / "source").write_bytes(content)
    blobs.put("north", tmp_path / "source" if as_file else content, sha256)
    blobs.put("north", content, sha256)
    assert blobs.exists("north", sha256) and blobs.size_bytes("north", sha256) == len(content)
    assert blobs.get("north", sha256) == content
    assert b"".join(blobs.stream("north", sha256)) == content


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_bytes_of_another_hash_are_not_kept(blobs, tmp_path, content, as_file):
    wrong = sha256_of(b"other")
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(BrokenBlobError):
        blobs.put("north", tmp_path / "source" if as_file else content, wrong)
    assert not blobs.exists("north", wrong)
    with pytest.raises(MissingBlobError):
        blobs.get("north", wrong)


def test_a_blob_belongs_to_its_tenant(blobs):
    sha256 = sha256_of(SMALL)
    blobs.put("north", SMALL, sha256)
    assert not blobs.exists("south", sha256)
    with pytest.raises(MissingBlobError):
        blobs.get("south", sha256)
    blobs.delete("south", sha256)
    assert blobs.get("north", sha256) == SMALL


def test_a_blob_that_was_deleted_is_gone_and_twice_is_once(blobs):
    sha256 = sha256_of(SMALL)
    blobs.put("north", SMALL, sha256)
    blobs.delete("north", sha256)
    blobs.delete("north", sha256)
    assert not blobs.exists("north", sha256)


@pytest.mark.parametrize("tenant", ["..", "a/b", "", "staging", "/etc"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, tenant):
    with pytest.raises(WrongUseError):
        open_blobs(tmp_path.as_uri()).put(tenant, SMALL, sha256_of(SMALL))


def test_a_hash_that_leads_elsewhere_is_refused(tmp_path):
    with pytest.raises(WrongUseError):
        open_blobs(tmp_path.as_uri()).get("north", "../../etc/passwd")


def test_damage_on_disk_shows_before_the_last_byte_is_given(tmp_path):
    blobs, sha256 = open_blobs(tmp_path.as_uri()), sha256_of(LARGE)
    blobs.put("north", LARGE, sha256)
    path = tmp_path / "north" / sha256[:2] / sha256
    damaged = bytearray(LARGE)
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BrokenBlobError):
        blobs.get("north", sha256)


def test_a_process_killed_while_writing_leaves_nothing_that_can_be_seen(tmp_path, monkeypatch):
    blobs, sha256 = open_blobs(tmp_path.as_uri()), sha256_of(SMALL)

    def die(*_):
        raise SystemExit("killed before the rename")

    monkeypatch.setattr(module, "sync_file", die)
    with pytest.raises(SystemExit):
        blobs.put("north", SMALL, sha256)
    assert not blobs.exists("north", sha256)


def test_a_blob_is_synced_before_it_is_shown_and_its_folders_after(tmp_path, monkeypatch):
    blobs, sha256, seen = open_blobs(tmp_path.as_uri()), sha256_of(SMALL), []
    monkeypatch.setattr(module, "sync_file", lambda path: seen.append(("file", blobs.exists("north", sha256))))
    monkeypatch.setattr(module, "sync_folder", lambda path: seen.append((path.name, blobs.exists("north", sha256))))
    blobs.put("north", SMALL, sha256)
    assert seen == [("file", False), (sha256[:2], True), ("north", True), (tmp_path.name, True)]


def test_old_leftovers_are_removed_and_young_ones_kept(tmp_path):
    open_blobs(tmp_path.as_uri())
    for name, age_s in (("old", 2 * 86_400), ("young", 60)):
        (tmp_path / "staging" / name).write_bytes(b"half")
        os.utime(tmp_path / "staging" / name, times=(time.time() - age_s,) * 2)
    open_blobs(tmp_path.as_uri())
    assert [path.name for path in (tmp_path / "staging").iterdir()] == ["young"]


def test_a_place_that_is_not_there_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BlobError, match="cannot be made"):
        open_blobs((tmp_path / "file" / "below").as_uri())
    with pytest.raises(WrongUseError, match="s3"):
        open_blobs("ftp://host/folder")


def test_a_server_that_does_not_answer_is_named_as_such(monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 0)
    with pytest.raises(BlobError, match="does not answer"):
        open_s3("http://127.0.0.1:9", "x").get("north", sha256_of(SMALL))
