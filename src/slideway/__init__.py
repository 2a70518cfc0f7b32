"""Slideway: pathology AI on an ordinary PC.

The public face; everything else may move between versions:

>>> import slideway
>>> reading = slideway.read_slide("slide.svs", out="answers")  # doctest: +SKIP
>>> reading.quality.verdict  # doctest: +SKIP
<Verdict.READABLE: 'readable'>
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slideway.pipeline import SlideReading, read_slide

__version__ = "0.1.0"
__all__ = ["SlideReading", "__version__", "read_slide"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `slideway --help` and the sandboxed reader must not pay for an inference engine.
    if name in {"SlideReading", "read_slide"}:
        from slideway import pipeline  # noqa: PLC0415

        return getattr(pipeline, name)
    raise AttributeError(f"module 'slideway' has no attribute {name!r}")
