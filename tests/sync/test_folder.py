"""The stick: the same guarantees as the line, whatever happens to its files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from slideway.core.errors import MissingBlobError, PolicyError, UntrustedBundleError
from slideway.store.database import Store
from slideway.store.outbox import OutboxState
from slideway.sync import folder as folder_room
from slideway.sync.folder import Exported, Imported, export_to_folder, import_answers, import_from_folder
from slideway.sync.identity import Keys, make_keys
from slideway.sync.messages import Message, pack_json
from slideway.sync.outgoing import put_message, put_upload
from slideway.sync.sessions import Sender

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
    assert (len(foreign.foreign), foreign.refused, foreign.taken) == (1, {}, [])  # one stick serves several nodes
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


def write_packet(cloud: Cloud, stick: Path, facts: dict[str, Any], parts: dict[str, bytes]) -> str:
    """A packet that the enrolled node really signed and sealed, with whatever in it."""
    return folder_room._write(stick, facts, parts, cloud.node_keys, cloud.endpoint("folder:").receiver)[0]


def facts_of(keys: Keys, **changed: object) -> dict[str, Any]:
    facts = {"to": "to-cloud", "tenant": TENANT, "node": NODE, "receiving_key": keys.receiving_key, **changed}
    return {name: value for name, value in facts.items() if value is not None}


FILE = {"kind": "bundle", "sha256": PLAN.sha256, "slide": SLIDE, "ends": [300, 300, 5_000], "start": 0, "n_bytes": 3}


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"receiving_key": None}, {"messages": pack_json({"messages": []})}),
        ({"receiving_key": "AAAA"}, {"messages": pack_json({"messages": []})}),
        ({"tenant": None}, {"messages": pack_json({"messages": []})}),
        ({"tenant": "south"}, {"messages": pack_json({"messages": []})}),
        ({"tenant": ["north"]}, {"messages": pack_json({"messages": []})}),
        ({}, {"messages": b"no zstd"}),
        ({}, {"messages": pack_json([1])}),
        ({}, {"messages": pack_json({"messages": [{"id": "x"}]})}),
        ({}, {"messages": pack_json({"messages": [Message("u", "unheard-of", "", 1, {}).content]})}),
        ({"file": {**FILE, "ends": ["300"]}}, {"file": b"abc"}),
        ({"file": {**FILE, "ends": 5}}, {"file": b"abc"}),
        ({"file": {**FILE, "ends": [10**30]}}, {"file": b"abc"}),
        ({"file": {**FILE, "start": -1}}, {"file": b"abc"}),
        ({"file": {**FILE, "sha256": "../../x"}}, {"file": b"abc"}),
        ({"file": {**FILE, "kind": 7}}, {"file": b"abc"}),
        ({"file": {**FILE, "sha256": "0" * 64, "ends": [2]}}, {"file": b"abc"}),
        ({"file": "x"}, {"file": b"abc"}),
        ({}, {"enrolment": b"x"}),
    ],
)
def test_packet_with_nonsense_in_it_is_refused_with_a_reason_and_the_others_are_taken(
    cloud: Cloud, edge: Store, stick: Path, changed: dict[str, object], parts: dict[str, bytes]
) -> None:
    fill(edge)
    good = export(edge, cloud, stick).packets
    names = {write_packet(cloud, stick, facts_of(cloud.node_keys, **changed), parts)}
    (stick / "to-cloud-0.swp").mkdir()
    taken = take(cloud, stick)
    assert set(good) <= set(taken.taken)
    bad = set(taken.refused) - {"to-cloud-0.swp"}
    assert bad == (names if "enrolment" not in parts else set())  # of a node that is enrolled it is passed over
    assert all(taken.refused.values())
    assert cloud.intake.kept[PLAN.pieces[2].key] == CONTENT
    bring_back(edge, cloud, stick)
    assert is_done(edge)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_file_or_larger_than_any_packet_is_not_opened(
    cloud: Cloud, edge: Store, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick.mkdir()
    os.mkfifo(stick / "to-cloud-fifo.swp")
    with (stick / "to-cloud-huge.swp").open("wb") as file:
        file.truncate(2**40)
    assert set(take(cloud, stick).refused) == {"to-cloud-fifo.swp", "to-cloud-huge.swp"}


def test_upload_that_is_refused_ends_there_and_its_reason_comes_back(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    export(edge, cloud, stick)
    cloud.intake.refuse = UntrustedBundleError("not signed by its node")
    for _ in range(2):
        taken = take(cloud, stick)
        assert len(taken.refused) == 5
        assert all("not signed by its node" in why for why in taken.refused.values())
        assert not list((cloud.folder / "parts").rglob("*.part"))
    assert len(taken.taken) == 1
    bring_back(edge, cloud, stick)
    with edge.reading(TENANT) as work:
        rows = [row for row in work.outbox.find_all(slide_sha256=SLIDE) if row.kind == "bundle"]
        assert {row.reason for row in rows} == {"bundle-untrusted"}
    cloud.intake.refuse = None
    assert not take(cloud, stick).refused


def test_file_of_a_kind_that_is_not_wanted_does_not_stop_what_is(cloud: Cloud, edge: Store, stick: Path) -> None:
    slide = a_plan(a_file(700, seed=4), kind="slide")
    fill(edge)
    with edge.transaction(TENANT) as work:
        put_upload(work, slide, is_urgent=True)
    keep = cloud.intake.keep
    cloud.intake.keep = lambda sender, plan, piece, path: (  # type: ignore[method-assign]
        _refuse_slide() if plan.kind == "slide" else keep(sender, plan, piece, path)
    )
    content = {PLAN.sha256: CONTENT, slide.sha256: a_file(700, seed=4)}
    endpoint = cloud.endpoint("folder:")
    export_to_folder(edge, endpoint, cloud.node_keys, stick, lambda sha, a, b: content[sha][a:b])
    assert len(take(cloud, stick).refused) == 1
    bring_back(edge, cloud, stick)
    with edge.reading(TENANT) as work:
        assert {row.reason for row in work.outbox.find_open(peer="cloud")} == {"policy-refuses"}


def _refuse_slide() -> None:
    raise PolicyError("no whole slides")


def test_disk_of_the_cloud_that_is_full_refuses_what_it_cannot_keep_and_takes_it_later(
    cloud: Cloud, edge: Store, stick: Path
) -> None:
    fill(edge)
    export(edge, cloud, stick)
    write = cloud.shelf._write

    def full(file: object, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cloud.shelf._write = full
    taken = take(cloud, stick)
    assert len(taken.taken) == 1  # messages need no room there
    assert any("No space left" in why for why in taken.refused.values())
    cloud.shelf._write = write
    assert not take(cloud, stick).refused
    bring_back(edge, cloud, stick)
    assert is_done(edge)


def test_full_stick_holds_whole_packets_only_and_says_what_is_left(
    cloud: Cloud, edge: Store, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(edge)
    room = [2**20 + 5_000]

    def free(folder: Path) -> int:
        return room[0] - sum(path.stat().st_size for path in folder.iterdir())

    monkeypatch.setattr(folder_room, "_free_bytes", free)
    first = export(edge, cloud, stick)
    assert 0 < len(first.packets) < 6
    assert first.left == 6 - len(first.packets)
    assert first.left_bytes > 0
    assert free(stick) >= 2**20  # the cloud's answer finds room
    assert sorted(path.name for path in stick.iterdir()) == sorted(first.packets)
    assert not take(cloud, stick).refused
    bring_back(edge, cloud, stick)
    room[0] = 10**9
    rest = export(edge, cloud, stick)
    assert rest.left == 0
    assert not set(rest.packets) & set(first.packets)
    take(cloud, stick)
    bring_back(edge, cloud, stick)
    assert is_done(edge)


def test_full_stick_at_the_cloud_is_said_and_the_answer_comes_with_the_next_import(
    cloud: Cloud, edge: Store, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(edge)
    export(edge, cloud, stick)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(folder_room, "write_whole", full)
        taken = take(cloud, stick)
    assert list(taken.refused) == [f"answer for {TENANT}/{NODE}"]
    assert "make room" in taken.refused[f"answer for {TENANT}/{NODE}"]
    assert not take(cloud, stick).refused
    bring_back(edge, cloud, stick)
    assert is_done(edge)


def test_packets_of_which_nothing_waits_any_more_make_room_for_others(cloud: Cloud, edge: Store, stick: Path) -> None:
    fill(edge)
    export(edge, cloud, stick)
    (stick / "to-cloud-of-another-node.swp").write_bytes(b"left alone")
    (stick / "holiday.jpg").write_bytes(b"left alone")
    take(cloud, stick)
    bring_back(edge, cloud, stick)
    export(edge, cloud, stick)
    left = {path.name for path in stick.iterdir() if not path.name.startswith("to-node")}
    assert left == {"to-cloud-of-another-node.swp", "holiday.jpg"}


def test_file_whose_bytes_are_not_here_any_more_is_counted_and_the_others_go(
    cloud: Cloud, edge: Store, stick: Path
) -> None:
    fill(edge)

    def gone(sha256: str, start: int, end: int) -> bytes:
        raise MissingBlobError("outgoing: not there")

    done = export_to_folder(edge, cloud.endpoint("folder:"), cloud.node_keys, stick, gone)
    assert (len(done.packets), done.missing) == (1, 5)
    assert len(take(cloud, stick).taken) == 1


def test_more_messages_than_one_packet_holds_all_come_back(cloud: Cloud, edge: Store, stick: Path) -> None:
    with cloud.store.transaction(TENANT) as work:
        for i in range(150):
            put_message(work, Message(f"o{i}", "opinion", SLIDE, i, {}), peer=NODE)
    fill(edge)
    export(edge, cloud, stick)
    take(cloud, stick)
    back = bring_back(edge, cloud, stick)
    assert (back.received, back.refused) == (150, {})
    export(edge, cloud, stick)
    assert not take(cloud, stick).refused
    with cloud.store.reading(TENANT) as work:
        assert not work.outbox.find_open(peer=NODE)


def test_answer_with_a_bug_behind_it_keeps_no_other_out(
    cloud: Cloud, edge: Store, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(edge)
    export(edge, cloud, stick)
    with cloud.store.transaction(TENANT) as work:
        for i in range(2):
            put_message(work, Message(f"o{i}", "opinion", SLIDE, i, {}), peer=NODE)
    take(cloud, stick)
    calls = []

    def stumble(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyError("Doe^Jane")
        original(*arguments)

    original = folder_room._take_answer
    monkeypatch.setattr(folder_room, "_take_answer", stumble)
    back = bring_back(edge, cloud, stick)
    (why,) = back.refused.values()
    assert "KeyError" in why
    assert "Doe" not in why
    assert len(back.taken) == 1
    bring_back(edge, cloud, stick)
    assert is_done(edge)
    assert effects(edge, "message") == ["o0", "o1"]


def test_cloud_that_was_restored_and_says_the_same_again_hears_again_that_it_was_taken(
    cloud: Cloud, edge: Store, stick: Path
) -> None:
    fill(edge)
    with cloud.store.transaction(TENANT) as work:
        number = put_message(work, Message("o1", "opinion", SLIDE, 1, {}), peer=NODE).number
    for _ in range(2):
        export(edge, cloud, stick)
        take(cloud, stick)
        bring_back(edge, cloud, stick)
    backup = {"number": number, **Message("o1", "opinion", SLIDE, 1, {}).content}
    facts = {"to": "to-node", "tenant": TENANT, "node": NODE}
    content = {"receipts": {}, "stops": {}, "messages": [backup], "again": True}
    receiver = cloud.node_keys.receiving.public_key()
    folder_room._write(stick, facts, {"answer": pack_json(content)}, cloud.keys, receiver)
    bring_back(edge, cloud, stick)
    with edge.reading(TENANT) as work:
        assert [row.kind for row in work.outbox.find_open(peer="cloud")] == ["taken"]
    assert effects(edge, "message") == ["o1"]


def test_what_a_pulled_out_stick_left_half_written_is_removed_later(cloud: Cloud, edge: Store, stick: Path) -> None:
    stick.mkdir()
    left, fresh = stick / ".to-cloud-a.swp.0.part", stick / ".to-cloud-b.swp.0.part"
    left.touch()
    os.utime(left, (0, 0))
    fresh.touch()
    fill(edge)
    export(edge, cloud, stick)
    assert not left.exists()
    assert fresh.exists()


def test_a_file_name_from_a_stick_cannot_command_a_terminal(cloud: Cloud, edge: Store, stick: Path) -> None:
    stick.mkdir()
    (stick / "to-cloud-\x1b[2J\u202ex.swp").write_bytes(b"x")
    (stick / "to-node-\x1b[2J.swp").write_bytes(b"x")
    assert set(take(cloud, stick).refused) == {"to-cloud-??2J?x.swp"}
    assert set(bring_back(edge, cloud, stick).refused) == {"to-node-??2J.swp"}
    assert not any("\x1b" in why for why in take(cloud, stick).refused.values())


def test_who_was_enrolled_is_told_as_the_code_says_not_as_the_packet_says(cloud: Cloud, stick: Path) -> None:
    said = {"code": "c", "version": "1", "signature": ""}
    newcomer = make_keys()
    facts = facts_of(newcomer, tenant="north", node="\x1b[2J")
    receiver = cloud.endpoint("folder:").receiver
    folder_room._write(stick, facts, {"enrolment": json.dumps(said).encode()}, newcomer, receiver)
    taken = import_from_folder(
        cloud.store, cloud.keys, cloud.shelf, cloud.handlers, stick, enrol=lambda _: Sender("south", "lab-9")
    )
    assert taken.enrolled == ["south/lab-9"]


def test_no_answer_says_more_than_its_receiver_unpacks() -> None:
    receipts = {f"r{number}": "x" * 88 for number in range(6_000)}
    refused = {f"f{number}": "code" for number in range(11_000)}
    shared = list(folder_room._share_out(receipts, refused, []))
    assert all(len(said) + len(why) <= folder_room._RECEIPTS for said, why, _ in shared)
    assert {key: text for said, _, _ in shared for key, text in said.items()} == receipts
    assert {key: code for _, why, _ in shared for key, code in why.items()} == refused
    assert list(folder_room._share_out({}, {}, [])) == [({}, {}, [])]
