"""A file is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slideway.core import files
from slideway.core.files import write_whole


def test_a_file_is_written_whole_with_the_rights_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_whole(path, b"first", mode=0o600)
    write_whole(path, b"second\r\n", mode=0o600)
    assert path.read_bytes() == b"second\r\n"
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "answer"
    write_whole(path, b"old")

    def fill_up(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fill_up)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
