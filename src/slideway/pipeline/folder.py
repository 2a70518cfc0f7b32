"""Read many slides: one bad slide does not stop the rest, and what is done is not done again."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slideway.bundles import EXPORTS, read_bundle
from slideway.core.errors import (
    BrokenBundleError,
    DiskFullError,
    FingerprintMismatchError,
    OutputError,
    SlideAccessError,
    SlidewayError,
    UnknownHeadError,
    UntrustedEncoderError,
    UntrustedHeadError,
    WrongUseError,
)
from slideway.pipeline.opinions import choose_heads
from slideway.pipeline.output import distinct_folder_names
from slideway.pipeline.profile import STANDARD
from slideway.pipeline.read import read_slide
from slideway.pipeline.result import SCHEMA, read_result
from slideway.registry.card import ModelCard
from slideway.slides.files import hash_slide

# What scanners write. Anything else given by name is still tried; in a folder it is not a slide.
SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".svslide",
        ".tif",
        ".tiff",
        ".btf",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".bif",
        ".vms",
        ".vmu",
        ".dcm",
        ".czi",
        ".kfb",
        ".sdpc",
        ".dyqx",
        ".tmap",
        ".tron",
        ".isyntax",
    ]
)


# A head that is refused would be refused for every slide.
_HEADS_FAULT = (UnknownHeadError, UntrustedHeadError, FingerprintMismatchError)


@dataclass(frozen=True)
class Outcome:
    """What became of one slide.

    Attributes:
        path: The slide.
        status: `read`, `kept` (already read with these settings) or `failed`.
        result: Contents of result.json; None when it failed.
        folder: Output folder; None when it failed.
        error: Why it failed; None otherwise.
        instead_of: What stood there and was read again because other settings were asked for, in words; else None.
    """

    path: Path
    status: str
    result: dict[str, Any] | None = None
    folder: Path | None = None
    error: SlidewayError | None = None
    instead_of: str | None = None


def find_slides(paths: Sequence[Path]) -> list[Path]:
    """List the slides that files and folders name, in a stable order.

    A file counts whatever its suffix. A folder is searched through; a folder that holds DICOM instances is one slide.

    Raises:
        SlideAccessError: A path is not there.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise SlideAccessError(f"{path.name}: no such file or folder; check the path")
        for slide in _slides_in(path, set()) if path.is_dir() else [path]:
            found.setdefault(slide)
    return list(found)


def _slides_in(folder: Path, seen: set[Path]) -> list[Path]:
    real = folder.resolve()
    if real in seen:  # a link that leads back
        return []
    seen.add(real)
    try:
        children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise SlideAccessError(f"{folder.name}: this folder cannot be listed: {error.strerror}") from error
    files = [child for child in children if child.is_file()]
    if any(file.suffix.lower() == ".dcm" for file in files):
        return [folder]
    slides = [file for file in files if file.suffix.lower() in SLIDE_SUFFIXES]
    companions = {slide.with_suffix("") for slide in slides}  # an MRXS slide's data folder is no folder of slides
    for child in children:
        if child.is_dir() and child not in companions and not (child / "result.json").exists():
            slides += _slides_in(child, seen)
    return slides


def read_slides(
    paths: Sequence[Path],
    *,
    out: Path,
    card: ModelCard,
    again: bool = False,
    any_heads: bool = False,
    watch: Callable[[Path, int, int], None] | None = None,
    **settings: Any,
) -> Iterator[Outcome]:
    """Read slides one after another; yields what became of each.

    Args:
        paths: Slides, as `find_slides` lists them.
        out: Parent of the output folders.
        card: Card of the encoder.
        again: Read also what is already read.
        any_heads: Keep what is already read whichever heads spoke of it: only its bag is wanted.
        watch: Told the slide, its number from 1, and how many there are, before each.
        settings: Further arguments of `read_slide`.

    Raises:
        OutputError: Nothing can be written any more, so going on would fail every slide.
        UntrustedEncoderError: The encoder itself is refused.
    """
    names = distinct_folder_names(list(paths))
    for number, path in enumerate(paths, start=1):
        if watch is not None:
            watch(path, number, len(paths))
        try:
            kept = None if again else _find_answer(path, out / names[path], card, settings, any_heads=any_heads)
            if kept is not None:
                yield Outcome(path, "kept", kept, out / names[path])
                continue
            replaced = None if again else _say_replaced(out / names[path], card, settings)
            reading = read_slide(path, out=out, name=names[path], encoder=card.folder, **settings)
        except (OutputError, DiskFullError, UntrustedEncoderError, *_HEADS_FAULT):
            raise
        except SlidewayError as error:
            yield Outcome(path, "failed", error=error)
            continue
        yield Outcome(path, "read", reading.result, reading.folder, instead_of=replaced)


def _find_answer(
    path: Path, folder: Path, card: ModelCard, settings: dict[str, Any], *, any_heads: bool
) -> dict[str, Any] | None:
    """The answer that already stands in `folder`, when it is about this very slide, encoder and resolution."""
    result = read_result(folder)
    if result is None or result["schema"] != SCHEMA or result["encoder"]["fingerprint"] != card.fingerprint:
        return None
    if _profile_of(result) != settings.get("profile", STANDARD):
        return None
    if not any_heads and not _same_heads(result, card, settings):
        return None
    if not _same_resolution(result["slide"], settings) or not _has_files(folder, result, settings):
        return None
    if not _same_bundle(folder, settings):
        return None
    try:
        return result if hash_slide(path) == result["slide"]["sha256"] else None
    except OSError as error:
        words = "permission denied" if error.errno == errno.EACCES else error.strerror
        raise SlideAccessError(f"{path.name}: cannot be read: {words}") from error


def _say_replaced(folder: Path, card: ModelCard, settings: dict[str, Any]) -> str | None:
    """What differs between the answer that stands in `folder` and the one asked for, where a person chose it."""
    result = read_result(folder)
    if result is None:
        return None
    if result["encoder"]["fingerprint"] != card.fingerprint:
        return f"encoder {result['encoder']['id']}"
    if _profile_of(result) != settings.get("profile", STANDARD):
        return f"profile {_profile_of(result)}"
    if result.get("heads", []) != choose_heads(card, settings.get("heads")).stamps:
        return f"heads {', '.join(head['id'] for head in result.get('heads', [])) or 'none'}"
    if not _same_heads(result, card, settings):
        return f"site {result.get('site') or 'unknown'}"
    return None if _same_bundle(folder, settings) else "a bundle of another case or site"


def _same_heads(result: dict[str, Any], card: ModelCard, settings: dict[str, Any]) -> bool:
    """Whether the heads that would speak now spoke then, and were told of the same site."""
    if result.get("heads", []) != choose_heads(card, settings.get("heads")).stamps:
        return False
    return not result.get("heads") or result.get("site", "") == settings.get("site", "")


def _same_bundle(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether its bundle bears the case's pseudonym and the site that were given now; what was not given may be any."""
    given = {name: settings[name] for name in ("case", "site") if settings.get(name)}
    if not given:
        return True
    try:
        summary = read_bundle(folder / "bundle.swb").summary
    except (BrokenBundleError, WrongUseError):
        return False  # none there yet, or damaged
    return all(getattr(summary, name) == value for name, value in given.items())


def _profile_of(result: dict[str, Any]) -> str:
    return str(result.get("profile", {}).get("name", STANDARD))  # 1.0 knew no other


def _same_resolution(slide: dict[str, Any], settings: dict[str, Any]) -> bool:
    given, source = settings.get("mpp"), slide["mpp_source"]
    if given is not None or source == "given":
        return bool(source == "given" and slide["mpp"] == given)
    return bool(source != "estimated" or settings.get("estimate_mpp"))


def _has_files(folder: Path, result: dict[str, Any], settings: dict[str, Any]) -> bool:
    wanted = set(result["files"]) | {EXPORTS[kind][0] for kind in settings.get("exports", ())}
    return all((folder / name).is_file() for name in wanted)
