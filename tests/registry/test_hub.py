"""The hub's client against a small hub on this machine: mirror, cache, offline, gated, missing; never any code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from slideway.core.errors import ModelUnavailableError
from slideway.registry.hub import fetch_model, find_checkpoint
from slideway.testing.encoders import write_toy_encoder

needs_client = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="the hub's client is not installed (extra train)"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as its client asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, *, with_body: bool) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.repositories.get(name)
        if files is None:
            return self.send(404, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"}, with_body)
        revision = parts[5] if api else parts[3]
        if revision not in ("main", COMMIT):
            return self.send(404, b'{"error": "no such revision"}', {"X-Error-Code": "RevisionNotFound"}, with_body)
        if api:
            return self.send(200, self.describe(name, files, parts[4]), {}, with_body)
        return self.send_file(name, "/".join(parts[4:]), files, with_body)

    def describe(self, name: str, files: dict[str, bytes], what: str) -> bytes:
        if what == "tree":
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return json.dumps(rows).encode()
        siblings = [{"rfilename": path} for path in files]
        return json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()

    def send_file(self, name: str, path: str, files: dict[str, bytes], with_body: bool) -> None:
        if name in self.server.gated:
            return self.send(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"}, with_body)
        if path not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        if with_body:
            self.server.fetched.append(path)
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return self.send(200, files[path], {"ETag": etag, "X-Repo-Commit": COMMIT}, with_body)

    def send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def settings(tmp_path: Path, endpoint: str, **more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own = {"HF_HOME": str(tmp_path / "hf"), "SLIDEWAY_MODELS": str(tmp_path / "models"), "HF_HUB_DISABLE_XET": "1"}
    return {**clean, "HF_ENDPOINT": endpoint, **own, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **more}


def fetch(environment: dict[str, str], repo_id: str, revision: str | None = None) -> dict[str, str]:
    """Fetch in a process of its own, since the client reads its settings once, when it is imported."""
    code = (
        "import json, sys\n"
        "from slideway.core.errors import SlidewayError\n"
        "from slideway.registry.hub import fetch_model, find_checkpoint\n"
        "try:\n"
        "    folder = fetch_model(sys.argv[1], revision=sys.argv[2] or None)\n"
        "    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())\n"
        "    best = '' if (folder / 'card.toml').exists() else find_checkpoint(folder).name\n"
        "    print(json.dumps({'folder': str(folder), 'files': files, 'best': best}))\n"
        "except SlidewayError as error:\n"
        "    print(json.dumps({'code': error.code, 'words': str(error)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, repo_id, revision or ""],
        capture_output=True, text=True, env=environment, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


OTHERS = {
    "modeling_evil.py": b"raise SystemExit('code of the repository was run')",
    "README.md": b"words",
    "config.json": b"{}",
    "LICENSE": b"licence",
    "optimizer.pt": b"not weights",
    "training_args.bin": b"not weights",
}


@needs_client
@pytest.mark.parametrize(
    ("weights", "best"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.onnx"], "model.safetensors"),
        (["encoder.safetensors", "pytorch_model.bin"], "encoder.safetensors"),
        (["pytorch_model.bin", "onnx/model.onnx"], "model.onnx"),
        (["pytorch_model.bin", "slide_encoder.pth"], "pytorch_model.bin"),
        (["checkpoint.pth"], "checkpoint.pth"),
    ],
)
def test_safest_form_of_the_weights_is_fetched_alone_and_never_code(hub: Hub, tmp_path: Path, weights, best) -> None:
    hub.repositories["owner/name"] = {**OTHERS, **{name: name.encode() for name in weights}}
    answer = fetch(settings(tmp_path, hub.url), "owner/name")
    assert answer["best"] == best, answer
    assert "modeling_evil.py" not in answer["files"]
    assert "README.md" not in answer["files"]
    assert not any(name.endswith(".py") for name in hub.fetched)
    others = {Path(name).name for name in weights} - {best}
    if best.endswith(".safetensors"):
        assert not others & {Path(name).name for name in hub.fetched}
    assert Path(answer["folder"]).is_relative_to(tmp_path / "hf")
    assert Path(answer["folder"]).name == COMMIT


@needs_client
def test_model_folder_at_the_hub_brings_what_its_card_names(hub: Hub, tmp_path: Path) -> None:
    toy = write_toy_encoder(tmp_path / "toy", external="weights.onnx.data")
    files = {name: (toy.folder / name).read_bytes() for name in toy.file_names}
    hub.repositories["owner/toy"] = {**OTHERS, **files, "other.onnx": b"not named"}
    answer = fetch(settings(tmp_path, hub.url), "owner/toy")
    assert set(toy.file_names) <= set(answer["files"])
    assert "other.onnx" not in answer["files"]


@needs_client
@pytest.mark.parametrize("how", ["offline setting", "line is down"])
def test_what_was_fetched_is_found_again_without_a_line(hub: Hub, tmp_path: Path, how: str) -> None:
    hub.repositories["owner/name"] = {**OTHERS, "pytorch_model.bin": b"weights"}
    first = fetch(settings(tmp_path, hub.url), "owner/name")
    dead = settings(tmp_path, "http://127.0.0.1:9")
    answer = fetch({**dead, "HF_HUB_OFFLINE": "1"} if how == "offline setting" else dead, "owner/name")
    assert answer == first


@needs_client
@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_line_and_cache_the_message_says_both(tmp_path: Path, offline: str) -> None:
    answer = fetch({**settings(tmp_path, "http://127.0.0.1:9"), "HF_HUB_OFFLINE": offline}, "owner/name")
    assert answer["code"] == "model-unavailable"
    assert "cannot be reached" in answer["words"]
    assert "HF_ENDPOINT" in answer["words"]


@needs_client
def test_gated_model_says_accept_the_licence_and_give_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/gated"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    hub.gated.add("owner/gated")
    answer = fetch(settings(tmp_path, hub.url), "owner/gated")
    assert answer["code"] == "model-unavailable"
    assert "accept its licence" in answer["words"]
    assert "HF_TOKEN" in answer["words"]


@needs_client
def test_missing_repository_revision_or_weights_are_told_apart(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["owner/empty"] = OTHERS
    environment = settings(tmp_path, hub.url)
    assert "not found at the hub" in fetch(environment, "owner/none")["words"]
    assert "owner/empty at v9: not found" in fetch(environment, "owner/empty", "v9")["words"]
    assert "no weights there" in fetch(environment, "owner/empty")["words"]
    assert fetch(environment, "no name/at/all")["code"] == "wrong-use"


@needs_client
def test_cli_adds_a_model_folder_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    toy = write_toy_encoder(tmp_path / "toy")
    hub.repositories["owner/toy"] = {name: (toy.folder / name).read_bytes() for name in toy.file_names}
    command = [sys.executable, "-m", "slideway", "models", "add", "hub:owner/toy", "--json"]
    environment = settings(tmp_path, hub.url)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fingerprint"] == toy.fingerprint
    assert (tmp_path / "models" / "toy" / "weights.onnx").is_file()
    assert not (tmp_path / "models" / "toy" / "weights.onnx").is_symlink()


def test_without_the_client_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'slideway\[train\]'"):
        fetch_model("owner/name")


def test_several_files_of_weights_are_not_guessed_among(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelUnavailableError, match="2 files of weights"):
        find_checkpoint(tmp_path)
    with pytest.raises(ModelUnavailableError, match="no file of weights"):
        find_checkpoint(tmp_path / "empty")
