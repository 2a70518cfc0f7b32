"""What is said of a bundle is true of it: whole or cut, open or locked, signed or not."""

import dataclasses
import json
from dataclasses import replace

import imagecodecs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from slideway.bundles.build import build_bundle
from slideway.bundles.container import Part, pack_container
from slideway.bundles.explain import NEVER, NO_DIAGNOSIS, explain_bundle
from slideway.bundles.lock import lock_parts, name_receiver
from slideway.core.errors import BrokenBundleError, WrongUseError
from slideway.registry.keys import SigningKey

CASE = "KZ2QGX7LB3MWOA5T"
_MADE = []


@pytest.fixture
def made(toy, short_chunks):
    if not _MADE:
        content = toy()
        summary = replace(content.summary, case=CASE, site="lung")
        _MADE.append(build_bundle(replace(content, summary=summary), codec="steps"))
    return _MADE[0]


def keep(made, *names):
    return [part for part in made.parts if part.name in names]


def test_an_open_bundle_is_told_in_full(made):
    told = explain_bundle(made.pack())
    assert told.is_open
    assert told.is_whole
    assert told.summary.case == CASE
    assert told.n_bytes == told.total_bytes == len(made.pack()) == sum(told.tier_bytes)
    assert [part.name for part in told.parts] == [part.name for part in made.parts]
    words = " ".join(told.holds)
    assert "vectors of all 200 tiles" in words
    assert "tissue can be approximated from them" in words
    assert "whoever has that file can recognise it" in words
    assert "a case pseudonym" in words
    assert "the site lung" in words
    assert "a small picture of the tissue" in words
    assert set(NEVER) <= set(told.lacks)
    assert not any("thumbnail" in sentence or "vectors" in sentence for sentence in told.lacks)
    assert told.findings[0] == "task-0: metastasis (0.91)"
    assert told.findings[1] == "task-1: metastasis (0.91), research only: not in force"
    assert "none of them is a diagnosis" in NO_DIAGNOSIS
    json.dumps(dataclasses.asdict(told))


def test_what_is_not_in_it_is_said(made):
    told = explain_bundle(pack_container(keep(made, "summary", "opinion")))
    assert not any("vectors" in sentence or "picture" in sentence for sentence in told.holds)
    assert any("no thumbnail" in sentence for sentence in told.lacks)
    assert any("no vectors" in sentence for sentence in told.lacks)
    told = explain_bundle(pack_container(keep(made, "summary", "thumbnail")))
    assert any("no findings in full" in sentence for sentence in told.lacks)


def test_every_prefix_says_what_is_missing_and_what_can_still_be_used(made):
    whole = made.pack()
    at = explain_bundle(whole).tier_bytes[0]
    for part in made.parts[1:]:
        told = explain_bundle(whole[: at + len(part.content) - 1])
        missing = [line.name for line in told.parts if not line.is_here]
        assert missing[0] == part.name
        warning = next(sentence for sentence in told.warnings if sentence.startswith("cut off"))
        assert all(name in warning for name in missing)
        came = {line.name for line in told.parts} - set(missing)
        assert ("stand for the others" in warning) is ("tiles-0" in came)
        assert ("the summary" in warning) is ("tiles-0" not in came)
        at += len(part.content)
    with pytest.raises(BrokenBundleError):
        explain_bundle(whole[:300])


def test_a_locked_bundle_is_told_by_its_list_and_with_its_key_in_full(made):
    private = X25519PrivateKey.generate()
    parts, lock = lock_parts(made.parts, private.public_key())
    locked = pack_container(parts, lock=lock)
    for key in (None, X25519PrivateKey.generate()):
        told = explain_bundle(locked, key=key)
        assert not told.is_open
        assert told.summary is None
        assert told.findings == ()
        assert told.locked_to == name_receiver(private.public_key())
        assert CASE not in repr(told)
        assert [part.name for part in told.parts] == [part.name for part in made.parts]
        assert any("a small picture of the tissue" in sentence for sentence in told.holds)
        assert not any("not locked" in sentence for sentence in told.warnings)
    told = explain_bundle(locked, key=private)
    assert told.is_open
    assert told.summary.case == CASE


def test_a_locked_bundle_that_was_changed_is_refused_without_its_key(made):
    parts, lock = lock_parts(made.parts, X25519PrivateKey.generate().public_key())
    locked = pack_container(parts, lock=lock)
    with pytest.raises(BrokenBundleError):
        explain_bundle(locked[:-1] + bytes([locked[-1] ^ 1]))


def test_the_signer_is_named_only_when_trusted(made):
    signer = SigningKey(Ed25519PrivateKey.generate())
    signed = pack_container(made.parts, signer=signer)
    told = explain_bundle(signed, trusted={signer.public_bytes: "county"})
    assert (told.signer, told.signer_name) == (signer.public.fingerprint, "county")
    assert not any("signed" in sentence for sentence in told.warnings)
    told = explain_bundle(signed, trusted={b"x" * 32: "others"})
    assert (told.signer, told.signer_name) == (signer.public.fingerprint, "")
    assert any("not trusted here" in sentence for sentence in told.warnings)
    told = explain_bundle(made.pack())
    assert told.signer == ""
    assert any("nobody signed it" in sentence for sentence in told.warnings)


def test_what_another_program_may_have_put_in_is_warned_of(toy, made):
    content = toy()
    foreign = build_bundle(replace(content, summary=replace(content.summary, case="A26-00123")))
    assert any("accession number" in sentence for sentence in explain_bundle(foreign.pack()).warnings)
    opinion = bytes(imagecodecs.zstd_encode(json.dumps({"findings": [{"patient\x1b[2J": "Doe"}]}).encode()))
    parts = [made.parts[0], Part("opinion", 1, opinion), Part("macro", 1, b"Doe", is_optional=True)]
    told = explain_bundle(pack_container(parts))
    warnings = " ".join(told.warnings)
    assert "patient" in warnings
    assert "\x1b" not in warnings  # a terminal would obey it
    assert "parts that this Slideway does not know, and may identify: macro" in warnings
    assert "Doe" not in repr(told)
    assert not any("may identify" in sentence for sentence in explain_bundle(made.pack()).warnings)


def test_a_file_that_is_not_there_or_no_bundle_is_named(tmp_path):
    with pytest.raises(WrongUseError, match=r"gone\.swb: this bundle cannot be read"):
        explain_bundle(tmp_path / "gone.swb")
    (tmp_path / "text.swb").write_text("no bundle at all, but long enough to be one")
    with pytest.raises(BrokenBundleError, match=r"text\.swb: not a case bundle"):
        explain_bundle(tmp_path / "text.swb")
