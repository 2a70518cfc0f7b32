"""Pseudonyms of cases and keys of receivers: stable, the site's own, and kept from other users."""

import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.core.errors import OutputError, WrongUseError
from slideway.core.pseudonym import is_pseudonym
from slideway.registry.keys import make_signing_key
from slideway.registry.pseudonym import load_pseudonym_secret, make_pseudonym, pseudonym_secret_path
from slideway.registry.receivers import (
    ReceiverKey,
    add_receiver,
    find_receiver,
    list_receivers,
    load_receiving_key,
    make_receiving_key,
    receivers_folder,
    receiving_key_path,
)


@pytest.fixture(autouse=True)
def keys(tmp_path, monkeypatch):
    folder = tmp_path / "keys"
    monkeypatch.setenv("SLIDEWAY_KEYS", str(folder))
    return folder


def test_a_case_has_one_pseudonym_at_a_site_and_another_elsewhere():
    mine, theirs = load_pseudonym_secret(), bytes(range(32))
    assert make_pseudonym(mine, "A26-00123") == make_pseudonym(load_pseudonym_secret(), "A26-00123")
    assert make_pseudonym(mine, "A26-00123") != make_pseudonym(theirs, "A26-00123")
    assert len({make_pseudonym(mine, f"A26-{i:05}") for i in range(2000)}) == 2000


def test_a_pseudonym_is_the_documented_one():
    # base32(HMAC-SHA256(key = 32 zero bytes, "slideway-case/1\nA26-1"))[:16], computed with openssl and base32
    assert make_pseudonym(bytes(32), "A26-1") == "TL5SF4ZQHOSFHTXQ"
    assert make_pseudonym(bytes(32), "Ké-1") == "XJJLFYVUTCFL353W"  # é as one letter, in UTF-8


def test_spaces_around_a_number_and_the_way_accents_are_written_do_not_count():
    secret = bytes(32)
    assert make_pseudonym(secret, " A26-1\n") == make_pseudonym(secret, "A26-1")
    assert make_pseudonym(secret, "Pathologie-Ké-1") == make_pseudonym(secret, "Pathologie-Ke\u0301-1")
    assert make_pseudonym(secret, "A26-1") != make_pseudonym(secret, "a26-1")


@pytest.mark.parametrize("number", ["", "  ", "\n"])
def test_an_empty_number_is_refused_since_all_cases_would_become_one(number):
    with pytest.raises(WrongUseError, match="empty"):
        make_pseudonym(bytes(32), number)


def test_what_is_made_has_the_form_that_a_release_asks_for():
    assert is_pseudonym(make_pseudonym(load_pseudonym_secret(), "A26-00123"))
    for text in ("", "A26-00123", "KZ2QGX7LB3MWOA5", "KZ2QGX7LB3MWOA5TT", "KZ2QGX7LB3MWOA5T\n", "kz2qgx7lb3mwoa5t"):
        assert not is_pseudonym(text)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")
@pytest.mark.parametrize(
    ("make", "path"),
    [(load_pseudonym_secret, pseudonym_secret_path), (make_receiving_key, receiving_key_path)],
)
def test_a_secret_is_for_its_user_alone(make, path, keys):
    make()
    assert stat.S_IMODE(path().stat().st_mode) == 0o600
    assert [file.name for file in keys.iterdir()] == [path().name]  # nothing half-written beside it
    path().chmod(0o644)
    with pytest.raises(WrongUseError, match="chmod 600"):
        make()


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_damaged_secret_is_never_replaced_silently(content):
    load_pseudonym_secret()
    pseudonym_secret_path().write_bytes(content)
    with pytest.raises(WrongUseError, match="backup"):
        load_pseudonym_secret()
    assert pseudonym_secret_path().read_bytes() == content


def test_many_that_start_at_once_share_one_secret():
    barrier = threading.Barrier(8)

    def load(_):
        barrier.wait()
        return load_pseudonym_secret()

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(load, range(8)))) == 1


def test_the_first_of_two_secrets_stays(monkeypatch):
    """Another process makes its secret between our look and our write."""
    from slideway.registry import pseudonym

    other = bytes(range(32))

    def keep_late(path, content):
        real(path, other)
        real(path, content)

    real = pseudonym.keep_secret
    monkeypatch.setattr(pseudonym, "keep_secret", keep_late)
    assert load_pseudonym_secret() == other


@pytest.mark.skipif(sys.platform == "win32", reason="Windows renames")
def test_a_disk_without_hard_links_keeps_the_secret_too(monkeypatch, keys):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    first = load_pseudonym_secret()
    assert load_pseudonym_secret() == first
    assert [file.name for file in keys.iterdir()] == ["pseudonym-secret"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLIDEWAY_KEYS", str(tmp_path / "file" / "keys"))
    with pytest.raises((OutputError, WrongUseError), match="file"):
        load_pseudonym_secret()


def test_a_receiving_key_is_made_once_and_kept():
    assert load_receiving_key() is None
    first = make_receiving_key()
    assert make_receiving_key().private_bytes_raw() == first.private_bytes_raw()
    assert load_receiving_key(receiving_key_path()).private_bytes_raw() == first.private_bytes_raw()


def test_a_file_that_is_no_receiving_key_is_named(tmp_path):
    make_signing_key()
    with pytest.raises(WrongUseError, match="not an X25519 key"):
        load_receiving_key(receiving_key_path().with_name("signing-key.pem"))
    bad = tmp_path / "bad.pem"
    bad.write_bytes(b"no key")
    bad.chmod(0o600)
    with pytest.raises(WrongUseError, match="no receiving key in it"):
        load_receiving_key(bad)
    with pytest.raises(WrongUseError, match="no such file"):
        load_receiving_key(tmp_path / "gone.pem")


def write_public(path, private=None):
    path.write_bytes(ReceiverKey("x", (private or X25519PrivateKey.generate()).public_key()).pem)
    return path


def test_a_receivers_key_is_kept_and_found_by_name(tmp_path):
    assert list_receivers() == ()
    assert find_receiver("county") is None
    private = X25519PrivateKey.generate()
    kept = add_receiver("county", write_public(tmp_path / "key.pub", private))
    add_receiver("county", tmp_path / "key.pub")  # once more is no mistake
    assert find_receiver("county").fingerprint == kept.fingerprint
    assert find_receiver("county").public.public_bytes_raw() == private.public_key().public_bytes_raw()
    assert [key.name for key in list_receivers()] == ["county"]


def test_a_receivers_key_is_never_exchanged_silently(tmp_path):
    kept = add_receiver("county", write_public(tmp_path / "one.pub"))
    with pytest.raises(WrongUseError, match="another key is kept for 'county'"):
        add_receiver("county", write_public(tmp_path / "two.pub"))
    assert find_receiver("county").fingerprint == kept.fingerprint


@pytest.mark.parametrize("name", ["", "../county", "County", "a/b", "-a", ".hidden"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(WrongUseError, match="no name for a receiver"):
        add_receiver(name, write_public(tmp_path / "key.pub"))
    assert find_receiver(name) is None
    assert not list(receivers_folder().glob("*"))


def test_a_key_of_another_kind_is_refused(tmp_path):
    (tmp_path / "sign.pub").write_bytes(make_signing_key().public.pem)
    (tmp_path / "text.pub").write_text("no key")
    for name, words in (("sign", "X25519"), ("text", "no public key"), ("gone", "cannot be read")):
        with pytest.raises(WrongUseError, match=words):
            add_receiver("county", tmp_path / f"{name}.pub")
