"""The container: one way to write it, hashes that cover all of it, a seal, and room for what comes later."""

import hashlib
import io
import shutil
import struct
import subprocess
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from slideway.bundles import container
from slideway.bundles.container import Part, iterate_parts, pack_container, read_head
from slideway.bundles.read import read_bundle
from slideway.core.errors import BrokenBundleError
from slideway.registry.keys import SigningKey, TrustedKey

SIGNER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
PARTS = [Part("summary", 0, b"first"), Part("opinion", 1, b"second", is_optional=True)]


def read_all(content):
    file = io.BytesIO(content)
    head = read_head(file, "a bundle")
    return head, list(iterate_parts(file, head, "a bundle"))


def seal_list(listing, *, version=(1, 0), seal=b"\0", rest=b""):
    """A container around any list, its hash right."""
    head = struct.pack("<8sHHI", container.MAGIC, *version, len(listing)) + listing
    return head + hashlib.sha256(head).digest() + seal + rest


def test_the_same_parts_and_signer_give_the_same_bytes_and_come_back():
    content = pack_container(PARTS, signer=SIGNER)
    assert content == pack_container(PARTS, signer=SIGNER)
    head, parts = read_all(content)
    assert parts == PARTS
    assert head.total_bytes == len(content)
    assert [head.bytes_of_tier(tier) for tier in range(3)] == [head.n_bytes + 5, 6, 0]


def test_the_id_is_the_content_address_whoever_signs_it():
    ids = {read_all(pack_container(PARTS, signer=signer))[0].id for signer in (None, SIGNER)}
    assert len(ids) == 1
    for changed in (
        [replace(PARTS[0], content=b"First"), PARTS[1]],
        [PARTS[0], replace(PARTS[1], is_optional=False)],
        [PARTS[0], replace(PARTS[1], tier=2)],
        [PARTS[0], replace(PARTS[1], name="opinions")],
        PARTS[:1],
    ):
        assert read_all(pack_container(changed))[0].id not in ids


def test_no_time_stands_in_a_bundle(toy, monkeypatch):
    from slideway.bundles.build import build_bundle

    first = build_bundle(toy()).pack()
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert build_bundle(toy()).pack() == first


def test_a_signature_verifies_and_names_its_key():
    content = pack_container(PARTS, signer=SIGNER)
    assert read_all(content)[0].signer == SIGNER.public_bytes
    assert read_all(pack_container(PARTS))[0].signer is None


def test_a_stripped_seal_is_seen_as_no_seal_and_another_key_as_another_signer():
    content = pack_container(PARTS, signer=SIGNER)
    at = len(pack_container(PARTS)) - 12
    stripped = content[:at] + b"\0" + content[at + 97 :]
    assert stripped == pack_container(PARTS)
    other = SigningKey(Ed25519PrivateKey.generate())
    assert read_all(pack_container(PARTS, signer=other))[0].signer == other.public_bytes
    swapped = content[: at + 1] + other.public_bytes + content[at + 33 :]
    with pytest.raises(BrokenBundleError, match="signature"):
        read_all(swapped)


def test_a_signature_of_the_bare_id_is_no_signature_of_a_bundle():
    bare = pack_container(PARTS)
    id_ = bytes.fromhex(read_all(bare)[0].id)
    seal = b"\1" + SIGNER.public_bytes + SIGNER.sign(id_)
    with pytest.raises(BrokenBundleError, match="signature"):
        read_all(bare[:-12] + seal + bare[-11:])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_verifies_a_signature_as_the_document_says(tmp_path):
    content = pack_container(PARTS, signer=SIGNER)
    n_list = struct.unpack_from("<I", content, 12)[0]
    at = 16 + n_list
    (tmp_path / "signed").write_bytes(b"slideway-bundle/1\n" + content[at : at + 32])
    assert content[at : at + 32] == hashlib.sha256(content[:at]).digest()
    (tmp_path / "key.pem").write_bytes(TrustedKey("", content[at + 33 : at + 65]).pem)
    (tmp_path / "signature").write_bytes(content[at + 65 : at + 129])
    command = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in signed -sigfile signature"
    assert subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "signed").write_bytes(b"slideway-bundle/1\n" + bytes(32))
    assert subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_an_unknown_way_of_sealing_is_refused():
    with pytest.raises(BrokenBundleError, match="sealed in way 2"):
        read_all(seal_list(msgpack.packb({"parts": []}), seal=b"\2"))


# Versions


def test_an_unknown_major_version_is_refused(monkeypatch):
    monkeypatch.setattr(container, "VERSION", (2, 0))
    content = pack_container(PARTS)
    monkeypatch.undo()
    with pytest.raises(BrokenBundleError, match=r"version 2\.0.*update Slideway"):
        read_all(content)


def test_a_newer_minor_version_with_an_unknown_optional_part_is_read(built, monkeypatch):
    monkeypatch.setattr(container, "VERSION", (1, 9))
    newer = pack_container([*built.parts, Part("voice-memo", 3, b"later", is_optional=True)])
    monkeypatch.undo()
    bundle = read_bundle(newer)
    assert bundle.head.minor == 9
    assert bundle.is_whole
    assert len(bundle.bag()) == 200


def test_an_unknown_part_that_is_required_is_refused_even_if_it_has_not_come_yet(built):
    content = pack_container([*built.parts, Part("new-axes", 2, b"later")])
    for cut in (len(content), len(content) - 1, len(content) - 6):
        with pytest.raises(BrokenBundleError, match="'new-axes'"):
            read_bundle(content[:cut])


def test_more_facts_in_the_list_are_passed_over():
    row = ["summary", 0, False, 5, hashlib.sha256(b"first").digest()]
    listing = msgpack.packb({"parts": [row], "since 1.4": {"a": [1]}})
    assert read_all(seal_list(listing, rest=b"first"))[1] == PARTS[:1]


# What is refused


ROW = ["summary", 0, False, 5, bytes(32)]


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        7,
        {"parts": []},
        {"parts": 3},
        {"parts": [ROW, ROW]},
        {"parts": [ROW] * 300},
        {"parts": [["Summary", *ROW[1:]]]},
        {"parts": [["../../etc", *ROW[1:]]]},
        {"parts": [["a" * 33, *ROW[1:]]]},
        {"parts": [[*ROW[:1], 4, *ROW[2:]]]},
        {"parts": [[*ROW[:1], -1, *ROW[2:]]]},
        {"parts": [[*ROW[:1], True, *ROW[2:]]]},
        {"parts": [[*ROW[:2], 1, *ROW[3:]]]},
        {"parts": [[*ROW[:3], 0, ROW[4]]]},
        {"parts": [[*ROW[:3], 2**30 + 1, ROW[4]]]},
        {"parts": [[*ROW[:3], 2**64 - 1, ROW[4]]]},
        {"parts": [[*ROW[:3], float("nan"), ROW[4]]]},
        {"parts": [[*ROW[:4], bytes(31)]]},
        {"parts": [[*ROW[:4], "0" * 32]]},
        {"parts": [ROW[:4]]},
        {"parts": [[*ROW, 1]]},
        {"parts": [["b", 1, *ROW[2:]], ["c", 0, *ROW[2:]]]},
        {"parts": [ROW], "lock": 1},
        {"parts": [msgpack.ExtType(1, b"x")]},
        {1: [ROW]},
    ],
)
def test_a_list_of_another_form_is_refused(content):
    with pytest.raises(BrokenBundleError):
        read_all(seal_list(msgpack.packb(content)))


@pytest.mark.parametrize(
    "listing",
    [
        b"",
        b"\xc1",
        b"\x91" * 60_000,
        b"\x81\xa5parts" * 8_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa5parts\xdd\xff\xff\xff\xff",
        b"\x81\xa5parts\xc6\xff\xff\xff\xff",
        b"\x81\xa2\xff\xfe\x90",
        msgpack.packb({"parts": [ROW]}) + b"\0",
    ],
    ids=range(10),
)
def test_hostile_msgpack_is_refused_without_memory_or_time(listing):
    tracemalloc.start()
    with pytest.raises(BrokenBundleError):
        read_all(seal_list(listing))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_list_longer_than_any_is_refused_before_it_is_read():
    content = struct.pack("<8sHHI", container.MAGIC, 1, 0, 2**32 - 1)
    with pytest.raises(BrokenBundleError, match="which none is"):
        read_all(content)


def test_a_short_file_that_promises_a_gigabyte_gets_no_memory(tmp_path):
    row = ["summary", 0, False, 2**30, bytes(32)]
    path = tmp_path / "bomb.swb"
    path.write_bytes(seal_list(msgpack.packb({"parts": [row]}), rest=b"short"))
    tracemalloc.start()
    with pytest.raises(BrokenBundleError, match="cut off"):
        read_bundle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_something_behind_the_last_part_is_refused():
    with pytest.raises(BrokenBundleError, match="follows its last part"):
        read_all(pack_container(PARTS) + b"\0")


def test_a_container_that_no_reader_would_take_is_not_written():
    for wrong in ([], [PARTS[0], PARTS[0]], PARTS[::-1], [Part("Big", 0, b"1")], [Part("empty", 0, b"")]):
        with pytest.raises(ValueError, match=r"list of parts|its list"):
            pack_container(wrong)
