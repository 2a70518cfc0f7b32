"""The output folder is complete or absent."""

import errno
import os
import subprocess
import sys

import pytest

from slideway.core.errors import DiskFullError, OutputError
from slideway.pipeline.output import OutputFolder, distinct_folder_names, folder_name


def test_a_committed_folder_appears_with_its_content(tmp_path):
    with OutputFolder(tmp_path / "out", "a") as output:
        (output.path / "x").write_text("1")
        assert not output.final.exists()
        final = output.commit()
    assert (final / "x").read_text() == "1"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_an_error_leaves_the_older_answer_untouched(tmp_path):
    for text in ("old", None):
        try:
            with OutputFolder(tmp_path, "a") as output:
                (output.path / "x").write_text(text or "new")
                if text is None:
                    raise KeyboardInterrupt
                output.commit()
        except KeyboardInterrupt:
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "old"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    with pytest.raises(DiskFullError, match="disk is full"), OutputFolder(tmp_path, "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"), OutputFolder(tmp_path / "file", "a"):
        pass


def test_what_a_killed_process_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.{dead.pid}.part").mkdir()
    (tmp_path / f".a.{os.getppid()}.part").mkdir()  # alive: another run's
    with OutputFolder(tmp_path, "a") as output:
        output.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".a.{os.getppid()}.part", "a"]


def test_a_process_killed_between_the_two_renames_loses_no_answer(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = tmp_path / f".a.{dead.pid}.old"
    old.mkdir()
    (old / "x").write_text("old")
    with pytest.raises(ValueError, match="stop"), OutputFolder(tmp_path, "a"):
        raise ValueError("stop")
    assert (tmp_path / "a" / "x").read_text() == "old"


def test_slides_of_one_name_get_folders_of_their_own(tmp_path):
    paths = [tmp_path / "x" / "A.svs", tmp_path / "y" / "a.svs", tmp_path / "b.tif"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    names = distinct_folder_names(paths)
    assert len({name.casefold() for name in names.values()}) == 3
    assert names[paths[2]] == "b"


@pytest.mark.parametrize("name", ["a/b", "..", "a:b", "<script>", " . ", "病理.svs", "a\nb.svs"])
def test_folder_names_are_safe_on_every_system(tmp_path, name):
    safe = folder_name(tmp_path / name)
    assert safe
    assert not set(safe) & set('<>:"/\\|?*\n')
    assert safe.strip(". ") == safe
