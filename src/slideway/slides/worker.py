"""The sandboxed reader process: opens one slide and answers requests on standard input with frames on standard output.

Started as `python -m slideway.slides.worker` by `OpenedSlide`. It may crash, hang or be killed: only its slide is lost.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from slideway.core.errors import BrokenSlideError, ReaderStoppedError, SlidewayError
from slideway.core.slide import Slide
from slideway.slides import bands
from slideway.slides.colour import to_display_colour
from slideway.slides.reader import SlideReader, choose_reader
from slideway.slides.sandbox import enter_sandbox
from slideway.slides.wire import read_frame, write_frame

MAX_REQUEST_BYTES = 64_000_000  # 5 million tile positions


def main() -> None:
    """Serve one slide until standard input closes."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=1 << 20)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not break the frames
    cv2.setNumThreads(1)
    head, _ = read_frame(requests, max_payload=MAX_REQUEST_BYTES)
    path = Path(head["path"])
    limits = enter_sandbox(int(head["memory_limit_bytes"]), slide=path)
    server = _Server(path, answers)
    server.answer(server.open, {"limits": limits})
    while True:
        try:
            head, payload = read_frame(requests, max_payload=MAX_REQUEST_BYTES)
        except EOFError:
            return
        if payload:
            head["payload"] = payload
        server.answer(getattr(server, f"on_{head.pop('do')}"), head)


class _Server:
    """One opened slide and the requests it answers."""

    def __init__(self, path: Path, answers: BinaryIO) -> None:
        self._path = path
        self._answers = answers
        self._reader: SlideReader
        self._slide: Slide

    def answer(self, act: Callable[..., None], request: dict[str, Any]) -> None:
        """Run one request; whatever goes wrong becomes an answer that names the cause."""
        try:
            act(**request)
        except SlidewayError as error:
            self._send({"error": error.code, "message": str(error)})
        except MemoryError:
            words = "reading it needs more memory than the sandbox allows; the file is damaged or hostile"
            self._send({"error": ReaderStoppedError.code, "message": f"{self._path.name}: {words}"})
        except Exception as error:  # noqa: BLE001  the worker's top loop: a parser on hostile bytes raises anything
            cause = str(error).replace(str(self._path), self._path.name) or type(error).__name__
            words = f"{self._path.name}: damaged or not what it claims to be ({cause}); copy it again from the scanner"
            self._send({"error": BrokenSlideError.code, "message": words})

    def open(self, limits: list[str]) -> None:
        self._reader = choose_reader(self._path)(self._path)
        self._slide = self._reader.describe()
        self._send({"slide": dataclasses.asdict(self._slide), "limits": limits})

    def on_thumbnail(self, downsample: float, as_seen: bool) -> None:
        thumbnail = bands.read_thumbnail(self._reader, self._slide, downsample)
        self._send_pixels(self._shown(thumbnail) if as_seen else thumbnail)

    def on_region(self, level: int, xywh: list[int]) -> None:
        self._send_pixels(self._reader.read_region(level, *xywh))

    def on_side_image(self, name: str) -> None:
        self._send_pixels(self._reader.read_side_image(name))

    def on_tiles(self, tile_level0_px: float, tile_px: int, batch: int, as_seen: bool, payload: bytearray) -> None:
        xy = np.frombuffer(payload, np.int32).reshape(-1, 2)
        read = bands.plan_read(self._slide, xy, tile_level0_px, tile_px)
        for indices, stored, lost in bands.read_tiles(self._reader, read, batch=batch):
            tiles = np.stack([self._shown(tile) for tile in stored]) if as_seen and len(stored) else stored
            head = {"indices": indices.tolist(), "lost": lost}
            self._send(head, np.ascontiguousarray(tiles).data.cast("B") if len(indices) else b"")
        self._send({"end": True})

    def _shown(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return to_display_colour(pixels, self._reader.icc_profile())

    def _send_pixels(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._send({"shape": list(pixels.shape)}, np.ascontiguousarray(pixels).data.cast("B"))

    def _send(self, head: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        write_frame(self._answers, head, payload)


if __name__ == "__main__":
    main()
