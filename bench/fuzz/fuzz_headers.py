"""Fuzz the header parsers, guided by coverage, for as long as you like.

    pip install atheris            # Linux; wheels exist for Python 3.11 to 3.13
    python bench/fuzz/fuzz_headers.py --seconds 600 [--corpus DIR]

Each input is a whole file; the first corpus is small valid slides of every TIFF kind. An exception that the sandboxed
worker could not answer by name, a crash, or an input that takes more than ten seconds stops the run and leaves the
input as `crash-…` or `timeout-…` in the working folder: copy it to tests/slides/ and write its test.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tifffile", "slideway.slides"]):
    from slideway.core.errors import SlidewayError
    from slideway.slides.image import ImageReader
    from slideway.slides.reader import PARSER_ERRORS, SlideReader
    from slideway.slides.tiff import TiffReader

from slideway.testing import slides

ANSWERED = (SlidewayError, *PARSER_ERRORS, MemoryError)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, help="kept and grown between runs; a temporary one without it")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        corpus = args.corpus or Path(folder) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        write_seeds(corpus)
        scratch = Path(folder) / "input.svs"
        options = [f"-max_total_time={args.seconds}", "-timeout=10", "-rss_limit_mb=4000", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], lambda content: try_one(scratch, content))
        atheris.Fuzz()


def write_seeds(corpus: Path) -> None:
    levels = slides.make_levels(slides.paint_tissue(140, 100), factor=2, count=2)
    small = {"tile": (64, 64)}
    slides.write_pyramid(corpus / "deflate.tif", levels, compression="deflate", **small)
    slides.write_pyramid(corpus / "jpeg.tif", levels, **slides.JPEG_YCBCR, **small)
    slides.write_pyramid(corpus / "big.tif", levels, is_bigtiff=True, **slides.JPEG_YCBCR, **small)
    slides.write_svs(corpus / "aperio.svs", levels)
    slides.write_ome_tiff(corpus / "slide.ome.tif", levels)
    slides.write_picture(corpus / "flat.png", levels[1])
    slides.write_picture(corpus / "flat.tif", levels[1])


def try_one(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    for kind in (TiffReader, ImageReader):
        if kind.score(scratch):
            read_a_little(kind, scratch)


def read_a_little(kind: type[SlideReader], path: Path) -> None:
    try:
        reader = kind(path)
    except ANSWERED:
        return
    try:
        slide = reader.describe()
        for index in range(len(slide.levels)):
            reader.read_region(index, 0, 0, 100, 100)
        for name in slide.side_images:
            reader.read_side_image(name)
    except ANSWERED:
        pass
    finally:
        reader.close()


if __name__ == "__main__":
    main()
