"""A slide that comes again: from a second node, from a node that lost its disk, by another encoder, after a refusal."""

from __future__ import annotations

import hashlib
import threading

import pytest
from tests.cloud.conftest import CASE, FINGERPRINT, run_cloud

from slideway.cloud import worker as worker_module
from slideway.cloud.app import import_packets
from slideway.cloud.worker import Worker, refer_spent
from slideway.store.database import open_store
from slideway.sync.folder import export_to_folder
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_upload
from slideway.testing import postgres

SLIDE = hashlib.sha256(b"0").hexdigest()


def name_of(content):
    return hashlib.sha256(content).hexdigest()


def take_all(node):
    """What waits, which the node then says it has taken; nothing of it comes again."""
    items = node.line.receive_messages()
    node.line.receive_messages([item.number for item in items])
    return [{"kind": item.message.kind, **item.message.body} for item in items]


def opinions(said):
    return [message for message in said if message["kind"] == "opinion"]


def about(said):
    return [message["bundle"] for message in opinions(said)]


def test_a_node_that_reads_a_slide_anew_gets_its_opinion_again(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    first, second = node.pack(), node.pack()
    assert first != second  # locked anew
    node.send(first)
    shared_house.work()
    assert about(take_all(node)) == [name_of(first)]
    node.send(second)
    assert shared_house.work() == 0  # diagnosed once
    (opinion,) = opinions(take_all(node))
    assert (opinion["bundle"], opinion["tiles"], opinion["provisional"]) == (name_of(second), 60, False)
    node.send(second)
    assert take_all(node) == []


def test_a_node_whose_disk_was_replaced_gets_its_opinion_again(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    node.send(node.pack())
    shared_house.work()
    take_all(node)
    new = shared_house.enrol(tenant, "lab-1")  # another key under the same id
    content = new.pack()
    new.send(content)
    assert about(take_all(new)) == [name_of(content)]


def test_a_second_node_that_heard_the_opinion_too_early_hears_it_again_about_its_own_bundle(shared_house, tenant):
    one, two = shared_house.enrol(tenant, "lab-1"), shared_house.enrol(tenant, "lab-2")
    told = Message(f"slide-accepted:{SLIDE}", "slide-accepted", SLIDE, 0, {"slide": SLIDE, "urgent": False})
    assert not two.line.send_messages([told]).refused
    first = one.pack()
    one.send(first)
    shared_house.work()
    assert about(take_all(two)) == [name_of(first)]  # it has not read its slide yet and lets this go by
    second = two.pack()
    two.send(second)
    assert about(take_all(two)) == [name_of(second)]
    assert about(take_all(one)) == [name_of(first)]


def test_the_ledger_says_what_came_by_stick_and_what_over_the_line(shared_house, tenant, tmp_path):
    node, stick = shared_house.enrol(tenant, "lab-1"), tmp_path / "stick"
    stick.mkdir()
    carried, sent = node.pack(seed=41), node.pack(seed=42)
    with open_store(f"sqlite:///{tmp_path / 'edge.db'}") as edge:
        edge.add_tenant(tenant)
        with edge.transaction(tenant) as work:
            put_upload(work, node.plan(carried))
        export_to_folder(edge, node.endpoint, node.keys, stick, lambda _, start, end: carried[start:end])
    assert not import_packets(shared_house.cloud, stick).refused
    node.send(sent)
    with shared_house.cloud.store.reading(tenant) as work:
        sums = work.bytes.totals("transport", direction="in")
    assert {way: total.payload_bytes for way, total in sums.items()} == {"folder": len(carried), "tus": len(sent)}
    shared_house.work()


def test_while_the_job_is_open_each_node_that_sends_gets_its_own_opinion_at_its_end(shared_house, tenant):
    one, two = shared_house.enrol(tenant, "lab-1"), shared_house.enrol(tenant, "lab-2")
    first, second = one.pack(), two.pack()
    one.send(first)
    two.send(second)
    assert opinions(take_all(two)) == []
    assert shared_house.work() == 1
    assert about(take_all(one)) == [name_of(first)]
    assert about(take_all(two)) == [name_of(second)]


def test_a_bundle_of_a_slide_whose_job_was_given_up_hears_so(shared_house, tenant):
    one, two = shared_house.enrol(tenant, "lab-1"), shared_house.enrol(tenant, "lab-2")
    one.send(one.pack(tissue_tiles=600))  # contradicts itself: no try would read it
    shared_house.work()
    assert opinions(take_all(one))[0]["trouble"] == "bundle-broken"
    for node in (two, one):
        content = node.pack()
        node.send(content)
        assert shared_house.work() == 0
        (opinion,) = opinions(take_all(node))
        assert (opinion["bundle"], opinion["trouble"], opinion["findings"]) == (name_of(content), "bundle-broken", [])
        assert "could not read" in opinion["silent"][0]
        assert not opinion["provisional"]


def test_another_encoder_gives_another_opinion_to_every_node_of_the_slide(shared_house, tenant):
    one, two = shared_house.enrol(tenant, "lab-1"), shared_house.enrol(tenant, "lab-2")
    first, second, other = one.pack(), two.pack(), "ab" * 32
    one.send(first)
    two.send(second)
    changed = one.pack(fingerprint=other)
    one.send(changed)
    assert shared_house.work() == 2
    said = opinions(take_all(one))
    assert {(message["bundle"], message["encoder"]["fingerprint"]) for message in said} == {
        (name_of(first), FINGERPRINT),
        (name_of(changed), other),
    }
    assert {message["encoder"]["fingerprint"] for message in opinions(take_all(two))} == {FINGERPRINT, other}


def test_vectors_that_come_after_a_bundle_without_them_are_diagnosed(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    node.send(node.pack(with_vectors=False))
    assert shared_house.work() == 1
    assert "No vectors came" in opinions(take_all(node))[0]["silent"][0]
    content = node.pack()
    node.send(content)
    assert shared_house.work() == 1
    (opinion,) = opinions(take_all(node))
    assert (opinion["bundle"], opinion["tiles"]) == (name_of(content), 60)
    node.send(node.pack(with_vectors=False))  # a stricter policy again: what is known stays known
    assert shared_house.work() == 0


def test_a_slide_that_becomes_urgent_at_its_node_is_urgent_here(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    node.send(node.pack())
    body = {"slide": SLIDE, "urgent": True}
    assert not node.line.send_messages([Message(f"slide-urgent:{SLIDE}", "slide-accepted", SLIDE, 1, body)]).refused
    with shared_house.cloud.store.reading(tenant) as work:
        assert work.slides.get(SLIDE).is_urgent
        assert [job.is_urgent for job in work.jobs.find_all()] == [True]
        assert work.slides.get(SLIDE).case_id == CASE
    shared_house.work()


def spend(house, tenant, *, seeds):
    """Slides of which every attempt ran out."""
    node = house.enrol(tenant, f"lab-{tenant}")
    for seed in seeds:
        node.send(node.pack(seed=seed, n=8))
    with house.cloud.store.transaction(tenant) as work:
        for job in work.jobs.find_all():
            for _ in range(job.attempts_allowed):
                assert work.jobs.lease("dead", seconds=-1) is not None
    return node


def test_one_slide_that_cannot_be_given_up_keeps_no_other_from_a_person(house, monkeypatch):
    one, two = spend(house, "north", seeds=[1]), spend(house, "south", seeds=[2])
    refer = worker_module.refer_slide

    def fail(work, job):
        if job.tenant == "north":
            raise KeyError("a bug")
        refer(work, job)

    monkeypatch.setattr(worker_module, "refer_slide", fail)
    assert refer_spent(house.cloud.tools) == 1
    assert one.fetch("opinion") == []
    assert [opinion["trouble"] for opinion in two.fetch("opinion")] == ["worker-stopped"]
    monkeypatch.undo()
    assert refer_spent(house.cloud.tools) == 1
    assert [opinion["trouble"] for opinion in one.fetch("opinion")] == ["worker-stopped"]
    assert refer_spent(house.cloud.tools) == 0


@pytest.fixture(scope="module")
def database():
    with postgres.serve_or_skip() as server:
        yield server.add_database("cloud", owner="slideway")


def test_a_bundle_that_comes_in_the_moment_its_slide_is_answered_gets_an_opinion(write_settings, database):
    """Both sides at once, many times: whoever is second sees what the first one wrote."""
    with run_cloud(write_settings(store=database)) as house:
        one, two = house.enrol("north", "lab-1"), house.enrol("north", "lab-2")
        seeds, sent, worker = range(12), {}, Worker(house.cloud.tools, "w", threading.Event())
        for seed in seeds:
            one.send(one.pack(seed=seed, n=8))
        contents = {seed: two.pack(seed=seed, n=8) for seed in seeds}

        def send() -> None:
            for seed in seeds:
                two.send(contents[seed])
                sent[seed] = True

        sender = threading.Thread(target=send)
        sender.start()
        while worker.work_once() or sender.is_alive():
            pass
        sender.join()
        assert len(sent) == len(seeds)
        assert set(about(two.fetch())) >= {name_of(content) for content in contents.values()}
        assert len(opinions(one.fetch())) == len(seeds)


def test_giving_up_holds_the_slide_before_its_job(write_settings, database):
    """As where bundles are taken in: two that held the one and waited for the other would both be thrown back."""
    with run_cloud(write_settings(store=database)) as house:
        spend(house, "giving-up", seeds=[7])
        slide = hashlib.sha256(b"7").hexdigest()
        done = []
        giving_up = threading.Thread(target=lambda: done.append(refer_spent(house.cloud.tools)))
        with house.cloud.store.transaction("giving-up") as work:
            work.slides.get(slide)
            giving_up.start()
            giving_up.join(0.5)
            assert not done
            assert len(work.jobs.quarantine_spent()) == 1  # nobody holds it
            work.slides.add_facts(slide, {"seen": 1})
        giving_up.join(10)
        assert done == [0]
