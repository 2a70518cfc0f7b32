"""Identifiers planted wherever a slide can carry them: none is in what leaves, however it is written or packed."""

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import fields

import cv2
import imagecodecs
import msgpack
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from slideway.bundles.read import read_bundle
from slideway.cli.bundle import command
from slideway.core.bundle import BundleSummary
from slideway.core.pseudonym import is_pseudonym
from slideway.core.tissue import TissueMask
from slideway.pipeline.bundle import _show_tissue
from slideway.pipeline.folder import read_slides
from slideway.registry.receivers import load_receiving_key
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.testing import dicom
from slideway.testing import slides as synthetic
from slideway.testing.heads import write_toy_head

NAME, MRN, ACCESSION, BORN = "Zylberquist", "7741-09386", "S26-90417", "19470713"
PLANTS = (NAME, "Ottoline", MRN, ACCESSION, BORN, "1947-07-13")
EVERYTHING = f"{NAME}^Ottoline {MRN} {ACCESSION} {BORN} 1947-07-13"
GIVEN = "C26-55021Q"  # the case number on the command line, nowhere else
LABEL, MACRO, INK = (0, 230, 90), (250, 130, 0), (20, 40, 170)

# Every word that may stand in a bundle. A new one is a decision on what leaves: think, then add it here, in
# `slideway.bundles.release.OPINION_KEYS` where it is the opinion's, and in docs/policy.md.
SUMMARY_KEYS = {
    "slide_sha256", "case", "site", "width_px", "height_px", "mpp", "is_mpp_estimated", "tissue_mm2", "verdict",
    "reasons", "tile_px", "tile_mpp", "tiles", "tiles_left_out", "tissue_tiles", "is_sampled", "novel_share",
    "encoder_id", "fingerprint", "codec", "findings", "findings_left_out",
}  # fmt: skip
OPINION_KEYS = {
    "quality", "quality.verdict", "quality.reasons", "quality.reasons.code", "quality.reasons.text", "quality.measures",
    "tissue", "tissue.area_mm2", "tissue.fraction", "grid", "grid.tiles", "grid.tile_px", "grid.mpp",
    "grid.blurred_tiles", "grid.lost_tiles", "groups", "groups.count", "groups.shares", "novelty", "novelty.reference",
    "novelty.novel_share", "profile", "profile.name", "profile.candidate_tiles", "profile.screened_tiles",
    "profile.read_tiles", "profile.saved_tiles_percent", "profile.reasons", "profile.blurred_kept", "heads", "heads.id",
    "heads.version", "heads.fingerprint", "findings", "findings.task", "findings.title", "findings.kind",
    "findings.answer", "findings.labels", "findings.probabilities", "findings.reasons", "findings.reasons.code",
    "findings.reasons.text", "findings.cautions", "findings.cautions.code", "findings.cautions.text",
    "findings.in_force", "findings.validated", "findings.head", "findings.head.id", "findings.head.version",
    "findings.head.sha256", "findings.head.strangeness", "findings.head.evidence", "findings.evidence",
    "findings.evidence.for", "findings.evidence.against", "findings.evidence.change",
    *(f"findings.evidence.{side}.{word}" for side in ("for", "against")
      for word in ("tile", "x_level0_px", "y_level0_px")),
}  # fmt: skip
MEASURES = {
    "tissue_mm2", "slide_mpp", "pen_share", "folded_share", "cut_mm", "overexposed_share", "brightness", "judged_share",
    "blurred_share",
}  # fmt: skip


def write_side_picture(colour):
    """A label: everything drawn on it as text, and in the bytes of its pixels, on a colour that tissue never has."""
    picture = np.full((240, 640, 3), colour, np.uint8)
    cv2.putText(picture, EVERYTHING[:28], (4, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (0, 0, 0), 2)
    raw = np.frombuffer(EVERYTHING.encode() + EVERYTHING.encode("utf-16-le"), np.uint8)
    picture[200:210].reshape(10, -1)[:, : len(raw)] = raw
    return picture


def write_svs(path):
    """As Aperio writes it; fields, file name, label and macro carry what identifies."""
    levels = synthetic.make_levels(synthetic.paint_tissue(1600, 1200))
    height, width = levels[0].shape[:2]
    words = (
        f"Aperio Image Library v12.0.15\r\n{width}x{height} (240x240) JPEG/RGB Q=70|AppMag = 20|MPP = 0.499|"
        f"Filename = {EVERYTHING}|User = {NAME}|Date = {BORN}|Patient = {EVERYTHING}"
    )
    plain = {"photometric": "rgb", "metadata": None, "rowsperstrip": 16}
    with tifffile.TiffWriter(path) as writer:
        tiled = {"tile": (240, 240), "photometric": "rgb", **synthetic.JPEG_RGB}
        writer.write(levels[0], description=words, metadata=None, software=EVERYTHING, **tiled)
        writer.write(levels[-1], compression="jpeg", description=words, **plain)
        writer.write(levels[1], description=words, metadata=None, **tiled)
        for kind, number, colour in (("label", 1, LABEL), ("macro", 9, MACRO)):
            words = f"Aperio Image Library v12.0.15\r\n{kind} 640x240"
            writer.write(write_side_picture(colour), subfiletype=number, description=words, **plain)
    return path


def write_dicom(folder, monkeypatch):
    planted = {"AccessionNumber": ACCESSION, "PatientID": MRN, "StudyDate": BORN, "ContentDate": BORN,
               "ContainerIdentifier": f"{ACCESSION}-1", "PatientBirthDate": BORN, "StudyDescription": EVERYTHING,
               "InstitutionName": NAME, "AcquisitionDateTime": f"{BORN}120000"}  # fmt: skip
    for name, value in planted.items():
        monkeypatch.setitem(dicom._CONSTANT_FIELDS, name, value)
    levels = synthetic.make_levels(synthetic.paint_tissue(1600, 1200, seed=1), count=2)
    return dicom.write_dicom_slide(
        folder, levels, label=write_side_picture(LABEL), overview=write_side_picture(MACRO),
        patient=f"{NAME}^Ottoline",
    )  # fmt: skip


def write_inked(path):
    """Somebody wrote on the glass with a felt pen (0.3 mm), beside the tissue and across it."""
    pixels = np.full((4800, 4000, 3), 244, np.uint8)
    pixels[3600:4600, 1500:2500] = synthetic.paint_tissue(1000, 1000, mpp=1.0)
    cv2.putText(pixels, "ZYL77", (100, 1200), cv2.FONT_HERSHEY_SIMPLEX, 36, INK, 320)
    cv2.line(pixels, (1300, 4000), (2700, 4300), INK, 320)
    return synthetic.write_pyramid(path, synthetic.make_levels(pixels), mpp=1.0)


def run(*arguments, folder):
    environment = {
        **os.environ,
        "SLIDEWAY_KEYS": str(folder / "keys"),
        "SLIDEWAY_MODELS": str(folder / "models"),
        "SLIDEWAY_CACHE": str(folder / "cache"),
    }
    return subprocess.run(
        [sys.executable, "-m", "slideway", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env=environment,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Three slides full of identifiers, read by the real command with a head; and what was released of them."""
    folder = tmp_path_factory.mktemp("leaves")
    scans = folder / f"{ACCESSION} {NAME}"
    scans.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        write_dicom(scans / f"{NAME} {MRN}", patch)
    write_svs(scans / f"{NAME}_{MRN}_{BORN}.svs")
    write_inked(scans / f"{ACCESSION}.tif")
    card = find_encoder(DEFAULT_ENCODER)
    facts = {"width": card.output.width, "encoder_id": card.id, "encoder_fingerprint": card.fingerprint}
    write_toy_head(folder / "head", head_id="county", **facts)
    said = run("read", scans, "--out", folder / "out", "--case", f" {GIVEN} ", "--head", folder / "head", "--json",
               folder=folder)  # fmt: skip
    return folder, said


@pytest.fixture(scope="module")
def released(read):
    """The bundles as they leave with everything that a policy can allow, and opened again by their receiver."""
    folder, _ = read
    bundles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIDEWAY_KEYS", str(folder / "keys"))
        fingerprint = json.loads(bundle("key", "--public", folder / "me.pub", "--json"))["fingerprint"]
        bundle("receivers", "add", "county", folder / "me.pub")
        (folder / "policy.toml").write_text(
            'version = "1.0"\n[receiver.county]\nmay_leave = "slide"\nthumbnail = true\n'
            f'reason = "All of it, in a test."\nkey = "{fingerprint}"\n'
        )
        for number, answer in enumerate(answers(folder)):
            sent = folder / f"{number}.swb"
            common = ("--to", "county", "--policy", folder / "policy.toml")
            bundle("release", answer / "bundle.swb", *common, "-o", sent)
            bundles.append((sent.read_bytes(), read_bundle(sent, key=load_receiving_key())))
    return bundles


def bundle(*arguments):
    """`slideway bundle`, in this process."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)
    assert done.exception is None, done.exception
    return done.output


def answers(folder):
    found = sorted(path.parent for path in (folder / "out").rglob("bundle.swb"))
    assert len(found) == 3
    return found


def ways_to_write(plant):
    """The bytes of a word in every way that it might have been copied, hashed or encoded; lower case."""
    forms = [plant.encode(code) for code in ("ascii", "latin-1", "utf-16-le", "utf-16-be")]
    forms += [plant.encode().hex().encode(), plant[::-1].encode(), plant.replace("-", "").encode()]
    for kind in ("md5", "sha1", "sha256"):  # guessed in a second, so they identify as well
        digest = hashlib.new(kind, plant.encode())
        forms += [digest.digest(), digest.hexdigest().encode()]
    return [form.lower() for form in forms]


def find_plants(content, plants=(*PLANTS, GIVEN)):
    content = content.lower()
    return {plant for plant in plants if any(form in content for form in ways_to_write(plant))}


def open_all(case):
    """Everything in a bundle, unpacked as far as it goes."""
    contents = dict(case.contents)
    contents["summary, unpacked"] = imagecodecs.zstd_decode(contents["summary"])
    contents["opinion, unpacked"] = imagecodecs.zstd_decode(contents["opinion"])
    contents["thumbnail, decoded"] = decode(case).tobytes()
    rows = case.rows
    for field in fields(rows):
        contents[f"tiles, {field.name}"] = np.ascontiguousarray(getattr(rows, field.name)).tobytes()
    return contents


def decode(case):
    return np.asarray(Image.open(io.BytesIO(case.thumbnail)).convert("RGB"))


def test_every_plant_is_in_the_slides_and_the_search_finds_it(read):
    folder, _ = read
    (scans,) = folder.glob(f"{ACCESSION}*")
    everything = b""
    for file in [file for file in scans.rglob("*") if file.is_file()]:
        everything += file.read_bytes() + str(file.relative_to(folder)).encode()
    assert find_plants(everything, PLANTS) == set(PLANTS)
    assert find_plants(EVERYTHING.encode("utf-16-be")) == set(PLANTS)
    assert find_plants(NAME.upper().encode()) == {NAME}
    assert find_plants(hashlib.sha256(GIVEN.encode()).digest()) == {GIVEN}


def test_a_reading_has_no_plant_in_its_bundle(read):
    for answer in answers(read[0]):
        case = read_bundle(answer / "bundle.swb")
        assert find_plants((answer / "bundle.swb").read_bytes()) == set()
        for name, content in open_all(case).items():
            assert find_plants(content) == set(), name


def test_what_is_released_has_no_plant_locked_or_open(released):
    for sent, case in released:
        assert find_plants(sent) == set()
        assert {"summary", "opinion", "thumbnail", "tiles-0"} <= set(case.contents)
        for name, content in open_all(case).items():
            assert find_plants(content) == set(), name


def test_the_case_number_is_nowhere_in_the_answer_and_its_pseudonym_is_the_same_for_all_slides(read):
    folder, said = read
    cases = {read_bundle(answer / "bundle.swb").summary.case for answer in answers(folder)}
    assert len(cases) == 1
    assert is_pseudonym(cases.pop())
    for file in (folder / "out").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert find_plants(content + str(file).encode(), (GIVEN,)) == set(), file.name
    assert find_plants((said.stdout + said.stderr).encode(), (GIVEN,)) == set()
    secret = (folder / "keys" / "pseudonym-secret").read_bytes()
    assert not any(secret in file.read_bytes() for file in (folder / "out").rglob("*") if file.is_file())


def shows(pixels, colour, *, within=70):
    return int((np.abs(pixels.astype(int) - colour).max(axis=-1) < within).sum())


def test_neither_label_nor_macro_nor_pen_shows_in_any_thumbnail(released):
    for colour in (LABEL, MACRO):
        assert shows(write_side_picture(colour), colour) > 10_000  # the search finds it where it is
    for _, case in released:
        picture = decode(case)
        assert 0.003 < (picture.min(axis=-1) < 235).mean() < 0.7  # tissue shows
        assert [shows(picture, colour) for colour in (LABEL, MACRO, INK)] == [0, 0, 0]


def test_writing_over_tissue_cannot_be_read_from_what_is_blanked():
    pen = np.zeros((600, 1400), np.uint8)
    cv2.putText(pen, "OTTO", (150, 400), cv2.FONT_HERSHEY_SIMPLEX, 9, 1, 40)  # 1.6 mm high, 0.3 mm wide
    cv2.circle(pen, (1180, 300), 180, 1, 40)  # around a finding
    blank = np.zeros(pen.shape, bool)
    mask = TissueMask(~blank, 8.0, pen.astype(bool), blank)
    shown = _show_tissue(np.full((*pen.shape, 3), 150, np.uint8), mask)[..., 0] == 150
    assert not shown[pen > 0].any()
    x, y, width, height = cv2.boundingRect(pen[:, :950])
    assert shown[y + 20 : y + height - 20, x + 20 : x + width - 20].mean() < 0.02  # no letter stands out
    assert (pen[y : y + height, x : x + width] == 0).mean() > 0.3  # though much of it was bare
    assert shown[220:380, 1100:1260].all()  # what was circled can still be seen
    assert shown[:40].all()


def list_keys(value, path=""):
    if isinstance(value, list):
        return set().union(*(list_keys(item, path) for item in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    keys = set()
    for key, item in value.items():
        here = f"{path}.{key}" if path else key
        is_table = here.endswith((".measures", ".probabilities", "profile.reasons"))
        keys |= {here} if is_table else {here} | list_keys(item, here)
    return keys


def test_only_words_that_somebody_thought_about_stand_in_a_bundle(read, released):
    assert {field.name for field in fields(BundleSummary)} == SUMMARY_KEYS
    cases = [read_bundle(answer / "bundle.swb") for answer in answers(read[0])]
    for case in [*cases, *(case for _, case in released)]:
        summary = msgpack.unpackb(imagecodecs.zstd_decode(case.contents["summary"]))
        assert set(summary) == SUMMARY_KEYS
        opinion = case.opinion
        assert opinion["findings"]  # with findings, or their words would not be looked at
        assert list_keys(opinion) <= OPINION_KEYS
        assert set(opinion["quality"]["measures"]) <= MEASURES
        assert all(isinstance(value, int | float) for value in opinion["quality"]["measures"].values())
        assert set(case.contents) <= {"summary", "opinion", "thumbnail", "axes", *(f"tiles-{i}" for i in range(256))}


def test_a_release_leaves_nothing_of_slideways_own_opinion_behind(read, released):
    """Else a word was added to the opinion, and nobody decided whether it may leave."""
    for answer, (_, case) in zip(answers(read[0]), released, strict=True):
        assert case.opinion == read_bundle(answer / "bundle.swb").opinion


def test_an_answer_with_another_case_number_is_read_again_and_with_the_same_kept(tmp_path):
    Image.new("RGB", (300, 300), "white").save(tmp_path / "blank.tif")
    card = find_encoder(DEFAULT_ENCODER)
    statuses = []
    for given in ({"case": "KZ2QGX7LB3MWOA5T"}, {"case": "KZ2QGX7LB3MWOA5T"}, {}, {"case": "AAAAAAAAAAAAAAAA"},
                  {"case": "AAAAAAAAAAAAAAAA", "site": "lung"}):  # fmt: skip
        (outcome,) = read_slides(
            [tmp_path / "blank.tif"], out=tmp_path / "out", card=card, mpp=0.5, heads=(), profiles=(), **given
        )
        assert outcome.error is None
        statuses.append(outcome.status)
    assert statuses == ["read", "kept", "kept", "read", "read"]
    assert outcome.instead_of == "a bundle of another case or site"
