"""Open any scanner's file as a slide and read its pixels, inside a sandboxed process."""

from slideway.slides.opened import OpenedSlide, TileBatch, open_slide
from slideway.slides.reader import SlideReader

__all__ = ["OpenedSlide", "SlideReader", "TileBatch", "open_slide"]
