"""`slideway models` as people and scripts call it, each through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slideway.cli.main import cli, main
from slideway.encoders.slots import list_slots
from slideway.registry import DEFAULT_ENCODER, ModelCard
from slideway.registry.heads import list_heads
from slideway.testing.encoders import ToyGraph, make_toy_onnx, write_toy_encoder


class Node:
    """One installation: models, keys and cache of its own; `run` goes through the command line's own `main`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder.mkdir()
        self.folder, self._capsys = folder, capsys
        places = {"SLIDEWAY_MODELS": "models", "SLIDEWAY_KEYS": "keys", "SLIDEWAY_CACHE": "cache"}
        self.environment = {name: str(folder / place) for name, place in places.items()}

    def run(self, *arguments: object, expect: int = 0) -> str:
        return "".join(self.outputs(*arguments, expect=expect))

    def json(self, *arguments: object, expect: int = 0) -> dict:
        return json.loads(self.outputs(*arguments, "--json", expect=expect)[0])

    def outputs(self, *arguments: object, expect: int) -> tuple[str, str]:
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self.environment.items():
                patched.setenv(name, value)
            patched.chdir(self.folder)
            patched.setattr(sys, "argv", ["slideway", "models", *map(str, arguments)])
            try:
                with pytest.raises(SystemExit) as ended:
                    main()
            finally:
                signal.signal(signal.SIGTERM, handler)
        said = self._capsys.readouterr()
        assert ended.value.code == expect, said
        return said.out, said.err


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(tmp_path / "node", capsys)


@pytest.fixture
def far(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(tmp_path / "far", capsys)


@pytest.fixture
def toy(tmp_path: Path) -> ModelCard:
    return write_toy_encoder(tmp_path / "source" / "toy", state="candidate")


def test_life_of_a_model_from_its_folder_to_its_removal(node: Node, toy: ModelCard) -> None:
    said = node.run("add", toy.folder)
    assert toy.fingerprint in said
    assert "slideway read SLIDE --encoder toy" in said
    rows = {row["id"]: row for row in node.json("list")["models"]}
    assert rows["toy"]["state"] == "candidate"
    assert (rows["toy"]["packaged"], rows[DEFAULT_ENCODER]["packaged"]) == (False, True)
    assert toy.fingerprint[:12] in node.run("list")
    assert "It knows nothing." in node.run("show", "toy")
    assert node.json("show", "toy")["metrics"] == {"speed": "not measured"}
    assert {row["refused"] for row in node.json("verify", "toy")["verified"]} == {""}
    assert node.json("bench", "toy", "--seconds", "0.2")["engines"][0]["tiles_per_s"] > 0
    assert node.json("state", "toy", "active")["state"] == "active"
    node.run("remove", "toy")
    assert [row["id"] for row in node.json("list")["models"]] == [DEFAULT_ENCODER]


def test_model_travels_from_one_node_to_another(node: Node, far: Node, toy: ModelCard, tmp_path: Path) -> None:
    package, public = tmp_path / "toy.swm", tmp_path / "county.pub"
    node.run("add", toy.folder)
    signer = node.json("export", "toy", package)["signer"]
    assert node.json("key", "--public", public)["fingerprint"] == signer
    refused = far.run("import", package, expect=2)
    assert "".join(refused.split()).count(signer) == 1
    assert "models key --trust FILE" in refused
    assert far.json("list")["models"][-1]["id"] == DEFAULT_ENCODER
    assert far.json("key", "--trust", public)["trusted"] == [{"name": "county", "fingerprint": signer}]
    assert far.json("import", package)["fingerprint"] == toy.fingerprint
    assert "agree" in far.run("verify", "toy")


def test_one_import_can_trust_one_key(node: Node, far: Node, toy: ModelCard, tmp_path: Path) -> None:
    package, public = tmp_path / "toy.swm", tmp_path / "county.pub"
    node.run("add", toy.folder)
    node.run("export", "toy", package)
    node.run("key", "--public", public)
    far.run("import", package, "--trust", public)
    assert far.json("key")["trusted"] == []


def test_damaged_package_ends_with_3(node: Node, toy: ModelCard, tmp_path: Path) -> None:
    node.run("add", toy.folder)
    node.run("export", "toy", tmp_path / "toy.swm")
    content = (tmp_path / "toy.swm").read_bytes()
    (tmp_path / "toy.swm").write_bytes(content[:-600])
    node.run("remove", "toy")
    assert "package-broken" in node.run("import", tmp_path / "toy.swm", expect=3)


def test_package_of_weights_that_may_not_be_passed_on_says_so(node: Node, tmp_path: Path) -> None:
    from dataclasses import replace

    from slideway.registry import write_card

    card = write_toy_encoder(tmp_path / "toy")
    write_card(replace(card, licence=replace(card.licence, permits=("research",))))
    node.run("add", card.folder)
    assert "does not permit passing it on" in node.run("export", "toy", tmp_path / "toy.swm")


def test_retired_encoder_is_refused_by_read(node: Node, toy: ModelCard, tmp_path: Path) -> None:
    node.run("add", toy.folder)
    node.run("state", "toy", "retired")
    command = [sys.executable, "-m", "slideway", "read", str(toy.weights_path), "--encoder", "toy"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **node.environment}, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "encoder-retired" in done.stderr


def test_changed_model_is_refused_by_verify_and_all_others_are_still_verified(node: Node, toy: ModelCard) -> None:
    node.run("add", toy.folder)
    node.run("add", toy.folder, "--id", "broken")
    (node.folder / "models" / "broken" / "card.toml").write_text("schema = 9", encoding="utf-8")
    golden = node.folder / "models" / "toy" / "golden.safetensors"
    golden.write_bytes(golden.read_bytes()[:-1] + b"\0")
    rows = node.json("verify", "--all", expect=2)["verified"]
    refused = {row["id"]: bool(row["refused"]) for row in rows}
    heads = {card.id: False for card in list_heads()}
    assert heads
    assert refused == {DEFAULT_ENCODER: False, "toy": True, "broken": True, **heads}
    assert "refused" in node.run("verify", "toy", expect=2)
    assert "schema" in node.run("list")


def test_golden_tiles_that_do_not_reproduce_are_not_installed(node: Node, tmp_path: Path) -> None:
    import hashlib
    from dataclasses import replace

    from slideway.registry import write_card
    from slideway.testing.encoders import make_golden, replace_golden_hash

    card = write_toy_encoder(tmp_path / "toy")
    weights = make_toy_onnx(ToyGraph(seed=5))
    card.weights_path.write_bytes(weights)
    card = replace(card, weights=replace(card.weights, sha256=hashlib.sha256(weights).hexdigest()))
    golden = make_golden(ToyGraph(), card.fingerprint)
    card.golden_path.write_bytes(golden)
    write_card(replace_golden_hash(card, golden))
    assert "do not reproduce" in node.run("add", card.folder, expect=2)
    assert not list((node.folder / "models").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "gone.safetensors"), "hub:OWNER/NAME"),
        (("add", "here.txt"), "not a file of weights"),
        (("add", "here.swm"), "models import here.swm"),
        (("add", "here.safetensors"), "--slot"),
        (("add", "here.onnx"), "card.toml"),
        (("add", "here.onnx", "--slot", "nobody"), "no encoder slot"),
        (("add", "here.onnx", "--slot", "hibou-b"), "no ONNX file"),
        (("add", "folder"), "card.toml"),
        (("add", "folder", "--slot", "hibou-b"), "its own card"),
        (("add", "here.onnx", "--revision", "v1"), "--revision goes with hub"),
        (("verify",), "--all"),
        (("verify", "x", "--all"), "--all"),
        (("verify", "nobody"), "installed"),
        (("show", "nobody"), "installed"),
        (("bench", "nobody"), "installed"),
        (("remove", DEFAULT_ENCODER), "cannot be removed"),
        (("state", DEFAULT_ENCODER, "retired"), "came with Slideway"),
        (("state", "nobody", "great"), "is not one of"),
        (("export", DEFAULT_ENCODER, "x.zip"), ".swm"),
        (("import", "gone.swm"), "cannot be read"),
        (("key", "--name", "x"), "--trust"),
        (("key", "--trust", "here.txt"), "no public key"),
    ],
)
def test_wrong_use_says_what_to_do_and_ends_with_2(node: Node, arguments: tuple[str, ...], said: str) -> None:
    for name in ("here.txt", "here.swm", "here.safetensors", "here.onnx"):
        (node.folder / name).write_bytes(b"x")
    (node.folder / "folder").mkdir()
    assert said in node.run(*arguments, expect=2)


def test_finished_onnx_file_is_taken_only_when_it_fits_its_slot(node: Node, tmp_path: Path) -> None:
    slot = list_slots()[0]
    for graph in (ToyGraph(tile_px=slot.tile_px, width=slot.width + 1), ToyGraph(tile_px=64, width=slot.width)):
        (tmp_path / "other.onnx").write_bytes(make_toy_onnx(graph))
        assert f"slot {slot.id}" in node.run("add", tmp_path / "other.onnx", "--slot", slot.id, expect=2)
    (tmp_path / "fits.onnx").write_bytes(make_toy_onnx(ToyGraph(tile_px=slot.tile_px, width=slot.width)))
    added = node.json("add", tmp_path / "fits.onnx", "--slot", slot.id, "--id", "fits")
    card = node.json("show", "fits")
    assert card["origin"] == {"slot": slot.id, "source": "fits.onnx", "revision": ""}
    assert (card["state"], card["fingerprint"]) == ("candidate", added["fingerprint"])
    assert "are its own" in " ".join(card["limits"])
    assert not [path for path in (node.folder / "models").iterdir() if path.name.startswith(".")]


def test_onnx_file_with_tensors_elsewhere_is_not_taken(node: Node, tmp_path: Path) -> None:
    slot = list_slots()[0]
    content = make_toy_onnx(ToyGraph(tile_px=slot.tile_px, width=slot.width), external="beside.bin")
    (tmp_path / "x.onnx").write_bytes(content)
    assert "other files" in node.run("add", tmp_path / "x.onnx", "--slot", slot.id, expect=2)


def test_models_runs_as_a_program_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "SLIDEWAY_MODELS": str(tmp_path)}
    command = [sys.executable, "-m", "slideway", "models"]
    for arguments, code in ((["list"], 0), (["verify"], 2), (["--help"], 0), (["nothing"], 2)):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_every_subcommand_explains_itself() -> None:
    group = cli.get_command(None, "models")
    for name in group.list_commands(None):
        text = group.get_command(None, name).help
        assert text
        assert len(text) > 40, name
