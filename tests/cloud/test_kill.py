"""The cloud killed at each of its crash points: what was acknowledged is there, and every effect happens once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cloud.conftest import Node

from slideway.cloud.app import open_cloud
from slideway.cloud.enrolment import invite_node
from slideway.cloud.init import CONFIG
from slideway.core.crash import CRASH_POINTS, VARIABLE
from slideway.core.errors import LineError
from slideway.edge.enrol import enrol_edge
from slideway.sync.identity import make_keys
from slideway.sync.line import Line

POINTS = [name for name in CRASH_POINTS if name.startswith("cloud.")]


def _serve(folder: Path, crash_at: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slideway", "cloud", "serve", "--config", str(folder / CONFIG)]
    environment = {**os.environ, VARIABLE: crash_at}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    assert "http" in process.stderr.readline()
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a killed process looks otherwise there")
@pytest.mark.parametrize("point", POINTS)
def test_a_cloud_that_is_killed_loses_nothing_and_does_nothing_twice(cloud_folder, write_settings, tmp_path, point):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = write_settings()
    config = cloud_folder / CONFIG
    config.write_text(config.read_text().replace("port = 0", f"port = {port}"))
    cloud = open_cloud(settings)
    cloud.store.add_tenant("north")
    code = invite_node(cloud.store, "north", "lab-1", ca_pem=cloud.folder.ca_pem)
    cloud.close()
    process = _serve(cloud_folder, point)
    try:
        keys = make_keys()
        endpoint = enrol_edge(f"http://127.0.0.1:{port}", code, keys, tmp_path / "endpoint.toml")
        node = Node("north", "lab-1", keys, endpoint, Line(endpoint, keys))
        content, before = node.pack(), {}
        try:
            before = node.send(content)
        except LineError:
            assert point in ("cloud.after-verified", "cloud.before-receipt")
        assert process.wait(30) == -signal.SIGKILL
        process.communicate()
        process = _serve(cloud_folder)
        after = node.send(content)
        assert sorted(after) == [0, 1, 2]
        assert before in ({}, after)
        until = time.monotonic() + 30
        while not node.fetch("opinion"):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert len(node.fetch("opinion")) == 1
        node.line.close()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    cloud = open_cloud(settings)
    with cloud.store.reading("north") as work:
        actions = [entry.action for entry in work.audit.entries()]
        assert (actions.count("bundle-taken"), actions.count("opinion-given")) == (1, 1)
        work.audit.verify_chain()
        assert work.bytes.total(direction="in").payload_bytes == len(content)
        (job,) = work.jobs.find_all()
        assert job.state == "done"
    cloud.close()
