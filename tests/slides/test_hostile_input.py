"""Whatever lies in the scanner's folder, the sandboxed reader answers in time and names the true cause."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from slideway.core.errors import (
    BrokenSlideError,
    MissingCompanionError,
    ReaderStoppedError,
    SlideAccessError,
    SlideTooLargeError,
    UnknownFormatError,
    UnreadableSlideError,
)
from slideway.core.tissue import TileGrid
from slideway.slides import open_slide, opened
from slideway.testing import slides
from slideway.testing.slides import cut_tiles

SlideOf = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """No hostile file may hold up the queue behind it."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 30


def patch_tag(path: Path, tag: int, value: int) -> None:
    """Overwrite the value of a tag of the first directory, in place."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags[tag].overwrite(value)


def copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


@pytest.mark.parametrize("name", ["ycbcr.tif", "aperio.svs", "big.tif", "slide.ome.tif"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_truncated_slide_is_broken_and_says_copy_again(
    slide_of: SlideOf, tmp_path: Path, name: str, share: float
) -> None:
    path = copy(slide_of(name), tmp_path / name)
    os.truncate(path, round(path.stat().st_size * share))
    with pytest.raises(BrokenSlideError, match=rf"{name}: .*copy"), open_slide(path) as slide:
        slide.read_region(0, 0, 0, 1000, 750)


def test_empty_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    with pytest.raises(BrokenSlideError, match=r"a\.svs: the file is empty \(0 bytes\)"):
        open_slide(tmp_path / "a.svs")


def test_text_called_svs_is_of_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("<html>404 not found</html>")
    with pytest.raises(UnknownFormatError, match=r"a\.svs: no reader recognises.*looks like text"):
        open_slide(tmp_path / "a.svs")


def test_tiles_past_the_end_of_the_file_are_counted(slide_of: SlideOf, tmp_path: Path) -> None:
    path = copy(slide_of("ycbcr.tif"), tmp_path / "a.tif")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages.first.tags[324]
        tag.overwrite([offset + 10_000_000 for offset in tag.value])
    with pytest.raises(BrokenSlideError, match=r"a\.tif: 12 of 12 stored tiles lie past the end"):
        open_slide(path)


def test_loop_of_directories_ends(slide_of: SlideOf, tmp_path: Path) -> None:
    path = copy(slide_of("ycbcr.tif"), tmp_path / "loop.tif")
    with tifffile.TiffFile(path) as tiff:
        first, second = tiff.pages[0].offset, tiff.pages[1].offset
    content = bytearray(path.read_bytes())
    n_tags = struct.unpack_from("<H", content, second)[0]
    struct.pack_into("<I", content, second + 2 + 12 * n_tags, first)
    path.write_bytes(content)
    with pytest.raises(BrokenSlideError, match=r"loop\.tif: .*loop"):
        open_slide(path)


def test_a_million_pixels_a_side_is_too_large(slide_of: SlideOf, tmp_path: Path) -> None:
    path = copy(slide_of("ycbcr.tif"), tmp_path / "a.tif")
    patch_tag(path, 256, 1_000_000)
    patch_tag(path, 257, 1_000_000)
    with pytest.raises(SlideTooLargeError, match=r"a\.tif: .*1,000,000 × 1,000,000 px"):
        open_slide(path)


def jpeg_claiming(side_px: int, *, padding: bytes = b"") -> bytes:
    """A small JPEG whose frame header claims `side_px` squared; `padding` is put before that header."""
    stream = bytes(imagecodecs.jpeg8_encode(np.zeros((256, 256, 3), np.uint8)))
    at = stream.index(b"\xff\xc0")
    claimed = struct.pack(">HH", side_px, side_px)
    return stream[:at] + padding + stream[at : at + 5] + claimed + stream[at + 9 :]


@pytest.mark.parametrize("padding", [b"", b"\xff\xff\xff", b"garbage", b"\xff\x01", b"\xff\x00"])
def test_stored_tile_that_is_a_jpeg_bomb_is_refused_and_the_rest_reads(tmp_path: Path, padding: bytes) -> None:
    picture = slides.paint_tissue(1024, 512)
    tiles = [bytes(imagecodecs.jpeg8_encode(tile)) for tile in cut_tiles(picture, 256)]
    tiles[5] = jpeg_claiming(60_000, padding=padding)
    path = tmp_path / "bomb.tif"
    options = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2), "metadata": None}
    tifffile.imwrite(path, iter(tiles), shape=picture.shape, dtype=np.uint8, tile=(256, 256), **options)
    with open_slide(path) as slide:
        with pytest.raises(BrokenSlideError, match=r"bomb\.tif: .*claims 60,000 × 60,000 px"):
            slide.read_region(0, 256, 256, 100, 100)
        assert slide.read_region(0, 0, 0, 200, 200).shape == (200, 200, 3)
        grid = TileGrid(np.array([[0, 0], [1, 1], [2, 0]], np.int32), tile_px=256, tile_mpp=0.5, slide_mpp=0.5)
        lost = [index for batch in slide.read_tiles(grid) for index in batch.lost]
    assert lost == [1]


def test_stored_tile_that_is_a_jpeg2000_bomb_is_refused(slide_of: SlideOf, tmp_path: Path) -> None:
    content = bytearray(slide_of("j2k-rgb.svs").read_bytes())
    at = content.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", content, at + 8, 60_000, 60_000)
    path = tmp_path / "bomb.svs"
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(BrokenSlideError, match=r"claims 60,000 × 60,000 px"):
        slide.read_region(0, 0, 0, 100, 100)


def test_deflate_bomb_in_a_stored_tile_stays_in_bounds(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    path = tmp_path / "bomb.tif"
    options = {"photometric": "rgb", "compression": "adobe_deflate", "metadata": None}
    tifffile.imwrite(path, iter([bomb]), shape=(256, 256, 3), dtype=np.uint8, tile=(256, 256), **options)
    try:
        with open_slide(path) as slide:
            assert slide.read_region(0, 0, 0, 256, 256).shape == (256, 256, 3)
    except UnreadableSlideError as error:
        assert "bomb.tif" in str(error)


def png_claiming(side_px: int) -> bytes:
    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("name", "content"), [("a.jpg", jpeg_claiming(60_000)), ("a.png", png_claiming(60_000))], ids=["jpeg", "png"]
)
def test_plain_picture_that_is_a_bomb_is_too_large(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideTooLargeError, match=rf"{name}: 60,000 × 60,000 px in one piece"):
        open_slide(tmp_path / name)


def test_picture_within_the_pixel_limit_but_not_within_memory_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_claiming(19_000))
    with pytest.raises(SlideTooLargeError, match=r"a\.png: 19,000 × 19,000 px in one piece need 1,7\d\d MB"):
        open_slide(tmp_path / "a.png")


def test_missing_companion_is_named(tmp_path: Path) -> None:
    (tmp_path / "case.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + bytes(500))
    with pytest.raises(MissingCompanionError, match=r"case\.mrxs: its data folder"):
        open_slide(tmp_path / "case.mrxs")


def test_a_directory_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "readme.txt").write_text("nothing here")
    with pytest.raises(UnknownFormatError, match=r"folder: this folder is no slide"):
        open_slide(tmp_path / "folder")


def test_a_link_to_nowhere_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "link.svs").symlink_to(tmp_path / "gone.svs")
    with pytest.raises(SlideAccessError, match=r"link\.svs: no such file"):
        open_slide(tmp_path / "link.svs")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.svs")
    with pytest.raises(SlideAccessError, match=r"pipe\.svs: neither a file nor a folder"):
        open_slide(tmp_path / "pipe.svs")


def test_file_without_read_permission_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"II*\0" + bytes(100))
    path.chmod(0)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "import slideway.slides\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: slideway.slides.open_slide(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("SlideAccessError a.svs: this user may not read it")


def test_a_reader_killed_in_the_middle_is_reported(slide_of: SlideOf) -> None:
    with open_slide(slide_of("ycbcr.tif")) as slide:
        slide.read_region(0, 0, 0, 10, 10)
        os.kill(slide.process_id, signal.SIGKILL)
        with pytest.raises(ReaderStoppedError, match=r"ycbcr\.tif: the sandboxed reader ended by itself \(signal 9\)"):
            slide.read_region(0, 0, 0, 10, 10)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be frozen here")
def test_a_reader_that_hangs_is_stopped(slide_of: SlideOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "ANSWER_TIMEOUT_S", 0.5)
    with open_slide(slide_of("ycbcr.tif")) as slide:
        os.kill(slide.process_id, signal.SIGSTOP)
        with pytest.raises(ReaderStoppedError, match=r"ycbcr\.tif: the reader gave no answer for 0 s and was stopped"):
            slide.read_region(0, 0, 0, 10, 10)


def test_a_reader_that_stops_answering_but_lives_on_is_ended(
    monkeypatch: pytest.MonkeyPatch, slide_of: SlideOf
) -> None:
    monkeypatch.setattr(opened, "END_TIMEOUT_S", 0.3)
    program = "import os, time\nos.close(1)\ntime.sleep(60)"
    real = subprocess.Popen

    def start(*_: object, **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", program], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(opened.subprocess, "Popen", start)
    with pytest.raises(ReaderStoppedError, match="signal 9"):
        open_slide(slide_of("ycbcr.tif"))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"slide": 3, "limits": []},
        {"slide": {"levels": []}, "limits": []},
        {"slide": {"resolution": {}}, "limits": 1},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, slide_of: SlideOf, answer: dict[str, object]
) -> None:
    program = (
        "import sys, json\nfrom slideway.slides.wire import write_frame\n"
        f"write_frame(sys.stdout.buffer, json.loads({json.dumps(answer)!r}))\nsys.stdin.read()"
    )
    real = subprocess.Popen

    def start(*_: object, **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", program], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(opened.subprocess, "Popen", start)
    with pytest.raises(ReaderStoppedError, match="makes no sense"):
        open_slide(slide_of("ycbcr.tif"))


def test_messages_never_tell_the_folder(tmp_path: Path, slide_of: SlideOf) -> None:
    secret = tmp_path / "Doe^John"
    secret.mkdir()
    for name in ("ycbcr.tif", "flat.png", "aperio.svs"):
        path = copy(slide_of(name), secret / name)
        os.truncate(path, path.stat().st_size // 3)
        with pytest.raises(UnreadableSlideError) as caught, open_slide(path) as slide:
            slide.read_region(0, 0, 0, 1000, 750)
        assert "Doe" not in str(caught.value)


def test_opening_and_refusing_leaves_no_process_behind(tmp_path: Path) -> None:
    import psutil

    (tmp_path / "a.svs").write_text("text")
    before = len(psutil.Process().children())
    for _ in range(3):
        with pytest.raises(UnknownFormatError):
            open_slide(tmp_path / "a.svs")
    assert len(psutil.Process().children()) == before
