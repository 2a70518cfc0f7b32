"""A slide is given out when it has settled: quiet, whole, still there; a share that is gone deletes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from slideway.edge.complete import find_missing
from slideway.edge.watch import SettledSlide, Watcher
from slideway.pipeline.folder import find_slides


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "scans"
    made.mkdir()
    return made


@pytest.fixture
def watcher(folder: Path, clock: Clock) -> Watcher:
    return Watcher([folder], 30, ["urgent"], find_slides, clock)


def settle(watcher: Watcher, clock: Clock) -> list[SettledSlide]:
    """Look, let the quiet time pass, look again."""
    watcher.look()
    clock.now += 30
    return watcher.look()


def test_slide_settles_after_the_quiet_time_and_not_before(watcher: Watcher, clock: Clock, folder: Path) -> None:
    (folder / "a.svs").write_bytes(b"x" * 10)
    assert watcher.look() == []
    clock.now += 29.9
    assert watcher.look() == []
    clock.now += 0.1
    found = watcher.look()
    assert [slide.path.name for slide in found] == ["a.svs"]
    watcher.note_taken(found[0])
    clock.now += 60
    assert watcher.look() == []


def test_slide_that_grows_or_is_touched_begins_to_settle_again(watcher: Watcher, clock: Clock, folder: Path) -> None:
    path = folder / "a.svs"
    path.write_bytes(b"x" * 10)
    watcher.look()
    clock.now += 20
    path.write_bytes(b"x" * 20)
    watcher.look()
    clock.now += 20
    assert watcher.look() == []
    os.utime(path, ns=(1, 1))  # same size, another time
    watcher.look()
    clock.now += 29
    assert watcher.look() == []
    clock.now += 1
    assert len(watcher.look()) == 1


def test_the_wall_clock_plays_no_part(watcher: Watcher, clock: Clock, folder: Path) -> None:
    path = folder / "a.svs"
    path.write_bytes(b"x")
    os.utime(path, ns=(10**19 // 4, 10**19 // 4))  # a scanner whose clock is decades ahead
    assert len(settle(watcher, clock)) == 1


def test_an_empty_file_does_not_settle(watcher: Watcher, clock: Clock, folder: Path) -> None:
    (folder / "a.svs").touch()
    assert settle(watcher, clock) == []


def test_slide_that_is_taken_away_while_it_settles_is_forgotten(watcher: Watcher, clock: Clock, folder: Path) -> None:
    path = folder / "a.svs"
    path.write_bytes(b"x")
    found = settle(watcher, clock)
    path.unlink()
    assert not watcher.is_still_so(found[0])
    assert watcher.look() == []


def test_urgent_folder_goes_first(watcher: Watcher, clock: Clock, folder: Path) -> None:
    (folder / "Urgent").mkdir()
    (folder / "Urgent" / "z.svs").write_bytes(b"x")
    (folder / "a.svs").write_bytes(b"x")
    assert [(s.path.name, s.is_urgent) for s in settle(watcher, clock)] == [("z.svs", True), ("a.svs", False)]


def test_share_that_is_gone_is_a_pause_and_no_deletion(watcher: Watcher, clock: Clock, folder: Path) -> None:
    (folder / "a.svs").write_bytes(b"x")
    watcher.note_taken(settle(watcher, clock)[0])
    away = folder.with_name("away")
    folder.rename(away)
    assert watcher.look() == []
    assert watcher.states[0].away_since is not None
    assert watcher.is_away(folder / "a.svs")
    away.rename(folder)
    assert watcher.look() == []  # known: it is not taken in again
    assert watcher.states[0].away_since is None
    assert not watcher.is_away(folder / "a.svs")


def test_empty_mount_point_where_slides_lay_is_a_share_that_is_gone(
    watcher: Watcher, clock: Clock, folder: Path
) -> None:
    (folder / "a.svs").write_bytes(b"x")
    watcher.note_taken(settle(watcher, clock)[0])
    (folder / "a.svs").unlink()
    watcher.look()
    assert "share" in watcher.states[0].reason
    (folder / "other.txt").write_text("the share is there, the slide was moved")
    watcher.look()
    assert watcher.states[0].away_since is None


def test_what_the_store_knows_is_not_given_out_again(clock: Clock, folder: Path, watcher: Watcher) -> None:
    (folder / "a.svs").write_bytes(b"x")
    found = settle(watcher, clock)[0]
    later = Watcher([folder], 30, [], find_slides, clock)
    later.remember({str(found.path): found.stamp.text})
    assert settle(later, clock) == []
    (folder / "a.svs").write_bytes(b"xx")
    assert len(settle(later, clock)) == 1


def test_mrxs_waits_for_every_file_that_its_index_names(watcher: Watcher, clock: Clock, folder: Path) -> None:
    (folder / "a.mrxs").write_bytes(b"x")
    assert settle(watcher, clock) == []
    assert watcher.states[0].lacking == 1
    data = folder / "a"
    data.mkdir()
    (data / "Slidedat.ini").write_text(
        "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = D.dat\n"
    )
    (data / "Index.dat").write_bytes(b"x")
    assert settle(watcher, clock) == []
    assert find_missing(folder / "a.mrxs") == "a/D.dat"
    (data / "D.dat").write_bytes(b"x")
    assert [slide.path.name for slide in settle(watcher, clock)] == ["a.mrxs"]


def test_vms_waits_for_every_picture_that_it_names(watcher: Watcher, clock: Clock, folder: Path) -> None:
    (folder / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nImageFile(1,0)=a(1,0).jpg\n")
    (folder / "a.jpg").write_bytes(b"x")
    assert settle(watcher, clock) == []
    (folder / "a(1,0).jpg").write_bytes(b"x")
    assert len(settle(watcher, clock)) == 1


def test_dicom_folder_is_one_slide_and_waits_for_a_file_half_copied(
    watcher: Watcher, clock: Clock, folder: Path
) -> None:
    series = folder / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"x")
    (series / "2.dcm.part").write_bytes(b"x")
    assert settle(watcher, clock) == []
    (series / "2.dcm.part").rename(series / "2.dcm")
    assert [slide.path for slide in settle(watcher, clock)] == [series]
    assert settle(watcher, clock)[0].stamp.files == 2


def test_looking_takes_at_most_a_twentieth_of_the_time(watcher: Watcher) -> None:
    watcher.took_seconds = 3
    assert watcher.rest_seconds(5) == 60
    watcher.took_seconds = 0.01
    assert watcher.rest_seconds(5) == 5


def test_a_folder_that_cannot_be_listed_does_not_stop_the_others(clock: Clock, folder: Path, tmp_path: Path) -> None:
    (folder / "a.svs").write_bytes(b"x")
    watcher = Watcher([tmp_path / "nowhere", folder], 30, [], find_slides, clock)
    assert len(settle(watcher, clock)) == 1
    assert [state.away_since is None for state in watcher.states] == [False, True]
    shutil.rmtree(folder)
    assert watcher.look() == []
