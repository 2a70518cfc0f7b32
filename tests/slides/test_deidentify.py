"""A slide that travels whole: planted identifiers never reach the copy, pixels and positions always do."""

import hashlib
import io
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import tifffile
import tifftools
from PIL import Image, ImageCms

from slideway.core.errors import BrokenSlideError, DeidentifyError, DiskFullError, SlidewayError, WrongUseError
from slideway.slides import deidentify_dicom, deidentify_output, deidentify_tiff, open_slide
from slideway.slides.colour import to_display_colour
from slideway.slides.deidentify import deidentify_slide
from slideway.slides.deidentify_dicom import plan_dicom
from slideway.slides.deidentify_streams import check_stream, clean_jpeg_tables, clean_profile
from slideway.slides.deidentify_words import rewrite_aperio, rewrite_ome, rewrite_philips
from slideway.testing import slides
from slideway.testing.dicom import write_dicom_slide

# Planted everywhere a slide can say something; each is looked for in three spellings.
NAME, ACCESSION, DAY, SERIAL = "Zyxwanda^Quillfeather", "QX26-4711-B", "17.03.1951", "SN0815XYZZY"
PLANTED = (NAME, "Zyxwanda", "Quillfeather", "Müllerquist", ACCESSION, DAY, "19510317", SERIAL)


def find_planted(path, words=PLANTED):
    """Every planted word that stands in the bytes or in the names of a file or folder, however it is encoded."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    assert files
    content = b"\n".join([*(file.read_bytes() for file in files), *(os.fsencode(file.name) for file in [path, *files])])
    lowered = content.lower()
    return [
        (word, encoding)
        for word in words
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
        if word.encode(encoding).lower() in lowered
    ]


def retag(source, target, change, *, trailing=b""):
    """Write a TIFF anew with `change(number, tags)` applied to each directory."""
    info = tifftools.read_tiff(str(source))
    for number, directory in enumerate(info["ifds"]):
        change(number, directory["tags"])
    tifftools.write_tiff(info, str(target))
    with target.open("ab") as file:
        file.write(trailing)
    return target


def text(words):
    return {"datatype": 2, "data": words}


def raw(content):
    return {"datatype": 7, "data": content}


def plant_tags(number, tags):
    """Plant identifiers into every kind of tag a scanner, a converter or a camera may write."""
    for tag in (269, 271, 272, 285, 305, 306, 315, 316, 33432):
        tags[tag] = text(f"{NAME} {ACCESSION} {DAY} {SERIAL}")
    tags[700] = {"datatype": 1, "data": list(f"<x:xmpmeta>{NAME}</x:xmpmeta>".encode())}
    tags[33723] = raw(NAME.encode("latin-1"))
    tags[34377] = raw(NAME.encode("utf-16-le"))
    tags[34675] = raw(_profile_of(NAME, SERIAL))
    tags[65000] = text(ACCESSION)
    tags[65001] = raw("Müllerquist".encode("utf-16-be"))
    if tags[259]["data"] == [7]:  # tifffile writes whole streams; scanners write tables apart
        comment = NAME.encode()
        segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
        tags[347] = raw(b"\xff\xd8" + segment + b"\xff\xd9")


def _profile_of(*words):
    """An sRGB profile whose copyright and header name someone."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[80:84] = b"Quil"
    spelled = " ".join(words).encode("utf-16-be")
    count = struct.unpack(">I", profile[128:132])[0]
    for index in range(count):
        tag, at, _ = struct.unpack(">4sII", profile[132 + 12 * index : 144 + 12 * index])
        if tag in (b"desc", b"cprt"):
            at = len(profile)
            profile += b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(spelled), 28) + spelled
            profile += b"\0" * (-len(profile) % 4)
            profile[132 + 12 * index : 144 + 12 * index] = struct.pack(">4sII", tag, at, len(profile) - at)
    profile[:4] = struct.pack(">I", len(profile))
    return bytes(profile)


@pytest.fixture(scope="module")
def levels():
    return slides.make_levels(slides.paint_tissue(900, 700))


def write_planted_svs(path, levels):
    plain = slides.write_svs(path.with_suffix(".plain"), levels)
    words = f"|Title = {NAME}|Barcode = {ACCESSION}|Date = {DAY}|Time = 10:11:12|Left = {NAME}|Müller = Müllerquist"

    def change(number, tags):
        plant_tags(number, tags)
        tags[270] = text(f"{tags[270]['data']}{words}")
        tags[270]["data"] = tags[270]["data"].replace(
            "Aperio Image Library v12.0.15", f"Aperio Image Library v12 {NAME}"
        )

    return retag(plain, path, change, trailing=f"{NAME}{ACCESSION}".encode() * 20)


def write_planted_tiff(path, levels, **options):
    plain = slides.write_pyramid(path.with_suffix(".plain"), levels, **options)

    def change(number, tags):
        plant_tags(number, tags)
        tags[270] = text(f"patient={NAME}; {ACCESSION}")

    return retag(plain, path, change, trailing=NAME.encode("utf-16-le"))


def write_planted_ome(path, levels):
    plain = slides.write_ome_tiff(path.with_suffix(".plain"), levels)

    def change(number, tags):
        xml = tags[270]["data"]
        if isinstance(xml, bytes):
            xml = xml.decode()
        xml = xml.replace(
            "<Image ", f'<Experimenter ID="Experimenter:0" LastName="{NAME}"/><Image Description="{DAY}" '
        )
        plant_tags(number, tags)
        tags[270] = text(xml.replace('Name="', f'Name="{NAME}'))
        for chain in tags[330]["ifds"]:
            for below in chain:
                plant_tags(1, below["tags"])

    return retag(plain, path, change)


def write_big_endian(path, levels):
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": None, **slides.JPEG_YCBCR}
    plain = path.with_suffix(".plain")
    with tifffile.TiffWriter(plain, byteorder=">") as writer:
        writer.write(levels[0], resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
    return retag(plain, path, plant_tags, trailing=NAME.encode())


WRITERS = {
    "svs": (write_planted_svs, ".svs"),
    "jpeg": (write_planted_tiff, ".tif"),
    "bigtiff": (lambda path, levels: write_planted_tiff(path, levels, is_bigtiff=True), ".tif"),
    "deflate": (lambda path, levels: write_planted_tiff(path, levels, compression="deflate"), ".tif"),
    "big-endian": (write_big_endian, ".tif"),
    "ome": (write_planted_ome, ".ome.tif"),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory, levels):
    """Give the slide of a kind, its file name naming the patient."""
    folder = tmp_path_factory.mktemp("in")
    written = {}

    def write(kind):
        if kind not in written:
            writer, suffix = WRITERS[kind]
            (folder / kind).mkdir()
            written[kind] = writer(folder / kind / f"{NAME.replace('^', '_')}-{ACCESSION}{suffix}", levels)
        return written[kind]

    return write


@pytest.fixture(scope="module")
def copied(planted, tmp_path_factory):
    """Give what deidentifying the slide of a kind gives; made once."""
    made = {}

    def copy(kind):
        if kind not in made:
            made[kind] = deidentify_slide(planted(kind), tmp_path_factory.mktemp("out"))
        return made[kind]

    return copy


@pytest.mark.parametrize("kind", WRITERS)
def test_no_planted_identifier_is_in_the_copy_of_a_tiff_slide(kind, planted, copied):
    slide = planted(kind)
    assert {word for word, _ in find_planted(slide)} >= {"Zyxwanda", ACCESSION}, (
        "nothing was planted: the test is blind"
    )
    done = copied(kind)
    assert find_planted(done.path) == []
    assert find_planted_text(done) == []
    assert done.path.name.startswith(done.pixel_sha256[:16])


def find_planted_text(done):
    return [word for word in PLANTED if word in repr(done)]


@pytest.mark.parametrize("kind", WRITERS)
def test_stored_tiles_scale_and_levels_of_a_tiff_slide_stay(kind, planted, copied):
    slide, done = planted(kind), copied(kind)
    with open_slide(slide) as before, open_slide(done.path) as after:
        assert after.slide.levels == before.slide.levels
        assert after.slide.mpp == before.slide.mpp
        assert after.slide.vendor == before.slide.vendor
        assert not {"label", "macro"} & set(after.slide.side_images)
        assert after.slide.identifiers == ()
    with tifffile.TiffFile(slide) as before, tifffile.TiffFile(done.path) as after:
        assert after.is_bigtiff == before.is_bigtiff
        assert after.byteorder == before.byteorder
        for one, other in zip(before.series[0].levels, after.series[0].levels, strict=True):
            assert stored_tiles(slide, one.keyframe) == stored_tiles(done.path, other.keyframe)
            for tag in ("XResolution", "YResolution", "ResolutionUnit"):
                assert one.keyframe.tags.valueof(tag) == other.keyframe.tags.valueof(tag)
            assert np.array_equal(one.asarray(), other.asarray())


def stored_tiles(path, page):
    content = path.read_bytes()
    return [content[at : at + n] for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)]


@pytest.mark.parametrize("kind", ["svs", "jpeg", "bigtiff", "ome"])
def test_openslide_opens_the_copy_as_the_same_kind_of_slide(kind, planted, copied):
    slide, done = planted(kind), copied(kind)
    with openslide.OpenSlide(slide) as before, openslide.OpenSlide(done.path) as after:
        assert after.properties["openslide.vendor"] == before.properties["openslide.vendor"]
        assert after.level_dimensions == before.level_dimensions
        assert after.properties.get("openslide.mpp-x") == before.properties.get("openslide.mpp-x")
        assert not {"label", "macro"} & set(after.associated_images)
        spot = ((300, 200), 0, (256, 256))
        assert np.array_equal(np.asarray(before.read_region(*spot)), np.asarray(after.read_region(*spot)))


def test_label_and_macro_pixels_are_not_in_the_file(planted, copied):
    slide, done = planted("svs"), copied("svs")
    with tifffile.TiffFile(slide) as tiff:
        pictures = {name: stored_tiles(slide, tiff.pages[at]) for name, at in (("label", -2), ("macro", -1))}
        thumbnail = stored_tiles(slide, tiff.pages[1])
    content = done.path.read_bytes()
    for strips in pictures.values():
        # the synthetic macro is the thumbnail's pixels in other strips' company: only strips of its own count
        assert not [strip for strip in strips if strip in content and strip not in thumbnail]
    assert {"label image", "macro image"} <= set(done.removed)


def test_what_was_removed_is_named_and_never_quoted(copied):
    done = copied("svs")
    assert {"Aperio Title", "Aperio Barcode", "TIFF Artist", "TIFF DateTime", "TIFF XMP"} <= set(done.removed)
    assert "Aperio unknown key" in done.removed
    assert {"MPP", "AppMag"} <= set(done.kept)
    assert find_planted_text(done) == []


# --- words of the vendors ------------------------------------------------------------------------------------------


def test_an_allowed_aperio_key_with_a_name_behind_it_goes():
    words = rewrite_aperio(f"Aperio Image Library v12\r\n10x10 {NAME}|MPP = 0.25|AppMag = {NAME}|Top = 1.5", (10, 10))
    assert words.text == "Aperio Image Library v12\r\n10x10|MPP = 0.25|Top = 1.5"


def test_ome_xml_with_focal_planes_or_entities_is_refused():
    pixels = '<Pixels SizeX="9" SizeY="9" SizeC="3" SizeZ="{z}" SizeT="1"/>'
    good = f'<OME xmlns="http://www.openmicroscopy.org/">{pixels.format(z=1)}</OME>'
    assert 'SizeX="9"' in rewrite_ome(good, (9, 9), "a").text
    for bad in (good.replace('SizeZ="1"', 'SizeZ="4"'), "<!DOCTYPE x>" + good, good[:-4]):
        with pytest.raises(DeidentifyError):
            rewrite_ome(bad, (9, 9), "a")


def philips_xml(label=NAME):
    def attribute(key, value):
        return f'<Attribute Name="{key}" Group="0x0008" Element="0x0000" PMSVR="IString">{value}</Attribute>'

    def scan(kind, inner):
        return f'<DataObject ObjectType="DPScannedImage">{attribute("PIM_DP_IMAGE_TYPE", kind)}{inner}</DataObject>'

    def level(number, spacing):
        inner = attribute("DICOM_PIXEL_SPACING", f"&quot;{spacing}&quot; &quot;{spacing}&quot;")
        inner += attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", str(number))
        return f'<DataObject ObjectType="PixelDataRepresentation">{inner}</DataObject>'

    spacing = attribute("DICOM_PIXEL_SPACING", "&quot;0.00025&quot; &quot;0.00025&quot;")
    pyramid = "".join(level(number, 0.00025 * 4**number) for number in range(3))
    sequence = attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", f"<Array>{pyramid}</Array>")
    scans = scan("WSI", spacing + sequence + attribute("DICOM_DERIVATION_DESCRIPTION", NAME))
    scans += scan("LABELIMAGE", attribute("PIM_DP_IMAGE_DATA", label))
    return (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "PHILIPS")
        + attribute("PIM_DP_UFS_BARCODE", ACCESSION)
        + attribute("DICOM_ACQUISITION_DATETIME", "19510317101112")
        + attribute("DICOM_DEVICE_SERIAL_NUMBER", SERIAL)
        + attribute("PIM_DP_SCANNED_IMAGES", f"<Array>{scans}</Array>")
        + "</DataObject>"
    )


def test_philips_slide_keeps_levels_and_spacing_and_loses_the_rest(levels, tmp_path):
    plain = slides.write_pyramid(tmp_path / "plain", levels, mpp=None, **slides.JPEG_YCBCR)

    def change(number, tags):
        plant_tags(number, tags)
        tags.pop(34675)
        tags[305] = text(f"Philips DP v1.0 {SERIAL}")
        if number == 0:
            tags[270] = text(philips_xml())

    slide = retag(plain, tmp_path / f"{ACCESSION}.tiff", change)
    with openslide.OpenSlide(slide) as before:
        assert before.properties["openslide.vendor"] == "philips", "the synthetic slide is none of Philips's"
    done = deidentify_slide(slide, tmp_path / "out")
    assert done.form == "philips"
    assert find_planted(done.path) == []
    with openslide.OpenSlide(slide) as before, openslide.OpenSlide(done.path) as after:
        assert after.level_dimensions == before.level_dimensions
        assert after.properties["openslide.mpp-x"] == before.properties["openslide.mpp-x"]
        assert after.associated_images.keys() == set()


def leica_xml(levels, macro):
    """A collection of 20 × 10 mm with an overview of the whole glass and one scanned area of 0.5 µm/px."""

    def image(first, pictures, view, objective):
        shapes = enumerate(picture.shape for picture in pictures)
        sizes = [f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{first + r}"/>' for r, (h, w, _) in shapes]
        return (
            f'<image name="{NAME}" uuid="{SERIAL}"><creationDate>{DAY}</creationDate><device '
            f'model="Leica SCN400;{SERIAL}" version="1"/>'
            f'<pixels sizeX="1" sizeY="1">{"".join(sizes)}</pixels><view {view}/><scanSettings>'
            f"<objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    width, height = levels[0].shape[1] * 500, levels[0].shape[0] * 500
    overview = image(0, [macro], 'sizeX="20000000" sizeY="10000000" offsetX="0" offsetY="0"', 0.6)
    scan = image(1, levels, f'sizeX="{width}" sizeY="{height}" offsetX="3000000" offsetY="2000000"', 20)
    return (
        f'<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="{NAME}" '
        f'sizeX="20000000" sizeY="10000000"><barcode>{ACCESSION}</barcode>{overview}{scan}</collection></scn>'
    )


def test_leica_slide_keeps_the_place_on_the_glass_and_loses_the_overview(levels, tmp_path):
    macro = slides.paint_tissue(512, 256, seed=5)
    plain = tmp_path / "plain"
    with tifffile.TiffWriter(plain, bigtiff=True) as writer:
        for picture in (macro, *levels):
            writer.write(picture, tile=(256, 256), photometric="rgb", metadata=None, resolution=(20000, 20000),
                         resolutionunit="CENTIMETER", **slides.JPEG_YCBCR)  # fmt: skip

    def change(number, tags):
        plant_tags(number, tags)
        if number == 0:
            tags[270] = text(leica_xml(levels, macro))

    slide = retag(plain, tmp_path / f"{ACCESSION}.scn", change)
    done = deidentify_slide(slide, tmp_path / "out")
    assert (done.form, done.path.suffix) == ("leica", ".scn")
    assert find_planted(done.path) == []
    with openslide.OpenSlide(slide) as before, openslide.OpenSlide(done.path) as after:
        assert set(before.associated_images) == {"macro"}
        assert set(after.associated_images) == set()
        assert after.level_dimensions == before.level_dimensions
        kept = [
            key for key in before.properties if key.startswith(("openslide.mpp", "openslide.bounds", "openslide.obj"))
        ]
        assert len(kept) == 7
        assert [after.properties[key] for key in kept] == [before.properties[key] for key in kept]
    with tifffile.TiffFile(slide) as tiff:
        content = done.path.read_bytes()
        assert not [tile for tile in stored_tiles(slide, tiff.pages[0]) if tile in content]


def test_trestle_slide_keeps_overlaps_and_loses_the_rest(levels, tmp_path):
    words = f"Objective Power=20;Title={NAME};Background Color=E6E6E6;OverlapsXY= 8 8 4 4 2 2;Slide={ACCESSION}"

    def change(number, tags):
        plant_tags(number, tags)
        tags[305] = text(f"MedScan {SERIAL}")
        tags[270] = text(words)

    slide = retag(slides.write_pyramid(tmp_path / "plain", levels), tmp_path / f"{ACCESSION}.tif", change)
    done = deidentify_slide(slide, tmp_path / "out")
    assert find_planted(done.path) == []
    with openslide.OpenSlide(slide) as before, openslide.OpenSlide(done.path) as after:
        assert after.properties["openslide.vendor"] == before.properties["openslide.vendor"] == "trestle"
        assert after.level_dimensions == before.level_dimensions
        assert after.properties["openslide.objective-power"] == "20"


def test_philips_xml_without_one_slide_is_refused():
    with pytest.raises(DeidentifyError, match="exactly one"):
        rewrite_philips(philips_xml().replace(">WSI<", ">OTHER<"), "a")


# --- streams and profiles ------------------------------------------------------------------------------------------


def test_a_tile_with_a_comment_or_exif_of_its_own_is_refused(levels, tmp_path):
    picture = io.BytesIO()
    Image.fromarray(levels[2]).save(picture, "JPEG", comment=NAME)
    with pytest.raises(DeidentifyError, match="comments or EXIF"):
        check_stream(picture.getvalue(), "a.tif")
    clean = io.BytesIO()
    Image.fromarray(levels[2]).save(clean, "JPEG")
    check_stream(clean.getvalue(), "a.tif")
    exif = clean.getvalue()[:2] + b"\xff\xe1\x00\x08Exif\0\0" + clean.getvalue()[2:]
    with pytest.raises(DeidentifyError):
        check_stream(exif, "a.tif")


def test_a_jpeg_2000_comment_passes_only_when_a_codec_names_itself():
    def stream(comment):
        return (
            b"\xff\x4f\xff\x51\x00\x04\0\0\xff\x64"
            + struct.pack(">HH", len(comment) + 4, 1)
            + comment
            + b"\xff\x90\0\x0a"
        )

    check_stream(stream(b"Created by OpenJPEG version 2.5.0"), "a.svs")
    check_stream(stream(b"Kakadu-v5.2.1"), "a.svs")
    with pytest.raises(DeidentifyError):
        check_stream(stream(NAME.encode()), "a.svs")


def test_jpeg_tables_lose_comments_and_decode_as_before():
    table = b"\xff\xdb\x00\x43\x00" + bytes(range(1, 65))
    dirty = b"\xff\xd8\xff\xfe\x00\x0c" + b"Zyxwanda\0\0" + table + b"\xff\xd9"
    assert clean_jpeg_tables(dirty) == b"\xff\xd8" + table + b"\xff\xd9"


def test_a_colour_profile_loses_its_words_and_makes_the_same_colours(levels):
    profile = _profile_of(NAME, SERIAL)
    assert NAME.encode("utf-16-be") in profile
    cleaned = clean_profile(profile)
    assert cleaned is not None
    assert NAME.encode("utf-16-be") not in cleaned
    assert b"Quil" not in cleaned
    shown = to_display_colour(levels[1], profile)
    assert np.array_equal(to_display_colour(levels[1], cleaned), shown)
    assert clean_profile(cleaned) == cleaned


@pytest.mark.parametrize("cut", [0, 50, 131, 140, 300])
def test_a_damaged_colour_profile_is_left_out(cut):
    assert clean_profile(_profile_of(NAME)[:cut]) is None


# --- where it is written -------------------------------------------------------------------------------------------


def test_a_given_file_name_is_used_and_an_existing_file_is_kept_unless_replaced(planted, tmp_path):
    target = tmp_path / "case-07.tif"
    target.write_bytes(b"mine")
    with pytest.raises(WrongUseError, match="already there"):
        deidentify_output.check_target(target, planted("jpeg"), replace=False)
    assert target.read_bytes() == b"mine"
    done = deidentify_slide(planted("jpeg"), target, replace=True)
    assert done.path == target
    assert target.stat().st_size == done.bytes_after
    assert [file.name for file in tmp_path.iterdir()] == ["case-07.tif"]


def test_a_slide_is_never_changed_in_place(levels, tmp_path):
    slide = slides.write_pyramid(tmp_path / "a.tif", levels)
    link = tmp_path / "b.tif"
    link.symlink_to(slide)
    content = slide.read_bytes()
    with pytest.raises(WrongUseError, match="never changed in place"):
        deidentify_slide(slide, slide, replace=True)
    with pytest.raises(WrongUseError, match="never changed in place"):
        deidentify_output.check_target(link, slide, replace=True)
    assert slide.read_bytes() == content


def test_a_full_disk_leaves_nothing_behind(planted, tmp_path, monkeypatch):
    def fill(source, plan, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deidentify_tiff, "write_tiff", fill)
    with pytest.raises(DiskFullError, match="disk is full"):
        deidentify_slide(planted("jpeg"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copy_that_differs_from_its_slide_is_not_kept(planted, tmp_path, monkeypatch):
    write = deidentify_tiff.write_tiff

    def spoil(source, plan, target):
        write(source, plan, target)
        content = bytearray(target.read_bytes())
        content[600] ^= 1
        target.write_bytes(content)

    monkeypatch.setattr(deidentify_tiff, "write_tiff", spoil)
    with pytest.raises(DeidentifyError):
        deidentify_slide(planted("jpeg"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_write_leaves_the_older_file(tmp_path):
    target = tmp_path / "a.tif"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), deidentify_output.written_at_once(target, as_folder=False) as part:
        part.write_bytes(b"new")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


# --- hostile and unknown files -------------------------------------------------------------------------------------


def tiny_tiff(entries, *, next_at=0):
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return io.BytesIO(b"II*\0\x08\0\0\0" + body + struct.pack("<I", next_at))


@pytest.mark.parametrize(
    ("file", "cause"),
    [
        (tiny_tiff([(256, 3, 1, 9)], next_at=8), "loop"),
        (tiny_tiff([(330, 4, 1, 8)]), "loop"),
        (tiny_tiff([(256, 3, 1, 9), (256, 3, 1, 9)]), "twice"),
        (tiny_tiff([(270, 2, 5000, 100)]), "past the end"),
        (tiny_tiff([(324, 4, 0xFFFFFFFF, 8)]), "larger than any"),
        (tiny_tiff([(256, 3, 1, 9)], next_at=4_000_000), "past the end"),
        (io.BytesIO(b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 100), "declares 65,535 tags"),
    ],
)
def test_a_hostile_directory_costs_an_error_and_no_memory(file, cause):
    with pytest.raises(BrokenSlideError, match=cause):
        deidentify_tiff.read_directories(file, "a.tif", deidentify_tiff._READ)


def test_tiles_past_the_end_or_overlapping_are_refused(levels, tmp_path):
    slide = slides.write_pyramid(tmp_path / "a.tif", levels)
    for place, cause in ((10**8, "past the end"), (8, "overlap")):
        with slide.open("rb") as file:
            tiff = deidentify_tiff.read_directories(file, "a.tif", deidentify_tiff._READ)
        offsets, counts = (tiff.directories[0].entries[tag].values for tag in (324, 325))
        if place == 8:
            offsets[:] = [8 + i for i in range(len(offsets))]
            counts[:] = [tiff.n_bytes // 2] * len(counts)
        else:
            offsets[0] = place
        with pytest.raises(BrokenSlideError, match=cause):
            deidentify_tiff.check_spans(tiff, tiff.directories, "a.tif")


def test_tiles_beyond_those_that_the_image_has_are_refused(levels, tmp_path):
    slide = slides.write_pyramid(tmp_path / "a.tif", levels)
    with slide.open("rb") as file:
        tiff = deidentify_tiff.read_directories(file, "a.tif", deidentify_tiff._READ)
    deidentify_tiff.check_spans(tiff, tiff.directories, "a.tif")
    for tag in (324, 325):
        tiff.directories[0].entries[tag].values.append(100)
    with pytest.raises(BrokenSlideError, match="more or fewer"):
        deidentify_tiff.check_spans(tiff, tiff.directories, "a.tif")


def test_a_copy_can_be_copied_again_and_stays_the_same(copied, tmp_path):
    first = copied("svs")
    again = deidentify_slide(first.path, tmp_path / "out")
    assert again.path.name == first.path.name
    assert again.path.read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({65420: {"datatype": 4, "data": [1]}}, "NDPI"),
        ({700: {"datatype": 1, "data": list(b"<iScan/>")}}, "BIF"),
        ({270: text('<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"/>')}, "Leica XML"),
    ],
)
def test_a_format_that_cannot_be_written_anew_is_refused_with_a_way_out(tags, words, levels, tmp_path):
    slide = retag(
        slides.write_pyramid(tmp_path / "plain", levels), tmp_path / "a.tif", lambda _, held: held.update(tags)
    )
    with pytest.raises(DeidentifyError, match=words) as refusal:
        deidentify_tiff.plan_tiff(slide)
    assert "DICOM" in str(refusal.value)


def test_a_plain_picture_is_refused_with_a_way_out(levels, tmp_path):
    slide = slides.write_picture(tmp_path / "a.png", levels[1])
    with pytest.raises(DeidentifyError, match="without metadata"):
        deidentify_slide(slide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_aperio_thumbnail_of_another_shape_is_refused(levels, tmp_path):
    slide = tmp_path / "a.svs"
    with tifffile.TiffWriter(slide) as writer:
        words = "Aperio Image Library v12\r\n900x700|MPP = 0.5"
        writer.write(levels[0], tile=(240, 240), photometric="rgb", description=words, metadata=None, **slides.JPEG_RGB)
        writer.write(levels[1][:60], photometric="rgb", rowsperstrip=16, description=words, metadata=None)
    with pytest.raises(DeidentifyError, match="thumbnail"):
        deidentify_slide(slide, tmp_path / "out")


# --- DICOM ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dicom_slide(tmp_path_factory, levels):
    """A DICOM slide that names someone in every way it can, its files named after the patient."""
    folder = tmp_path_factory.mktemp("dicom")
    plain = write_dicom_slide(folder / "plain", levels, label=levels[0][:99, :201], overview=levels[1][:150, :180])
    slide = folder / f"{NAME.replace('^', '_')}"
    slide.mkdir()
    for number, file in enumerate(sorted(plain.iterdir())):
        instance = pydicom.dcmread(file)
        plant_attributes(instance)
        instance.save_as(slide / f"{ACCESSION}-{number}.dcm", enforce_file_format=True)
    return slide


def plant_attributes(instance):
    instance.preamble = ACCESSION.encode().ljust(128, b"\0")
    instance.file_meta.SourceApplicationEntityTitle = "QUILLFEATHER"
    instance.SpecificCharacterSet = "ISO_IR 100"
    for name in ("PatientName", "ReferringPhysicianName", "OperatorsName", "PatientComments", "ImageComments"):
        setattr(instance, name, NAME)
    for name in ("PatientID", "AccessionNumber", "StudyID", "ContainerIdentifier", "BarcodeValue", "LabelText"):
        setattr(instance, name, ACCESSION)
    for name in ("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(instance, name, "19510317")
    instance.AcquisitionDateTime = "19510317101112"
    instance.InstitutionName = instance.StudyDescription = "Müllerquist"
    instance.DeviceSerialNumber = instance.StationName = SERIAL
    instance.ManufacturerModelName = f"Scanner of Müllerquist {SERIAL}^"
    instance.OpticalPathSequence[0].OpticalPathIdentifier = SERIAL
    instance.OpticalPathSequence[0].OpticalPathDescription = NAME
    instance.OpticalPathSequence[0].IlluminationTypeCodeSequence[0].CodingSchemeDesignator = "99LOCAL"
    instance.OpticalPathSequence[0].IlluminationTypeCodeSequence[0].CodeMeaning = NAME
    instance.OpticalPathSequence[0].ICCProfile = _profile_of(NAME)
    specimen = instance.SpecimenDescriptionSequence[0]
    specimen.SpecimenIdentifier, specimen.SpecimenShortDescription = ACCESSION, NAME
    block = instance.private_block(0x0011, "Quillfeather", create=True)
    block.add_new(0x01, "LO", NAME)
    instance.SharedFunctionalGroupsSequence[0].private_block(0x0011, "Quillfeather", create=True)
    instance.DataSetTrailingPadding = NAME.encode()


@pytest.fixture(scope="module")
def dicom_copy(dicom_slide, tmp_path_factory):
    return deidentify_slide(dicom_slide, tmp_path_factory.mktemp("out"), key=b"k" * 16)


def instances(folder):
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def test_no_planted_identifier_is_in_the_copy_of_a_dicom_slide(dicom_slide, dicom_copy):
    assert {word for word, _ in find_planted(dicom_slide)} >= {"Zyxwanda", ACCESSION, SERIAL, "19510317", "Müllerquist"}
    done = dicom_copy
    assert find_planted(done.path) == []
    assert find_planted_text(done) == []
    uids = {str(element.value) for old in instances(dicom_slide) for element in old.iterall() if element.VR == "UI"}
    ours = {uid for uid in uids if not uid.startswith("1.2.840.10008.")}
    assert len(ours) > 5
    assert find_planted(done.path, sorted(ours)) == []


def test_frames_spacing_and_place_of_a_dicom_slide_stay(dicom_slide, dicom_copy):
    done = dicom_copy
    volumes = [old for old in instances(dicom_slide) if old.ImageType[2] == "VOLUME"]
    copies = instances(done.path)
    by_size = {new.TotalPixelMatrixColumns: new for new in copies}
    assert len(copies) == len(volumes) == 3
    for old in volumes:
        new = by_size[old.TotalPixelMatrixColumns]
        assert new.PixelData == old.PixelData
        measures, others = (x.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] for x in (old, new))
        assert measures.PixelSpacing == others.PixelSpacing
        for name in (
            "ImageOrientationSlide",
            "ImagedVolumeWidth",
            "NumberOfFrames",
            "ImageType",
            "DimensionOrganizationType",
        ):
            assert old[name].value == new[name].value
        assert new.TotalPixelMatrixOriginSequence == old.TotalPixelMatrixOriginSequence
    with open_slide(dicom_slide) as before, open_slide(done.path) as after:
        assert after.slide.levels == before.slide.levels
        assert after.slide.mpp == before.slide.mpp
        assert after.slide.side_images == ()


def test_instances_of_a_dicom_slide_still_belong_together_and_say_that_identity_is_gone(dicom_copy):
    copies = instances(dicom_copy.path)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ContainerIdentifier"):
        assert len({str(new[name].value) for new in copies}) == 1
    assert len({new.SOPInstanceUID for new in copies}) == 3
    for new in copies:
        assert new.SOPInstanceUID.is_valid
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
        assert Path(new.filename).stem == new.SOPInstanceUID
        assert (new.PatientName, new.PatientID, new.StudyDate, new.AccessionNumber) == ("", "", "", "")
        assert new.PatientIdentityRemoved == "YES"
        assert new.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert new.ManufacturerModelName == "REMOVED"
        assert new.Manufacturer == "Slideway"
    with openslide.OpenSlide(copies[0].filename) as opened:
        assert sorted(opened.level_dimensions) == sorted(
            (n.TotalPixelMatrixColumns, n.TotalPixelMatrixRows) for n in copies
        )


def test_one_key_keeps_slides_of_a_study_together_and_no_key_does_not(dicom_slide, dicom_copy):
    def study(key):
        return plan_dicom(dicom_slide, key).instances[0].header.StudyInstanceUID

    assert study(b"k" * 16) == instances(dicom_copy.path)[0].StudyInstanceUID
    assert len({study(None), study(None), study(b"l" * 16), study(b"k" * 16)}) == 4


def test_numbers_of_the_wrong_kind_or_count_are_no_place_to_hide_text(dicom_slide, tmp_path):
    slide = tmp_path / "slide"
    shutil.copytree(dicom_slide, slide)
    for file in slide.iterdir():
        instance = pydicom.dcmread(file)
        instance.DistanceBetweenFocalPlanes = list(np.frombuffer(NAME.encode().ljust(64, b" "), "<f4").astype(float))
        instance.add_new(0x7FE00001, "OV", "Quillfeather".encode("utf-16-le"))
        instance.save_as(file)
    assert ("Quillfeather", "utf-16-le") in find_planted(slide, ["Quillfeather"])
    plan = plan_dicom(slide)
    folder = tmp_path / "out"
    folder.mkdir()
    deidentify_dicom.write_dicom(plan, folder)
    assert find_planted(folder) == []


def test_damaged_bytes_cost_a_named_error_and_nothing_else(planted, dicom_slide, tmp_path):
    random = np.random.default_rng(7)
    folder = tmp_path / "dicom"
    folder.mkdir()
    dicom, tiff = folder / "a.dcm", tmp_path / "a.tif"
    sources = [(planted("bigtiff"), tiff, deidentify_tiff.plan_tiff, tiff)] * 40
    sources += [(next(dicom_slide.iterdir()), dicom, plan_dicom, folder)] * 40
    refused = 0
    for source, target, plan, path in sources:
        content = bytearray(source.read_bytes())
        at = len(content) - 4_000 if target == tiff else 132
        for _ in range(8):
            content[at + random.integers(3_900)] = random.integers(256)
        target.write_bytes(content)
        try:
            plan(path)
        except SlidewayError:
            refused += 1
    assert refused > 10


def test_an_odd_value_is_not_repeated_by_the_library(dicom_slide, tmp_path, caplog, capsys):
    slide = tmp_path / "slide"
    slide.mkdir()
    for number, file in enumerate(sorted(dicom_slide.iterdir())):
        content = file.read_bytes().replace(b"QX26-4711-B", b"QX26\x01\xff711-B").replace(b".3680043.", b".36Quil3.")
        (slide / f"{number}.dcm").write_bytes(content)
    plan = plan_dicom(slide)
    (tmp_path / "out").mkdir()
    deidentify_dicom.write_dicom(plan, tmp_path / "out")
    assert find_planted(tmp_path / "out", ["Quil", "QX26", *PLANTED]) == []
    assert caplog.text == ""
    assert "".join(capsys.readouterr()) == ""


def test_a_dicom_level_with_burnt_in_text_is_refused(dicom_slide, tmp_path):
    slide = tmp_path / "slide"
    shutil.copytree(dicom_slide, slide)
    for file in slide.iterdir():
        instance = pydicom.dcmread(file)
        instance.BurnedInAnnotation = "YES"
        instance.save_as(file)
    with pytest.raises(DeidentifyError, match="Burned In"):
        deidentify_slide(slide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dicom_slide_goes_into_a_folder_never_into_a_file_or_its_own_folder(dicom_slide, tmp_path):
    with pytest.raises(WrongUseError, match="give a folder"):
        deidentify_slide(dicom_slide, tmp_path / "a.dcm")
    before = sorted(dicom_slide.iterdir())
    with pytest.raises(WrongUseError, match="own folder"):
        deidentify_output.check_target(dicom_slide / "0123", dicom_slide, replace=True)
    assert sorted(dicom_slide.iterdir()) == before


def test_a_folder_that_is_there_is_kept_unless_replaced(tmp_path):
    target = tmp_path / "slide"
    target.mkdir()
    (target / "old.dcm").write_bytes(b"old")
    (tmp_path / "slide.dcm").touch()
    with pytest.raises(WrongUseError, match="already there"):
        deidentify_output.check_target(target, tmp_path / "slide.dcm", replace=False)
    with deidentify_output.written_at_once(target, as_folder=True) as part:
        (part / "new.dcm").write_bytes(b"new")
    assert [file.name for file in target.iterdir()] == ["new.dcm"]
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "slide.dcm"]


# --- a real slide, where a folder of them is named -----------------------------------------------------------------


@pytest.mark.skipif("SLIDEWAY_TEST_SLIDES" not in os.environ, reason="no folder of real slides named")
def test_a_real_slide_goes_over_tile_for_tile(tmp_path):
    slide = min(Path(os.environ["SLIDEWAY_TEST_SLIDES"]).glob("*.tif"), key=lambda file: file.stat().st_size)
    done = deidentify_slide(slide, tmp_path / "out")
    with tifffile.TiffFile(slide) as before, tifffile.TiffFile(done.path) as after:
        for one, other in zip(before.series[0].levels, after.series[0].levels, strict=True):
            assert hash_tiles(slide, one.keyframe) == hash_tiles(done.path, other.keyframe)
    with openslide.OpenSlide(done.path) as opened:
        assert opened.level_count > 1
    assert slide.stem.encode() not in done.path.read_bytes()


def hash_tiles(path, page):
    return [hashlib.sha256(tile).hexdigest() for tile in stored_tiles(path, page)]
