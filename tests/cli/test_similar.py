"""`slideway similar`: an answer in pictures and numbers, and no comparison of different encoders."""

import json
import shutil

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import slideway
from slideway.bundles import BagWriter, read_bag
from slideway.cli.similar import command
from slideway.core.errors import FingerprintMismatchError, WrongUseError
from slideway.pipeline.similar import load_similar_schema
from slideway.registry.store import DEFAULT_ENCODER
from slideway.testing import slides as synthetic


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three small slides; the third is paler than the others."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(3):
        pixels = synthetic.paint_tissue(1500, 1100, seed=seed)
        if seed == 2:
            pixels = np.clip(pixels.astype(int) + (244 - pixels.astype(int)) // 2, 0, 255).astype(np.uint8)
        synthetic.write_pyramid(folder / f"s{seed}.tif", synthetic.make_levels(pixels), mpp=0.5)
    return folder


@pytest.fixture(scope="module")
def library(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for slide in sorted(scans.iterdir()):
        slideway.read_slide(slide, out=folder / "2026")
    return folder


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def answer(*arguments):
    done = run(*arguments, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.output)


def change_encoder(folder, encoder_id="other"):
    """Rewrite a bag as if another encoder had made it."""
    path = folder / "bag.safetensors"
    bag = read_bag(path)
    vectors, part = np.array(bag.vectors, np.float32), folder / "new"
    with BagWriter(part, bag.grid, bag.width) as writer:
        writer.write(np.arange(len(bag)), vectors, np.array(bag.focus))
        writer.finish(encoder_id=encoder_id, fingerprint="e" * 64, slide_sha256=bag.slide_sha256)
    del bag
    part.replace(path)


def test_a_read_slide_is_compared_with_all_others(library, scans, tmp_path):
    result = answer(library / "2026" / "s0", "--library", library, "--slides", scans, "--out", tmp_path)
    jsonschema.validate(result, load_similar_schema())
    assert [case["slide"] for case in result["cases"]] == ["s1.tif", "s2.tif"]
    assert result["library"]["left_out"]["itself"] == ["s0"]
    folder = tmp_path / "s0-similar"
    assert sorted(p.name for p in folder.iterdir()) == ["similar.html", "similar.json", "similar.png"]
    assert json.loads((folder / "similar.json").read_text(encoding="utf-8")) == result
    with Image.open(folder / "similar.png") as picture:
        assert picture.width > 600
    page = (folder / "similar.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" in page
    assert "<script" not in page


def test_a_slide_file_is_read_first_with_the_librarys_encoder(library, scans, tmp_path):
    slide = tmp_path / "new.tif"
    pixels = synthetic.paint_tissue(1500, 1100, seed=7)
    synthetic.write_pyramid(slide, synthetic.make_levels(pixels), mpp=0.5)
    result = answer(slide, "--library", library, "--out", tmp_path / "out")
    assert result["library"]["slides_searched"] == 3
    assert (tmp_path / "out" / "asked" / "new" / "report.html").is_file()
    assert "data:image/jpeg" in (tmp_path / "out" / "new-similar" / "similar.html").read_text(encoding="utf-8")


def test_a_reading_that_has_the_answers_name_is_not_replaced(library, tmp_path):
    shutil.copytree(library / "2026" / "s1", tmp_path / "s0-similar")
    done = run(library / "2026" / "s0", "--library", library, "--out", tmp_path)
    assert isinstance(done.exception, WrongUseError)
    assert (tmp_path / "s0-similar" / "bag.safetensors").is_file()


def test_a_damaged_result_is_named_and_does_not_hide_the_others(library, tmp_path):
    shutil.copytree(library, tmp_path / "library")
    (tmp_path / "library" / "2026" / "s1" / "result.json").write_text('{"schema": "slideway-result/1.1"}')
    result = answer(tmp_path / "library" / "2026" / "s0", "--library", tmp_path / "library", "--out", tmp_path / "out")
    assert result["library"]["left_out"]["unreadable"] == ["s1"]
    assert [case["slide"] for case in result["cases"]] == ["s2.tif"]


def test_without_the_slides_the_sheet_says_why_there_are_no_pixels(library, tmp_path):
    answer(library / "2026" / "s0", "--library", library, "--out", tmp_path)
    page = (tmp_path / "s0-similar" / "similar.html").read_text(encoding="utf-8")
    assert "pixels not at hand" in page
    assert "data:image" not in page


def test_a_file_of_the_same_name_with_other_content_is_not_shown(library, scans, tmp_path):
    for slide in scans.iterdir():
        (tmp_path / slide.name).write_bytes(slide.read_bytes() + b"x")
    answer(library / "2026" / "s0", "--library", library, "--slides", tmp_path, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "s0-similar" / "similar.html").read_text(encoding="utf-8")
    assert "its file has changed" in page
    assert "data:image" not in page


def test_a_library_of_another_encoder_is_refused_with_both_names(library, tmp_path):
    foreign = shutil.copytree(library, tmp_path / "foreign")
    for folder in (foreign / "2026").iterdir():
        change_encoder(folder)
    for more in ([], ["--skip-foreign"]):
        done = run(library / "2026" / "s0", "--library", foreign, "--out", tmp_path / "out", *more)
        assert isinstance(done.exception, FingerprintMismatchError)
        assert done.exception.exit_code == 2
        assert DEFAULT_ENCODER in str(done.exception)
        assert "other" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_mixed_library_is_refused_or_its_foreign_slides_counted(library, scans, tmp_path):
    mixed = shutil.copytree(library, tmp_path / "mixed")
    change_encoder(mixed / "2026" / "s1")
    for query in (mixed / "2026" / "s0", scans / "s0.tif"):
        done = run(query, "--library", mixed, "--out", tmp_path / "out")
        assert isinstance(done.exception, FingerprintMismatchError)
        assert "2 slides read with" in str(done.exception)
        assert "1 slide read with other" in str(done.exception)
        assert "--skip-foreign" in str(done.exception)
        result = answer(query, "--library", mixed, "--out", tmp_path / "out", "--skip-foreign")
        assert result["library"]["left_out"]["foreign"] == {"other": 1}
        assert [case["slide"] for case in result["cases"]] == ["s2.tif"]


def test_a_damaged_bag_is_named_and_does_not_hide_the_others(library, tmp_path):
    damaged = shutil.copytree(library, tmp_path / "damaged")
    bag = damaged / "2026" / "s1" / "bag.safetensors"
    bag.write_bytes(bag.read_bytes()[:-7])
    result = answer(library / "2026" / "s0", "--library", damaged, "--out", tmp_path / "out")
    assert result["library"]["left_out"]["unreadable"] == ["s1"]
    assert [case["slide"] for case in result["cases"]] == ["s2.tif"]


def test_an_empty_library_is_wrong_use(library, tmp_path):
    done = run(library / "2026" / "s0", "--library", tmp_path)
    assert isinstance(done.exception, WrongUseError)
    assert "slideway read" in str(done.exception)


def test_a_library_of_the_slide_alone_is_an_answer(library, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(library / "2026" / "s0", alone / "s0")
    result = answer(alone / "s0", "--library", alone, "--out", tmp_path / "out")
    assert result["cases"] == []
    assert (tmp_path / "out" / "s0-similar" / "similar.png").is_file()
