"""Show how far a reading is: tiles, tiles per second, time left; silent when nobody looks at a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from slideway.pipeline.machine import process_age_s

WORDS = {
    "open": "opening",
    "tissue": "finding tissue",
    "screen": "looking it over",
    "encode": "reading tiles",
    "heads": "grouping tiles",
    "findings": "asking heads",
    "bundle": "writing the bundle",
    "draw": "drawing",
}


class _TilesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tiles/s" if speed else "")


class _Bar:
    """One task on standard error: words, bar, the columns given, time left; gone when it is done."""

    def __init__(self, words: str, *columns: ProgressColumn) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(words, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Terminal(_Bar):
    """Progress on standard error; a `slideway.pipeline.read.Progress`.

    Attributes:
        first_tile_s: Age of this process when the first tiles of all were encoded; None before.
    """

    def __init__(self) -> None:
        super().__init__("", MofNCompleteColumn(), _TilesPerSecond())
        self.first_tile_s: float | None = None
        self._label = ""

    def on_slide(self, name: str, number: int, count: int) -> None:
        """A further slide begins."""
        self._label = name if count == 1 else f"[{number}/{count}] {name}"
        self._progress.reset(self._task, total=None, description=f"{self._label}: checking")

    def on_step(self, name: str) -> None:
        """See `slideway.pipeline.read.Progress`."""
        self._progress.update(self._task, description=f"{self._label}: {WORDS[name]}")

    def on_tiles(self, done: int, total: int) -> None:
        """See `slideway.pipeline.read.Progress`."""
        if self.first_tile_s is None:
            self.first_tile_s = process_age_s()
        self._progress.update(self._task, completed=done, total=total)


class Steps(_Bar):
    """Progress of named steps, each with so many parts, on standard error; silent when nobody looks at a terminal."""

    def __init__(self) -> None:
        super().__init__("checking", MofNCompleteColumn())

    def on_step(self, name: str, done: int, total: int) -> None:
        """So many parts of a step are done."""
        self._progress.update(self._task, description=name, completed=done, total=total)


class Bytes(_Bar):
    """Progress of copying, on standard error; silent when nobody looks at a terminal."""

    def __init__(self, words: str) -> None:
        super().__init__(words, DownloadColumn())

    def on_bytes(self, done: int, total: int) -> None:
        """So many bytes of all are done."""
        self._progress.update(self._task, completed=done, total=total)
