"""A node without any line, in real processes: enrolled, heard and answered by nothing but a folder that is carried."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from slideway.cli import cloud as cloud_commands
from slideway.cli import edge as edge_commands
from slideway.core.errors import WrongUseError
from slideway.edge.act import stand_in
from slideway.edge.shelves import Outgoing, open_own_store
from slideway.edge.stick import enrol_from_folder, export_stick, import_stick, sweep_spool, take_jobs
from slideway.store.outbox import OutboxState
from slideway.sync import folder as folder_room
from slideway.sync.identity import load_keys, make_keys, sign_receipt
from slideway.sync.messages import Message, pack_json
from slideway.sync.outgoing import UploadPlan, message_of, put_message, put_upload

from .conftest import NODE, TENANT, Site, wait_for


def run(*words: object, code: int = 0) -> str:
    """A real process of the command line; what it said, on both streams."""
    command = [sys.executable, "-m", "slideway", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def call(*words: object, code: int = 0) -> str:
    """The same within this process."""
    group = {"cloud": cloud_commands.command, "edge": edge_commands.command}[str(words[0])]
    done = CliRunner().invoke(group, [str(word) for word in words[1:]], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    assert (done.return_value or 0) == code, done.output
    return done.output


class Cloud:
    """A cloud on the other side: no address is ever told to the node."""

    def __init__(self, folder: Path, run: Callable[..., str]) -> None:
        self.config, self.run = folder / "cloud.toml", run
        run("cloud", "init", folder)
        text = self.config.read_text("utf-8")
        self.config.write_text(text.replace("port = 8443", "port = 0"), "utf-8")
        run("cloud", "tenant", "add", "island", "--config", self.config)

    def invite(self, stick: Path) -> str:
        said = self.run("cloud", "invite", "island", "lab-1", "--to-folder", stick, "--config", self.config)
        return next(line for line in said.splitlines() if line.count(".") == 1 and " " not in line)

    def take(self, stick: Path, *, code: int = 0) -> str:
        return self.run("cloud", "import", stick, "--config", self.config, code=code)

    def think(self) -> None:
        """Serve until every bundle that came has its opinion."""
        command = [sys.executable, "-m", "slideway", "cloud", "serve", "--config", str(self.config)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(lambda: '"done": 1' in run("cloud", "fleet", "--json", "--config", self.config), step=1)
            finally:
                process.send_signal(signal.SIGTERM if os.name == "posix" else signal.SIGBREAK)
                process.wait(30)


def carry(stick: Path, *, seed: int) -> Path:
    """Another stick with the same files, each twice, in another order of time."""
    other = stick.with_name(f"stick-{seed}")
    other.mkdir()
    paths = list(stick.iterdir())
    random.Random(seed).shuffle(paths)
    for i, path in enumerate(paths):
        shutil.copy(path, other / path.name)
        if path.suffix == ".swp":
            shutil.copy(path, other / f"{path.stem}-copy{i}.swp")
    return other


@pytest.mark.slow
def test_slide_of_a_node_without_a_line_gets_its_opinion_by_stick(
    make_site: Callable[..., Site], tiny_slides: list[Path], tmp_path: Path
) -> None:
    cloud, stick = Cloud(tmp_path / "cloud", run), tmp_path / "stick"
    stick.mkdir()
    site = make_site(enrolled=False)
    config = site.folder / "edge.toml"
    said = run("edge", "export", stick, "--config", config, code=2)
    assert "not enrolled" in said or "enrol this node first" in said
    code = cloud.invite(stick)
    run("edge", "enrol", code, "--from-folder", stick, "--config", config)
    assert not any(code.partition(".")[0].encode() in path.read_bytes() for path in stick.iterdir())

    site.put(tiny_slides[0], "Doe^Jane.tif")
    process = site.serve()
    wait_for(lambda: list(site.states("island").values()) == ["encoded"])
    assert site.ask()["line"] == "stick"
    said = json.loads(run("edge", "export", stick, "--json", "--config", config))  # while it serves
    assert said["packets"] > 3
    assert (said["left"], said["missing"]) == (0, 0)
    assert not any("Doe" in path.name or b"Doe" in path.read_bytes() for path in stick.iterdir())
    wait_for(lambda: site.ask()["sent_bytes"] > 1000)  # the serving node has noted what left

    half = max(stick.glob("to-cloud-*"), key=lambda path: path.stat().st_size)
    whole = half.read_bytes()
    half.write_bytes(whole[:-100])
    assert half.name in cloud.take(carry(stick, seed=1), code=5)
    half.write_bytes(whole)
    second = carry(stick, seed=2)
    said = cloud.take(second)
    assert "not taken" not in said
    cloud.think()
    cloud.take(second)  # the same again, for the opinion

    said = run("edge", "import", second, "--config", config)  # while it serves
    assert "receipt" in said
    wait_for(lambda: next(iter(site.states("island").values())) in ("referred", "reported"))
    assert not list(second.glob("to-node-*"))
    assert site.stop(process) == 0
    with site.look() as store, store.reading("island") as work:
        (slide,) = work.slides.find_all()
        assert slide.facts["cloud"]["provisional"] is False
        assert work.bytes.totals("transport")["folder"].payload_bytes > 1000
        open_kinds = {row.kind for row in work.outbox.find_open(peer="cloud")}
    assert open_kinds <= {"taken", "slide-ended", "status"}
    said = run("edge", "export", second, "--config", config)  # and once more without a serving node
    cloud.take(second)
    run("edge", "import", second, "--config", config)
    with site.look() as store, store.reading("island") as work:
        assert {row.kind for row in work.outbox.find_open(peer="cloud")} <= {"status", "taken"}
    events = run("cloud", "fleet", "--config", cloud.config)
    assert "island/lab-1  enrolled" in events


def test_invitation_that_somebody_changed_or_of_another_code_enrols_nobody(tmp_path: Path) -> None:
    cloud, stick = Cloud(tmp_path / "cloud", call), tmp_path / "stick"
    stick.mkdir()
    code, keys, endpoint = cloud.invite(stick), make_keys(), tmp_path / "endpoint.toml"
    (invitation,) = stick.glob("invitation-*.json")
    right = invitation.read_bytes()
    theirs = make_keys()
    said = json.loads(right) | {"cloud_receiving_key": theirs.receiving_key}
    invitation.write_bytes(json.dumps(said).encode())
    with pytest.raises(WrongUseError, match="is the one that the code names"):
        enrol_from_folder(stick, code, keys, endpoint)
    invitation.write_bytes(right)
    for wrong in ("", code.partition(".")[0], f"x.{'0' * 20}"):
        with pytest.raises(WrongUseError):
            enrol_from_folder(stick, wrong, keys, endpoint)
    assert not endpoint.exists()
    assert enrol_from_folder(stick, code, keys, endpoint).url == ""
    # The code works once: another node with a copy of stick and code comes too late.
    late = tmp_path / "late"
    shutil.copytree(stick, late)
    for packet in late.glob("to-cloud-*"):
        packet.unlink()
    enrol_from_folder(late, code, theirs, tmp_path / "theirs.toml")
    assert "island/lab-1: enrolled" in cloud.take(stick)
    assert "not taken" in cloud.take(late, code=5)
    assert "not taken" not in cloud.take(stick)  # the first again


CONTENT = bytes(range(256)) * 40


def fill(site: Site) -> UploadPlan:
    """A node at which a bundle and a message wait; it does not serve."""
    with open_own_store(site.settings.places) as store:
        store.add_tenant(TENANT)
        sha256 = Outgoing(site.settings.places.outgoing).put(CONTENT)
        plan = UploadPlan("bundle", sha256, "", (100, 100, len(CONTENT)))
        with store.transaction(TENANT) as work:
            put_upload(work, plan)
            put_message(work, Message("m", "status", "", 1, {}))
    return plan


def answer(site: Site, stick: Path, plan: UploadPlan) -> None:
    """What the cloud would write: receipts for all of it, and an order."""
    facts = {"to": "to-node", "tenant": TENANT, "node": NODE}
    with site.look() as store, store.reading(TENANT) as work:
        hashes = {piece.key: plan.sha256 for piece in plan.pieces} | {"m": message_of(work.outbox.get("m")).sha256}
    receipts = {
        key: sign_receipt(site.cloud.signing, tenant=TENANT, node=NODE, key=key, sha256=sha256)
        for key, sha256 in hashes.items()
    }
    order = {"number": 7, **Message("c", "command", "", 1, {"do": "pause", "slide": ""}).content}
    content = {"receipts": receipts, "stops": {}, "messages": [order]}
    receiver = load_keys(site.settings.places.keys).receiving.public_key()
    folder_room._write(stick, facts, {"answer": pack_json(content)}, site.cloud, receiver)


def states(site: Site) -> set[str]:
    with site.look() as store, store.reading(TENANT) as work:
        return {row.state.value for row in work.outbox.find_all() if row.kind != "taken"}


def test_commands_do_it_themselves_while_nothing_serves(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site, stick = make_site(), tmp_path / "stick"
    stick.mkdir()
    plan, config = fill(site), site.folder / "edge.toml"
    said = json.loads(call("edge", "export", stick, "--json", "--config", config))
    assert (said["packets"], said["left"], said["missing"]) == (4, 0, 0)
    assert "slideway edge import" in call("edge", "export", stick, "--config", config)
    assert "nothing from the cloud" in call("edge", "import", stick, "--config", config)
    answer(site, stick, plan)
    (stick / "to-node-broken.swp").write_bytes(b"half")
    said = call("edge", "import", stick, "--config", config, code=5)
    assert "1 packet taken in, 4 receipts, 1 message" in said
    assert "to-node-broken.swp" in said
    assert states(site) == {"acknowledged"}
    assert site.settings.places.paused.exists()  # the order took effect
    assert [path.name for path in stick.glob("to-node-*")] == ["to-node-broken.swp"]
    with site.look() as store, store.reading(TENANT) as work:
        assert work.bytes.totals("transport")["folder"].payload_bytes == len(CONTENT)


def test_while_the_node_serves_it_takes_in_what_the_command_brought(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    site, stick = make_site(), tmp_path / "stick"
    stick.mkdir()
    plan = fill(site)
    with open_own_store(site.settings.places) as store:  # as the serving process has it
        node = stand_in(site.settings, store)
        done = export_stick(site.settings, stick)
        assert len(done.packets) == 4
        assert take_jobs(node) == 1  # the bytes that left
        answer(site, stick, plan)
        assert import_stick(site.settings, stick, wait_seconds=0).is_pending
        assert list(stick.glob("to-node-*"))  # not taken yet, so it stays
        stop = threading.Event()
        thread = threading.Thread(target=lambda: [take_jobs(node) for _ in iter(lambda: stop.wait(0.05), True)])
        thread.start()
        taken = import_stick(site.settings, stick, wait_seconds=20)
        stop.set()
        thread.join()
        assert taken.receipts in (0, 4)  # the job that was pending may have had them
        assert (taken.messages, dict(taken.refused)) == (1, {})
        with store.reading(TENANT) as work:
            assert {row.state for row in work.outbox.find_all() if row.kind != "taken"} == {OutboxState.ACKNOWLEDGED}
            assert work.bytes.totals("transport")["folder"].payload_bytes == len(CONTENT)
    assert not list(stick.glob("to-node-*"))


def test_node_that_is_killed_in_a_job_does_it_again_without_a_second_effect(
    make_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, stick = make_site(), tmp_path / "stick"
    stick.mkdir()
    fill(site)
    with open_own_store(site.settings.places) as store:
        node = stand_in(site.settings, store)
        export_stick(site.settings, stick)
        with monkeypatch.context() as patch:
            patch.setattr("slideway.edge.stick._Spool.finish", lambda *_: (_ for _ in ()).throw(SystemExit))
            with pytest.raises(SystemExit):
                take_jobs(node)
        assert take_jobs(node) == 1
        assert take_jobs(node) == 0
        with store.reading(TENANT) as work:
            assert work.bytes.totals("transport")["folder"].payload_bytes == len(CONTENT)
    left = site.settings.places.folder / "stick" / "0.part"
    left.mkdir()
    sweep_spool(site.settings.places)
    assert left.exists()  # a command may be at it
    os.utime(left, (0, 0))
    sweep_spool(site.settings.places)
    assert not left.exists()


def test_full_folder_ends_an_export_with_what_is_left_and_what_to_do(
    make_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, stick = make_site(), tmp_path / "stick"
    stick.mkdir()
    fill(site)
    monkeypatch.setattr(folder_room, "_free_bytes", lambda _: 2**20 + 5_000)
    said = call("edge", "export", stick, "--config", site.folder / "edge.toml", code=6)
    assert "the folder is full: 1 packet more (10 kB) found no room" in said
    assert "Bring this folder to the cloud first" in said
    assert not [path for path in stick.iterdir() if path.suffix != ".swp" or path.name.startswith(".")]
