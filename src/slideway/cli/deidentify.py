"""`slideway deidentify`: a copy of a slide that may travel whole, without label, overview and identifying tags."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from slideway.core.errors import WrongUseError
from slideway.slides.deidentify import Deidentified, deidentify_slide

_LEAST_KEY_BYTES = 16


@click.command("deidentify")
@click.argument("slide", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--key", "key_file", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Secret of at least 16 bytes for DICOM's new UIDs: with the same file, slides of one study stay "
                   "together. Without it a secret is made and forgotten.")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace a file or folder that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was removed, kept and checked as JSON.")
def command(slide: Path, out: Path, *, key_file: Path | None, replace: bool, as_json: bool) -> int:
    """Copy SLIDE to OUT without label, overview and identifying tags.

    Stored pixels, levels, microns per pixel and the place on the glass stay exactly as they are. Tags and attributes
    stay only when they are on a list of what reading needs; all others go. The copy is checked before it gets its name.

    OUT is a file, or a folder: one that is there, or a name without suffix. In a folder the copy is named by a hash of
    its pixels, never by the name of SLIDE. A DICOM slide becomes a folder in OUT.

    What is written or burnt into the scanned picture itself stays: look at the copy before you send it.

    \b
    Examples:
      slideway deidentify biopsy.svs outgoing/
      slideway deidentify biopsy.svs case-07.svs
      slideway deidentify dicom-slide/ outgoing/ --key study.key --json
    """
    done = deidentify_slide(slide, out, replace=replace, key=_read_key(key_file))
    click.echo(_as_json(done) if as_json else _in_words(done))
    return 0


def _read_key(file: Path | None) -> bytes | None:
    if file is None:
        return None
    key = file.read_bytes()
    if len(key) < _LEAST_KEY_BYTES:
        raise WrongUseError(f"{file.name}: a key needs at least {_LEAST_KEY_BYTES} bytes; make one of random bytes")
    return key


def _as_json(done: Deidentified) -> str:
    return json.dumps({**dataclasses.asdict(done), "path": str(done.path)}, ensure_ascii=False)


def _in_words(done: Deidentified) -> str:
    lines = [f"{done.path}  ({done.form}, {done.bytes_before / 1e6:,.1f} MB → {done.bytes_after / 1e6:,.1f} MB)"]
    for title, items in (
        ("removed", done.removed or ("nothing: no label, overview or identifying tag was found",)),
        ("kept", done.kept),
        ("checked", done.checked),
        ("look yourself", done.cautions),
    ):
        lines += [f"  {title}:", *(f"    {item}" for item in items)]
    return "\n".join(lines)
