"""The demo: verified before use, clear without a network."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from slideway.cli import demo, demo_pair
from slideway.core.errors import OutputError, SlidewayError
from slideway.testing import slides as synthetic


def place_slide(monkeypatch) -> Path:
    slide = Path(os.environ["SLIDEWAY_CACHE"]) / "demo" / Path(demo.MEMBER).name
    slide.parent.mkdir(parents=True, exist_ok=True)
    synthetic.write_svs(slide, synthetic.make_levels(synthetic.paint_tissue(1200, 900)))
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(slide.read_bytes()).hexdigest())
    return slide


def test_without_a_network_the_demo_says_so_and_ends_with_6(tmp_path):
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "SLIDEWAY_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "slideway", "demo", "--no-open", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 6, done.stderr
    assert "could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "demo").iterdir())


def test_a_slide_in_the_cache_is_used_only_with_the_right_hash(monkeypatch, tmp_path):
    slide = place_slide(monkeypatch)
    fetched = []
    monkeypatch.setattr(demo, "_fetch", fetched.append)
    assert demo.fetch_demo_slide() == slide
    assert not fetched
    slide.write_bytes(slide.read_bytes() + b"x")
    demo.fetch_demo_slide()
    assert fetched == [slide]


def test_the_demo_sends_the_slide_through_node_and_cloud_and_opens_the_report(monkeypatch, tmp_path):
    place_slide(monkeypatch)
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path))
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    arguments = ["--once", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(demo.command, arguments, standalone_mode=False)
    assert result.return_value == 0
    assert "no diagnosis" in result.output
    assert "on the line" in result.output
    assert opened[0].startswith("file:")
    assert opened[0].endswith("report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    running = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not any(str(tmp_path) in command for command in running)


def test_the_demo_as_json_says_what_was_sent_and_how_it_ended(monkeypatch, tmp_path):
    place_slide(monkeypatch)
    arguments = ["--json", "--no-open", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(demo.command, arguments, standalone_mode=False)
    answer = json.loads(result.stdout)
    assert answer["journey"]["state"] == "referred"
    assert answer["journey"]["sent"]["T0"]["payload"] > 0
    assert sum(sent["payload"] for tier, sent in answer["journey"]["sent"].items() if tier != "-") < 60_000


def test_a_cloud_that_does_not_start_is_said_with_its_last_words(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_pair, "_START_SECONDS", 5.0)
    monkeypatch.setattr(demo_pair.sys, "executable", shutil.which("false"))
    with pytest.raises(SlidewayError, match="the cloud ended with 1"), demo_pair.DemoPair(tmp_path):
        pytest.fail("it cannot start")


@pytest.mark.parametrize("name", ["out", "out/further/in"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_fetched(monkeypatch, tmp_path, name):
    (tmp_path / "out").write_text("a file stands in the way")
    monkeypatch.setattr(demo, "fetch_demo_slide", lambda: pytest.fail("it was fetched first"))
    result = CliRunner().invoke(demo.command, ["--once", "--no-open", "--out", str(tmp_path / name)])
    assert isinstance(result.exception, OutputError)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_asking_whether_a_place_can_be_written_leaves_nothing_there(tmp_path):
    demo.require_writable(tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
