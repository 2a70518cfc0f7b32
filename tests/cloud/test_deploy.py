"""The deployment files hold together, and to this program; with the tools that read them, also to those."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from slideway.cli.cloud import command as cloud_command
from slideway.cli.edge import command as edge_command
from slideway.cloud.settings import ServerSettings, parse_settings

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VARIABLES = {"SLIDEWAY_STORE_URL", "SLIDEWAY_S3_ENDPOINT", "SLIDEWAY_S3_KEY", "SLIDEWAY_S3_SECRET"}
# Requests get drain_seconds, then workers get as long again (docs/cloud.md, "Going down").
LONGEST_DRAIN_S = 2 * ServerSettings().drain_seconds
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="a shell script for Linux hosts")


def _started(words: list[str], *, edge: bool = False) -> None:
    """The command line exists; `--help` stops it before it starts anything."""
    group = edge_command if edge else cloud_command
    told = CliRunner().invoke(group, [*words, "--help"], standalone_mode=False)
    assert told.exception is None, f"{words}: {told.output}"


def _compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    """What Kubernetes would get: by kubectl where it is installed, else the files as they are listed."""
    folder = DEPLOY / "kustomize"
    if shutil.which("kubectl"):
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [item for name in listed for item in yaml.safe_load_all((folder / name).read_text(encoding="utf-8"))]


def _of_kind(manifests: list[dict[str, Any]], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((item["metadata"]["name"], item["spec"]) for item in manifests if item["kind"] == kind)


def _pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: spec["template"]["spec"] for name, spec in _of_kind(manifests, "Deployment")}


def test_compose_starts_commands_that_exist_from_images_that_are_built():
    services = _compose()["services"]
    assert set(services) == {"api", "worker", "database", "blobs"}
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    roles = set()
    for name in ("api", "worker"):
        build = services[name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert build["target"] in stages
        _started(services[name]["command"])
        roles.add(services[name]["command"][-1])
    assert roles == {"api", "worker"}
    mounted = [line.split(":")[0] for name in ("database", "blobs") for line in services[name]["volumes"]]
    assert all((DEPLOY / path).is_file() for path in mounted if path.startswith("./"))


def test_compose_waits_for_the_database_and_gives_a_drain_its_time():
    for service in (_compose()["services"][name] for name in ("api", "worker")):
        assert service["depends_on"]["database"] == {"condition": "service_healthy"}
        assert int(service["stop_grace_period"].removesuffix("s")) > LONGEST_DRAIN_S
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@posix_only
def test_passwords_of_compose_are_files_made_by_the_script_and_stand_in_no_environment(tmp_path):
    compose = _compose()
    folder = tmp_path / "cloud-secrets"
    for _ in range(2):  # what is there stays
        subprocess.run(["sh", str(DEPLOY / "make-secrets.sh"), str(folder)], check=True)
        made = {path.name: path.read_text() for path in folder.iterdir()}
        assert made == {path.name: path.read_text() for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(made) == set(compose["secrets"])
    assert {Path(item["file"]).name for item in compose["secrets"].values()} == set(made)
    assert len(set(made.values())) == len(made)
    assert min(len(value) for value in made.values()) >= 48
    assert made["database-slideway"] in made["SLIDEWAY_STORE_URL"]
    for service in compose["services"].values():
        assert set(service.get("secrets", ())) <= set(made)
        assert all("://" in value or "/run/secrets/" in value or value in ("admin", "postgres")
                   for value in service.get("environment", {}).values())  # fmt: skip


@posix_only
def test_a_container_has_its_secrets_and_the_settings_file_finds_them(tmp_path, monkeypatch):
    for name in VARIABLES - {"SLIDEWAY_S3_ENDPOINT"}:
        (tmp_path / name).write_text(f"{name} with a space\n")
    service = _compose()["services"]["api"]
    assert set(service["environment"]) | set(service["secrets"]) == VARIABLES
    environment = {**service["environment"], "PATH": os.environ["PATH"], "SECRETS_FOLDER": str(tmp_path)}
    done = subprocess.run(
        ["sh", str(DEPLOY / "with-secrets.sh"), "env"], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    for name in VARIABLES:
        monkeypatch.setenv(name, found[name])
    settings = parse_settings((DEPLOY / "cloud.toml").read_text(), tmp_path)
    assert settings.store.url == "SLIDEWAY_STORE_URL with a space"
    assert settings.blobs.secret_access_key == "SLIDEWAY_S3_SECRET with a space"  # made up
    assert settings.blobs.endpoint == "http://blobs:8333"
    assert settings.server.host == "0.0.0.0"  # of the container
    page = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
    assert all(f'"env:{name}"' in page for name in VARIABLES)


def test_compose_is_what_its_specification_takes():
    parser = pytest.importorskip("compose_spec", reason="pip install compose-spec")
    read = parser.PyOptions(apply_merge=True).from_yaml((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    read.validate()  # every network, volume and secret that a service names is there


def test_kubernetes_starts_commands_that_exist_and_mounts_what_is_there(manifests):
    pods = _pods(manifests)
    assert set(pods) == {"slideway-api", "slideway-worker"}
    claims = {name for name, _ in _of_kind(manifests, "PersistentVolumeClaim")}
    for pod in pods.values():
        _started(pod["containers"][0]["args"])
        used = {mount["name"] for box in pod["containers"] + pod["initContainers"] for mount in box["volumeMounts"]}
        assert used == {volume["name"] for volume in pod["volumes"]}
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
        } <= claims


def test_every_kubernetes_container_is_confined_and_bounded(manifests):
    for pod in _pods(manifests).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for box in pod["containers"] + pod["initContainers"]:
            assert box["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert box["resources"]["requests"]["memory"] and box["resources"]["limits"]["memory"]


def test_kubernetes_asks_the_health_pages_and_gives_a_drain_its_time(manifests):
    for pod in _pods(manifests).values():
        assert pod["terminationGracePeriodSeconds"] > LONGEST_DRAIN_S
        box = pod["containers"][0]
        assert box["livenessProbe"]["httpGet"]["path"] == "/health/live"
        assert box["startupProbe"]["httpGet"]["path"] == "/health/live"
        assert box["readinessProbe"]["httpGet"]["path"] == "/health/ready"
        ports = {port["name"] for port in box["ports"]}
        assert {box[probe]["httpGet"]["port"] for probe in ("livenessProbe", "startupProbe", "readinessProbe")} <= ports


def test_what_selects_pods_selects_pods_that_are_there(manifests):
    labels = [spec["template"]["metadata"]["labels"] for _, spec in _of_kind(manifests, "Deployment")]
    fields: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
        "Service": lambda spec: spec["selector"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
    }
    for kind, select in fields.items():
        found = [select(spec) for _, spec in _of_kind(manifests, kind)]
        assert found, kind
        assert all(any(wanted.items() <= own.items() for own in labels) for wanted in found)


def test_every_manifest_is_what_kubernetes_takes(manifests):
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for item in manifests:
        validator.validate(item, validator.latest_version(), strict=True)


def test_the_container_file_copies_what_is_there_and_starts_commands_that_exist():
    text = (DEPLOY / "Containerfile").read_text()
    assert re.search(r"^ARG BASE=docker\.io/library/python:3\.1\d-slim$", text, re.MULTILINE)
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if found := re.search(r"^CMD \[(.*)\]$", stage, re.MULTILINE):
            entry = re.search(r"^ENTRYPOINT \[.*\"(\w+)\"\]$", stage, re.MULTILINE)
            assert entry
            _started(found[1].replace('"', "").split(", "), edge=entry[1] == "edge")
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in ignored, f"{name} would not reach the build"


def test_systemd_lets_the_reader_keep_its_own_sandbox():
    text = (DEPLOY / "slideway-edge.service").read_text()
    allowed = " ".join(re.findall(r"^SystemCallFilter=([^~].*)$", text, re.MULTILINE)).split()
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= set(allowed)
    refused = " ".join(re.findall(r"^SystemCallFilter=~(.*)$", text, re.MULTILINE)).split()
    assert "@resources" not in refused  # limits, and nice
    assert "@sandbox" not in refused
    assert "SystemCallErrorNumber=EPERM" in text  # a Landlock that is refused is said, and kills nothing


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "slideway-edge.service").read_text()
    words = re.search(r"^ExecStart=/opt/slideway/bin/slideway edge (.*)$", text, re.MULTILINE)
    assert words
    _started(words[1].split(), edge=True)
    unit = tmp_path / "slideway-edge.service"
    unit.write_text(text.replace("/opt/slideway/bin/slideway", sys.executable))
    done = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rated = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "offline" in rated.stderr:
        pytest.skip("this systemd cannot rate a unit that is not loaded")
    assert rated.returncode == 0, rated.stdout.splitlines()[-1]


def test_the_two_machines_of_the_readme_take_commands_that_exist():
    cloud, edge = runpy.run_path(str(ROOT / "bench" / "two_machines.py"))["read_commands"](
        (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert cloud[0] == 'pip install ".[cloud]"'
    assert edge[0] == "pip install ."
    for line in cloud[1:]:
        _started(line.removeprefix("slideway cloud ").split())
    for line in edge[1:]:
        _started(line.removeprefix("slideway edge ").split(), edge=True)
