"""Asked at a real node, taken and answered at a real cloud, shown on the node's pages; from a browser and a script."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import httpx
from click.testing import CliRunner

from slideway.cli.cloud import command as cloud_command
from slideway.cli.edge import command
from slideway.core.errors import PolicyError, WrongUseError
from slideway.slides.files import hash_slide

from .conftest import RealCloud, Site, wait_for
from .test_kill import enrol, wait_until_ended


def run(site: Site, *words: str) -> str:
    done = CliRunner().invoke(command, [*words, "--config", str(site.folder / "edge.toml")], standalone_mode=False)
    assert done.exception is None, done.exception
    return done.output


def page(site: Site, path: str) -> str:
    with urllib.request.urlopen(site.url() + path, timeout=10) as answer:
        return str(answer.read().decode())


def send_form(site: Site, slide: str, **fields: str) -> str:
    """What a browser does with the form on a slide's page."""
    token = re.search(r'name="token" value="([^"]+)"', page(site, f"/slides/{slide}"))
    assert token is not None
    content = urllib.parse.urlencode({**fields, "token": token[1]}).encode()
    request = urllib.request.Request(f"{site.url()}/slides/{slide}/ask", content, {"Origin": site.url()})
    with urllib.request.urlopen(request, timeout=10) as answer:  # follows to the slide's page
        return str(answer.read().decode())


def make_specialist(cloud: RealCloud) -> httpx.Client:
    words = ["user", "add", "dr-weber", "--role", "specialist", "--organs", "lung"]
    done = CliRunner().invoke(cloud_command, [*words, "--config", str(cloud.folder / "cloud.toml")])
    assert done.exit_code == 0, done.output
    return httpx.Client(base_url=cloud.url, verify=False, headers={"Authorization": f"Bearer {done.output.strip()}"})


def test_question_is_asked_taken_answered_and_shown(
    make_site: Callable[..., Site], real_cloud: RealCloud, tiny_slides: list[Path]
) -> None:
    site = make_site(enrolled=False)
    enrol(site, real_cloud, "asking")
    site.put(tiny_slides[0], "Doe^Jane.tif")
    process, slide = site.serve(), hash_slide(tiny_slides[0])
    wait_until_ended(site, "asking", 1)
    asked = send_form(site, slide, organ="lung", question="In situ,\r\nor invasive?", urgent="yes")
    assert "In situ,\nor invasive?" in asked
    assert run(site, "ask", slide[:8], "--organ", "lung", "--question", "In situ,\nor invasive?").startswith(
        "asked bef"
    )
    assert run(site, "ask", "Doe^Jane.tif", "--organ", "lung", "--question", "And the margin?") == "asked\n"
    with make_specialist(real_cloud) as desk:
        listed = wait_for(lambda: len(found := desk.get("/v1/consultations").json()) == 2 and found)
        assert "Doe" not in str(listed)
        (one,) = [row for row in listed if row["question"]["text"].startswith("In situ")]
        assert (one["is_urgent"], one["organ"], one["slide_sha256"]) == (True, "lung", slide)
        place = f"/v1/consultations/asking/{one['consultation_id']}"
        assert desk.get(place).json()["slide"]["verdict"]  # the bundle came before the question
        assert desk.post(f"{place}/taking").status_code == 200
        wait_for(lambda: "taken 20" in page(site, f"/slides/{slide}"))
        assert desk.put(f"{place}/answer", json={"text": "Invasive, <1 mm."}).status_code == 200
    wait_for(lambda: "Invasive, &lt;1 mm." in page(site, f"/slides/{slide}"))
    assert "Invasive, &lt;1 mm." in page(site, "/status")
    said = run(site, "status")
    assert "Questions to specialists: 1 asked, 0 taken, 1 answered." in said
    assert site.stop(process) == 0
    log = (site.folder / "serve.log").read_text("utf-8")
    assert "consultation-asked" in log
    assert "situ" not in log + said


def test_question_of_a_node_that_does_not_serve_is_kept_until_it_does(
    make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make_site()
    edge = site.open()
    edge.watcher.quiet_seconds = 0
    path = site.put(tiny_slides[0])
    (slide,) = edge.intake.run_once(has_room=lambda: True)
    edge.node.store.close()
    assert "leaves when the node serves" in run(site, "ask", str(path), "--organ", "lung", "--question", "What?")
    assert run(site, "urgent", slide[:6]) == "urgent now\n"
    assert run(site, "urgent", path.name) == "urgent already\n"
    with site.look() as store, store.reading("north") as work:
        assert work.slides.get(slide).is_urgent
        assert work.outbox.count_open(kind="consult-request") == 1
    for named in ("ffffff", "nobody.svs", slide[:5], "%"):
        done = CliRunner().invoke(command, ["urgent", named, "--config", str(site.folder / "edge.toml")])
        assert isinstance(done.exception, WrongUseError), named


def test_what_a_serving_node_refuses_is_said_at_the_command_line(
    make_site: Callable[..., Site], tiny_slides: list[Path]
) -> None:
    site = make_site(policy=None)
    site.put(tiny_slides[0])
    process = site.serve()
    wait_for(site.states)
    words = ["ask", "s0.tif", "--organ", "lung", "--question", "What?", "--config", str(site.folder / "edge.toml")]
    done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, PolicyError)
    assert "no policy file" in str(done.exception)
    assert run(site, "urgent", "s0.tif") in ("urgent now\n", "urgent already\n")
    assert site.settings.places.serving.stat().st_mode & 0o077 == 0  # it holds the token
    assert site.stop(process) == 0
