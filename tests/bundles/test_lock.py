"""A lock: only the receiver opens it, every part in its own place, and anybody can still check and meter."""

import io
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles.container import Part, pack_container, read_head
from slideway.bundles.lock import TAG_BYTES, Unlocker, lock_parts, name_receiver
from slideway.bundles.read import read_bundle
from slideway.core.errors import BrokenBundleError, LockedBundleError

PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PARTS = [Part("summary", 0, b"patient tissue"), Part("opinion", 1, b"patient tissue", is_optional=True)]


def test_locked_parts_come_back_with_the_key_and_show_nothing_without():
    locked, lock = lock_parts(PARTS, PRIVATE.public_key())
    unlocker = Unlocker(lock, PRIVATE, "a bundle")
    assert [unlocker.unlock(i, part) for i, part in enumerate(locked)] == PARTS
    assert all(b"patient" not in part.content for part in locked)
    assert locked[0].content[:14] != locked[1].content[:14]
    assert {len(part.content) - 14 for part in locked} == {TAG_BYTES}
    assert lock["receiver"] == name_receiver(PRIVATE.public_key())
    assert len(lock["key"]) == 80


def test_a_relay_without_the_key_can_check_and_meter(built):
    locked, lock = lock_parts(built.parts, PRIVATE.public_key())
    content = pack_container(locked, lock=lock)
    head = read_head(io.BytesIO(content), "a bundle")
    assert head.total_bytes == len(content)
    assert [entry.name for entry in head.entries] == [part.name for part in built.parts]


def test_two_locks_never_use_one_key():
    first, second = (lock_parts(PARTS, PRIVATE.public_key()) for _ in range(2))
    assert first[0][0].content != second[0][0].content
    assert first[1]["key"] != second[1]["key"]


@pytest.mark.parametrize("change", [{"name": "sumary"}, {"tier": 1}, {"is_optional": True}])
def test_a_part_under_another_name_tier_or_duty_does_not_open(change):
    locked, lock = lock_parts(PARTS, PRIVATE.public_key())
    with pytest.raises(BrokenBundleError, match="does not open"):
        Unlocker(lock, PRIVATE, "a bundle").unlock(0, replace(locked[0], **change))


def test_a_part_in_another_place_or_of_another_bundle_does_not_open():
    locked, lock = lock_parts(PARTS, PRIVATE.public_key())
    others, _ = lock_parts(PARTS, PRIVATE.public_key())
    unlocker = Unlocker(lock, PRIVATE, "a bundle")
    for index, part in ((1, locked[0]), (0, others[0]), (0, replace(locked[0], content=b"short"))):
        with pytest.raises(BrokenBundleError, match="does not open"):
            unlocker.unlock(index, part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "age"}, "unknown to this Slideway"),
        ({"suite": None}, "unknown to this Slideway"),
        ({"suite": "\x1b[2J" * 99}, "unknown to this Slideway"),
        ({"receiver": 7}, "another form"),
        ({"receiver": "\x1b[2J"}, "another form"),
        ({"key": "text"}, "another form"),
        ({"key": b""}, "damaged or forged"),
        ({"key": bytes(80)}, "damaged or forged"),
        ({"key": bytes(31)}, "damaged or forged"),
    ],
)
def test_a_lock_of_another_form_is_refused(change, message):
    locked, lock = lock_parts(PARTS, PRIVATE.public_key())
    with pytest.raises(BrokenBundleError, match=message) as caught:
        read_bundle(pack_container(locked, lock=lock | change), key=PRIVATE)
    assert "\x1b" not in str(caught.value)


def test_a_key_wrapped_for_another_purpose_is_refused(monkeypatch):
    monkeypatch.setattr("slideway.bundles.lock._INFO", b"another protocol")
    _, lock = lock_parts(PARTS, PRIVATE.public_key())
    monkeypatch.undo()
    with pytest.raises(BrokenBundleError, match="forged"):
        Unlocker(lock, PRIVATE, "a bundle")


def test_the_wrong_key_is_named():
    _, lock = lock_parts(PARTS, PRIVATE.public_key())
    with pytest.raises(LockedBundleError, match=lock["receiver"]):
        Unlocker(lock, X25519PrivateKey.generate(), "a bundle")
