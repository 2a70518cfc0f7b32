"""Slideway: pathology AI on an ordinary PC.

The public face; everything else may move between versions:

>>> import slideway
>>> reading = slideway.read_slide("slide.svs", out="answers")  # doctest: +SKIP
>>> reading.quality.verdict  # doctest: +SKIP
<Verdict.READABLE: 'readable'>
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slideway.pipeline import SlideReading, read_slide

__version__ = "0.1.0"
__all__ = ["SlideReading", "__version__", "read_slide"]

# ONNX Runtime from 1.32 on counts its users on Linux too, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    # Loaded on first use: `slideway --help` and the sandboxed reader must not pay for an inference engine.
    if name in {"SlideReading", "read_slide"}:
        from slideway import pipeline  # noqa: PLC0415

        return getattr(pipeline, name)
    raise AttributeError(f"module 'slideway' has no attribute {name!r}")
