"""A real node against a real cloud over TLS: enrolled by its code, a slide read, sent, answered and shown."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from slideway.bundles.read import read_bundle
from slideway.cli.edge import command
from slideway.core.errors import CaptivePortalError, LineDownError, LineRefusedError, LockedStoreError, WrongUseError
from slideway.edge.enrol import enrol_edge
from slideway.store.database import Store
from slideway.sync.identity import make_keys

from .conftest import RealCloud, Site, wait_for
from .test_kill import change, check_once, enrol, wait_until_ended


def run(site: Site, *words: str) -> str:
    done = CliRunner().invoke(command, [*words, "--config", str(site.folder / "edge.toml")])
    assert done.exit_code == 0, done.output
    return done.output


def test_slide_is_read_sent_answered_and_shown(
    make_site: Callable[..., Site], real_cloud: RealCloud, tiny_slides: list[Path]
) -> None:
    site = make_site(enrolled=False)
    enrol(site, real_cloud, "journey")
    site.put(tiny_slides[0], "Doe^Jane.tif")
    site.put(tiny_slides[0], "the same again.tif")
    site.put(tiny_slides[1], "urgent/second.tif")
    (site.scans / "no slide.svs").write_text("words")
    process = site.serve()
    wait_until_ended(site, "journey", 3)
    wait_for(lambda: site.ask()["waiting"] == 0)
    status = site.ask()
    assert status["line"] == "up"
    assert status["slides"]["referred"] == 2
    assert status["slides"]["rejected"] == 1
    said = run(site, "status")
    assert "Line: up" in said
    assert json.loads(run(site, "status", "--json"))["slides"] == status["slides"]
    with pytest.raises(LockedStoreError, match="only one may"):
        site.open()
    with site.look() as store, store.reading("journey") as work:
        urgent, *_ = [slide for slide in work.slides.find_all() if slide.is_urgent]
        (twice,) = [slide for slide in work.slides.find_all() if len(slide.facts["places"]) == 2]
        done = [job for job in work.jobs.find_all() if job.slide_sha256 in (urgent.slide_sha256, twice.slide_sha256)]
        assert [job.attempts for job in done] == [1, 1]
        rejected = next(slide for slide in work.slides.find_all() if slide.state.value == "rejected")
        assert rejected.reason == "slide-format-unknown"
        assert work.bytes.total(slide_sha256=twice.slide_sha256, direction="out").payload_bytes > 1000
    with urllib.request.urlopen(f"{site.url()}/slides/{twice.slide_sha256}", timeout=10) as answer:
        page = answer.read().decode()
    assert "The cloud read" in page
    assert "Doe^Jane.tif" in page
    with urllib.request.urlopen(f"{site.url()}/slides/{twice.slide_sha256}/thumbnail", timeout=10) as answer:
        assert answer.read(2) == b"\xff\xd8"
    assert site.stop(process) == 0
    log = (site.folder / "serve.log").read_text("utf-8")
    assert "Doe" not in log
    assert "second.tif" not in log
    assert "does not serve now" in run(site, "status")
    assert list(real_cloud.bundles("journey").values()) == [1, 1]


def test_what_leaves_is_signed_locked_and_of_the_policys_level(
    make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make_site(policy="opinions")
    site.put(tiny_slides[0])
    process = site.serve()
    wait_for(lambda: list(site.states().values()) == ["encoded"])
    assert site.stop(process) == 0
    (file,) = site.settings.places.outgoing.iterdir()
    case = read_bundle(file, key=site.cloud.receiving)
    assert case.bag() is None
    from slideway.sync.identity import load_keys

    assert case.head.signer == load_keys(site.settings.places.keys).signing.public_bytes
    assert case.head.lock is not None


@pytest.mark.slow
def test_without_a_cloud_a_slide_gets_its_answer_and_is_read_again_once_enrolled(
    make_site: Callable[..., Site], real_cloud: RealCloud, tiny_slides: list[Path]
) -> None:
    site = make_site(enrolled=False)
    site.put(tiny_slides[0])
    process = site.serve()
    wait_until_ended(site, "alone", 1)
    assert site.ask()["line"] == "none"
    assert site.stop(process) == 0
    enrol(site, real_cloud, "later")
    process = site.serve()
    wait_until_ended(site, "later", 1)
    with site.look() as store:
        check_once(store, "later", site)
    assert site.stop(process) == 0


@pytest.mark.slow
def test_folder_that_goes_away_is_said_and_waited_for(make_site: Callable[..., Site], tiny_slides: list[Path]) -> None:
    site = make_site()
    process = site.serve()
    away = site.scans.with_name("away")
    site.scans.rename(away)
    status = wait_for(lambda: (found := site.ask())["attention"] and found)
    assert "cannot be looked into" in status["attention"][0][1]
    shutil.copy(tiny_slides[0], away)
    away.rename(site.scans)
    wait_for(lambda: list(site.states().values()) == ["encoded"])
    assert site.ask()["attention"] == []
    assert site.stop(process) == 0


def test_enrolment_believes_only_the_authority_that_the_code_names(real_cloud: RealCloud, tmp_path: Path) -> None:
    code = real_cloud.invite("enrolment", "lab-1")
    target = tmp_path / "endpoint.toml"
    secret = code.partition(".")[0]
    with pytest.raises(CaptivePortalError, match="not the one that the code names"):
        enrol_edge(real_cloud.url, f"{secret}.{'0' * 20}", make_keys(), target)
    with pytest.raises(LineRefusedError, match="ask for a new one"):
        enrol_edge(real_cloud.url, f"{'A' * 24}.{code.partition('.')[2]}", make_keys(), target)
    assert not target.exists()
    endpoint = enrol_edge(real_cloud.url, code, make_keys(), target)
    assert (endpoint.tenant, endpoint.node) == ("enrolment", "lab-1")
    with pytest.raises(LineRefusedError):
        enrol_edge(real_cloud.url, code, make_keys(), target)


@pytest.mark.parametrize(
    ("url", "code", "error"),
    [
        ("https://127.0.0.1:9", f"a.{'0' * 20}", LineDownError),
        ("https://127.0.0.1:9", "half", WrongUseError),
        ("http://cloud.example", f"a.{'0' * 20}", WrongUseError),
        ("cloud.example", f"a.{'0' * 20}", WrongUseError),
    ],
)
def test_enrolment_says_what_is_wrong(url: str, code: str, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        enrol_edge(url, code, make_keys(), tmp_path / "endpoint.toml")


@pytest.mark.slow
def test_days_without_a_line_end_slides_alone_and_everything_leaves_when_it_is_back(
    make_site: Callable[..., Site], real_cloud: RealCloud, tiny_slides: list[Path]
) -> None:
    site = make_site(enrolled=False)
    enrol(site, real_cloud, "days")
    change(site, "wait_seconds = 1", "wait_seconds = 1\nanswer_alone_after_hours = -1.0")
    endpoint = site.settings.places.endpoint
    text = endpoint.read_text("utf-8")
    endpoint.write_text(text.replace(real_cloud.url, "https://127.0.0.1:9"), "utf-8")
    process = site.serve()
    for slide in tiny_slides:
        site.put(slide)
    wait_for(lambda: site.ask()["slides"]["encoded"] == 3)
    wait_for(lambda: site.ask()["line"] == "down")
    status = site.ask()
    assert status["waiting"] >= 9
    assert "reading goes on without it" in run(site, "status")
    with urllib.request.urlopen(f"{site.url()}/", timeout=10) as answer:
        assert "waits for the line (down" in answer.read().decode()
    assert site.stop(process) == 0
    process = site.serve()  # what is due after so many hours is due at the start
    wait_until_ended(site, "days", 3)
    assert site.stop(process) == 0
    endpoint.write_text(text, "utf-8")
    process = site.serve()
    wait_for(lambda: list(real_cloud.bundles("days").values()) == [1, 1, 1])
    with site.look() as store:
        wait_for(lambda: _count(store, "opinion-late") == 3)
        check_once(store, "days", site)
    assert site.stop(process) == 0


def _count(store: Store, action: str) -> int:
    with store.reading("days") as work:
        return sum(entry.action == action for entry in work.audit.entries())
