"""What the cloud says: kept once, beside what the edge said, and never more than the policy lets it ask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slideway.edge.answers import Answers
from slideway.edge.app import Edge
from slideway.edge.chores import Chores
from slideway.edge.ends import decide_end
from slideway.edge.node import Node, end_slide, set_urgent
from slideway.edge.outcome import record_reading
from slideway.store.outbox import OutboxState
from slideway.store.slides import SlideState
from slideway.store.work import Work
from slideway.sync.mailbox import take_messages
from slideway.sync.messages import Message
from slideway.sync.outgoing import UploadPlan, put_upload

from .conftest import TENANT, Site

SLIDE, BUNDLE = "a" * 64, "b" * 64


def finding(answer: str = "answer", labels: tuple[str, ...] = ("yes",), **more: Any) -> dict[str, Any]:
    """A finding as result.json has it."""
    reasons = [] if answer == "answer" else [{"code": "near", "text": "It is near the border."}]
    return {
        "task": "neoplastic",
        "title": "Neoplastic?",
        "kind": "binary",
        "answer": answer,
        "labels": list(labels),
        "probabilities": {"yes": 0.9, "no": 0.1},
        "reasons": reasons,
        "cautions": [],
        "in_force": True,
        "validated": False,
        "head": {"id": "toy", "version": "1.0", "sha256": "c" * 64, "strangeness": 0.1, "evidence": ""},
        "evidence": {},
    } | more


def told(findings: list[dict[str, Any]], *, leaves: bool = True) -> dict[str, Any]:
    """What a child says of a slide that it read."""
    leaving = {"sha256": BUNDLE, "ends": [900, 3000, 9000], "level": "features", "reason": "r", "source": "s"}
    facts = {"verdict": "readable", "fingerprint": "f" * 64, "tissue_mm2": 1.0, "tiles": 3, "mpp": 0.5}
    stays = "" if leaves else "policy-refuses: nothing"
    told = {"facts": facts, "findings": findings, "fingerprint": "f" * 64, "stays": stays}
    return told | {"leaving": leaving if leaves else None}


def read(node: Node, findings: list[dict[str, Any]], *, leaves: bool = True, slide: str = SLIDE) -> None:
    """Take a slide in and record a reading of it."""
    with node.store.transaction(TENANT) as work:
        work.slides.accept(slide, size_bytes=1000, facts={"places": {}})
        work.jobs.enqueue(slide, "read", model=node.model)
        job = work.jobs.lease("w", seconds=60)
        assert job is not None
    with node.store.transaction(TENANT) as work:
        record_reading(work, node, job, told(findings, leaves=leaves))


def say(node: Node, kind: str, body: dict[str, Any], *, id_: str = "m1", sequence: int = 2) -> None:
    """Let a message of the cloud arrive."""
    message = Message(id_, kind, SLIDE, sequence, body)
    taken = take_messages(node.store, TENANT, "cloud", [message], Answers(node).handlers())
    assert taken.refused == {}


def opinion(findings: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "slide": SLIDE, "bundle": BUNDLE, "tier": 2, "provisional": False, "findings": findings, "tiles": 3,
        "heads": [], "silent": [], "groups": None, "novelty": None, "quality": "readable",
    } | more  # fmt: skip


def look(node: Node) -> tuple[str, str]:
    with node.store.reading(TENANT) as work:
        slide = work.slides.get(SLIDE)
        return slide.state.value, slide.reason


def actions(node: Node) -> list[str]:
    with node.store.reading(TENANT) as work:
        work.audit.verify_chain()
        return [entry.action for entry in work.audit.entries()]


@pytest.mark.parametrize(
    ("edge", "cloud", "end"),
    [
        ([finding()], [finding()], ("reported", "edge-and-cloud")),
        ([finding()], None, ("reported", "edge-alone")),
        ([finding()], [finding(labels=("no",))], ("referred", "opinions-contradict")),
        ([finding(in_force=False)], [finding(in_force=False)], ("referred", "no-head-in-force")),
        ([], [], ("referred", "no-head-in-force")),
        ([finding()], [finding("refer", ("yes", "no"))], ("referred", "not-sure")),
        ([finding("set", ("yes", "no"))], [finding()], ("reported", "edge-and-cloud")),
        ([{"task": "nonsense"}], None, ("referred", "no-head-in-force")),
    ],
)
def test_only_plain_answers_in_force_are_reported(
    edge: list[dict[str, Any]], cloud: list[dict[str, Any]] | None, end: tuple[str, str]
) -> None:
    decided = decide_end("readable", edge, cloud)
    assert (decided.state.value, decided.reason) == end


@pytest.mark.parametrize("verdict", ["no-tissue", "rescan"])
def test_slide_that_shows_nothing_goes_to_a_person_whatever_a_head_says(verdict: str) -> None:
    assert decide_end(verdict, [finding()], [finding()]).reason == verdict


def test_reading_is_one_transaction_with_what_leaves(edge: Edge) -> None:
    read(edge.node, [finding()])
    assert look(edge.node) == ("encoded", "")
    with edge.node.store.reading(TENANT) as work:
        rows = [row for row in work.outbox.find_all(slide_sha256=SLIDE) if row.kind == "bundle"]
        assert [(row.tier, row.size_bytes) for row in rows] == [(0, 900), (1, 2100), (2, 6000)]
        assert len(work.findings.of_slide(SLIDE, place="edge")) == 1
    assert actions(edge.node)[-2:] == ["slide-encoded", "bundle-released"]


def test_slide_that_may_not_leave_gets_its_edge_answer_and_ends(edge: Edge) -> None:
    read(edge.node, [finding()], leaves=False)
    assert look(edge.node) == ("reported", "edge-alone")
    with edge.node.store.reading(TENANT) as work:
        assert [row for row in work.outbox.find_all() if row.kind == "bundle"] == []


def test_final_opinion_ends_the_slide_once_and_tells_the_cloud(edge: Edge) -> None:
    read(edge.node, [finding()])
    for _ in range(2):
        say(edge.node, "opinion", opinion([finding()]))
    assert look(edge.node) == ("reported", "edge-and-cloud")
    assert actions(edge.node).count("slide-reported") == 1
    with edge.node.store.reading(TENANT) as work:
        assert work.outbox.find(f"slide-ended:{SLIDE}") is not None
        assert len(work.findings.of_slide(SLIDE, place="cloud")) == 1


def test_provisional_opinion_is_shown_and_ends_nothing(edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "opinion", opinion([finding(labels=("no",))], provisional=True, tier=1), sequence=1)
    assert look(edge.node) == ("encoded", "")
    with edge.node.store.reading(TENANT) as work:
        assert work.slides.get(SLIDE).facts["cloud"]["provisional"] is True
    say(edge.node, "opinion", opinion([finding()]), id_="m2")
    assert look(edge.node)[0] == "reported"


def test_late_provisional_opinion_does_not_overwrite_the_final_one(edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "opinion", opinion([finding()]))
    say(edge.node, "opinion", opinion([], provisional=True, tier=1), id_="m2", sequence=1)
    with edge.node.store.reading(TENANT) as work:
        assert work.slides.get(SLIDE).facts["cloud"]["provisional"] is False


def test_opinion_after_the_end_is_kept_and_changes_nothing(edge: Edge) -> None:
    read(edge.node, [finding()])
    with edge.node.store.transaction(TENANT) as work:
        end_slide(work, edge.node, SLIDE, SlideState.REPORTED, "edge-alone", tell=False)
    say(edge.node, "opinion", opinion([finding(labels=("no",))]))
    assert look(edge.node) == ("reported", "edge-alone")
    assert actions(edge.node)[-1] == "opinion-late"
    with edge.node.store.reading(TENANT) as work:
        assert work.findings.of_slide(SLIDE, place="cloud")[0].content["labels"] == ["no"]


def test_malformed_and_foreign_opinions_are_noted_and_do_not_come_for_ever(edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "opinion", opinion([]) | {"slide": "d" * 64})
    say(edge.node, "opinion", opinion([]) | {"slide": 5}, id_="m2")
    bad: Any = [{"task": "x"}, "no finding", finding(head={"id": "", "version": "1", "sha256": "?"})]
    say(edge.node, "opinion", opinion(bad), id_="m3")
    found = actions(edge.node)
    assert found.count("message-of-unknown-slide") == 2
    assert found.count("finding-malformed") == 2
    assert look(edge.node)[0] == "reported"  # by the edge's answer: the cloud's said nothing to it


def test_bundle_that_the_cloud_refuses_goes_to_a_person(edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "rejected", {"slide": SLIDE, "bundle": BUNDLE, "code": "bundle-untrusted", "message": "Doe^Jane"})
    assert look(edge.node) == ("referred", "cloud-refused-bundle")
    with edge.node.store.reading(TENANT) as work:
        assert work.outbox.waiting_bytes() < 900
        assert "Doe" not in str([vars(entry) for entry in work.audit.entries()])


ASK = {"slide": SLIDE, "bundle": BUNDLE, "rectangles": [[0, 0, 224, 224]], "because": "not-sure"}


def test_regions_are_refused_where_the_policy_stops_at_features(edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "ask-regions", ASK)
    assert actions(edge.node)[-1] == "regions-refused"
    with edge.node.store.reading(TENANT) as work:
        assert [job.step for job in work.jobs.find_all()] == ["read"]


def test_regions_become_a_job_where_the_policy_lets_them(make_site: Callable[..., Site]) -> None:
    edge = make_site(policy="regions").open()
    read(edge.node, [finding()])
    for body in (
        ASK,
        ASK | {"rectangles": [[0, 0, 1]]},
        ASK | {"rectangles": [[0, 0, 1, 1]] * 65},
        ASK | {"bundle": "/"},
    ):
        say(edge.node, "ask-regions", body, id_=hashlib.sha256(str(body).encode()).hexdigest())
    with edge.node.store.reading(TENANT) as work:
        jobs = [job for job in work.jobs.find_all() if job.step == "regions"]
        assert [job.payload["rectangles"] for job in jobs] == [[[0, 0, 224, 224]]]
    assert actions(edge.node).count("question-malformed") == 3
    edge.node.store.close()


def test_region_that_the_cloud_refuses_stays_and_refers_nobody(make_site: Callable[..., Site]) -> None:
    edge = make_site(policy="regions").open()
    read(edge.node, [finding()])
    region = edge.node.outgoing.put(b"a region")
    with edge.node.store.transaction(TENANT) as work:
        put_upload(work, UploadPlan("region", region, SLIDE, (8,)))
    body = {"slide": SLIDE, "kind": "region", "bundle": region, "code": "bundle-broken", "message": "Doe^Jane"}
    say(edge.node, "rejected", body)
    assert look(edge.node)[0] == "encoded"
    assert actions(edge.node)[-1] == "region-rejected"
    with edge.node.store.reading(TENANT) as work:
        rows = [(row.kind, row.state) for row in work.outbox.find_all(slide_sha256=SLIDE)]
    assert ("region", OutboxState.WITHDRAWN) in rows
    assert rows.count(("bundle", OutboxState.WAITING)) == 3
    edge.node.store.close()


def test_a_specialists_answer_is_kept(edge: Edge) -> None:
    read(edge.node, [finding()])
    say(edge.node, "consult-answer", {"slide": SLIDE, "consultation": "c1", "answer": {"text": "x"}, "specialist": "s"})
    with edge.node.store.reading(TENANT) as work:
        assert work.consultations.get("c1").answer == {"text": "x"}


def test_the_cloud_puts_a_slide_first_and_back_with_all_that_is_open_of_it(edge: Edge) -> None:
    read(edge.node, [finding()])
    with edge.node.store.transaction(TENANT) as work:
        work.slides.accept("e" * 64)
        put_upload(work, UploadPlan("bundle", "9" * 64, "e" * 64, (8,)), priority=1)
    with edge.node.store.transaction(TENANT) as work:
        for slide in ("e" * 64, SLIDE):
            work.jobs.enqueue(slide, "regions")
    say(edge.node, "command", {"do": "priority", "slide": SLIDE, "urgent": True})
    with edge.node.store.transaction(TENANT) as work:
        assert work.slides.get(SLIDE).is_urgent
        job = work.jobs.lease("w", seconds=9)
        assert job is not None and job.slide_sha256 == SLIDE
        work.jobs.give_back(job)
        assert work.outbox.next_due()[0].slide_sha256 == SLIDE
        assert work.outbox.find(f"slide-urgent:{SLIDE}") is None  # the cloud knows: it said so
    say(edge.node, "command", {"do": "priority", "slide": SLIDE, "urgent": False}, id_="m2")
    say(edge.node, "command", {"do": "priority", "slide": "d" * 64, "urgent": True}, id_="m3")
    with edge.node.store.reading(TENANT) as work:
        assert not work.slides.get(SLIDE).is_urgent
    assert actions(edge.node).count("slide-urgent") == 2


def test_slide_that_became_urgent_while_it_was_read_leaves_first(edge: Edge) -> None:
    with edge.node.store.transaction(TENANT) as work:
        work.slides.accept(SLIDE, size_bytes=1, facts={"places": {}})
        work.jobs.enqueue(SLIDE, "read", model=edge.node.model)
        job = work.jobs.lease("w", seconds=60)
        assert job is not None
    with edge.node.store.transaction(TENANT) as work:
        assert set_urgent(work, edge.node, SLIDE)
        assert not set_urgent(work, edge.node, SLIDE)
    with edge.node.store.transaction(TENANT) as work:
        record_reading(work, edge.node, job, told([finding()]))
        rows = [row for row in work.outbox.find_all() if row.kind == "bundle"]
        assert [row.is_urgent for row in rows] == [True, True, True]
        assert work.outbox.get(f"slide-urgent:{SLIDE}").payload["body"] == {"slide": SLIDE, "urgent": True}


def test_the_cloud_can_pause_and_resume_and_nothing_else(edge: Edge) -> None:
    say(edge.node, "command", {"do": "pause"})
    assert edge.node.is_paused
    say(edge.node, "command", {"do": "rm -rf /"}, id_="m2")
    assert edge.node.is_paused
    say(edge.node, "command", {"do": "resume"}, id_="m3")
    assert not edge.node.is_paused


def test_a_pause_that_comes_after_a_newer_resume_has_no_effect(edge: Edge) -> None:
    """As from two sticks that changed places."""
    say(edge.node, "command", {"do": "resume"}, id_="m2", sequence=7)
    say(edge.node, "command", {"do": "pause"}, id_="m1", sequence=6)
    assert not edge.node.is_paused
    assert actions(edge.node)[-2:] == ["command", "command-late"]
    say(edge.node, "command", {"do": "pause"}, id_="m3", sequence=8)
    assert edge.node.is_paused


def acknowledge(work: Work) -> None:
    for row in work.outbox.find_all(slide_sha256=SLIDE):
        work.outbox.mark_acknowledged(row.key, receipt="signed")


def test_slide_is_sent_once_every_tier_is_acknowledged(edge: Edge) -> None:
    read(edge.node, [finding()])
    edge.chores.run_once()
    assert look(edge.node)[0] == "encoded"
    with edge.node.store.transaction(TENANT) as work:
        acknowledge(work)
    edge.chores.run_once()
    assert look(edge.node)[0] == "sent"


def test_without_an_answer_for_too_long_the_edge_answers_alone(make_site: Callable[..., Site]) -> None:
    site = make_site()
    text = (site.folder / "edge.toml").read_text("utf-8")
    (site.folder / "edge.toml").write_text(text.replace("wait_seconds = 1", "answer_alone_after_hours = -1"), "utf-8")
    edge = site.open()
    read(edge.node, [finding()])
    edge.chores.run_once()
    assert look(edge.node) == ("reported", "edge-alone")
    edge.node.store.close()


def test_policy_that_becomes_stricter_withdraws_what_waits(make_site: Callable[..., Site]) -> None:
    site = make_site()
    edge = site.open()
    read(edge.node, [finding()])
    edge.chores.run_once()
    with edge.node.store.reading(TENANT) as work:
        assert work.outbox.waiting_bytes() >= 9000
    policy = site.settings.policy_file
    policy.write_text(policy.read_text("utf-8").replace('may_leave = "features"', 'may_leave = "nothing"'), "utf-8")
    edge.chores.run_once()
    with edge.node.store.reading(TENANT) as work:
        left = [row.kind for row in work.outbox.find_all() if row.state is OutboxState.WAITING]
    assert set(left) <= {"status"}
    assert look(edge.node) == ("reported", "edge-alone")
    edge.node.store.close()


def limit_sites(site: Site, sites: str) -> None:
    policy = site.settings.policy_file
    policy.write_text(policy.read_text("utf-8").replace("may_leave", f"sites = {sites}\nmay_leave"), "utf-8")


@pytest.mark.parametrize(("own", "is_told"), [("lung", True), ("breast", False), ("", False)])
def test_of_a_site_that_the_policy_does_not_name_the_cloud_hears_not_even_that_a_slide_exists(
    own: str, is_told: bool, make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make_site()
    config = site.folder / "edge.toml"
    config.write_text(config.read_text("utf-8").replace("[reading]", f"[reading]\nsite = '{own}'"), "utf-8")
    limit_sites(site, '["lung", "prostate"]')
    edge = site.open()
    site.put(tiny_slides[0])
    edge.watcher.quiet_seconds = 0
    (sha256,) = edge.intake.run_once(has_room=lambda: True) or edge.intake.run_once(has_room=lambda: True)
    with edge.node.store.transaction(TENANT) as work:
        end_slide(work, edge.node, sha256, SlideState.REJECTED, "slide-gone")
    edge.chores.run_once()
    with edge.node.store.reading(TENANT) as work:
        rows = work.outbox.find_all()
    assert {"slide-accepted", "slide-ended"} & {row.kind for row in rows} == (
        {"slide-accepted", "slide-ended"} if is_told else set()
    )
    assert any(sha256 in str(row) for row in rows) is is_told
    (status,) = [row.payload["body"] for row in rows if row.kind == "status"]
    assert status["may_leave"] == ("features" if is_told else "nothing")
    edge.node.store.close()


def test_a_rule_of_sites_that_is_written_later_withdraws_what_waits(make_site: Callable[..., Site]) -> None:
    site = make_site()
    edge = site.open()
    edge.chores.run_once()
    read(edge.node, [finding()])
    limit_sites(site, '["lung"]')
    edge.chores.run_once()
    with edge.node.store.reading(TENANT) as work:
        left = [row.kind for row in work.outbox.find_all() if row.state is OutboxState.WAITING]
    assert set(left) <= {"status"}
    assert "states no site" in edge.node.rights.now().reason
    edge.node.store.close()


def test_policy_that_becomes_stricter_while_a_slide_is_read_lets_nothing_leave(make_site: Callable[..., Site]) -> None:
    site = make_site()
    edge = site.open()
    edge.chores.run_once()
    policy = site.settings.policy_file
    policy.write_text(policy.read_text("utf-8").replace('may_leave = "features"', 'may_leave = "opinions"'), "utf-8")
    edge.chores.run_once()  # sees the change before anything of the slide waits
    read(edge.node, [finding()])
    edge.chores.run_once()
    with edge.node.store.reading(TENANT) as work:
        assert not [row for row in work.outbox.find_all() if row.kind == "bundle"]
        assert work.slides.get(SLIDE).facts["stays"] == "policy-changed"
    assert look(edge.node) == ("reported", "edge-alone")
    edge.node.store.close()


def test_status_says_what_the_fleet_view_shows(edge: Edge) -> None:
    read(edge.node, [finding()])
    with edge.node.store.transaction(TENANT) as work:
        work.bytes.record(SLIDE, 0, "out", 300, 100, "cloud", "tus")
    edge.chores.run_once()
    with edge.node.store.reading(TENANT) as work:
        (status,) = (row.payload["body"] for row in work.outbox.find_all() if row.kind == "status")
    assert (status["saved_bytes"], status["queue"], status["failures"]) == (600, 0, 0)  # of a slide of 1,000 bytes
    assert 0 <= status["lag_seconds"] < 60


def test_of_statuses_only_the_newest_waits_and_it_grows_over_restarts(edge: Edge) -> None:
    sequences = []
    for _ in range(2):
        chores = Chores(edge.node, edge.space)
        chores.begin()
        for _ in range(2):
            chores._told = float("-inf")
            chores.run_once()
        with edge.node.store.reading(TENANT) as work:
            waiting = [row for row in work.outbox.find_all(state=OutboxState.WAITING) if row.kind == "status"]
        assert len(waiting) == 1
        sequences.append(waiting[0].payload["sequence"])
    assert sequences == sorted(set(sequences))
