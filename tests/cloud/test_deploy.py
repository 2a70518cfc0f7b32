"""What can be known of the deployment files without running them: they are YAML, and name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from slideway.cli.cloud import command

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
DEPLOY = Path(__file__).parents[2] / "deploy"
VARIABLES = {"SLIDEWAY_STORE_URL", "SLIDEWAY_S3_ENDPOINT", "SLIDEWAY_S3_KEY", "SLIDEWAY_S3_SECRET"}


def _started(words: list[str]) -> None:
    """The command line exists; `--help` stops it before it starts anything."""
    told = CliRunner().invoke(command, [*words, "--help"], standalone_mode=False)
    assert told.exception is None, told.output


def test_compose_starts_commands_that_exist_with_variables_that_the_page_names():
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(content["services"]) == {"api", "worker", "database", "blobs"}
    roles = set()
    for name in ("api", "worker"):
        service = content["services"][name]
        _started(service["command"])
        roles.add(service["command"][-1])
        assert set(service["environment"]) == VARIABLES
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert roles == {"api", "worker"}
    page = (DEPLOY.parent / "docs" / "cloud.md").read_text(encoding="utf-8")
    assert all(f'"env:{name}"' in page for name in VARIABLES)
    mounted = [line.split(":")[0] for name in ("database", "blobs") for line in content["services"][name]["volumes"]]
    assert all((DEPLOY / path).is_file() for path in mounted if path.startswith("./"))


def test_kustomize_lists_files_that_exist_and_claims_that_are_made():
    kustomization = yaml.safe_load((DEPLOY / "kustomize" / "kustomization.yaml").read_text())
    made: dict[str, set[str]] = {}
    for name in kustomization["resources"]:
        for item in yaml.safe_load_all((DEPLOY / "kustomize" / name).read_text()):
            made.setdefault(item["kind"], set()).add(item["metadata"]["name"])
            if item["kind"] != "Deployment":
                continue
            pod = item["spec"]["template"]["spec"]
            _started(pod["containers"][0]["args"])
            volumes = {volume["name"] for volume in pod["volumes"]}
            used = {mount["name"] for box in pod["containers"] + pod["initContainers"] for mount in box["volumeMounts"]}
            assert used == volumes
            claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
            assert claims <= made.get("PersistentVolumeClaim", set())
    assert made["Deployment"] == {"slideway-api", "slideway-worker"}


def test_the_container_file_installs_what_pyproject_names():
    text = (DEPLOY / "Containerfile").read_text()
    assert re.search(r"^FROM docker\.io/library/python:3\.1\d-slim", text, re.MULTILINE)
    _started(re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)[1].strip("[]").replace('"', "").split(", "))
    copied = re.search(r"^COPY (pyproject.*) \./$", text, re.MULTILINE)[1].split()
    assert all((DEPLOY.parent / name).is_file() for name in copied)
