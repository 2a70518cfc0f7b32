"""A checkpoint gives tensors or a refusal; nothing that hides in it is ever run."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import slideway
from slideway.core.errors import UnreadableCheckpointError, WrongUseError
from slideway.encoders import checkpoint as door
from slideway.encoders.checkpoint import open_checkpoint

SOURCES = sorted(Path(slideway.__file__).parent.rglob("*.py"))


def test_a_safetensors_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones(3, np.float32)}, path)
    opened = open_checkpoint(path, tmp_path)
    assert (opened.path, opened.limits) == (path, ())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"\x80\x04not a header", "not a whole safetensors file"),
        ("model.safetensors", b"", "not a whole safetensors file"),
        ("model.h5", b"x", "a checkpoint is a"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_words(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableCheckpointError, match=words):
        open_checkpoint(tmp_path / name, tmp_path)


def test_an_empty_safetensors_file_and_a_missing_one_are_refused(tmp_path):
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(UnreadableCheckpointError, match="no tensor"):
        open_checkpoint(tmp_path / "none.safetensors", tmp_path)
    with pytest.raises(UnreadableCheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "gone.pth", tmp_path)


def test_without_torch_a_pickled_file_is_refused_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"PK")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WrongUseError, match=r"slideway\[train\]"):
        open_checkpoint(tmp_path / "model.pth", tmp_path)


# --- with torch ------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: no pickled checkpoint can be made or read")


class RunsASystemCommand:
    """A pickle that runs a command when loaded."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"{sys.executable} -c \"open(r'{self.flag}', 'w')\"",)


class EvaluatesCode(RunsASystemCommand):
    """A pickle that evaluates Python when loaded."""

    def __reduce__(self):
        return eval, (f"open(r'{self.flag}', 'w').close()",)


def save_zip(torch, trap, path):
    torch.save({"weight": torch.ones(3), "trap": trap}, path)


def save_old(torch, trap, path):
    torch.save({"weight": torch.ones(3), "trap": trap}, path, _use_new_zipfile_serialization=False)


def save_raw(torch, trap, path):
    path.write_bytes(pickle.dumps({"trap": trap}, protocol=2))


def save_tar(torch, trap, path):
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(trap, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("trap", [RunsASystemCommand, EvaluatesCode])
@pytest.mark.parametrize("save", [save_zip, save_old, save_raw, save_tar])
def test_a_booby_trapped_checkpoint_is_refused_and_does_not_run(torch, tmp_path, save, trap):
    flag, path = tmp_path / "it-ran", tmp_path / "model.pth"
    save(torch, trap(flag), path)
    with pytest.raises(UnreadableCheckpointError) as caught:
        open_checkpoint(path, tmp_path)
    assert not flag.exists()
    assert not (tmp_path / "checkpoint.safetensors").exists()
    if save in (save_zip, save_old):
        assert "asks for code" in str(caught.value)
        assert "system" in str(caught.value) or "eval" in str(caught.value)


@pytest.mark.parametrize("trap", [RunsASystemCommand, EvaluatesCode])
def test_the_traps_of_these_tests_do_run_where_pickles_are_loaded(tmp_path, trap):
    flag = tmp_path / "it-ran"
    (tmp_path / "trap").write_bytes(pickle.dumps(trap(flag)))
    code = f"import pickle; pickle.load(open(r'{tmp_path / 'trap'}', 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert flag.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")
def test_even_code_that_runs_in_the_converter_can_neither_write_nor_start_programs(torch, tmp_path):
    """The second wall: as if torch's reader had a hole."""
    flag = tmp_path / "it-ran"
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "model.pth").write_bytes(b"x")
    code = (
        "import torch, sys, os, socket, subprocess\n"
        "from pathlib import Path\n"
        "from slideway.slides.sandbox import enter_sandbox\n"
        f"print(enter_sandbox(9_000_000_000, slide=Path(r'{tmp_path / 'model.pth'}')))\n"
        "def blocked(act):\n"
        "    try: act()\n"
        "    except OSError: return True\n"
        "    return False\n"
        f"print([blocked(a) for a in (lambda: open(r'{flag}', 'w'), lambda: open(r'{tmp_path / 'secret.txt'}'), "
        "lambda: subprocess.run(['true']), lambda: socket.socket())])\n"
        f"print(os.system('touch {flag}'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    limits, blocked, _ = done.stdout.splitlines()
    assert "no network" in limits
    if "no other file read" in limits:
        assert blocked == "[True, True, True, True]"
    assert not flag.exists()


def test_tensors_come_out_as_they_went_in_and_limits_are_named(torch, tmp_path):
    state = {"a": torch.randn(40, 30), "b": torch.arange(6).reshape(2, 3), "c": torch.randn(5).bfloat16()}
    nested = {"epoch": 3, "teacher": {"backbone.x": state["a"], "deep": {"y": state["b"]}}, "c": state["c"], "n": [1]}
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(nested, tmp_path / "model.pth", **options)
        opened = open_checkpoint(tmp_path / "model.pth", tmp_path)
        found = load_file(opened.path)
        assert set(found) == {"teacher.backbone.x", "teacher.deep.y", "c"}
        np.testing.assert_array_equal(found["teacher.backbone.x"], state["a"].numpy())
        np.testing.assert_array_equal(found["teacher.deep.y"], state["b"].numpy())
        np.testing.assert_array_equal(found["c"], state["c"].float().numpy())
    if sys.platform == "linux":
        assert {"memory", "no file grows", "no network", "no program started"} <= set(opened.limits)


def test_damaged_bombs_and_things_that_are_not_tensors_are_refused(torch, tmp_path):
    torch.save({"w": torch.randn(100, 100)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:20_000])
    (tmp_path / "noise.pth").write_bytes(np.random.default_rng(1).bytes(5000))
    torch.save({"w": torch.zeros(1).expand(10**10)}, tmp_path / "bomb.pth")
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    torch.save(torch.ones(3), tmp_path / "bare.pth")
    for name, words in {
        "cut": "damaged",
        "noise": "damaged|asks for code",
        "bomb": "40000 MB of tensors",
        "none": "no tensor",
        "bare": "dictionary",
    }.items():
        with pytest.raises(UnreadableCheckpointError, match=words):
            open_checkpoint(tmp_path / f"{name}.pth", tmp_path)


def test_a_converter_that_hangs_or_lies_is_ended(torch, tmp_path, monkeypatch):
    torch.save({"w": torch.ones(3)}, tmp_path / "model.pth")

    def answering(code):
        return lambda checkpoint: subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)

    monkeypatch.setattr(door, "TIMEOUT_S", 0.5)
    lies = (
        "import time; time.sleep(30)",
        "print('hello')",
        "print('[1]')",
        'print(\'{"bytes": "many", "limits": []}\')',
        "print('{\"bytes\": 100, \"limits\": []}'); print('too short')",
    )
    for code in lies:
        monkeypatch.setattr(door, "_start_converter", answering(code))
        with pytest.raises(UnreadableCheckpointError, match="ended by itself"):
            open_checkpoint(tmp_path / "model.pth", tmp_path)


# --- what no module may do -------------------------------------------------------------------------------------------

LOADERS = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("marshal", "loads"), ("marshal", "load"),
    ("yaml", "load"), ("yaml", "unsafe_load"), ("joblib", "load"), ("dill", "load"), ("dill", "loads"),
    ("shelve", "open"), ("pandas", "read_pickle"), ("torch", "hub"),
}  # fmt: skip
FOREIGN = {"joblib", "dill", "cloudpickle", "shelve", "marshal"}


def faults_of(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = node.module if isinstance(node, ast.ImportFrom) else None
            found += [name for name in [module, *names] if name and name.split(".")[0] in FOREIGN]
            found += [f"{module}.{name}" for name in names if (module, name) in LOADERS]
        if isinstance(node, ast.Attribute) and (ast.unparse(node.value), node.attr) in LOADERS:
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.value.value is True:
            found += [node.arg] if node.arg in ("trust_remote_code", "allow_pickle") else []
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            found += [] if given.get("weights_only") is True else ["torch.load without weights_only=True"]
    return found


def test_no_module_loads_pickles_or_runs_foreign_code():
    assert len(SOURCES) > 60
    assert {path.name: faults for path in SOURCES if (faults := faults_of(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.loads(b'')",
        "from pickle import load",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "import joblib",
        "import yaml\nyaml.load('x')",
        "import torch\ntorch.hub.load('x', 'y')",
    ],
)
def test_the_search_for_such_code_finds_it(code):
    assert faults_of(code)


def test_the_only_torch_load_stands_in_the_sandboxed_converter():
    users = [path.name for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert users == ["convert.py"]
