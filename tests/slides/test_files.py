"""Which files belong to a slide, and an identity that no name or place changes."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from slideway.core.errors import BrokenSlideError, SlideAccessError
from slideway.slides.files import files_of_slide, hash_slide


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def named(folder: Path, path: Path) -> list[str]:
    return [part.relative_to(folder).as_posix() for part in files_of_slide(path)]


def test_single_file_is_hashed_as_sha256sum_does(tmp_path: Path) -> None:
    fill(tmp_path, "a.svs", "b.svs")
    assert named(tmp_path, tmp_path / "a.svs") == ["a.svs"]
    assert hash_slide(tmp_path / "a.svs") == hashlib.sha256(b"a.svs").hexdigest()


def test_mrxs_is_the_file_and_its_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "a/Thumbs.db", "a/.DS_Store", "b.mrxs", "b/x.dat")
    assert named(tmp_path, tmp_path / "a.mrxs") == ["a/Data0000.dat", "a/Slidedat.ini", "a.mrxs"]


def test_vms_is_the_file_and_its_numbered_pictures_only(tmp_path: Path) -> None:
    fill(tmp_path, "a.vms", "a.jpg", "a(1,0).jpg", "a_map2.jpg", "a_macro.jpg", "a.opt", "ab.jpg", "a_note.jpg", "a.tx")
    expected = ["a(1,0).jpg", "a.jpg", "a.opt", "a.vms", "a_macro.jpg", "a_map2.jpg"]
    assert named(tmp_path, tmp_path / "a.vms") == expected


def test_tmap_is_the_file_and_its_data_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.TMAP", "a.DT1", "a.DT2", "b.DT1")
    assert named(tmp_path, tmp_path / "a.TMAP") == ["a.DT1", "a.DT2", "a.TMAP"]


def test_dicom_file_stands_for_its_folders_dicom_files(tmp_path: Path) -> None:
    fill(tmp_path, "1.dcm", "2.DCM", "notes.txt")
    assert named(tmp_path, tmp_path / "1.dcm") == ["1.dcm", "2.DCM"]


def test_folder_is_all_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, "s/1.dcm", "s/sub/2.dcm", "s/.hidden")
    assert named(tmp_path, tmp_path / "s") == ["s/1.dcm", "s/sub/2.dcm"]


def test_identity_survives_renaming_and_moving(tmp_path: Path) -> None:
    fill(tmp_path / "x", "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat")
    before = hash_slide(tmp_path / "x" / "a.mrxs")
    (tmp_path / "y").mkdir()
    shutil.move(tmp_path / "x" / "a.mrxs", tmp_path / "y" / "other.mrxs")
    shutil.move(tmp_path / "x" / "a", tmp_path / "y" / "other")
    assert hash_slide(tmp_path / "y" / "other.mrxs") == before


def test_any_changed_byte_of_any_part_changes_the_identity(tmp_path: Path) -> None:
    fill(tmp_path, "a.mrxs", "a/Slidedat.ini", "a/Data0000.dat")
    before = hash_slide(tmp_path / "a.mrxs")
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"other")
    assert hash_slide(tmp_path / "a.mrxs") != before


def test_two_dicom_slides_in_one_folder_have_two_identities(tmp_path: Path) -> None:
    fill(tmp_path, "1.dcm", "2.dcm")
    assert hash_slide(tmp_path / "1.dcm") != hash_slide(tmp_path / "2.dcm")


def test_digest_of_several_files_is_the_documented_one(tmp_path: Path) -> None:
    fill(tmp_path, "s/a", "s/b")
    digests = sorted(hashlib.sha256(name.encode()).hexdigest() for name in ("s/a"[2:], "s/b"[2:]))
    (tmp_path / "s" / "a").write_bytes(b"a")
    (tmp_path / "s" / "b").write_bytes(b"b")
    text = "\n".join(["slideway-slide-1", "", *digests])
    assert hash_slide(tmp_path / "s") == hashlib.sha256(text.encode()).hexdigest()


def test_empty_folder_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(BrokenSlideError, match="holds no file"):
        hash_slide(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_the_folder_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, "s/1.dcm")
    os.mkfifo(tmp_path / "s" / "2.dcm")
    assert named(tmp_path, tmp_path / "s") == ["s/1.dcm"]
    assert named(tmp_path, tmp_path / "s" / "1.dcm") == ["s/1.dcm"]


def test_missing_slide_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlideAccessError, match=r"gone\.svs: no such file"):
        hash_slide(tmp_path / "gone.svs")
