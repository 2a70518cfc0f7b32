"""The demo: verified before use, clear without a network."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from slideway.cli import demo
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


def test_the_demo_reads_the_slide_and_opens_the_report(monkeypatch, tmp_path):
    place_slide(monkeypatch)
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    runner = CliRunner()
    result = runner.invoke(demo.command, ["--out", str(tmp_path / "out")], standalone_mode=False)
    assert result.return_value == 0
    assert "no diagnosis" in result.output
    assert opened[0].startswith("file:")
    assert opened[0].endswith("report.html")
    runner.invoke(demo.command, ["--out", str(tmp_path / "out"), "--no-open"], standalone_mode=False)
    assert len(opened) == 1
