"""What a look at the fleet costs, and what an operator can tell a node to do."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from itertools import pairwise

import pytest
from click.testing import CliRunner
from sqlalchemy import event

from slideway.cli.main import cli
from slideway.cloud import fleet
from slideway.cloud.commands import Command, command_node
from slideway.cloud.enrolment import Newcomer, enrol_node, invite_node, revoke_node
from slideway.cloud.fleet import view_fleet
from slideway.core.errors import TransitionError, WrongUseError
from slideway.store.database import open_store
from slideway.sync.identity import make_keys
from slideway.sync.invitation import ENROL_AS
from slideway.testing import postgres

SLIDE = "a" * 64


@pytest.fixture(scope="module")
def server():
    with postgres.serve_or_skip() as running:
        open_store(running.add_database("made", owner="slideway")).close()
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'slideway.db'}"
    if request.param == "postgresql":
        name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
        url = request.getfixturevalue("server").add_database(f"t{name}", owner="slideway", template="made")
    with open_store(url) as opened:
        yield opened


def add_node(store, tenant, node, *, transfers, messages):
    store.add_tenant(tenant)
    with store.transaction(tenant) as work:
        work.nodes.invite(node, code_sha256=f"{tenant}{node}".ljust(64, "0"), within_seconds=60)
        for number in range(transfers):
            work.bytes.record(SLIDE, 0, "in", 100, 1, node, "tus")
            work.bytes.record(SLIDE, 0, "out", 7, 1, node, "tus")
            if number < messages:
                work.outbox.put("opinion", f"{node}{number}", peer=node, size_bytes=50)


def look(store):
    """The fleet, and the statements that it took."""
    said = []
    note = lambda *told: said.append(told[2])  # noqa: E731
    event.listen(store.engine, "before_cursor_execute", note)
    try:
        seen = view_fleet(store)
    finally:
        event.remove(store.engine, "before_cursor_execute", note)
    return seen, [text for text in said if text.startswith("SELECT") and "set_config" not in text]


def test_a_look_at_the_fleet_costs_the_same_however_long_its_history_and_however_many_tenants(store):
    add_node(store, "north", "lab-1", transfers=1, messages=1)
    first, few = look(store)
    for tenant in ("east", "north", "south", "west"):
        add_node(store, tenant, "lab-2", transfers=60, messages=3)
    seen, many = look(store)
    assert len(many) == len(few)
    assert not [text for text in many if "FROM bytes" in text], "the ledger, which grows for ever, was summed up"
    assert not [text for text in many if "payload" in text and "FROM outbox" in text], "messages were fetched"
    lines = {(line.tenant, line.node): line for line in seen.nodes}
    assert (lines["south", "lab-2"].bytes_in, lines["south", "lab-2"].waiting, lines["south", "lab-2"].bytes_out) == (
        6000, 3, 150,
    )  # fmt: skip
    assert (lines["north", "lab-1"].bytes_in, lines["north", "lab-1"].waiting) == (100, 1)
    assert (first.nodes[0].tenant, len(seen.nodes)) == ("north", 5)


def test_counts_that_take_long_are_given_again_for_a_while(tmp_path, monkeypatch):
    with open_store(f"sqlite:///{tmp_path / 'slideway.db'}") as store:
        store.add_tenant("north")
        assert len(look(store)[1]) == len(look(store)[1])  # quickly counted: counted each time
        monkeypatch.setattr(fleet, "SLOW_COUNT_SECONDS", -1.0)
        _, counting = look(store)
        fleet._counted[store] = fleet._Counted({"done": 9}, {"reported": 4}, time.monotonic() + 60)
        seen, without = look(store)
        assert len(without) == len(counting) - 2
        assert (seen.jobs, seen.slides) == ({"done": 9}, {"reported": 4})
        fleet._counted[store] = fleet._Counted({}, {}, time.monotonic() - 1)
        assert look(store)[0].slides["accepted"] == 0


def enrol(store, tenant, node, keys, *, proof=True, code=""):
    store.add_tenant(tenant)
    code = code or invite_node(store, tenant, node, ca_pem=_authority()).partition(".")[0]
    signature = base64.b64encode(keys.signing.sign(ENROL_AS + code.encode())).decode() if proof else ""
    return enrol_node(store, Newcomer(code, keys.public_key, "1.0", signature))


def _authority():
    from slideway.cloud.pki import make_authority

    return make_authority().pem


def test_a_node_that_moves_to_another_tenant_ends_where_it_was_and_takes_nothing_along(store):
    keys = make_keys()
    enrol(store, "north", "lab-1", keys)
    with store.transaction("north") as work:
        work.slides.accept(SLIDE)
        work.jobs.enqueue(SLIDE, "diagnose")
        work.outbox.put("opinion", "o-1", peer="lab-1", slide_sha256=SLIDE)
        work.outbox.put("opinion", "o-2", peer="lab-2", slide_sha256=SLIDE)
    enrol(store, "south", "lab-1", keys)
    with store.reading("north") as work:
        old = work.nodes.get("lab-1")
        assert (old.state, old.reason) == ("revoked", "enrolled-elsewhere")
        assert (work.outbox.get("o-1").state, work.outbox.get("o-1").reason) == ("withdrawn", "enrolled-elsewhere")
        assert work.outbox.get("o-2").state == "waiting"
        assert work.slides.get(SLIDE).state == "accepted"  # the tenant's, not the node's
        assert work.jobs.find(SLIDE, "diagnose").state == "waiting"
        entry = list(work.audit.entries())[-1]
        assert (entry.action, entry.subject, entry.details["messages"]) == ("node-revoked", "lab-1", 1)
    with store.reading("south") as work:
        assert work.nodes.get("lab-1").state == "enrolled"
        assert work.slides.find_all() == []
        assert work.outbox.find_all() == []


def test_nobody_ends_another_tenants_node_by_naming_its_key(store):
    theirs = make_keys()
    enrol(store, "north", "lab-1", theirs)
    enrol(store, "south", "thief", theirs, proof=False)
    with store.reading("north") as work:
        assert work.nodes.get("lab-1").state == "enrolled"
    code = invite_node(store, "south", "thief-2", ca_pem=_authority()).partition(".")[0]
    wrong = base64.b64encode(make_keys().signing.sign(ENROL_AS + code.encode())).decode()
    for signature in (wrong, "junk", "AAAA"):
        with pytest.raises(WrongUseError, match="not the key's"):
            enrol_node(store, Newcomer(code, theirs.public_key, "1.0", signature))
    with store.reading("north") as work:
        assert work.nodes.get("lab-1").state == "enrolled"
    assert enrol(store, "south", "thief-2", make_keys(), code=code).state == "enrolled"  # the code was not used up


def test_a_node_that_enrols_again_under_its_own_id_keeps_what_waits_for_it(store):
    keys = make_keys()
    enrol(store, "north", "lab-1", keys)
    with store.transaction("north") as work:
        work.outbox.put("opinion", "o-1", peer="lab-1")
    enrol(store, "north", "lab-1", keys)
    with store.reading("north") as work:
        assert work.nodes.get("lab-1").state == "enrolled"
        assert work.outbox.get("o-1").state == "waiting"


def test_the_key_of_an_enrolment_is_proven_over_http(shared_house, tenant):
    keys = make_keys()
    with shared_house.client() as client:
        for number, target in enumerate((tenant, f"{tenant}-2")):
            shared_house.cloud.store.add_tenant(target)
            code = invite_node(shared_house.cloud.store, target, "lab-1", ca_pem=shared_house.cloud.folder.ca_pem)
            code = code.partition(".")[0]
            signature = base64.b64encode(keys.signing.sign(ENROL_AS + code.encode())).decode()
            said = {"code": code, "public_key": keys.public_key}
            assert client.post("/v1/enrol", json=said | {"signature": "AAAA"}).status_code == 422
            assert client.post("/v1/enrol", json=said | {"signature": signature}).status_code == 201, number
    with shared_house.cloud.store.reading(tenant) as work:
        assert work.nodes.get("lab-1").state == "revoked"


def test_commands_reach_the_node_once_and_are_audited(shared_house, tenant):
    node = shared_house.enrol(tenant, "lab-1")
    slide = "ab" * 32
    with shared_house.cloud.store.transaction(tenant) as work:
        work.slides.accept(slide)
        work.jobs.enqueue(slide, "later", not_before_ms=2**60)
    orders = [
        {"id": "1", "do": "pause"}, {"id": "2", "do": "resume"}, {"id": "3", "do": "priority", "slide": slide},
        {"id": "4", "do": "priority", "slide": "cd" * 32, "urgent": False},
    ]  # fmt: skip
    path = f"/v1/tenants/{tenant}/nodes/lab-1/commands"
    with shared_house.client(headers=shared_house.operator) as client:
        for order in (*orders, orders[0]):
            assert client.post(path, json=order).status_code == 202, order
        assert client.post(path, json={"id": "1", "do": "resume"}).status_code == 409
        for wrong in (
            {"do": "format-disk"},
            {"do": "priority"},
            {"do": "pause", "slide": slide},
            {"do": "priority", "slide": "x"},
        ):
            assert client.post(path, json={"id": "9", **wrong}).status_code == 422, wrong
        assert client.post(path.replace("lab-1", "lab-9"), json=orders[0]).status_code == 404
    assert [{key: word for key, word in told.items() if key != "kind"} for told in node.fetch("command")] == [
        {"do": "pause"}, {"do": "resume"}, {"do": "priority", "slide": slide, "urgent": True},
        {"do": "priority", "slide": "cd" * 32, "urgent": False},
    ]  # fmt: skip
    with shared_house.cloud.store.reading(tenant) as work:
        assert work.slides.get(slide).is_urgent
        assert [job.is_urgent for job in work.jobs.find_all()] == [True]
        given = [entry for entry in work.audit.entries() if entry.action == "command-given"]
        assert {(entry.actor, entry.details["do"]) for entry in given} == {
            ("operator", "pause"), ("operator", "resume"), ("operator", "priority"),
        }  # fmt: skip


def test_of_pause_and_resume_the_last_that_was_given_is_the_newest(shared_house, tenant):
    store = shared_house.cloud.store
    node = shared_house.enrol(tenant, "lab-1")
    given = [Command(str(number), do) for number, do in enumerate(("pause", "resume", "pause"))]
    given += [Command("9", "priority", SLIDE), given[0]]  # and the first again, which is one command
    for command in given:
        command_node(store, tenant, "lab-1", command, actor="operator")
    with store.reading(tenant) as work:
        rows = sorted(work.outbox.find_open(peer="lab-1"), key=lambda row: row.number)
    said = [row.payload for row in rows if row.kind == "command"]
    assert [told["subject"] for told in said] == ["reading", "reading", "reading", SLIDE]
    sequences = [told["sequence"] for told in said]
    assert all(earlier < later for earlier, later in pairwise(sequences))
    assert [told["do"] for told in node.fetch("command")] == ["pause", "resume", "pause", "priority"]


def test_a_node_that_is_not_enrolled_takes_no_command(shared_house, tenant):
    store = shared_house.cloud.store
    shared_house.enrol(tenant, "lab-1")
    revoke_node(store, tenant, "lab-1", reason="lost")
    with pytest.raises(TransitionError, match="revoked"):
        command_node(store, tenant, "lab-1", Command("1", "pause"), actor="operator")


def test_the_command_line_gives_commands(cloud_folder, write_settings):
    settings = write_settings()
    with open_store(settings.store_url) as store:
        enrol(store, "north", "lab-1", make_keys())
    base = ["cloud", "command", "north", "lab-1"]
    config = ["--config", str(cloud_folder / "cloud.toml")]
    run = CliRunner()
    for words in (["pause"], ["priority", "--slide", SLIDE.upper(), "--not-urgent"]):
        told = run.invoke(cli, [*base, *words, *config], standalone_mode=False)
        assert told.exception is None, told.output
    assert isinstance(run.invoke(cli, [*base, "priority", *config], standalone_mode=False).exception, WrongUseError)
    with open_store(settings.store_url) as store, store.reading("north") as work:
        bodies = [row.payload["body"] for row in work.outbox.find_all()]
        assert bodies == [{"do": "pause"}, {"do": "priority", "slide": SLIDE, "urgent": False}]
        assert json.dumps(bodies)
