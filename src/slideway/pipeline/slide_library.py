"""Slides that are already read, as a library to search: their folders, bags and pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slideway.bundles import read_bag
from slideway.core.bag import EmbeddingBag
from slideway.core.errors import FingerprintMismatchError, SlidewayError, UnreadableBagError, WrongUseError
from slideway.pipeline.result import read_result
from slideway.slides.files import hash_slide

BAG = "bag.safetensors"


@dataclass(frozen=True)
class ReadSlide:
    """One slide that was read.

    Attributes:
        name: File name of the slide.
        folder: Its output folder.
        bag: Its embeddings; they stay in the file.
        result: Contents of result.json.
    """

    name: str
    folder: Path
    bag: EmbeddingBag
    result: dict[str, Any]


@dataclass(frozen=True)
class Library:
    """Slides to search.

    Attributes:
        folder: Where they were looked for.
        slides: In the order of their folders' names.
        foreign: How many bags of which encoder were left out, by encoder id.
        unreadable: Names of the folders whose bag or result cannot be read.
    """

    folder: Path
    slides: tuple[ReadSlide, ...]
    foreign: dict[str, int]
    unreadable: tuple[str, ...]


def open_read_slide(folder: Path) -> ReadSlide:
    """Open an output folder of `slideway read`.

    Raises:
        UnreadableBagError: Its bag or its result.json cannot be read.
    """
    folder = folder.resolve()  # its name names the answer, and "." has none
    bag = read_bag(folder / BAG)
    result = read_result(folder)
    if result is None:
        raise UnreadableBagError(f"{folder.name}: no result.json of this version beside the bag; read the slide again")
    return ReadSlide(str(result["slide"]["name"]), folder, bag, result)


def open_library(folder: Path) -> Library:
    """Open every output folder below `folder`; one that is damaged does not hide the others, it is named.

    Raises:
        WrongUseError: There is none.
    """
    slides, unreadable = [], []
    for path in sorted(folder.rglob(BAG)):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # a reading that is being written, or was killed
        try:
            slides.append(open_read_slide(path.parent))
        except UnreadableBagError:
            unreadable.append(path.parent.name)
    if not slides:
        raise WrongUseError(
            f"{folder}: no slide in there that was read; fill it with `slideway read SLIDE... --out {folder}`"
        )
    return Library(folder, tuple(slides), {}, tuple(unreadable))


def count_encoders(slides: Iterable[ReadSlide]) -> Counter[tuple[str, str]]:
    """How many bags each encoder made, by (fingerprint, id)."""
    return Counter((slide.bag.fingerprint, slide.bag.encoder_id) for slide in slides)


def choose_encoder(library: Library, *, skip_foreign: bool) -> tuple[str, str]:
    """Fingerprint and id of the encoder that made the library's bags; of several, the one that made most.

    Raises:
        FingerprintMismatchError: Several made them, and none is to be skipped.
    """
    encoders = count_encoders(library.slides)
    if len(encoders) > 1 and not skip_foreign:
        raise FingerprintMismatchError(f"{library.folder}: {_list_encoders(encoders)}. {_WAYS_OUT}")
    return min(encoders, key=lambda made: (-encoders[made], made))


def keep_encoder(library: Library, fingerprint: str, encoder_id: str, *, skip_foreign: bool) -> Library:
    """The library with bags of one encoder only (invariant I7).

    Raises:
        FingerprintMismatchError: It holds bags of others and they are not to be skipped, or it holds no other.
    """
    encoders = count_encoders(library.slides)
    foreign = {made: count for made, count in encoders.items() if made[0] != fingerprint}
    if foreign and (not skip_foreign or len(foreign) == len(encoders)):
        asked = f"{encoder_id} ({fingerprint[:12]})"
        way = _WAYS_OUT if len(foreign) < len(encoders) else "Read the slide with the library's encoder"
        raise FingerprintMismatchError(
            f"the slide was read with {asked}, but in {library.folder}: {_list_encoders(encoders)}. Embeddings of "
            f"different encoders cannot be compared. {way}"
        )
    kept = tuple(slide for slide in library.slides if slide.bag.fingerprint == fingerprint)
    left_out: Counter[str] = Counter()
    for (_, name), count in foreign.items():
        left_out[name] += count
    return replace(library, slides=kept, foreign=dict(sorted(left_out.items())))


_WAYS_OUT = "Read those slides again with one encoder, or leave the others out with --skip-foreign"


def _list_encoders(encoders: Counter[tuple[str, str]]) -> str:
    listed = [
        f"{count} slide{'' if count == 1 else 's'} read with {name} ({fingerprint[:12]})"
        for (fingerprint, name), count in sorted(encoders.items(), key=lambda item: (-item[1], item[0]))
    ]
    return ", ".join(listed)


class SlideFiles:
    """Finds the file of a slide that was read, by name, and proves by its content that it is that slide."""

    def __init__(self, folders: Sequence[Path], *, known: dict[str, Path] | None = None) -> None:
        self._places: dict[str, list[Path]] = {}
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                self._places.setdefault(path.name, []).append(path)
        self._has_folders = bool(folders)
        self._known = dict(known or {})

    def find(self, slide: ReadSlide) -> Path | str:
        """The slide's file; or, in a few words, why there is none."""
        sha256 = slide.bag.slide_sha256
        if sha256 in self._known:
            return self._known[sha256]
        if not self._has_folders:
            return "pixels not at hand: --slides DIR"
        places = self._places.get(slide.name, [])
        for path in places:
            if _hash_or_none(path) == sha256:
                self._known[sha256] = path
                return path
        return "its file has changed" if places else "its file is not in --slides"


def _hash_or_none(path: Path) -> str | None:
    try:
        return hash_slide(path)
    except (SlidewayError, OSError):
        return None
