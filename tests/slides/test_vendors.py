"""The slots for KFB, SDPC and TMAP, with packages of the same shape: no real file of these formats can be had here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from slideway.core.errors import BrokenSlideError, MissingReaderError
from slideway.core.slide import ResolutionSource
from slideway.slides import open_slide
from slideway.slides.reader import choose_reader
from slideway.slides.vendors import KfbReader, SdpcReader, TmapReader
from slideway.testing import slides


def write_stub(folder: Path, name: str, head: bytes) -> Path:
    path = folder / name
    path.write_bytes(head + bytes(1000))
    slides.write_picture(path.with_suffix(".png"), slides.paint_tissue(400, 300))
    return path


@pytest.mark.parametrize(
    ("name", "head", "extra"),
    [("a.kfb", b"\xf1\x01\xee\xeeKFB", "kfb"), ("a.TMAP", b"TMAP07", "tmap"), ("a.sdpc", b"SQ", "sdpc")],
)
def test_without_the_package_the_pip_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: bytes, extra: str
) -> None:
    path = write_stub(tmp_path, name, head)
    for module in ("kfbslide", "tmapslide", "sdpc", "sdpc.Sdpc", "opensdpc", "opensdpc.OpenSdpc"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingReaderError, match=rf"{name}: .*pip install 'slideway\[{extra}\]'"):
        choose_reader(path)(path)


def test_the_sandboxed_process_names_the_pip_command_too(tmp_path: Path) -> None:
    pytest.importorskip("slideway")
    path = write_stub(tmp_path, "a.sdpc", b"SQ")
    with pytest.raises(MissingReaderError, match=r"slideway\[sdpc\]"):
        open_slide(path)


def test_magic_without_suffix_is_enough_and_suffix_without_magic_is_weak(tmp_path: Path) -> None:
    renamed = write_stub(tmp_path, "renamed.bin", b"\xf1\x01\xee\xeeKFB")
    assert KfbReader.score(renamed) == 80
    picture = slides.write_picture(tmp_path / "picture.png", slides.paint_tissue(50, 50))
    assert choose_reader(picture.rename(tmp_path / "picture.kfb")) is not KfbReader


def test_mpp_that_tmapslide_guessed_from_the_objective_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tmapslide", fakes.module("unic", **{"tmap.mpp_source": "derived"}))
    reader = TmapReader(write_stub(tmp_path, "a.tmap", b"TMAP06"))
    resolution = reader.describe().resolution
    reader.close()
    assert resolution.source is ResolutionSource.UNKNOWN
    assert "guess" in resolution.detail


def test_patient_record_of_an_sdpc_slide_is_named_field_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any
) -> None:
    module = type(sys)("opensdpc.OpenSdpc")
    module.OpenSdpc = fakes.sdpc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opensdpc", type(sys)("opensdpc"))
    monkeypatch.setitem(sys.modules, "opensdpc.OpenSdpc", module)
    reader = SdpcReader(write_stub(tmp_path, "a.sdpc", b"SQ"))
    slide = reader.describe()
    reader.close()
    assert slide.identifiers == ("sdpc.patient.name",)
    assert slide.vendor == "sqray"
    assert slide.objective_power == 20


def test_sdpc_that_the_vendors_library_refuses_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any
) -> None:
    module = type(sys)("opensdpc.OpenSdpc")
    module.OpenSdpc = fakes.sdpc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opensdpc", type(sys)("opensdpc"))
    monkeypatch.setitem(sys.modules, "opensdpc.OpenSdpc", module)
    path = tmp_path / "short.sdpc"
    path.write_bytes(b"SQ")
    with pytest.raises(BrokenSlideError, match=r"short\.sdpc: .*the vendor's library does not open it"):
        SdpcReader(path)


def test_damaged_kfb_is_broken_with_the_packages_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any
) -> None:
    monkeypatch.setitem(sys.modules, "kfbslide", fakes.module("kfbio"))
    path = tmp_path / "short.kfb"
    path.write_bytes(b"\xf1\x01\xee\xeeKFB")
    with pytest.raises(BrokenSlideError, match=r"short\.kfb: damaged or cut off \(Cannot parse file"):
        KfbReader(path)
