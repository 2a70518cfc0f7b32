"""Look into the scanners' folders again and again; give out a slide once it has settled: quiet, whole, still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slideway.core.errors import SlideAccessError, SlidewayError
from slideway.edge.complete import find_missing
from slideway.slides.files import files_of_slide

Monotonic = Callable[[], float]
FindSlides = Callable[[Sequence[Path]], list[Path]]
# Looking never takes more than a twentieth of the time, however slow the share is.
_REST = 20


@dataclass(frozen=True)
class Stamp:
    """What tells whether a slide's files changed: no clock is compared, only before and after.

    Attributes:
        files: How many.
        n_bytes: All of them together.
        newest_ns: Latest time of change, by whatever clock the folder has.
    """

    files: int
    n_bytes: int
    newest_ns: int

    @property
    def text(self) -> str:
        """As the store keeps it."""
        return f"{self.files}:{self.n_bytes}:{self.newest_ns}"


@dataclass(frozen=True)
class SettledSlide:
    """A slide that has settled.

    Attributes:
        path: Where it lies.
        stamp: How it is now.
        is_urgent: It lies below a folder for urgent slides.
    """

    path: Path
    stamp: Stamp
    is_urgent: bool


@dataclass
class FolderState:
    """How a watched folder is, for people.

    Attributes:
        path: The folder.
        away_since: When it went away, by the monotonic clock; None while it is there.
        reason: Why it cannot be looked into; empty while it can.
        slides: Slides that lie in it.
        settling: Of these, slides that still change or lack a file.
        lacking: Of these, slides that lack a file that their index names.
    """

    path: Path
    away_since: float | None = None
    reason: str = ""
    slides: int = 0
    settling: int = 0
    lacking: int = 0


@dataclass
class _Candidate:
    stamp: Stamp
    since: float
    lacks: str = ""


@dataclass
class _Known:
    quick: tuple[int, int]
    stamp: str


@dataclass
class Watcher:
    """Polls folders; keeps in memory what it saw, and is told at the start what the store knows.

    Attributes:
        folders: What to look into.
        quiet_seconds: How long nothing may have changed.
        urgent_folders: Names of folders whose slides go first.
        find_slides: Lists slides below folders.
        monotonic: Seconds that only go on.
    """

    folders: Sequence[Path]
    quiet_seconds: float
    urgent_folders: Sequence[str]
    find_slides: FindSlides
    monotonic: Monotonic = time.monotonic
    states: list[FolderState] = field(default_factory=list)
    _known: dict[Path, _Known] = field(default_factory=dict)
    _candidates: dict[Path, _Candidate] = field(default_factory=dict)
    _refused: dict[Path, str] = field(default_factory=dict)
    took_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.states = [FolderState(folder) for folder in self.folders]

    def remember(self, places: Mapping[str, str]) -> None:
        """What was taken in before: path to stamp."""
        for place, stamp in places.items():
            self._known[Path(place)] = _Known((-1, -1), stamp)

    def note_taken(self, slide: SettledSlide) -> None:
        """A slide was taken in as it is now."""
        self._known[slide.path] = _Known(_look(slide.path), slide.stamp.text)
        self._candidates.pop(slide.path, None)

    def note_unreadable(self, slide: SettledSlide) -> None:
        """A slide could not be hashed: it is waited for again from the start."""
        self._candidates.pop(slide.path, None)

    def rest_seconds(self, poll_seconds: float) -> float:
        """How long to wait before the next look."""
        return max(poll_seconds, self.took_seconds * _REST)

    def look(self) -> list[SettledSlide]:
        """Look once; slides that have settled now, in a stable order, and are not known as they are."""
        began = self.monotonic()
        settled: list[SettledSlide] = []
        for state in self.states:
            slides = self._list(state)
            if slides is None:
                continue
            state.slides, state.settling, state.lacking = len(slides), 0, 0
            for path in slides:
                found = self._judge(path, state)
                if found is not None:
                    settled.append(found)
        self.took_seconds = self.monotonic() - began
        return sorted(settled, key=lambda slide: (not slide.is_urgent, slide.path))

    def is_away(self, path: Path) -> bool:
        """Whether a slide cannot be read now because its whole folder is away, as when a share is gone."""
        for state in self.states:
            if path.is_relative_to(state.path):
                return state.away_since is not None or self._list(state) is None
        return False

    def is_still_so(self, slide: SettledSlide) -> bool:
        """Whether nothing changed since a slide had settled."""
        try:
            return _stamp(slide.path) == slide.stamp
        except (SlidewayError, OSError):
            return False

    def _list(self, state: FolderState) -> list[Path] | None:
        """Slides below a folder; None when it is away: what lay there is not deleted, it is only not seen."""
        try:
            if not state.path.is_dir():
                raise SlideAccessError("it is not there")
            slides = self.find_slides([state.path])
            # The place where a share should be is an empty folder when it is not there.
            if not slides and any(path.is_relative_to(state.path) for path in self._known):
                next(state.path.iterdir())
        except StopIteration:
            state.reason = "it is empty, and slides lay there: is the share connected?"
        except (SlidewayError, OSError) as error:
            state.reason = str(error)
        else:
            state.reason, state.away_since = "", None
            return slides
        state.away_since = self.monotonic() if state.away_since is None else state.away_since
        self._candidates = {
            path: candidate for path, candidate in self._candidates.items() if not path.is_relative_to(state.path)
        }
        return None

    def _judge(self, path: Path, state: FolderState) -> SettledSlide | None:
        try:
            quick = _look(path)
            known = self._known.get(path)
            if known is not None and known.quick == quick:
                return None
            stamp = _stamp(path)
            if known is not None and known.stamp == stamp.text:
                known.quick = quick
                return None
            return self._wait(path, stamp, state)
        except (SlidewayError, OSError):
            state.settling += 1
            self._candidates.pop(path, None)  # half there, or locked by the scanner: look again
            return None

    def _wait(self, path: Path, stamp: Stamp, state: FolderState) -> SettledSlide | None:
        now = self.monotonic()
        candidate = self._candidates.get(path)
        if candidate is None or candidate.stamp != stamp:
            candidate = self._candidates[path] = _Candidate(stamp, now)
        is_quiet = now - candidate.since >= self.quiet_seconds and stamp.n_bytes > 0
        candidate.lacks = find_missing(path) if is_quiet else ""
        if not is_quiet or candidate.lacks:
            state.settling += 1
            state.lacking += bool(candidate.lacks)
            return None
        names = {part.lower() for part in path.relative_to(state.path).parts[:-1]}
        return SettledSlide(path, stamp, any(name.lower() in names for name in self.urgent_folders))


def _look(path: Path) -> tuple[int, int]:
    """Size and time of change of what names a slide: one question to the disk or share."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _stamp(path: Path) -> Stamp:
    statuses = [part.stat() for part in files_of_slide(path)]
    return Stamp(
        len(statuses),
        sum(status.st_size for status in statuses),
        max((status.st_mtime_ns for status in statuses), default=0),
    )
