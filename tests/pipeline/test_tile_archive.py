"""A slide that is there only as tile images: the same bag however it is packed, and no harm from a hostile archive."""

import gzip
import io
import struct
import tarfile
import zlib

import cv2
import numpy as np
import pytest

from slideway.bundles import read_bag
from slideway.core.errors import BrokenSlideError, OutputError
from slideway.encoders import load_encoder
from slideway.pipeline import tile_archive
from slideway.pipeline.tile_archive import encode_tile_archive, fit_tile
from slideway.testing.encoders import ToyGraph, write_toy_encoder

MPP = 0.5
CORNERS = [(0, 0), (512, 0), (1024, 0), (0, 512), (1024, 512)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    card = write_toy_encoder(tmp_path_factory.mktemp("encoders") / "toy", graph=ToyGraph(tile_px=16))
    return load_encoder(card)


def draw_tile(number, edge_px=32, form=".png"):
    """A tile of one colour that tells its number; lossless."""
    pixels = np.full((edge_px, edge_px, 3), (20 * number + 15, 100, 200 - 20 * number), np.uint8)
    return cv2.imencode(form, pixels)[1].tobytes()


def make_images():
    return {f"{x}-{y}.png": draw_tile(i) for i, (x, y) in enumerate(CORNERS)}


def write_folder(folder, images):
    folder.mkdir(parents=True)
    for name, content in images.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, images, *, mode="w", prefix="slide/"):
    with tarfile.open(path, mode) as archive:
        for name, content in images.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def encode(path, encoder, out, *, mpp=MPP, threads=1):
    return encode_tile_archive(path, mpp=mpp, encoder=encoder, out=out, threads=threads)


def test_tar_folder_and_any_order_or_compression_give_the_same_bag(tmp_path, encoder):
    images = make_images()
    turned = dict(reversed(images.items()))
    paths = [
        write_folder(tmp_path / "slide", images),
        write_tar(tmp_path / "slide.tar", images),
        write_tar(tmp_path / "turned.tar", turned, prefix=""),
        write_tar(tmp_path / "zipped.tar", images, mode="w:gz"),
    ]
    files = [encode(path, encoder, tmp_path / f"out{i}", threads=1 + i % 2) for i, path in enumerate(paths)]
    assert len({file.read_bytes() for file in files}) == 1
    assert files[0] == tmp_path / "out0" / "slide" / "bag.safetensors"


def test_bag_holds_each_tile_in_its_place_row_by_row(tmp_path, encoder):
    bag = read_bag(encode(write_tar(tmp_path / "s.tar", make_images()), encoder, tmp_path / "out"))
    assert bag.grid.column_row.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [2, 1]]
    assert (bag.encoder_id, bag.fingerprint) == ("toy", encoder.card.fingerprint)
    colours = [(200 - 20 * i, 100, 20 * i + 15) for i in range(5)]  # OpenCV writes blue first
    tiles = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in colours])
    np.testing.assert_allclose(bag.vectors, encoder.encode(tiles), atol=2e-3)


def test_places_follow_the_numbers_and_not_their_spelling(tmp_path, encoder):
    images = {f"{x}-0.png": draw_tile(i) for i, x in enumerate((0, 90, 1000))}
    bag = read_bag(encode(write_tar(tmp_path / "s.tar", images), encoder, tmp_path / "out"))
    assert bag.grid.column_row[:, 0].tolist() == [0, 1, 2]
    assert np.argsort(bag.vectors[:, 0].astype(float)).tolist() in ([0, 1, 2], [2, 1, 0])


def test_second_call_keeps_what_is_there_and_reads_no_pixel(tmp_path, encoder, monkeypatch):
    path = write_tar(tmp_path / "s.tar", make_images())
    first = encode(path, encoder, tmp_path / "out")
    stamp = first.stat()
    monkeypatch.setattr(tile_archive, "_decode", lambda *_: pytest.fail("decoded again"))
    assert encode(path, encoder, tmp_path / "out") == first
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (stamp.st_mtime_ns, stamp.st_ino)


@pytest.mark.parametrize("change", ["pixels", "a place", "mpp", "encoder", "damaged bag"])
def test_bag_of_anything_else_is_made_anew(tmp_path, encoder, change):
    images, kwargs = make_images(), {}
    first = encode(write_tar(tmp_path / "s.tar", images), encoder, tmp_path / "out")
    before = read_bag(first)
    fingerprint, sha256 = before.fingerprint, before.slide_sha256
    del before
    if change == "pixels":
        write_tar(tmp_path / "s.tar", {**images, "0-0.png": draw_tile(7)})
    elif change == "a place":
        images["2048-0.png"] = images.pop("0-0.png")
        write_tar(tmp_path / "s.tar", images)
    elif change == "mpp":
        kwargs["mpp"] = 0.25
    elif change == "encoder":
        card = write_toy_encoder(tmp_path / "toy2", graph=ToyGraph(tile_px=16, seed=5))
        encoder = load_encoder(card)
    else:
        first.write_bytes(first.read_bytes()[:-3])
    bag = read_bag(encode(tmp_path / "s.tar", encoder, tmp_path / "out", **kwargs))
    assert (bag.slide_sha256 == sha256) == (change in ("encoder", "damaged bag"))
    assert (bag.fingerprint == fingerprint) == (change != "encoder")
    assert len(bag) == 5


def test_folders_whose_names_differ_behind_a_dot_get_bags_of_their_own(tmp_path, encoder):
    one = encode(write_folder(tmp_path / "case.1", make_images()), encoder, tmp_path / "out")
    two = encode(write_folder(tmp_path / "case.2", {"0-0.png": draw_tile(3)}), encoder, tmp_path / "out")
    assert one != two
    assert (len(read_bag(one)), len(read_bag(two))) == (5, 1)


def damage(kind):
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))[1].tobytes()
    png = draw_tile(1)
    return {
        "text": b"not an image",
        "empty": b"",
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "cut png": png[: len(png) // 2],
        "wrong checksum": png[:-20] + bytes(4) + png[-16:],
        "another format": cv2.imencode(".bmp", np.zeros((32, 32, 3), np.uint8))[1].tobytes(),
    }[kind]


@pytest.mark.parametrize("kind", ["text", "empty", "cut jpeg", "cut png", "wrong checksum", "another format"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_damaged_image_is_a_clear_error_that_leaves_nothing(tmp_path, encoder, kind, is_folder):
    images = {**make_images(), "5000-0.jpg": damage(kind)}
    path = write_folder(tmp_path / "s", images) if is_folder else write_tar(tmp_path / "s.tar", images)
    with pytest.raises(BrokenSlideError, match=rf"^{path.name}: holds an image that is damaged or too large"):
        encode(path, encoder, tmp_path / "out", threads=2)
    assert not any((tmp_path / "out").iterdir())


def test_damaged_image_leaves_the_older_bag(tmp_path, encoder):
    first = encode(write_tar(tmp_path / "s.tar", make_images()), encoder, tmp_path / "out")
    before = first.read_bytes()
    write_tar(tmp_path / "s.tar", {**make_images(), "0-9.png": b"x"})
    with pytest.raises(BrokenSlideError):
        encode(tmp_path / "s.tar", encoder, tmp_path / "out")
    assert first.read_bytes() == before


def test_image_that_declares_more_pixels_than_a_tile_has_is_refused_undecoded(tmp_path, encoder, monkeypatch):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    modest = bomb.replace(chunk(b"IHDR", header), chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 16, 8, 2, 0, 0, 0)))
    for number, content in enumerate((bomb, modest)):
        path = write_tar(tmp_path / f"{number}.tar", {"0-0.png": content})
        with pytest.raises(BrokenSlideError, match="damaged or too large"):
            encode(path, encoder, tmp_path / "out")


def test_slide_without_an_image_is_refused(tmp_path, encoder):
    for path in (
        write_folder(tmp_path / "empty", {}),
        write_folder(tmp_path / "names", {"readme.txt": b"", "0_0.png": draw_tile(0), "-1-0.png": draw_tile(0)}),
        write_tar(tmp_path / "none.tar", {}),
    ):
        with pytest.raises(BrokenSlideError, match=r"no tile image named x-y\.jpg"):
            encode(path, encoder, tmp_path / "out")


def test_two_images_at_one_place_are_refused(tmp_path, encoder):
    images = {"a/0-0.png": draw_tile(1), "b/0-0.png": draw_tile(2)}
    with pytest.raises(BrokenSlideError, match="two images at the place 0-0"):
        encode(write_tar(tmp_path / "two.tar", images), encoder, tmp_path / "out")
    with pytest.raises(BrokenSlideError, match="two images at the place 0-0"):
        folder = write_folder(tmp_path / "two", {"0-0.png": draw_tile(1), "0-0.jpg": draw_tile(1, form=".jpg")})
        encode(folder, encoder, tmp_path / "out")


def add(archive, name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def test_hostile_members_are_never_extracted_and_links_and_devices_never_followed(tmp_path, encoder):
    secret = tmp_path / "secret" / "9-9.png"
    secret.parent.mkdir()
    secret.write_bytes(draw_tile(9))
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        add(archive, "0-0.png", draw_tile(0))
        add(archive, f"{tmp_path}/outside/1-0.png", draw_tile(1))
        add(archive, "../../2-0.png", draw_tile(2))
        add(archive, "3-0.png", type=tarfile.SYMTYPE, linkname=str(secret))
        add(archive, "4-0.png", type=tarfile.LNKTYPE, linkname="0-0.png")
        add(archive, "5-0.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(archive, "6-0.png", type=tarfile.FIFOTYPE)
        add(archive, "7-0.png", type=tarfile.DIRTYPE)
        add(archive, "8" * 5000 + "-0.png", draw_tile(8))
    before = set(tmp_path.rglob("*"))
    bag = read_bag(encode(tmp_path / "evil.tar", encoder, tmp_path / "out"))
    assert len(bag) == 3, "what was packed as bytes is a tile whatever its folder; all else is not"
    made = set(tmp_path.rglob("*")) - before
    assert made == {tmp_path / "out", tmp_path / "out" / "evil", tmp_path / "out" / "evil" / "bag.safetensors"}


def test_members_larger_than_a_tile_are_passed_over_and_a_flood_is_refused(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(tile_archive, "_LARGEST_TILE_BYTES", 5_000)
    images = {**make_images(), "9000-0.png": bytes(5_001)}
    assert len(read_bag(encode(write_tar(tmp_path / "s.tar", images), encoder, tmp_path / "out"))) == 5
    assert len(read_bag(encode(write_folder(tmp_path / "t", images), encoder, tmp_path / "out"))) == 5
    monkeypatch.setattr(tile_archive, "_LARGEST_SLIDE_BYTES", 200)
    with pytest.raises(BrokenSlideError, match="of tile images; split it"):
        encode(tmp_path / "s.tar", encoder, tmp_path / "out2")


def test_sparse_member_that_unpacks_to_much_more_than_it_is_is_passed_over(tmp_path, encoder):
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "1-0.png",
           "GNU.sparse.realsize": str(60 << 20)}  # fmt: skip
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "0-0.png", draw_tile(0))
        add(archive, "GNUSparseFile.0/1-0.png", b"1\n0\n1\n".ljust(512, b"\0") + b"x", pax_headers=pax)
    assert len(read_bag(encode(tmp_path / "s.tar", encoder, tmp_path / "out"))) == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [-512, -1024, 2**62, -(2**40)])
@pytest.mark.parametrize("name", ["0-0.png", "readme.txt"])
def test_member_of_an_impossible_size_ends_in_an_error_and_not_in_a_loop(tmp_path, encoder, size, name):
    member = tarfile.TarInfo(name)
    header = bytearray(member.tobuf())
    header[124:136] = (size % (1 << 96)).to_bytes(12, "big") if size < 0 else b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    before = tarfile.TarInfo("before.txt").tobuf()  # back at the very start Python would stop by itself
    (tmp_path / "evil.tar").write_bytes(before + bytes(header) * 4 + bytes(1024))
    with pytest.raises(BrokenSlideError, match=r"^evil\.tar: "):
        encode(tmp_path / "evil.tar", encoder, tmp_path / "out")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_archive_that_was_cut_off_is_refused_by_name_alone(tmp_path, encoder, share, mode):
    random = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    images = {f"{i}-0.png": cv2.imencode(".png", one)[1].tobytes() for i, one in enumerate(random)}
    path = write_tar(tmp_path / "cut.tar", images, mode=mode)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BrokenSlideError, match=r"^cut\.tar: cannot be read as a tar of tiles") as caught:
        encode(path, encoder, tmp_path / "out")
    assert str(tmp_path) not in str(caught.value)


def test_archive_whose_compressed_bytes_are_damaged_is_refused(tmp_path, encoder):
    plain = write_tar(tmp_path / "plain.tar", make_images()).read_bytes()
    zipped = bytearray(gzip.compress(plain))
    for place in range(60, len(zipped) - 8, 7):
        zipped[place] ^= 255
    (tmp_path / "bad.tar").write_bytes(zipped)
    with pytest.raises(BrokenSlideError, match=r"^bad\.tar: "):
        encode(tmp_path / "bad.tar", encoder, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no tar at all", bytes(100)])
def test_file_that_is_no_tar_is_refused(tmp_path, encoder, content):
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(BrokenSlideError):
        encode(tmp_path / "s.tar", encoder, tmp_path / "out")


def test_archive_that_is_not_there_is_named_without_its_place(tmp_path, encoder):
    with pytest.raises(BrokenSlideError, match=r"^gone\.tar: .*No such file") as caught:
        encode(tmp_path / "gone.tar", encoder, tmp_path / "out")
    assert str(tmp_path) not in str(caught.value)


def test_folders_named_like_tiles_are_no_tiles(tmp_path, encoder):
    folder = write_folder(tmp_path / "s", make_images())
    (folder / "7-7.png").mkdir()
    assert len(read_bag(encode(folder, encoder, tmp_path / "out"))) == 5


def test_output_that_cannot_be_written_is_an_output_error(tmp_path, encoder):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError):
        encode(write_tar(tmp_path / "s.tar", make_images()), encoder, tmp_path / "out")


def test_grey_and_transparent_images_are_read_as_colour(tmp_path, encoder):
    grey = cv2.imencode(".png", np.full((32, 32), 90, np.uint8))[1].tobytes()
    clear = cv2.imencode(".png", np.full((32, 32, 4), (90, 90, 90, 255), np.uint8))[1].tobytes()
    bag = read_bag(encode(write_tar(tmp_path / "s.tar", {"0-0.png": grey, "1-0.png": clear}), encoder, tmp_path / "o"))
    np.testing.assert_array_equal(bag.vectors[0], bag.vectors[1])


@pytest.mark.parametrize(("mpp", "edge_px"), [(0.5, 16), (0.25, 32), (1.0, 8)])
def test_middle_square_of_the_encoders_field_is_taken(encoder, mpp, edge_px):
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[(40 - edge_px) // 2 : (40 + edge_px) // 2, (48 - edge_px) // 2 : (48 + edge_px) // 2] = 200
    assert (fit_tile(pixels, mpp, encoder.card) == 200).all()
    wider = fit_tile(pixels, mpp / 1.3, encoder.card)
    assert wider.shape == (16, 16, 3)
    assert wider.min() < 200


def test_image_that_covers_less_than_the_field_is_taken_whole(encoder):
    pixels = np.full((8, 6, 3), 120, np.uint8)
    assert (fit_tile(pixels, 0.5, encoder.card) == 120).all()
