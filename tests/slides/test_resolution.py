"""Given beats metadata, metadata beats the scanner profile, and nothing is ever guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from slideway.core.errors import UnknownResolutionError, WrongUseError
from slideway.core.slide import Level, Resolution, ResolutionSource, Slide
from slideway.slides.resolution import ScannerProfile, decide_resolution, load_profiles, settings_path

UNKNOWN = Resolution(None, ResolutionSource.UNKNOWN, "the file states none")
STATED = Resolution(0.5, ResolutionSource.METADATA, "Aperio MPP")
PATH = Path("/scans/room 2/a.tif")


def slide(resolution: Resolution, *, vendor: str = "generic-tiff", scanner: str = "Acme Scan 7") -> Slide:
    return Slide("a.tif", vendor, "tiff", (Level(100, 100, 1.0),), resolution, scanner=scanner)


def write(folder: Path, text: str) -> Path:
    path = folder / "slideway.toml"
    path.write_text(text)
    return path


def test_given_beats_metadata_and_notes_the_difference() -> None:
    decided = decide_resolution(slide(STATED), given=0.25, profiles=(), path=PATH).resolution
    assert (decided.mpp, decided.source) == (0.25, ResolutionSource.GIVEN)
    assert "Aperio MPP says 0.5 µm/px (+100%)" in decided.detail


def test_given_within_five_percent_needs_no_note() -> None:
    decided = decide_resolution(slide(STATED), given=0.51, profiles=(), path=PATH).resolution
    assert "differs" not in decided.detail


@pytest.mark.parametrize("given", [0.0, -1.0, 20_000.0, float("nan"), float("inf")])
def test_impossible_given_is_refused(given: float) -> None:
    with pytest.raises(WrongUseError, match=r"a\.tif: .*microns per pixel, not an objective"):
        decide_resolution(slide(STATED), given=given, profiles=(), path=PATH)


def test_profile_counts_only_when_metadata_is_missing() -> None:
    profile = ScannerProfile("room 2", 0.46, vendor="Generic-TIFF")
    decided = decide_resolution(slide(UNKNOWN), given=None, profiles=[profile], path=PATH).resolution
    assert (decided.mpp, decided.source) == (0.46, ResolutionSource.SCANNER_PROFILE)
    assert "room 2" in decided.detail
    assert decide_resolution(slide(STATED), given=None, profiles=[profile], path=PATH).resolution is STATED


@pytest.mark.parametrize(
    ("profile", "fits"),
    [
        (ScannerProfile("p", 0.5, vendor="generic-tiff"), True),
        (ScannerProfile("p", 0.5, vendor="generic"), False),
        (ScannerProfile("p", 0.5, scanner="scan 7"), True),
        (ScannerProfile("p", 0.5, scanner="scan 8"), False),
        (ScannerProfile("p", 0.5, folder="/scans/*"), True),
        (ScannerProfile("p", 0.5, folder="/scans"), True),
        (ScannerProfile("p", 0.5, folder="/other/*"), False),
        (ScannerProfile("p", 0.5, vendor="generic-tiff", scanner="scan 8"), False),
    ],
)
def test_every_criterion_given_must_match(profile: ScannerProfile, fits: bool) -> None:
    assert profile.matches(slide(UNKNOWN), PATH) is fits


def test_narrower_profile_wins_and_equal_ones_that_disagree_are_refused() -> None:
    wide = ScannerProfile("wide", 0.25, vendor="generic-tiff")
    narrow = ScannerProfile("narrow", 0.5, vendor="generic-tiff", scanner="Acme")
    rival = ScannerProfile("rival", 0.4, vendor="generic-tiff", folder="/scans/*")
    assert decide_resolution(slide(UNKNOWN), given=None, profiles=[wide, narrow], path=PATH).mpp == 0.5
    with pytest.raises(WrongUseError, match="'narrow' and 'rival' fit equally well and disagree"):
        decide_resolution(slide(UNKNOWN), given=None, profiles=[wide, narrow, rival], path=PATH)


def test_without_anything_the_resolution_stays_unknown() -> None:
    decided = decide_resolution(slide(UNKNOWN), given=None, profiles=(), path=PATH)
    with pytest.raises(UnknownResolutionError, match="--mpp"):
        _ = decided.mpp


def test_profiles_are_loaded_from_the_file_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[scanner.old]\ndefault_mpp = 0.46\nvendor = "hamamatsu"\n[scanner.b]\ndefault_mpp = 1\nfolder = "/x"'
    path = write(tmp_path, text)
    monkeypatch.setenv("SLIDEWAY_CONFIG", str(path))
    assert settings_path() == path
    assert load_profiles() == (
        ScannerProfile("old", 0.46, vendor="hamamatsu"),
        ScannerProfile("b", 1.0, folder="/x"),
    )


def test_no_settings_file_means_no_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIDEWAY_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("slideway.slides.resolution.settings_path", lambda: tmp_path / "none.toml")
    assert load_profiles() == ()


def test_settings_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDEWAY_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(WrongUseError, match=r"gone\.toml: the settings file cannot be read"):
        load_profiles()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scanner.a]\ndefault_mmp = 0.5", "unknown key 'default_mmp'; known are default_mpp, folder, scanner, vendor"),
        ("[scaner.a]\ndefault_mpp = 0.5", "unknown table 'scaner'"),
        ("scanner = 3", "'scanner' is no table"),
        ("[scanner]\na = 3", r"\[scanner.a\] is no table"),
        ('[scanner.a]\nvendor = "x"', "needs default_mpp as a number"),
        ('[scanner.a]\ndefault_mpp = "0.5"\nvendor = "x"', "needs default_mpp as a number"),
        ('[scanner.a]\ndefault_mpp = true\nvendor = "x"', "needs default_mpp as a number"),
        ('[scanner.a]\ndefault_mpp = 40\nvendor = "x"\nfolder = 3', "needs folder as text"),
        ('[scanner.a]\ndefault_mpp = 400\nvendor = "x"', "outside 0.02–200"),
        ("[scanner.a]\ndefault_mpp = 0.5", "would match every slide"),
        ("[scanner.a", "not a TOML file"),
    ],
)
def test_settings_that_are_not_understood_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(WrongUseError, match=words):
        load_profiles(write(tmp_path, text))
