"""`slideway doctor`: what this computer can do, and what to do if it is too slow."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from slideway.core.errors import SlidewayError
from slideway.encoders import EngineSpeed, measure_engines, remember_engine
from slideway.encoders.engines import describe_processor
from slideway.pipeline.machine import count_cores, free_disk_bytes, total_memory_bytes
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.slides import open_slide

# Tiles of 112 µm: a core biopsy holds about 20 mm² of tissue, an ordinary section 125 mm², a large one 375 mm².
SECTIONS = {"biopsy": 1_600, "ordinary section": 10_000, "large section": 30_000}
_READING_SHARE = 0.85  # decoding, focus and drawing take the rest of the cores; measured in bench/speed
_ENOUGH_PER_HOUR = 20  # a laboratory of 150 slides a day in eight hours


@click.command("doctor")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, metavar="ID", help="Encoder to measure.")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=2.0, show_default=True, help="Time for each engine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(encoder: str, *, seconds: float, as_json: bool) -> int:
    """Measure this computer: cores, memory, disk, sandbox, tiles per second of each engine, slides per hour.

    The fastest engine is remembered and used by `slideway read` from now on.
    """
    card = find_encoder(encoder)
    cores = count_cores()
    speeds = measure_engines(card, threads=cores, seconds=seconds)
    chosen = remember_engine(card, speeds)
    best = max((speed.tiles_per_s for speed in speeds), default=0.0)
    limits, sandbox_error = _try_sandbox()
    facts = {
        "processor": describe_processor(),
        "cores": cores,
        "instruction_sets": _instruction_sets(),
        "memory_gb": round(total_memory_bytes() / 1e9, 1),
        "free_disk_gb": round(free_disk_bytes(Path.cwd()) / 1e9, 1),
        "python": sys.version.split()[0],
        "sandbox": list(limits),
        "encoder": {"id": card.id, "fingerprint": card.fingerprint},
        "engines": [_describe(speed) for speed in speeds],
        "chosen_engine": chosen,
        "slides_per_hour": {name: round(3600 * best * _READING_SHARE / n, 1) for name, n in SECTIONS.items()},
    }
    facts["advice"] = _advise(facts, best, sandbox_error)
    click.echo(json.dumps(facts, indent=2) if as_json else _in_words(facts))
    return 0 if best else 2


def _describe(speed: EngineSpeed) -> dict[str, Any]:
    return {
        "engine": speed.engine,
        "version": speed.words,
        "tiles_per_s": round(speed.tiles_per_s, 1),
        "load_s": round(speed.load_s, 2),
        "refused": speed.refused,
    }


def _instruction_sets() -> list[str]:
    """What this processor has of what OpenCV can tell on every system."""
    import cv2

    # A name with a question mark is dispatched but absent here; a star only says how OpenCV was built.
    words: str = cv2.getCPUFeaturesLine()
    return [word.strip("*") for word in words.split() if "?" not in word]


def _try_sandbox() -> tuple[tuple[str, ...], str]:
    """Open a tiny picture the way every slide is opened; returns the limits in force, or why it failed."""
    import cv2
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.png"
        path.write_bytes(cv2.imencode(".png", np.full((64, 64, 3), 255, np.uint8))[1].tobytes())
        try:
            with open_slide(path) as opened:
                return opened.limits, ""
        except SlidewayError as error:
            return (), str(error)


def _advise(facts: dict[str, Any], best: float, sandbox_error: str) -> list[str]:
    advice = []
    if not best:
        advice.append("no engine reproduces the encoder's golden tiles: install Slideway again in a fresh environment")
    if sandbox_error:
        advice.append(f"the sandboxed reader does not start ({sandbox_error}): no slide can be read here")
    elif sys.platform == "linux" and "no network" not in facts["sandbox"]:
        advice.append("this kernel refuses seccomp filters: slides are read without that fence; use a newer kernel")
    if facts["memory_gb"] < 4:
        advice.append("less than 4 GB of memory: close other programs while slides are read")
    if facts["free_disk_gb"] < 2:
        advice.append("less than 2 GB of free disk: answers need up to 150 MB a slide")
    if 0 < facts["slides_per_hour"]["ordinary section"] < _ENOUGH_PER_HOUR:
        advice.append(
            "fewer than 20 ordinary sections an hour: try `pip install 'slideway[openvino]'` and run doctor again, "
            "let slides queue overnight, or add a PC; four cores read twice as much as two"
        )
    return advice


def _in_words(facts: dict[str, Any]) -> str:
    engines = [
        f"  {e['version']:34} {e['tiles_per_s']:8.1f} tiles/s   ready in {e['load_s']:.2f} s"
        + ("   <- used from now on" if e["engine"] == facts["chosen_engine"] else "")
        + (f"   refused: {e['refused']}" if e["refused"] else "")
        for e in facts["engines"]
    ]
    slides = [f"  {name:18} {count:8.1f} an hour" for name, count in facts["slides_per_hour"].items()]
    return "\n".join(
        [
            f"processor   {facts['processor']}, {facts['cores']} cores",
            f"            {' '.join(facts['instruction_sets'])}",
            f"memory      {facts['memory_gb']} GB",
            f"free disk   {facts['free_disk_gb']} GB here",
            f"sandbox     {', '.join(facts['sandbox']) or 'NOT AVAILABLE'}",
            f"encoder     {facts['encoder']['id']} ({facts['encoder']['fingerprint'][:12]})",
            *engines,
            "predicted slides (small, ordinary, large)",
            *slides,
            *[f"! {line}" for line in facts["advice"]],
        ]
    )
