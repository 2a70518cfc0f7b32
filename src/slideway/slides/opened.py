"""A slide opened in a sandboxed process; what the rest of Slideway reads pixels from."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from slideway.core import errors
from slideway.core.errors import BrokenSlideError, ReaderStoppedError, UnreadableSlideError
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.core.tissue import TileGrid
from slideway.slides import job_object
from slideway.slides.reader import check_access
from slideway.slides.sandbox import MEMORY_LIMIT_BYTES
from slideway.slides.wire import read_frame, write_frame

OPEN_TIMEOUT_S = 60.0  # a network share with a cold cache; a file on disk opens in well under a second
ANSWER_TIMEOUT_S = 120.0  # one batch of tiles, or the thumbnail of a slide without a pyramid
END_TIMEOUT_S = 5.0  # between the last word of a reader and its end; longer and it is ended
MAX_ANSWER_BYTES = 400_000_000
MAX_LOST_SHARE = 0.01  # more unreadable tiles than this and the slide is called broken
_FRAMES_AHEAD = 4  # the reader may be this many answers ahead: bounded memory, and decoding never waits for a turn

# What the reader process may know of its surroundings: where programs and libraries are, nothing else.
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "WINDIR", "TEMP", "TMP", "VIRTUAL_ENV")


@dataclass(frozen=True)
class TileBatch:
    """Tiles as they come from the reader, in reading order.

    Attributes:
        indices: (b,) int64, positions in the grid.
        tiles: (b, tile_px, tile_px, 3) uint8 RGB, as stored (no ICC).
        lost: Positions whose pixels cannot be read.
    """

    indices: NDArray[np.int64]
    tiles: NDArray[np.uint8]
    lost: tuple[int, ...]


def open_slide(path: Path, *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> OpenedSlide:
    """Open a slide file or folder in a sandboxed process.

    Raises:
        UnreadableSlideError: One of its children names the true cause.
    """
    check_access(path)
    return OpenedSlide(path, memory_limit_bytes=memory_limit_bytes)


class OpenedSlide:
    """A slide in its sandbox. Close it, or use it in a `with` statement.

    Attributes:
        slide: What the file says of itself.
        limits: The sandbox limits in force, in words.
    """

    def __init__(self, path: Path, *, memory_limit_bytes: int) -> None:
        self._name = path.name
        self._process = _start_worker(memory_limit_bytes)
        self._frames: queue.Queue[tuple[dict[str, Any], bytearray] | BaseException] = queue.Queue(_FRAMES_AHEAD)
        self._is_closed = False
        threading.Thread(target=self._receive, daemon=True).start()
        try:
            self._send({"path": str(path.absolute()), "memory_limit_bytes": memory_limit_bytes})
            head, _ = self._next_answer(OPEN_TIMEOUT_S)
            with _refusing_nonsense(self._name):
                self.slide = _slide_from(head["slide"])
                self.limits: tuple[str, ...] = tuple(head["limits"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the reader process; safe to call twice."""
        self._is_closed = True
        self._process.kill()
        self._process.wait()
        while not self._frames.empty():  # lets the receiving thread past a full queue
            self._frames.get_nowait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close_quietly(pipe)

    @property
    def process_id(self) -> int:
        """Process id of the reader, for memory accounting."""
        return self._process.pid

    def read_thumbnail(self, downsample: float, *, as_seen: bool = False) -> NDArray[np.uint8]:
        """Read the whole slide at `downsample` level-0 pixels per pixel, as (height, width, 3) RGB.

        `as_seen` applies the ICC profile: for a person's eyes, never for an encoder.
        """
        return self._ask_pixels({"do": "thumbnail", "downsample": downsample, "as_seen": as_seen})

    def read_region(self, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> NDArray[np.uint8]:
        """Read a rectangle in pixels of `level`, as (height, width, 3) RGB; white beyond the edge."""
        return self._ask_pixels({"do": "region", "level": level, "xywh": [x_px, y_px, width_px, height_px]})

    def read_side_image(self, name: str) -> NDArray[np.uint8]:
        """Read `label`, `macro` or `thumbnail`; KeyError when the file has none of that name."""
        if name not in self.slide.side_images:
            raise KeyError(name)
        return self._ask_pixels({"do": "side_image", "name": name})

    def read_tiles(self, grid: TileGrid, *, batch: int = 8, as_seen: bool = False) -> Iterator[TileBatch]:
        """Read every tile of a grid, in an order that decodes each stored tile once.

        `as_seen` applies the ICC profile: for a person's eyes, never for an encoder.
        Tiles whose pixels cannot be read come as `lost`; no other call may be made until the iterator ends.

        Raises:
            BrokenSlideError: More than 1 % of the tiles are lost.
        """
        xy = np.ascontiguousarray(grid.xy_level0_px, np.int32)
        request = {"do": "tiles", "tile_level0_px": grid.tile_level0_px, "tile_px": grid.tile_px}
        self._send({**request, "batch": batch, "as_seen": as_seen}, xy.tobytes())
        lost_total = 0
        while True:
            head, payload = self._next_answer(ANSWER_TIMEOUT_S)
            if "end" in head:
                return
            with _refusing_nonsense(self._name):
                batch_read = _batch_from(head, payload, grid)
            lost_total += len(batch_read.lost)
            if lost_total > max(1, MAX_LOST_SHARE * len(grid)):
                raise BrokenSlideError(
                    f"{self._name}: {lost_total} of {len(grid)} tiles cannot be decoded (more than 1 %); "
                    "the file is damaged: copy it again from the scanner"
                )
            yield batch_read

    def _ask_pixels(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        self._send(request)
        head, payload = self._next_answer(ANSWER_TIMEOUT_S)
        with _refusing_nonsense(self._name):
            height, width, channels = head["shape"]
            return np.frombuffer(payload, np.uint8).reshape(height, width, channels)

    def _send(self, head: dict[str, Any], payload: bytes = b"") -> None:
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, head, payload)  # type: ignore[arg-type]  # Popen's IO[bytes]
        except OSError as error:
            raise self._explain_end() from error

    def _receive(self) -> None:
        """Move answers from the pipe to the queue, so that waiting for one can time out on every system."""
        assert self._process.stdout is not None
        while not self._is_closed:
            try:
                self._frames.put(read_frame(self._process.stdout, max_payload=MAX_ANSWER_BYTES))  # type: ignore[arg-type]
            except (EOFError, OSError, ValueError, UnreadableSlideError) as error:
                self._frames.put(error)
                return

    def _next_answer(self, timeout_s: float) -> tuple[dict[str, Any], bytearray]:
        try:
            frame = self._frames.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise ReaderStoppedError(
                f"{self._name}: the reader gave no answer for {timeout_s:.0f} s and was stopped; "
                "the file is damaged, or its disk or share is very slow"
            ) from None
        if isinstance(frame, UnreadableSlideError):
            raise frame
        if isinstance(frame, BaseException):
            raise self._explain_end()
        head, payload = frame
        if "error" in head:
            raise _error_class(head["error"])(head["message"])
        return head, payload

    def _explain_end(self) -> ReaderStoppedError:
        try:
            code = self._process.wait(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            self._process.kill()
            code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return ReaderStoppedError(
            f"{self._name}: the sandboxed reader ended by itself ({how}); the file is damaged or hostile, "
            "nothing else was harmed: copy it again from the scanner"
        )


def _start_worker(memory_limit_bytes: int) -> subprocess.Popen[bytes]:
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "slideway.slides.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # format libraries print what they like there, patients' names included
        env=environment,
    )
    if sys.platform == "win32":
        job_object.confine(process, memory_limit_bytes)
    return process


@contextlib.contextmanager
def _refusing_nonsense(name: str) -> Iterator[None]:
    """Turn an answer that makes no sense into the error it is; a slide may have taken over its reader."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ReaderStoppedError(
            f"{name}: the sandboxed reader gave an answer that makes no sense; the file is damaged or hostile"
        ) from error


def _batch_from(head: dict[str, Any], payload: bytearray, grid: TileGrid) -> TileBatch:
    indices = np.asarray(head["indices"], np.int64)
    lost = np.asarray(head["lost"], np.int64)
    for positions in (indices, lost):
        if positions.ndim != 1 or ((positions < 0) | (positions >= len(grid))).any():
            raise ValueError("a tile that nobody asked for")
    tiles = np.frombuffer(payload, np.uint8).reshape(len(indices), grid.tile_px, grid.tile_px, 3)
    return TileBatch(indices, tiles, tuple(lost.tolist()))


def _slide_from(fields: dict[str, Any]) -> Slide:
    resolution = fields.pop("resolution")
    return Slide(
        **{
            **fields,
            "levels": tuple(Level(**level) for level in fields["levels"]),
            "resolution": Resolution(**{**resolution, "source": ResolutionSource(resolution["source"])}),
            "side_images": tuple(fields["side_images"]),
            "identifiers": tuple(fields["identifiers"]),
        }
    )


def _error_class(code: str) -> type[errors.SlidewayError]:
    known = {
        value.code: value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.SlidewayError)
    }
    return known.get(code, UnreadableSlideError)


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was still buffered for a process that is gone
        return
