"""Making a cloud, its settings, its certificate, its process: what an operator meets first."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import httpx
import pytest
from click.testing import CliRunner
from tests.cloud.conftest import run_cloud

from slideway.cli.main import cli
from slideway.cloud.init import CONFIG, init_cloud
from slideway.cloud.pki import make_authority, make_server_certificate, pin_of, read_hosts
from slideway.cloud.settings import SECTIONS, CloudSettings, parse_settings, read_settings
from slideway.core.errors import CaptivePortalError, WrongUseError
from slideway.sync.line import Line
from slideway.sync.messages import Message

REPOSITORY = Path(__file__).parents[2]


def test_init_makes_everything_once_and_only_its_user_may_read_it(tmp_path):
    first = init_cloud(tmp_path / "cloud", hosts=["cloud.example", "10.0.0.5"])
    assert set(first.hosts) == {"cloud.example", "10.0.0.5", "localhost", "127.0.0.1"}
    files = {path.name: path.read_bytes() for path in (tmp_path / "cloud").iterdir()}
    assert set(first.made) == set(files)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cloud").iterdir()} == {0o600}
    again = init_cloud(tmp_path / "cloud", hosts=["cloud.example"])
    assert again.made == ()
    assert {path.name: path.read_bytes() for path in (tmp_path / "cloud").iterdir()} == files
    assert read_settings(tmp_path / "cloud" / CONFIG).server.host == "0.0.0.0"


def test_init_refuses_another_host_until_it_may_renew_and_the_authority_stays(tmp_path):
    first = init_cloud(tmp_path, hosts=["cloud.example"])
    with pytest.raises(WrongUseError, match="--renew"):
        init_cloud(tmp_path, hosts=["other.example"])
    renewed = init_cloud(tmp_path, hosts=["other.example"], renew=True)
    assert renewed.pin == first.pin
    assert set(renewed.made) == {"server.pem", "server-key.pem"}
    assert "other.example" in read_hosts((tmp_path / "server.pem").read_bytes())


def test_a_word_that_is_not_known_is_refused_with_its_line(tmp_path):
    with pytest.raises(WrongUseError, match=r"cloud\.toml, line 3: \[server\] prot is not known; known are host, port"):
        parse_settings("\n[server]\nprot = 1\n", tmp_path)
    with pytest.raises(WrongUseError, match=r"line 1: \[sever\] is not known"):
        parse_settings("[sever]\nport = 1\n", tmp_path)
    with pytest.raises(WrongUseError, match=r"line 3: \[worker\] count must be a whole number"):
        parse_settings("[server]\n[worker]\ncount = true\n", tmp_path)


def test_without_tls_it_listens_on_loopback_only(tmp_path):
    text = '[server]\ntls = false\nhost = "10.0.0.5"\n'
    with pytest.raises(WrongUseError, match="behind_proxy"):
        parse_settings(text, tmp_path)
    assert parse_settings(text + "behind_proxy = true\n", tmp_path).server.tls is False


def test_passwords_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_URL", "postgresql+psycopg://slideway:secret@db/slideway")
    assert parse_settings('[store]\nurl = "env:TOY_URL"\n', tmp_path).store_url.endswith("@db/slideway")
    with pytest.raises(WrongUseError, match="TOY_NONE, which is not set"):
        parse_settings('[store]\nurl = "env:TOY_NONE"\n', tmp_path)


def test_every_setting_stands_in_the_documentation():
    page = (REPOSITORY / "docs" / "cloud.md").read_text(encoding="utf-8")
    types = get_type_hints(CloudSettings)
    for section in SECTIONS:
        for setting in fields(types[section]):
            row = re.search(rf"^\| `{section}\.{setting.name}` \| `(.*?)` \|", page, re.MULTILINE)
            assert row, f"docs/cloud.md has no row for {section}.{setting.name}"
            default = setting.default
            said = json.dumps(list(default) if isinstance(default, tuple) else default)
            assert row[1] == said, f"docs/cloud.md: {section}.{setting.name} is {said}"


def test_every_route_stands_in_the_documentation(house):
    from slideway.cloud.app import make_api
    from slideway.cloud.gate import Drain

    page = (REPOSITORY / "docs" / "cloud.md").read_text(encoding="utf-8")
    for path in make_api(house.cloud, role="all", drain=Drain()).openapi()["paths"]:
        assert f"`{path}`" in page, f"docs/cloud.md does not name {path}"


def test_a_node_that_pins_the_authority_gets_through_and_any_other_authority_is_refused(write_settings):
    settings = write_settings()
    settings = parse_settings(
        (settings.folder / CONFIG).read_text().replace("tls = false", "tls = true"), settings.folder
    )
    with run_cloud(settings) as house:
        node = house.enrol("north", "lab-1")
        assert sorted(node.send(node.pack())) == [0, 1, 2]
        wrong = make_authority().pem.decode()
        from dataclasses import replace

        line = Line(replace(node.endpoint, ca_pem=wrong), node.keys)
        with pytest.raises(CaptivePortalError):
            line.receive_messages()
        line.close()
        # What `edge enrol` does first: fetch the authority without believing anybody, then compare it with the pin.
        blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        with httpx.Client(verify=blind, trust_env=False) as client:
            fetched = client.get(f"{house.url}/v1/ca").content
        assert pin_of(fetched) == pin_of(house.cloud.folder.ca_pem) != pin_of(wrong.encode())


def test_a_certificate_for_another_host_is_refused(cloud_folder, write_settings):
    from slideway.cloud.pki import Certificate

    settings = write_settings()
    authority = Certificate((cloud_folder / "ca.pem").read_bytes(), (cloud_folder / "ca-key.pem").read_bytes())
    made = make_server_certificate(authority, ["other.example"])
    (cloud_folder / "server.pem").write_bytes(made.pem)
    (cloud_folder / "server-key.pem").write_bytes(made.key_pem)
    settings = parse_settings((cloud_folder / CONFIG).read_text().replace("tls = false", "tls = true"), cloud_folder)
    refused = pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED")
    with run_cloud(settings) as house, house.client() as client, refused:
        client.get("/health/live")


def test_a_database_in_a_file_has_one_process(write_settings):
    from slideway.cloud.app import open_cloud
    from slideway.cloud.serve import serve_cloud

    with pytest.raises(WrongUseError, match="one process"):
        serve_cloud(open_cloud(write_settings()), role="api")


def test_a_port_that_is_taken_is_said_plainly(write_settings):
    from dataclasses import replace

    from slideway.cloud.app import open_cloud
    from slideway.cloud.serve import serve_cloud

    settings = write_settings()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = replace(settings, server=replace(settings.server, port=port))
        with pytest.raises(WrongUseError, match=f"port {port}: cannot be listened on"):
            serve_cloud(open_cloud(settings))


def test_a_folder_that_was_there_already_is_closed_to_others(tmp_path):
    folder = tmp_path / "cloud"
    folder.mkdir(mode=0o755)
    init_cloud(folder)
    assert os.name != "posix" or folder.stat().st_mode & 0o777 == 0o700


def _start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "slideway", "cloud", "serve", "--config", str(folder / CONFIG)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert "http" in line, line + process.stderr.read()
    return process, line.split()[-1]


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a Windows process at once")
def test_the_process_answers_commands_and_ends_in_order_on_sigterm(cloud_folder, write_settings):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_settings()
    config = cloud_folder / CONFIG
    config.write_text(config.read_text().replace("port = 0", f"port = {port}").replace("tls = false", "tls = true"))
    process, url = _start(cloud_folder)
    pinned = ssl.create_default_context(cafile=str(cloud_folder / "ca.pem"))
    client = httpx.Client(verify=pinned, trust_env=False)
    try:
        run = CliRunner()
        for words in (
            ["tenant", "add", "north"],
            ["invite", "north", "lab-1"],
            ["revoke", "north", "lab-1", "--reason", "lost"],
        ):
            told = run.invoke(
                cli, ["cloud", *words, "--config", str(config)], catch_exceptions=False, standalone_mode=False
            )
            assert told.exception is None, told.output
        told = run.invoke(cli, ["cloud", "fleet", "--json", "--config", str(config)], standalone_mode=False)
        assert json.loads(told.output)["nodes"][0]["state"] == "revoked"
        assert client.get(f"{url}/health/ready").json()["status"] == "ready"  # and its line stays open, idle
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert time.monotonic() - started < 10
        events = [json.loads(line)["event"] for line in out.splitlines()]
        assert events[0] == "serving"
        assert events[-2:] == ["draining", "ended"]
    finally:
        client.close()
        process.kill()
        process.communicate()


def test_a_drain_ends_long_polls_and_takes_nothing_new(house):
    import threading

    node = house.enrol("north", "lab-1")
    token = {"Authorization": f"Bearer {node.line._get_token()}"}
    answers = []
    with house.client() as client:
        waiting = threading.Thread(
            target=lambda: answers.append(client.get("/v1/messages?wait=30", headers=token)), daemon=True
        )
        waiting.start()
        time.sleep(0.3)
        house.server.servers[0].get_loop().call_soon_threadsafe(house.drain.begin)
        waiting.join(5)
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "draining")]
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
    with pytest.raises(Exception, match="not now"):
        node.line.send_messages([Message("m", "status", "", 1, {})])
