"""A bundle's way through the cloud: from enrolment through receipt and opinion to the specialist and back."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.cloud.conftest import run_cloud, send_region, write_bundle, write_region

from slideway.cloud.enrolment import invite_node, revoke_node
from slideway.core.errors import LineRefusedError, NodeRevokedError
from slideway.registry.heads import heads_folder
from slideway.sync.identity import make_keys
from slideway.sync.messages import Message
from slideway.sync.outgoing import UploadPlan
from slideway.testing.heads import make_toy_bag, write_toy_head


def test_a_bundle_gets_receipts_for_every_tier_and_an_opinion(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack()
    assert sorted(node.send(content)) == [0, 1, 2]
    assert shared_house.work() == 1
    (opinion,) = node.fetch("opinion")
    assert opinion["slide"] == hashlib.sha256(b"0").hexdigest()
    assert (opinion["tiles"], opinion["provisional"], opinion["quality"]) == (60, False, "readable")
    assert opinion["groups"]["count"] >= 1
    assert opinion["findings"] == []
    assert "No head" in opinion["silent"][0]
    with shared_house.cloud.store.reading(tenant) as work:
        slide = work.slides.get(opinion["slide"])
        assert slide.state == "answered"
        assert (slide.case_id, slide.facts["level"], slide.facts["site"]) == ("KZ2QGX7LB3MWOA5T", "features", "lung")
        assert [entry.action for entry in work.audit.entries()][-2:] == ["bundle-taken", "opinion-given"]
        work.audit.verify_chain()
        assert work.bytes.total(direction="in").payload_bytes == len(content)
    assert shared_house.cloud.blobs.get(tenant, hashlib.sha256(content).hexdigest()) == content


def test_the_same_bundle_twice_gives_the_same_receipt_and_one_job(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack()
    first = node.send(content)
    assert node.send(content) == first
    shared_house.work()
    assert node.send(content) == first
    assert shared_house.work() == 0
    with shared_house.cloud.store.reading(tenant) as work:
        assert len(work.jobs.find_all()) == 1
        assert len([entry for entry in work.audit.entries() if entry.action == "bundle-taken"]) == 1
    assert len(node.fetch("opinion")) == 1


def _tries(house, node, content, *, code, slide=""):
    """Send what must be refused; nothing of it is kept, the audit and the node hear why."""
    plan = replace(node.plan(content), slide=slide)
    with pytest.raises(LineRefusedError) as refused:
        progress = node.line.begin_upload(plan)
        node.line.send_part(progress.path, 0, content)
    assert refused.value.status == 422
    assert refused.value.refusal == code
    with house.cloud.store.reading(node.tenant) as work:
        assert work.slides.find_all() == []
        assert work.jobs.find_all() == []
        (entry,) = [entry for entry in work.audit.entries() if entry.action == "bundle-rejected"]
        assert entry.details["code"] == code
    (told,) = node.fetch("rejected")
    assert (told["code"], told["bundle"]) == (code, plan.sha256)
    assert not house.cloud.blobs.exists(node.tenant, plan.sha256)


def test_a_bundle_that_another_key_signed_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    _tries(shared_house, node, write_bundle(make_keys(), node.endpoint.receiver), code="bundle-untrusted")


def test_a_bundle_that_is_not_locked_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    _tries(shared_house, node, node.pack(lock=False), code="bundle-locked")


def test_a_bundle_that_is_locked_to_another_cloud_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    other = make_keys().receiving.public_key()
    _tries(shared_house, node, write_bundle(node.keys, other), code="bundle-locked")


def test_a_bundle_with_an_accession_number_for_a_pseudonym_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    _tries(shared_house, node, node.pack(case="S24-1234"), code="policy-refuses")


def test_a_bundle_with_a_site_that_is_no_site_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    _tries(shared_house, node, node.pack(site="jane-doe"), code="policy-refuses")


def test_a_bundle_about_another_slide_than_announced_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    _tries(shared_house, node, node.pack(), code="bundle-broken", slide="ab" * 32)


def test_what_is_no_bundle_is_refused(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack()
    changed = content[:40] + bytes([content[40] ^ 1]) + content[41:]
    plan = UploadPlan("bundle", hashlib.sha256(changed).hexdigest(), "", node.plan(content).ends_bytes)
    progress = node.line.begin_upload(plan)
    with pytest.raises(LineRefusedError) as refused:
        node.line.send_part(progress.path, 0, changed)
    assert refused.value.refusal == "bundle-broken"


def test_a_bundle_that_was_built_wrong_inside_is_given_up_and_its_node_hears_so(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(tissue_tiles=600)  # its 60 tiles, all that were read, cannot stand for 600
    assert sorted(node.send(content)) == [0, 1, 2]
    assert shared_house.work() == 1
    (opinion,) = node.fetch("opinion")
    assert opinion["trouble"] == "bundle-broken"
    with shared_house.cloud.store.reading(tenant) as work:
        (slide,) = work.slides.find_all()
        assert (slide.state, slide.reason) == ("referred", "bundle-broken")


def test_each_tier_is_acknowledged_when_it_is_here(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack()
    assert sorted(node.send(content, upto=0)) == [0]
    with shared_house.cloud.store.reading(tenant) as work:
        (slide,) = work.slides.find_all()
        assert (slide.state, slide.facts["verdict"]) == ("accepted", "readable")
        assert work.jobs.find_all() == []
    assert sorted(node.send(content, upto=1)) == [0, 1]
    assert sorted(node.send(content)) == [0, 1, 2]


def test_when_tier_2_stays_away_the_cloud_answers_by_tier_1_and_again_when_it_comes(write_settings):
    settings = write_settings("provisional_after_seconds = 0.01\n")
    with run_cloud(settings) as house:
        node = house.enrol("north", "lab-1")
        content = node.pack(n=300)
        node.send(content, upto=1)
        time.sleep(0.05)
        assert house.work() == 1
        (first,) = node.fetch("opinion")
        assert first["provisional"]
        assert 0 < first["tiles"] < 300
        node.send(content)
        assert house.work() == 1
        (last,) = [told for told in node.fetch("opinion") if not told["provisional"]]
        assert last["tiles"] == 300


def test_a_provisional_job_is_overtaken_when_the_rest_came_first(write_settings):
    with run_cloud(write_settings("provisional_after_seconds = 0.01\n")) as house:
        node = house.enrol("north", "lab-1")
        content = node.pack(n=300)
        node.send(content, upto=1)
        node.send(content)
        time.sleep(0.05)
        assert house.work() == 2
        assert [told["provisional"] for told in node.fetch("opinion")] == [False]


def test_of_a_slide_that_cannot_be_read_no_further_tier_is_wanted(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    content = node.pack(verdict="rescan", reasons=("blurred",))
    plan = node.plan(content)
    progress = node.line.begin_upload(plan)
    progress = node.line.send_part(progress.path, 0, content[: plan.ends_bytes[0]])
    assert progress.stop == 1
    assert node.line.find_upload(progress.path).stop == 1
    assert {told["kind"] for told in node.fetch()} == {"enough", "opinion"}
    prefix = hashlib.sha256(content[: plan.ends_bytes[0]]).hexdigest()
    assert shared_house.cloud.blobs.exists(tenant, prefix)  # what was acknowledged outlives the part file


@pytest.fixture
def toy_head(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDEWAY_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("slideway.cloud.diagnose._heads", {})
    return write_toy_head(heads_folder() / "toy-head")


def test_heads_in_force_speak_and_their_findings_are_kept(shared_house, tenant, toy_head):
    node = shared_house.enrol(tenant, "lab-1")
    bag = make_toy_bag(np.random.default_rng(1).normal(size=(40, 8)))
    content = node.pack(bag=bag, mpp=0.5)
    node.send(content)
    shared_house.work()
    (opinion,) = node.fetch("opinion")
    assert {finding["head"]["id"] for finding in opinion["findings"]} == {"toy-head"}
    assert all(finding["in_force"] for finding in opinion["findings"])
    assert opinion["heads"][0]["fingerprint"] == toy_head.fingerprint
    with shared_house.cloud.store.reading(tenant) as work:
        kept = work.findings.of_slide(bag.slide_sha256, place="cloud")
    assert {row.task for row in kept} == {finding["task"] for finding in opinion["findings"]}


def test_a_head_that_is_off_speaks_only_when_the_settings_name_it(write_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIDEWAY_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("slideway.cloud.diagnose._heads", {})
    write_toy_head(heads_folder() / "toy-head", in_force=False)
    for more, spoke in (("", False), ('heads = ["toy-head", "not-here"]\n', True)):
        with run_cloud(write_settings(more)) as house:
            node = house.enrol("north" if spoke else "south", "lab-1")
            node.send(node.pack(bag=make_toy_bag(np.random.default_rng(1).normal(size=(40, 8))), mpp=0.5))
            house.work()
            (opinion,) = node.fetch("opinion")
            assert bool(opinion["findings"]) is spoke
            assert not any(finding["in_force"] for finding in opinion["findings"])


def _says(node, kind, number, body, subject=""):
    told = node.line.send_messages([Message(f"{kind}-{number}", kind, subject, number, body)])
    assert not told.refused, told.refused


@pytest.mark.parametrize(("may_leave", "asks"), [("features", False), ("regions", True), (None, False)])
def test_pixels_are_asked_for_when_unsure_and_the_policy_lets_them_leave(
    shared_house, tenant, toy_head, may_leave, asks
):
    node = shared_house.enrol(tenant, "lab-1")
    if may_leave:
        _says(node, "status", 1, {"may_leave": may_leave, "version": "0.1.0"})
    bag = make_toy_bag(np.random.default_rng(1).normal(size=(40, 8)) * 0.01)  # close to nothing: no label leads
    node.send(node.pack(bag=bag, mpp=0.5))
    shared_house.work()
    (opinion,) = node.fetch("opinion")
    assert {finding["answer"] for finding in opinion["findings"]} & {"set", "refer"}
    asked = node.fetch("ask-regions")
    assert bool(asked) is asks
    if asks:
        assert 0 < len(asked[0]["rectangles"]) <= 12
        assert all(x + width <= 8192 and y + height <= 8192 for x, y, width, height in asked[0]["rectangles"])


def test_a_head_that_is_not_in_force_asks_for_no_pixels_unless_the_settings_let_it(
    write_settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLIDEWAY_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("slideway.cloud.diagnose._heads", {})
    write_toy_head(heads_folder() / "toy-head", in_force=False)
    named = 'heads = ["toy-head"]\n'
    for tenant, more, asks in (("north", "", False), ("south", "[regions]\nfor_research = true\n", True)):
        with run_cloud(write_settings(named + more)) as house:
            node = house.enrol(tenant, "lab-1")
            _says(node, "status", 1, {"may_leave": "regions"})
            bag = make_toy_bag(np.random.default_rng(1).normal(size=(40, 8)) * 0.01)
            node.send(node.pack(bag=bag, mpp=0.5))
            house.work()
            assert bool(node.fetch("ask-regions")) is asks


def test_an_opinion_too_long_for_a_message_leaves_without_its_longest_explanations(
    shared_house, tenant, toy_head, monkeypatch
):
    from slideway.cloud.diagnose import diagnose_bundle

    def diagnose(*given):
        told = diagnose_bundle(*given)
        told["findings"][0]["evidence"]["change"] = "ä" * 40_000  # more bytes than letters
        told["findings"][-1]["evidence"]["nearest_cases"] = [{"case": "c", "label": "x", "cosine": 0.5}]
        return told

    monkeypatch.setattr("slideway.cloud.worker.diagnose_bundle", diagnose)
    node = shared_house.enrol(tenant, "lab-1")
    bag = make_toy_bag(np.random.default_rng(1).normal(size=(40, 8)))
    node.send(node.pack(bag=bag, mpp=0.5))
    shared_house.work()
    (opinion,) = node.fetch("opinion")
    with shared_house.cloud.store.reading(tenant) as work:
        kept = work.findings.of_slide(bag.slide_sha256, place="cloud")
        assert work.slides.get(bag.slide_sha256).state == "answered"
    assert len(opinion["findings"]) == len(kept) > 0
    first = opinion["findings"][0]
    assert first["probabilities"]
    assert first["evidence"]["change"] == ""
    assert opinion["findings"][-1]["evidence"]["nearest_cases"]  # the short ones stay
    (said,) = [line for line in opinion["silent"] if "Explanations were left out" in line]
    assert first["task"] in said


def test_an_opinion_that_fits_in_no_way_goes_to_a_person_at_once(shared_house, tenant, monkeypatch):
    from slideway.cloud.diagnose import diagnose_bundle

    monkeypatch.setattr(
        "slideway.cloud.worker.diagnose_bundle", lambda *given: diagnose_bundle(*given) | {"silent": ["x" * 70_000]}
    )
    node = shared_house.enrol(tenant, "lab-1")
    node.send(node.pack())
    assert shared_house.work() == 1
    (opinion,) = node.fetch("opinion")
    assert opinion["trouble"] == "message-too-large"


def test_an_answer_of_more_bytes_than_a_message_has_is_refused_with_its_reason(house):
    node = house.enrol("north", "lab-1")
    node.send(node.pack())
    slide = hashlib.sha256(b"0").hexdigest()
    asked = {"consultation": "c-1", "slide": slide, "organ": "lung", "question": "malignant?", "urgent": True}
    _says(node, "consult-request", 1, asked, slide)
    weber, one = house.person("dr-weber", organs="lung"), "/v1/consultations/north/c-1"
    with house.client() as client:
        client.post(f"{one}/taking", headers=weber).raise_for_status()
        refused = client.put(f"{one}/answer", headers=weber, json={"text": "\U0001f52c" * 20_000})
        assert (refused.status_code, refused.json()["code"]) == (422, "message-too-large")
        assert "61,440 bytes" in refused.json()["message"]
        assert client.get(one, headers=weber).json()["state"] == "taken"
        refused = client.put(f"{one}/answer", headers=weber, json={"text": "a\0b"})
        assert (refused.status_code, refused.json()["code"]) == (422, "message-malformed")
        assert client.put(f"{one}/answer", headers=weber, json={"text": "x" * 20_000}).json()["state"] == "answered"


def test_a_question_goes_to_its_specialist_with_pixels_and_the_answer_comes_back(house):
    node = house.enrol("north", "lab-1")
    node.send(node.pack())
    house.work()
    slide = hashlib.sha256(b"0").hexdigest()
    _says(node, "status", 1, {"may_leave": "regions"})
    region, picture = write_region(node.keys, node.endpoint.receiver, slide)
    assert 3 in send_region(node, region, slide)
    sha256 = hashlib.sha256(region).hexdigest()
    _says(
        node, "regions", 1, {"slide": slide, "regions": [{"sha256": sha256, "rectangle": [0, 0, 64, 64], "mpp": 0.25}]}
    )
    asked = {"consultation": "c-1", "slide": slide, "organ": "lung", "question": "malignant?", "urgent": True}
    _says(node, "consult-request", 1, asked, slide)
    weber, other = house.person("dr-weber", organs="lung"), house.person("dr-kim", organs="*")
    one = "/v1/consultations/north/c-1"
    with house.client() as client:
        (line,) = client.get("/v1/consultations", headers=weber).json()
        assert (line["organ"], line["is_urgent"], line["state"], line["question"]) == (
            "lung", True, "open", {"text": "malignant?"},
        )  # fmt: skip
        assert line["due_ms"] - line["asked_ms"] == 4 * 3600 * 1000
        assert client.get("/v1/consultations?taken=me", headers=weber).json() == []
        assert client.put(f"{one}/answer", headers=weber, json={"text": "yes"}).status_code == 409  # not taken yet
        for _ in range(2):
            assert client.post(f"{one}/taking", headers=weber).json()["specialist"] == "dr-weber"
        assert client.post(f"{one}/taking", headers=other).status_code == 404
        assert client.get("/v1/consultations", headers=weber).json() == []
        (mine,) = client.get("/v1/consultations?taken=me", headers=weber).json()
        assert (mine["consultation_id"], mine["state"]) == ("c-1", "taken")
        assert client.get("/v1/consultations?taken=me", headers=other).json() == []
        assert client.get("/v1/consultations?taken=dr-weber", headers=other).status_code == 422
        detail = client.get(one, headers=weber).json()
        assert detail["slide"]["verdict"] == "readable"
        assert [(row["kind"], row["rectangle"], row["mpp"]) for row in detail["regions"]] == [
            ("region", [0, 0, 64, 64], 0.25)
        ]
        given = client.get(f"{one}/regions/{sha256}", headers=weber)
        assert (given.content, given.headers["content-type"]) == (picture, "image/webp")
        assert given.headers["x-content-type-options"] == "nosniff"
        assert client.get(f"{one}/thumbnail", headers=weber).content[:4] == b"RIFF"
        for _ in range(2):
            answer = client.put(
                f"{one}/answer", headers=weber, json={"text": "Adenocarcinoma.", "certainty": "probable"}
            )
            assert answer.json()["state"] == "answered"
        assert client.put(f"{one}/answer", headers=weber, json={"text": "No."}).status_code == 409
        assert client.get("/v1/consultations?taken=me", headers=weber).json() == []
    (told,) = node.fetch("consult-answer")
    assert (told["consultation"], told["answer"]["text"]) == ("c-1", "Adenocarcinoma.")


def test_the_node_that_asked_hears_who_took_its_question_and_who_gave_it_back(shared_house, tenant):
    node, slide = shared_house.enrol(tenant, "lab-1"), "ab" * 32
    other = shared_house.enrol(tenant, "lab-2")
    _says(node, "consult-request", 1, {"consultation": "c-1", "slide": slide, "organ": "lung", "question": ""}, slide)
    weber = shared_house.person()
    with shared_house.client() as client:
        one = f"/v1/consultations/{tenant}/c-1/taking"
        for method in ("POST", "POST", "DELETE", "POST"):
            assert client.request(method, one, headers=weber).status_code == 200
    said = node.fetch("consult-state")
    assert [(row["consultation"], row["state"], row["specialist"]) for row in said] == [
        ("c-1", "taken", "dr-weber"), ("c-1", "open", ""), ("c-1", "taken", "dr-weber"),
    ]  # fmt: skip
    assert other.fetch() == []
    with shared_house.cloud.store.reading(tenant) as work:
        actions = [entry.action for entry in work.audit.entries() if entry.action.startswith("consultation")]
    assert actions == ["consultation-asked", "consultation-taken", "consultation-given-back", "consultation-taken"]


def test_a_question_that_is_withdrawn_is_gone_from_the_desk(house):
    node, other = house.enrol("north", "lab-1"), house.enrol("north", "lab-2")
    slide = "ab" * 32
    for number in (1, 2):
        asked = {"consultation": f"c-{number}", "slide": slide, "organ": "lung", "question": ""}
        _says(node, "consult-request", number, asked, slide)
    weber = house.person()
    with house.client() as client:
        _says(other, "withdrawn", 1, {"slide": slide})  # not theirs to withdraw
        assert len(client.get("/v1/consultations", headers=weber).json()) == 2
        _says(node, "withdrawn", 1, {"consultation": "c-1"})
        assert [row["consultation_id"] for row in client.get("/v1/consultations", headers=weber).json()] == ["c-2"]
        _says(node, "withdrawn", 2, {"slide": slide})
        assert client.get("/v1/consultations", headers=weber).json() == []


def test_a_revoked_node_gets_nothing_from_its_next_request_on(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    node.send(node.pack())
    revoke_node(shared_house.cloud.store, tenant, "lab-1", reason="stolen")
    with pytest.raises(NodeRevokedError):
        node.fetch()
    with pytest.raises(NodeRevokedError):
        node.send(node.pack(seed=1))


def test_a_code_works_once_and_not_after_its_time(shared_house, tenant):
    shared_house.enrol(tenant, "lab-1")
    said = {"public_key": make_keys().public_key}
    code = invite_node(shared_house.cloud.store, tenant, "lab-2", ca_pem=shared_house.cloud.folder.ca_pem)
    late = invite_node(shared_house.cloud.store, tenant, "lab-3", ca_pem=shared_house.cloud.folder.ca_pem, hours=-1)
    with shared_house.client() as client:
        assert client.post("/v1/enrol", json=said | {"code": code.partition(".")[0]}).status_code == 201
        for spent in (code, late, "never-given-out"):
            answer = client.post("/v1/enrol", json=said | {"code": spent})
            assert (answer.status_code, answer.json()["code"]) == (404, "record-unknown")


def test_two_nodes_that_send_the_same_slide_both_hear_the_one_opinion(shared_house, tenant):
    one, two = shared_house.enrol(tenant, "lab-1"), shared_house.enrol(tenant, "lab-2")
    one.send(one.pack())
    shared_house.work()
    two.send(two.pack())
    assert shared_house.work() == 0
    assert len(one.fetch("opinion")) == len(two.fetch("opinion")) == 1


def test_the_end_that_a_node_tells_is_noted_in_any_order(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    slide = hashlib.sha256(b"0").hexdigest()
    _says(node, "slide-ended", 2, {"slide": slide, "state": "reported"}, slide)
    _says(node, "slide-accepted", 1, {"slide": slide}, slide)
    node.send(node.pack())
    shared_house.work()
    _says(node, "slide-ended", 3, {"slide": slide, "state": "referred", "reason": "doubt"}, slide)
    with shared_house.cloud.store.reading(tenant) as work:
        assert work.slides.get(slide).state == "reported"
        assert "end-differs" in [entry.action for entry in work.audit.entries()]
    assert len(node.fetch("opinion")) == 1
