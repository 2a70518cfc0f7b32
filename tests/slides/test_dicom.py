"""DICOM slides: which files belong together, millimetres, and what happens without wsidicom."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from slideway.core.errors import MissingReaderError, SlideTooLargeError, UnknownFormatError, UnreadableSlideError
from slideway.slides import open_slide
from slideway.slides.dicom import DicomReader
from slideway.slides.openslide import OpenSlideReader
from slideway.slides.reader import choose_reader
from slideway.testing.dicom import write_dicom_slide
from slideway.testing.slides import PATIENT, Pixels

SlideOf = Callable[[str], Path]


def test_pixels_of_every_level_equal_those_of_openslides_dicom_driver(slide_of: SlideOf) -> None:
    folder = slide_of("dicom")
    ours, theirs = DicomReader(folder), OpenSlideReader(min(folder.iterdir()))
    for index in range(len(ours.describe().levels)):
        a, b = (reader.read_region(index, 0, 0, 260, 260).astype(int) for reader in (ours, theirs))
        assert np.abs(a - b).max() <= 1
    ours.close()
    theirs.close()


def test_one_file_brings_the_others_of_its_series_and_no_foreign_ones(tmp_path: Path, levels: list[Pixels]) -> None:
    folder = write_dicom_slide(tmp_path / "mixed", levels, mpp=0.5)
    own = set(folder.iterdir())
    write_dicom_slide(folder, [levels[1]], mpp=0.25)
    reader = DicomReader(min(own))
    slide = reader.describe()
    reader.close()
    assert len(slide.levels) == 3
    assert slide.resolution.mpp == pytest.approx(0.5)


def test_folder_with_two_slides_is_refused_and_says_what_to_do(tmp_path: Path, levels: list[Pixels]) -> None:
    folder = write_dicom_slide(tmp_path / "two", levels)
    write_dicom_slide(folder, levels)
    with pytest.raises(UnreadableSlideError, match=r"two: the folder holds 2 DICOM slides"):
        DicomReader(folder)


def test_identifying_attributes_are_named_and_the_patient_is_nowhere(slide_of: SlideOf) -> None:
    with open_slide(slide_of("dicom")) as opened:
        assert {"PatientName", "PatientID", "AccessionNumber", "label image"} <= set(opened.slide.identifiers)
        assert "InstitutionName" not in opened.slide.identifiers
        assert PATIENT not in repr(opened.slide)


def test_dicom_that_is_no_slide_is_refused_by_its_true_cause(tmp_path: Path, slide_of: SlideOf) -> None:
    source = min(slide_of("dicom").iterdir())
    dataset = pydicom.dcmread(source)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    path = tmp_path / "ct.dcm"
    dataset.save_as(path)
    with pytest.raises(UnknownFormatError, match=r"ct\.dcm: this is DICOM, but no whole slide image"):
        DicomReader(path)


def test_impossible_size_is_refused_before_anything_is_read(tmp_path: Path, slide_of: SlideOf) -> None:
    source = max(slide_of("dicom").iterdir(), key=lambda file: file.stat().st_size)
    dataset = pydicom.dcmread(source)
    dataset.TotalPixelMatrixColumns = 4_000_000
    path = tmp_path / "huge.dcm"
    dataset.save_as(path)
    with pytest.raises(SlideTooLargeError, match="4,000,000"):
        DicomReader(path)


def test_without_wsidicom_openslide_gets_the_file(slide_of: SlideOf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = min(slide_of("dicom").iterdir())
    assert choose_reader(path) is DicomReader
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_reader(path) is OpenSlideReader


def test_without_wsidicom_a_folder_names_the_pip_command(slide_of: SlideOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    reader = choose_reader(slide_of("dicom"))
    with pytest.raises(MissingReaderError, match=r"pip install 'slideway\[dicom\]'"):
        reader(slide_of("dicom"))


def test_slide_without_spacing_has_unknown_resolution(tmp_path: Path, slide_of: SlideOf) -> None:
    source = max(slide_of("dicom").iterdir(), key=lambda file: file.stat().st_size)
    dataset = pydicom.dcmread(source)
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    dataset.save_as(tmp_path / "a.dcm")
    try:
        reader = DicomReader(tmp_path / "a.dcm")
    except UnreadableSlideError:  # wsidicom refuses a level without spacing; a clear refusal is an answer too
        return
    assert reader.describe().resolution.mpp is None
    reader.close()


def test_cut_off_slide_in_the_sandbox_is_broken_not_a_crash(tmp_path: Path, slide_of: SlideOf) -> None:
    source = max(slide_of("dicom").iterdir(), key=lambda file: file.stat().st_size)
    path = tmp_path / "cut.dcm"
    shutil.copyfile(source, path)
    with path.open("r+b") as file:
        file.truncate(source.stat().st_size // 2)
    with pytest.raises(UnreadableSlideError, match=r"cut\.dcm"), open_slide(path) as opened:
        opened.read_region(0, 0, 0, 1000, 750)
