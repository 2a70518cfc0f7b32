"""Pixels are believed as little as bundles are: signed, locked, of a slide that is known, inside it, and let out."""

from __future__ import annotations

import hashlib
import json

import imagecodecs
import numpy as np
import pytest
from tests.cloud.conftest import run_cloud, send_region, write_region

from slideway.cloud import regions
from slideway.core.errors import LineRefusedError
from slideway.sync.identity import make_keys
from slideway.sync.messages import Message
from slideway.sync.outgoing import UploadPlan

SLIDE = hashlib.sha256(b"0").hexdigest()


def say_level(node, level, number=1):
    assert not node.line.send_messages([Message(f"s-{number}", "status", "", number, {"may_leave": level})]).refused


@pytest.fixture
def node(shared_house, tenant):
    """A node that sent a bundle and lets regions leave."""
    made = shared_house.enrol(tenant, "lab-1")
    say_level(made, "regions")
    made.send(made.pack())
    shared_house.work()
    return made


def webp(width, height, **more):
    return bytes(imagecodecs.webp_encode(np.full((height, width, 3), 90, np.uint8), **more))


def refused(house, node, region, slide=SLIDE):
    """Try to send; nothing is kept, and audit and node hear why. The code."""
    with pytest.raises(LineRefusedError) as error:
        send_region(node, region, slide)
    assert error.value.status == 422
    sha256 = hashlib.sha256(region).hexdigest()
    assert not house.cloud.blobs.exists(node.tenant, sha256)
    told = node.fetch("rejected")[-1]
    assert (told["kind"], told["bundle"], told["code"]) == ("region", sha256, error.value.refusal)
    with house.cloud.store.reading(node.tenant) as work:
        assert sha256 not in work.slides.get(SLIDE).facts.get("pixels", {})
        assert list(work.audit.entries())[-1].action == "region-rejected"
    return error.value.refusal


def test_a_region_is_taken_with_the_place_that_it_was_signed_with(shared_house, tenant, node):
    region, _ = write_region(node.keys, node.endpoint.receiver, SLIDE, (100, 200, 32, 16))
    assert set(send_region(node, region, SLIDE)) == {3}
    with shared_house.cloud.store.reading(tenant) as work:
        (row,) = work.slides.get(SLIDE).facts["pixels"].values()
        assert row == {"kind": "region", "node": "lab-1", "bytes": len(region), "rectangle": [100, 200, 32, 16]}
    assert shared_house.cloud.blobs.get(tenant, hashlib.sha256(region).hexdigest()) == region


def test_a_region_of_another_signer_or_without_a_lock_is_refused(shared_house, node):
    foreign, _ = write_region(make_keys(), node.endpoint.receiver, SLIDE)
    assert refused(shared_house, node, foreign) == "bundle-untrusted"
    open_, _ = write_region(node.keys, node.endpoint.receiver, SLIDE, lock=False)
    assert refused(shared_house, node, open_) == "bundle-locked"
    elsewhere, _ = write_region(node.keys, make_keys().receiving.public_key(), SLIDE)
    assert refused(shared_house, node, elsewhere) == "bundle-locked"


@pytest.mark.parametrize(
    "rectangle", [(8192 - 63, 0, 64, 64), (0, 8192, 1, 1), (0, 0, 0, 64), (0, 0, 2**31, 64)], ids=str
)
def test_a_region_that_is_not_on_the_slide_is_refused(shared_house, node, rectangle):
    region, _ = write_region(node.keys, node.endpoint.receiver, SLIDE, rectangle, picture=webp(1, 1))
    assert refused(shared_house, node, region) == "bundle-broken"


@pytest.mark.parametrize(
    "place",
    [b"{}", b"[]", b"null", b"\xff", b"[" * 900, json.dumps({"slide": SLIDE, "rectangle": [0, 0, 64, True]}).encode(),
     json.dumps({"slide": SLIDE, "rectangle": [-1, 0, 64, 64]}).encode(), b" " * 2000],
)  # fmt: skip
def test_a_place_of_another_form_is_refused(shared_house, node, place):
    region, _ = write_region(node.keys, node.endpoint.receiver, SLIDE, place=place)
    assert refused(shared_house, node, region) == "bundle-broken"


def test_a_region_of_another_slide_than_its_upload_says_is_refused(shared_house, node):
    region, _ = write_region(node.keys, node.endpoint.receiver, "ab" * 32)
    assert refused(shared_house, node, region) == "bundle-broken"


def test_a_region_of_a_slide_that_this_node_did_not_send_is_refused(shared_house, tenant, node):
    other = shared_house.enrol(tenant, "lab-2")
    say_level(other, "regions")
    region, _ = write_region(other.keys, other.endpoint.receiver, SLIDE)
    assert refused(shared_house, other, region) == "bundle-broken"


@pytest.mark.parametrize("level", ["features", "opinions", None])
def test_a_region_that_the_nodes_policy_keeps_is_refused(shared_house, tenant, node, level):
    say_level(node, level, 2)
    region, _ = write_region(node.keys, node.endpoint.receiver, SLIDE)
    assert refused(shared_house, node, region) == "policy-refuses"


def test_a_picture_with_more_in_it_or_larger_than_its_place_is_refused(shared_house, node):
    bare = webp(64, 64, lossless=True, level=None)
    for picture in (bare + b"EXIF\x04\x00\x00\x00name", b"\x89PNG" + b"\0" * 40, webp(65, 64, level=80), bare[:-2]):
        region, _ = write_region(node.keys, node.endpoint.receiver, SLIDE, picture=picture)
        assert refused(shared_house, node, region) == "bundle-broken"
    for picture in (webp(64, 64, level=80), webp(32, 64, lossless=True, level=None)):
        region, _ = write_region(node.keys, node.endpoint.receiver, SLIDE, picture=picture)
        assert set(send_region(node, region, SLIDE)) == {3}


def test_the_size_of_a_picture_is_read_as_a_decoder_reads_it():
    for width, height in ((1, 1), (64, 33), (255, 256), (1000, 3)):
        for more in ({"level": 70}, {"lossless": True, "level": None}):
            assert regions._measure_webp(webp(width, height, **more)) == (width, height)


def test_a_region_that_is_too_large_or_one_too_many_is_refused(shared_house, node, monkeypatch):
    monkeypatch.setattr("slideway.cloud.ingest.MAX_REGIONS", 1)
    first, _ = write_region(node.keys, node.endpoint.receiver, SLIDE)
    second, _ = write_region(node.keys, node.endpoint.receiver, SLIDE)
    assert send_region(node, first, SLIDE)
    assert refused(shared_house, node, second) == "policy-refuses"
    monkeypatch.setattr("slideway.cloud.ingest.MAX_REGION_BYTES", 100)
    assert refused(shared_house, node, second) == "bundle-broken"


def test_a_whole_slide_is_refused_at_its_first_bytes(shared_house, tenant, node):
    plan = UploadPlan("slide", "cd" * 32, SLIDE, (5_000_000,))
    with pytest.raises(LineRefusedError, match="whole slides are not taken") as error:
        node.line.begin_upload(plan)
    assert (error.value.status, error.value.refusal) == (422, "policy-refuses")
    whole = b"x" * 100
    with pytest.raises(LineRefusedError, match="whole slides are not taken"):
        node.line.begin_upload(UploadPlan("slide", hashlib.sha256(whole).hexdigest(), SLIDE, (len(whole),)), whole)
    assert not shared_house.cloud.blobs.exists(tenant, hashlib.sha256(whole).hexdigest())


def test_pixels_that_an_older_cloud_kept_unread_are_not_given(house):
    node = house.enrol("north", "lab-1")
    node.send(node.pack())
    raw = b"<script>alert(1)</script>"
    sha256 = hashlib.sha256(raw).hexdigest()
    house.cloud.blobs.put("north", raw, sha256)
    with house.cloud.store.transaction("north") as work:
        rows = {sha256: {"kind": "region", "node": "lab-1", "bytes": len(raw)},
                "ef" * 32: {"kind": "slide", "node": "lab-1", "bytes": 5, "rectangle": [0, 0, 1, 1]}}  # fmt: skip
        work.slides.add_facts(SLIDE, {"pixels": rows})
    asked = {"consultation": "c-1", "slide": SLIDE, "organ": "lung", "question": ""}
    node.line.send_messages([Message("m-1", "consult-request", SLIDE, 0, asked)])
    weber = house.person()
    with house.client() as client:
        assert client.get("/v1/consultations/north/c-1", headers=weber).json()["regions"] == []
        for name in rows:
            assert client.get(f"/v1/consultations/north/c-1/regions/{name}", headers=weber).status_code == 404


def test_where_locks_are_not_required_an_open_region_is_taken_and_shown(write_settings):
    settings = write_settings("[regions]\ncount = 3\n")
    text = (
        (settings.folder / "cloud.toml").read_text().replace("min_free_mb = 1", "min_free_mb = 1\nrequire_lock = false")
    )
    from slideway.cloud.settings import parse_settings

    with run_cloud(parse_settings(text, settings.folder)) as house:
        node = house.enrol("north", "lab-1")
        say_level(node, "slide")
        node.send(node.pack())
        region, picture = write_region(node.keys, node.endpoint.receiver, SLIDE, lock=False)
        assert set(send_region(node, region, SLIDE)) == {3}
        asked = {"consultation": "c-1", "slide": SLIDE, "organ": "lung", "question": ""}
        node.line.send_messages([Message("m-1", "consult-request", SLIDE, 0, asked)])
        one = f"/v1/consultations/north/c-1/regions/{hashlib.sha256(region).hexdigest()}"
        with house.client() as client:
            assert client.get(one, headers=house.person()).content == picture
