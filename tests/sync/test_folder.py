"""The stick: the same guarantees as the line, whatever happens to its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slideway.store.database import Store
from slideway.store.outbox import OutboxState
from slideway.sync import folder as folder_room
from slideway.sync.folder import Exported, Imported, export_to_folder, import_answers, import_from_folder
from slideway.sync.identity import make_keys
from slideway.sync.messages import Message
from slideway.sync.outgoing import put_message, put_upload

from .conftest import NODE, SLIDE, TENANT, Cloud, a_file, a_plan, effects, enrol, note_arrival

CONTENT = a_file(5_000)
PLAN = a_plan(CONTENT, 300, 300, 5_000)


@pytest.fixture(autouse=True)
def _small_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_room, "PACKET_BYTES", 2_000)


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    return tmp_path / "stick"


def fill(edge: Store) -> None:
    with edge.transaction(TENANT) as work:
        put_upload(work, PLAN)
        put_message(work, Message("a1", "slide-accepted", SLIDE, 1, {}))


def export(edge: Store, cloud: Cloud, stick: Path) -> Exported:
    read = {PLAN.sha256: CONTENT}
    endpoint = cloud.endpoint("folder:")
    return export_to_folder(edge, endpoint, cloud.node_keys, stick, lambda sha, a, b: read[sha][a:b])


def take(cloud: Cloud, stick: Path) -> Imported:
    return import_from_folder(cloud.store, cloud.keys, cloud.shelf, cloud.handlers, stick)


def bring_back(edge: Store, cloud: Cloud, stick: Path) -> Imported:
    return import_answers(edge, cloud.endpoint("folder:"), cloud.node_keys, {"opinion": note_arrival}, stick)


def is_done(edge: Store) -> bool:
    with edge.reading(TENANT) as work:
        return all(row.state is OutboxState.ACKNOWLEDGED for row in work.outbox.find_all(slide_sha256=SLIDE))


def test_stick_carries_everything_there_and_receipts_and_messages_back(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    with cloud.store.transaction(TENANT) as work:
        put_message(work, Message("o1", "opinion", SLIDE, 1, {}), peer=NODE)
    written = export(edge, cloud, stick)
    assert len(written.packets) == 6  # messages; t0; t1, which is empty; t2 in three
    assert not take(cloud, stick).refused
    back = bring_back(edge, cloud, stick)
    assert (back.refused, back.received) == ({}, 1)
    assert is_done(edge)
    assert cloud.intake.kept[PLAN.pieces[2].key] == CONTENT
    assert effects(cloud.store, "message") == ["a1"]
    assert effects(edge, "message") == ["o1"]
    # The next stick says that the opinion was taken.
    export(edge, cloud, stick)
    take(cloud, stick)
    with cloud.store.reading(TENANT) as work:
        assert work.outbox.get("o1").state is OutboxState.ACKNOWLEDGED
    with edge.reading(TENANT) as work:
        assert work.bytes.totals("transport")["folder"].payload_bytes == 5_000


def test_stick_that_comes_twice_has_each_effect_once_and_writes_nothing_anew(
    cloud: Cloud, edge: Store, stick: Path
) -> None:
    fill(edge)
    first = export(edge, cloud, stick)
    assert export(edge, cloud, stick) == Exported(first.packets, 0)
    for path in list(stick.iterdir()):  # and a copy of every file under another name
        shutil.copy(path, path.with_name(path.name.replace(".swp", "-copy.swp")))
    for _ in range(2):
        assert not take(cloud, stick).refused
        assert not bring_back(edge, cloud, stick).refused
    assert effects(cloud.store, "took") == [piece.key for piece in PLAN.pieces]
    assert effects(cloud.store, "message") == ["a1"]
    assert is_done(edge)


def test_half_copied_and_tampered_packets_are_refused_alone_and_taken_when_copied_again(
    cloud: Cloud, edge: Store, stick: Path
) -> None:
    fill(edge)
    names = export(edge, cloud, stick).packets
    whole = {name: (stick / name).read_bytes() for name in names}
    (stick / names[1]).write_bytes(whole[names[1]][:-10])
    middle = bytearray(whole[names[-1]])
    middle[-40] ^= 1
    (stick / names[-1]).write_bytes(middle)
    (stick / "to-cloud-empty.swp").touch()
    taken = take(cloud, stick)
    assert {names[1], names[-1], "to-cloud-empty.swp"} <= set(taken.refused)
    bring_back(edge, cloud, stick)
    assert not is_done(edge)
    assert not cloud.intake.kept
    (stick / names[1]).write_bytes(whole[names[1]])
    (stick / names[-1]).write_bytes(whole[names[-1]])
    assert set(take(cloud, stick).refused) == {"to-cloud-empty.swp"}
    bring_back(edge, cloud, stick)
    assert is_done(edge)


def test_half_copied_packet_is_written_again_by_the_next_export(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    name = export(edge, cloud, stick).packets[2]
    (stick / name).write_bytes((stick / name).read_bytes()[:50])
    assert export(edge, cloud, stick).n_bytes > 0
    assert not take(cloud, stick).refused


def test_stick_without_its_first_packet_waits_for_it(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    names = export(edge, cloud, stick).packets
    (stick / names[1]).rename(stick / "later")
    assert len(take(cloud, stick).refused) == 4  # the rest of the file
    (stick / "later").rename(stick / names[1])
    assert not take(cloud, stick).refused
    assert cloud.intake.kept[PLAN.pieces[2].key] == CONTENT


def test_packets_of_a_stranger_a_revoked_node_or_another_tenant_are_refused(
    cloud: Cloud, edge: Store, stick: Path
) -> None:
    fill(edge)
    endpoint = cloud.endpoint("folder:")
    stranger = make_keys()
    export_to_folder(edge, endpoint, stranger, stick, lambda sha, a, b: CONTENT[a:b])
    assert len(take(cloud, stick).refused) == 6
    enrol(cloud.store, stranger, tenant="south")  # known, but of another tenant than it says
    assert len(take(cloud, stick).refused) == 6
    shutil.rmtree(stick)
    export(edge, cloud, stick)
    with cloud.store.transaction(TENANT) as work:
        work.nodes.revoke(NODE, reason="stolen")
    assert len(take(cloud, stick).refused) == 6
    assert not effects(cloud.store, "took")


def test_answers_for_another_node_or_from_another_cloud_are_refused(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    export(edge, cloud, stick)
    take(cloud, stick)
    other = make_keys()
    foreign = import_answers(edge, cloud.endpoint("folder:"), other, {}, stick)
    assert list(foreign.refused.values()) == ["sealed for somebody else"]
    endpoint = cloud.endpoint("folder:")
    fake = type(endpoint)(
        endpoint.url, TENANT, NODE, other.signing.public_bytes, endpoint.cloud_receiving_key
    )  # the node trusts another cloud than the one that signed
    assert len(import_answers(edge, fake, cloud.node_keys, {}, stick).refused) == 1
    assert not is_done(edge)


def test_full_stick_keeps_what_is_whole_and_the_rest_goes_with_the_next(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    endpoint = cloud.endpoint("folder:")
    export_to_folder(edge, endpoint, cloud.node_keys, stick, lambda sha, a, b: CONTENT[a:b], limit_bytes=500)
    assert 0 < len(list(stick.iterdir())) < 6
    take(cloud, stick)
    bring_back(edge, cloud, stick)
    assert not is_done(edge)
    export(edge, cloud, stick)
    take(cloud, stick)
    bring_back(edge, cloud, stick)
    assert is_done(edge)
