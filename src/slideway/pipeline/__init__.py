"""The journey of one slide, step by step. Read `read.py` first, then `folder.py`."""

from slideway.pipeline.folder import Outcome, find_slides, read_slides
from slideway.pipeline.read import read_slide
from slideway.pipeline.reading import SlideReading

__all__ = ["Outcome", "SlideReading", "find_slides", "read_slide", "read_slides"]
