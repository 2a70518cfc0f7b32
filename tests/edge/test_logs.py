"""Log lines for people and for programs; what is refused at the start is told as such."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from slideway.cloud import logs as cloud_logs
from slideway.core.errors import WrongUseError
from slideway.core.log_lines import JsonLines
from slideway.edge.logs import LOGGER, log, set_up_logs
from slideway.edge.serve import serve_edge
from slideway.edge.settings import parse_settings
from slideway.sync.serving import listen

from .conftest import Site
from .test_kill import change


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """What a test sets up ends with it."""
    kept = {name: list(logging.getLogger(name).handlers) for name in (LOGGER, "uvicorn", cloud_logs.LOGGER)}
    yield
    for name, handlers in kept.items():
        logging.getLogger(name).handlers = handlers


def test_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    set_up_logs(stream)
    log("slide-accepted", slide="ab12", urgent=True, share=0.123456, nothing=None, name="Doe^Jane 7.svs")
    assert stream.getvalue().endswith("Z INFO slide-accepted slide=ab12 urgent=True share=0.123 name=-\n")


def test_a_line_for_programs_has_the_shape_of_the_clouds() -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    set_up_logs(ours, form="json")
    cloud_logs.set_up_logs(theirs)
    log("slide-accepted", slide="ab12", name="Doe^Jane 7.svs", tier=1)
    cloud_logs.log("slide-accepted", slide="ab12", tier=1)
    line, other = json.loads(ours.getvalue()), json.loads(theirs.getvalue())
    assert line.pop("name") == "-"
    assert set(line) == set(other)
    assert {key: line[key] for key in ("level", "event", "slide", "tier")} == {
        "level": "info", "event": "slide-accepted", "slide": "ab12", "tier": 1,
    }  # fmt: skip


def test_an_error_is_told_by_its_type_and_place_and_never_by_its_message() -> None:
    try:
        raise ValueError("Doe^Jane")
    except ValueError as error:
        record = logging.LogRecord("other", logging.ERROR, "f", 1, "Doe^Jane", (), (ValueError, error, None))
    line = JsonLines(LOGGER).format(record)
    assert json.loads(line)["event"] == "server"
    assert json.loads(line)["error"] == "ValueError"
    assert "Doe" not in line


def test_form_that_is_not_known_is_refused(make_site: Callable[..., Site]) -> None:
    with pytest.raises(WrongUseError, match=r"\[edge\] log = 'xml': one of text, json"):
        parse_settings("[edge]\nlog = 'xml'", make_site().folder)


def test_port_that_is_taken_is_told_as_not_started_and_lets_go_of_the_store(make_site: Callable[..., Site]) -> None:
    site, stream = make_site(), io.StringIO()
    set_up_logs(stream, form="json")
    with listen("127.0.0.1", 0, settings="-") as taken:
        change(site, "port = 0", f"port = {taken.getsockname()[1]}")
        with pytest.raises(WrongUseError, match="cannot be listened on"):
            serve_edge(site.open())
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["not-started"]
    assert not site.settings.places.serving.exists()
    site.open().node.store.close()


def test_second_start_on_one_folder_says_that_it_did_not_start(make_site: Callable[..., Site]) -> None:
    site = make_site()
    edge = site.open()
    words = [sys.executable, "-m", "slideway", "edge", "serve", "--config", str(site.folder / "edge.toml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "ERROR not-started code=store-locked" in done.stderr
    assert "ended" not in done.stderr
    edge.node.store.close()
