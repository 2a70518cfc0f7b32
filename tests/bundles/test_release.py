"""What leaves: only what the policy names, by a list of what may; and nothing else in Slideway packs for others."""

import ast
import io
import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import msgpack
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import slideway
from slideway.bundles.build import build_bundle
from slideway.bundles.container import Part, iterate_parts, pack_container, read_head
from slideway.bundles.lock import Unlocker, lock_parts
from slideway.bundles.policy import Level, Policy, ReceiverRule, fingerprint_of
from slideway.bundles.read import read_bundle, read_region
from slideway.bundles.release import release_bundle, release_region
from slideway.core.errors import BrokenBundleError, LockedBundleError, PolicyError
from slideway.registry.keys import SigningKey

CASE = "KZ2QGX7LB3MWOA5T"
_MADE = []


@pytest.fixture
def made(toy, short_chunks):
    """A bundle as a reading writes it; built once, since nothing can change it."""
    if not _MADE:
        content = toy()
        summary = replace(content.summary, case=CASE, site="lung")
        _MADE.append(build_bundle(replace(content, summary=summary), codec="steps"))
    return _MADE[0]


@pytest.fixture(scope="module")
def receiver():
    return X25519PrivateKey.generate()


@pytest.fixture(scope="module")
def signer():
    return SigningKey(Ed25519PrivateKey.generate())


def rule_for(receiver, level, **changes):
    key = fingerprint_of(receiver.public_key().public_bytes_raw())
    rule = ReceiverRule(name="county", level=level, reason="Agreed in this test.", key=key)
    return Policy({"county": replace(rule, **changes)}, "policy.toml")


@pytest.fixture
def let(receiver, signer):
    """Release a bundle for `county` under a rule; gives the opened result, its bytes and the report."""

    def release(bundle, level=Level.FEATURES, **changes):
        policy = rule_for(receiver, level, **changes)
        sent, report = release_bundle(bundle, policy, "county", signer=signer, receiver_key=receiver.public_key())
        return read_bundle(sent, key=receiver), sent, report

    return release


TILES = {"axes", "tiles-0", "tiles-1", "tiles-2", "tiles-3"}


@pytest.mark.parametrize(
    ("level", "thumbnail", "expected"),
    [
        (Level.OPINIONS, False, {"summary", "opinion"}),
        (Level.OPINIONS, True, {"summary", "opinion", "thumbnail"}),
        (Level.FEATURES, False, {"summary", "opinion"} | TILES),
        (Level.FEATURES, True, {"summary", "opinion", "thumbnail"} | TILES),
        (Level.REGIONS, False, {"summary", "opinion"} | TILES),
        (Level.SLIDE, False, {"summary", "opinion"} | TILES),
    ],
)
def test_each_level_lets_its_parts_leave_and_no_other(made, let, level, thumbnail, expected):
    got, sent, report = let(made.pack(), level, thumbnail=thumbnail)
    assert {part.name for part in made.parts} == {"summary", "opinion", "thumbnail"} | TILES  # the test tests something
    assert set(got.contents) == set(report.parts) == expected
    assert set(report.left_behind) == {part.name for part in made.parts} - expected
    assert got.is_whole
    assert (got.thumbnail is not None) is thumbnail
    for name in {"thumbnail", *TILES} - expected:
        content = next(part.content for part in made.parts if part.name == name)
        assert content[8:40] not in sent
        assert name.encode() not in sent  # not even in the list


def test_what_leaves_says_the_same_and_is_signed_and_locked(made, let, signer, receiver):
    got, sent, report = let(made.pack())
    here = read_bundle(made.pack())
    assert got.summary == here.summary
    assert got.opinion == here.opinion == {"findings": [{"task": "task-0"}, {"task": "task-1"}],
                                           "quality": {"verdict": "readable"}}  # fmt: skip
    assert np.array_equal(got.bag().vectors, here.bag().vectors)
    assert got.head.signer == signer.public_bytes
    with pytest.raises(LockedBundleError):
        read_bundle(sent)
    with pytest.raises(LockedBundleError):
        read_bundle(sent, key=X25519PrivateKey.generate())
    assert (report.id, report.source_id) == (got.head.id, here.head.id)
    assert report.n_bytes == len(sent) == sum(report.tier_bytes)
    assert report.tier_bytes[0] <= 2048
    assert report.locked_to == fingerprint_of(receiver.public_key().public_bytes_raw())
    assert report.signer == signer.public.fingerprint
    assert (report.level, report.reason) == ("features", "Agreed in this test.")
    assert made.parts[0].content not in sent


def test_a_bundle_that_was_opened_is_released_like_its_file(made, let, tmp_path):
    file = tmp_path / "bundle.swb"
    file.write_bytes(made.pack())
    opened = read_bundle(file)
    for source in (file, opened):
        assert let(source)[0].summary == opened.summary


@pytest.mark.parametrize("receiver_name", ["others", "", "County", "../county"])
def test_nothing_leaves_for_whom_the_policy_does_not_name(made, receiver, signer, receiver_name):
    policy = rule_for(receiver, Level.SLIDE)
    with pytest.raises(PolicyError, match="names no receiver"):
        release_bundle(made.pack(), policy, receiver_name, signer=signer, receiver_key=receiver.public_key())


def test_nothing_means_nothing(made, let):
    with pytest.raises(PolicyError, match='may_leave = "nothing", which does not let opinions leave'):
        let(made.pack(), Level.NOTHING)


def test_another_key_than_the_pinned_one_is_refused(made, receiver, signer):
    with pytest.raises(PolicyError, match="somebody may have exchanged it"):
        release_bundle(
            made.pack(), rule_for(receiver, Level.FEATURES), "county", signer=signer,
            receiver_key=X25519PrivateKey.generate().public_key(),
        )  # fmt: skip


def test_without_a_key_nothing_leaves_unless_the_policy_says_so_in_so_many_words(made, receiver, signer):
    with pytest.raises(PolicyError, match=r"no key of theirs is here.*receivers add county"):
        release_bundle(made.pack(), rule_for(receiver, Level.FEATURES), "county", signer=signer)
    open_rule = rule_for(receiver, Level.OPINIONS, must_encrypt=False, key="")
    sent, report = release_bundle(made.pack(), open_rule, "county", signer=signer)
    assert read_bundle(sent).summary.case == CASE
    assert report.locked_to == ""
    with pytest.raises(PolicyError, match=r'pins no key; write key = "[0-9a-f]{64}"'):  # never silently in the open
        release_bundle(made.pack(), open_rule, "county", signer=signer, receiver_key=receiver.public_key())


def test_only_slides_of_the_named_sites_leave(made, toy, let):
    assert let(made.pack(), sites=("prostate", "lung"))[0].summary.site == "lung"
    with pytest.raises(PolicyError, match="sites = prostate, and this slide is from lung; it stays"):
        let(made.pack(), sites=("prostate",))
    content = toy()
    unstated = build_bundle(replace(content, summary=replace(content.summary, case="", site="")))
    with pytest.raises(PolicyError, match="of no stated site"):
        let(unstated.pack(), sites=("prostate",))


def test_a_bundle_above_max_bytes_stays(made, let):
    size = len(let(made.pack())[1])
    assert len(let(made.pack(), max_bytes=size)[1]) == size
    with pytest.raises(PolicyError, match=rf"max_bytes = {size - 1}, and this bundle has {size:,} bytes"):
        let(made.pack(), max_bytes=size - 1)


def test_an_unknown_part_never_leaves_at_any_level(made, let):
    stranger = Part("macro", 1, b"DOE^JANE" * 40, is_optional=True)
    tiles_like = Part("tiles-0.png", 1, b"DOE^JANE" * 40, is_optional=True)
    parts = [made.parts[0], stranger, tiles_like, *made.parts[1:]]
    _, sent, report = let(pack_container(parts), Level.SLIDE, thumbnail=True)
    assert {"macro", "tiles-0.png"} <= set(report.left_behind)
    assert b"macro" not in sent
    assert report.parts == tuple(part.name for part in made.parts)


def open_json(got):
    return json.loads(imagecodecs.zstd_decode(got.contents["opinion"]))


def test_words_of_the_opinion_that_the_list_does_not_know_stay_behind(made, let):
    opinion = {
        "quality": {"verdict": "readable", "measures": {"blur": 0.1, "operator": "DOE^JANE"}, "operator": "DOE^JANE"},
        "findings": [{"task": "t", "probabilities": {"a": 0.5, "b": "DOE^JANE"}, "patient": {"name": "DOE^JANE"}}],
        "slide": {"name": "DOE^JANE.svs"},
        "profile": {"reasons": {"random": 3}},
    }
    content = bytes(imagecodecs.zstd_encode(json.dumps(opinion).encode()))
    parts = [replace(part, content=content) if part.name == "opinion" else part for part in made.parts]
    got, _, report = let(pack_container(parts), Level.OPINIONS)
    assert open_json(got) == {
        "quality": {"verdict": "readable", "measures": {"blur": 0.1}},
        "findings": [{"task": "t", "probabilities": {"a": 0.5}}],
        "profile": {"reasons": {"random": 3}},
    }
    assert {"opinion.operator", "opinion.patient", "opinion.slide"} <= set(report.left_behind)


def test_a_field_of_the_summary_that_is_not_known_stays_behind(made, let):
    plain = msgpack.unpackb(imagecodecs.zstd_decode(made.parts[0].content))
    plain["patient"] = "DOE^JANE"
    content = bytes(imagecodecs.zstd_encode(msgpack.packb(plain)))
    parts = [Part("summary", 0, content), *made.parts[1:]]
    assert b"DOE^JANE" in imagecodecs.zstd_decode(read_bundle(pack_container(parts)).contents["summary"])
    got, _, _ = let(pack_container(parts))
    assert b"DOE^JANE" not in imagecodecs.zstd_decode(got.contents["summary"])
    assert got.summary == read_bundle(made.pack()).summary


def test_a_summary_that_had_no_room_for_all_findings_still_says_so(toy, let):
    content = toy(n_findings=60)
    summary = replace(content.summary, case=CASE, site="lung", findings=tuple(
        replace(finding, task=f"{finding.task}-{fingerprint_of(finding.task.encode())}")
        for finding in content.summary.findings
    ))  # fmt: skip
    built = build_bundle(replace(content, summary=summary))
    left_out = read_bundle(built.pack()).summary.findings_left_out
    assert left_out > 0
    assert let(built.pack())[0].summary.findings_left_out == left_out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"case": "A26-00123"}, "could be an accession number"),
        ({"case": CASE.lower()}, "could be an accession number"),
        ({"site": "left breast of Jane"}, "its site is none of the catalogue"),
        ({"reasons": ("blurred", "Jane Doe")}, "not of the form of an id"),
        ({"encoder_id": "Jane Doe"}, "not of the form of an id"),
    ],
)
def test_a_word_where_a_pseudonym_or_an_id_belongs_keeps_the_bundle_here(toy, let, changes, words):
    content = toy()
    built = build_bundle(replace(content, summary=replace(content.summary, **{"case": "", "site": ""} | changes)))
    with pytest.raises(PolicyError, match=words) as caught:
        let(built.pack(), Level.SLIDE)
    assert "Jane" not in str(caught.value)
    assert "A26" not in str(caught.value)


def test_a_picture_with_metadata_stays_here(made, let):
    riff = next(part.content for part in made.parts if part.name == "thumbnail")
    exif = riff[:4] + (len(riff) + 8).to_bytes(4, "little") + riff[8:] + b"EXIF\0\0\0\0"
    for picture in (exif, riff + b"DOE^JANE", riff[:12] + b"VP8X" + riff[16:]):
        parts = [replace(part, content=picture) if part.name == "thumbnail" else part for part in made.parts]
        with pytest.raises(PolicyError, match="carries more than pixels"):
            let(pack_container(parts), thumbnail=True)
        assert "thumbnail" not in let(pack_container(parts))[0].contents  # it was not to leave anyway


def test_half_a_bundle_and_a_damaged_one_are_not_released(made, let):
    whole = made.pack()
    with pytest.raises(BrokenBundleError, match=r"not whole.*read the slide again"):
        let(whole[:-1])
    with pytest.raises(BrokenBundleError):
        let(whole[:-1] + bytes([whole[-1] ^ 1]))


def test_a_bundle_that_is_locked_to_another_is_not_released(made, let):
    parts, lock = lock_parts(made.parts, X25519PrivateKey.generate().public_key())
    with pytest.raises(LockedBundleError):
        let(pack_container(parts, lock=lock))


def test_a_bug_in_packing_is_caught_before_anything_is_given(made, let, monkeypatch):
    module = "slideway.bundles.release"
    monkeypatch.setattr(f"{module}.lock_parts", lambda parts, key: (list(parts), lock_parts(parts, key)[1]))
    with pytest.raises(PolicyError, match="not signed or locked as it should be"):
        let(made.pack())
    monkeypatch.undo()
    monkeypatch.setattr(f"{module}._take_allowed", lambda case, rule: (list(made.parts), ()))
    with pytest.raises(PolicyError, match="holds a part that may not leave"):
        let(made.pack(), Level.OPINIONS)


def test_a_region_leaves_by_the_same_rules(receiver, signer):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    picture = bytes(imagecodecs.webp_encode(pixels, lossless=True))

    def release(level=Level.REGIONS, picture=picture, key=receiver, site="lung", **changes):
        policy = rule_for(receiver, level, **changes)
        return release_region(picture, slide_sha256="5a" * 32, rectangle=(10, 20, 60, 40), site=site, policy=policy,
                              receiver="county", signer=signer, receiver_key=key and key.public_key())  # fmt: skip

    file = io.BytesIO(release(sites=("lung",)))
    head = read_head(file, "region")
    unlocker = Unlocker(head.lock, receiver, "region")
    place, region = [unlocker.unlock(i, part).content for i, part in enumerate(iterate_parts(file, head, "region"))]
    assert json.loads(place) == {"slide": "5a" * 32, "rectangle": [10, 20, 60, 40]}
    assert np.array_equal(imagecodecs.webp_decode(region), pixels)
    assert head.signer == signer.public_bytes
    assert read_region(release(sites=("lung",)), key=receiver) == picture
    assert read_region(release(must_encrypt=False, key=None)) == picture
    with pytest.raises(LockedBundleError, match="locked to the receiver"):
        read_region(release(sites=("lung",)))
    with pytest.raises(BrokenBundleError, match="cut off"):
        read_region(release(must_encrypt=False, key=None)[:-1])
    assert picture in release(must_encrypt=False, key=None)
    for changes, words in (
        ({"level": Level.FEATURES}, "does not let regions leave"),
        ({"key": X25519PrivateKey.generate()}, "somebody may have exchanged it"),
        ({"key": None}, "no key of theirs is here"),
        ({"sites": ("prostate",)}, "it stays"),
        ({"max_bytes": len(picture)}, "this region has"),  # what is around it counts too
        ({"picture": picture + b"EXIF"}, "carries more than pixels"),
    ):
        with pytest.raises(PolicyError, match=words):
            release(**changes)


def test_only_building_and_releasing_pack_a_bundle_and_only_releasing_locks_one():
    allowed = {
        "pack_container": {"bundles/container.py", "bundles/build.py", "bundles/release.py"},
        "lock_parts": {"bundles/lock.py", "bundles/release.py"},
    }
    for files in allowed.values():
        files.add("sync/folder.py")  # seals packets around what was released before, in the same form
    root = Path(slideway.__file__).parent
    found = {name: set() for name in allowed}
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if any(name in text for name in allowed) else ():
            words = {getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None)}
            for name in words & allowed.keys():
                found[name].add(file.relative_to(root).as_posix())
    assert found == allowed


def test_the_bundle_that_a_reading_writes_is_unsigned_so_that_no_receiver_takes_it_for_a_release(made):
    assert read_bundle(made.pack()).head.signer is None
