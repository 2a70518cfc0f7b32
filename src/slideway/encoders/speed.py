"""Measure how fast this machine encodes, and remember the fastest engine."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from slideway.core.errors import UntrustedEncoderError
from slideway.encoders.encoder import Encoder, load_encoder
from slideway.encoders.engines import available_engines, describe_processor, memory_path, read_memory
from slideway.registry.card import ModelCard

BATCH = 4
# An engine must win by this much to replace the default: less is noise, and the choice should not flip-flop.
_CLEARLY_FASTER = 1.05


@dataclass(frozen=True)
class EngineSpeed:
    """What one engine did on this machine.

    Attributes:
        engine: `onnxruntime` or `openvino`.
        words: Name and version.
        tiles_per_s: With all threads.
        load_s: Until the golden tiles were reproduced.
        refused: Why the engine cannot be used; empty when it can.
    """

    engine: str
    words: str
    tiles_per_s: float
    load_s: float
    refused: str = ""


def measure_engines(card: ModelCard, *, threads: int, seconds: float = 2.0) -> tuple[EngineSpeed, ...]:
    """Measure each installed engine for about `seconds` each, fastest first."""
    speeds = [_measure(card, name, threads, seconds) for name in available_engines()]
    return tuple(sorted(speeds, key=lambda speed: -speed.tiles_per_s))


def _measure(card: ModelCard, name: str, threads: int, seconds: float) -> EngineSpeed:
    start = time.perf_counter()
    try:
        encoder = load_encoder(card, engine=name, threads=threads)
    except UntrustedEncoderError as error:
        return EngineSpeed(name, name, 0.0, time.perf_counter() - start, str(error))
    load_s = time.perf_counter() - start
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: _encode_for(encoder, 0.2), range(threads)))  # warm: first runs allocate
        start = time.perf_counter()
        tiles = sum(pool.map(lambda _: _encode_for(encoder, seconds), range(threads)))
        elapsed = time.perf_counter() - start
    return EngineSpeed(name, encoder.engine.words, tiles / elapsed, load_s)


def _encode_for(encoder: Encoder, seconds: float) -> int:
    edge = encoder.card.input.tile_px
    tiles = np.random.default_rng(0).integers(0, 255, (BATCH, edge, edge, 3), np.uint8)
    end, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        encoder.encode(tiles)
        n += BATCH
    return n


def remember_engine(card: ModelCard, speeds: tuple[EngineSpeed, ...]) -> str:
    """Keep the fastest engine for this encoder on this machine; returns its name.

    The default stays unless another engine is clearly faster.
    """
    by_name = {speed.engine: speed.tiles_per_s for speed in speeds if not speed.refused}
    best = max(by_name, key=lambda name: by_name[name], default="onnxruntime")
    if best != "onnxruntime" and by_name[best] < _CLEARLY_FASTER * by_name.get("onnxruntime", 0.0):
        best = "onnxruntime"
    path = memory_path()
    memory = {"machine": describe_processor(), "engines": {**read_memory(), card.fingerprint: best}}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(memory, indent=1), encoding="utf-8")
    part.replace(path)
    return best
