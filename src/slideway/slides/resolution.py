"""Decide a slide's microns per pixel: a person's word beats the file, the file beats the scanner profile."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from slideway.core.errors import WrongUseError
from slideway.core.slide import Resolution, ResolutionSource, Slide

_NOTED_DIFFERENCE = 0.05  # mean of two axes, rounding and vendors' calibrations stay below this share


@dataclass(frozen=True)
class ScannerProfile:
    """What a site knows of one scanner that writes no microns per pixel; every criterion given must match.

    Attributes:
        name: Name of the table in the settings file; shown in every output that rests on it.
        default_mpp: µm/px at level 0.
        vendor: Equals `Slide.vendor`, upper and lower case alike; empty means any.
        scanner: Occurs in `Slide.scanner`, upper and lower case alike; empty means any.
        folder: Glob for the slide's folder or a folder above it; empty means any.
    """

    name: str
    default_mpp: float
    vendor: str = ""
    scanner: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if not 0.02 <= self.default_mpp <= 200:
            raise ValueError(f"default_mpp {self.default_mpp} is outside 0.02–200 µm/px")
        if not (self.vendor or self.scanner or self.folder):
            raise ValueError("it names no vendor, scanner or folder, so it would match every slide")

    def matches(self, slide: Slide, path: Path) -> bool:
        """Say whether every criterion given fits this slide."""
        return (
            (not self.vendor or self.vendor.lower() == slide.vendor.lower())
            and (not self.scanner or self.scanner.lower() in slide.scanner.lower())
            and (not self.folder or _lies_in(path, self.folder))
        )

    @property
    def criteria(self) -> int:
        """How many criteria are given; of two matching profiles the narrower one counts."""
        return sum(map(bool, (self.vendor, self.scanner, self.folder)))


def settings_path() -> Path:
    """Where the settings file lies: `SLIDEWAY_CONFIG`, else `slideway.toml` in the user's settings folder."""
    if named := os.environ.get("SLIDEWAY_CONFIG"):
        return Path(named)
    return Path(platformdirs.user_config_dir("slideway", appauthor=False)) / "slideway.toml"


def load_profiles(path: Path | None = None) -> tuple[ScannerProfile, ...]:
    r"""Load the scanner profiles, tables `[scanner.<name>]` of a TOML file.

    Args:
        path: Settings file; None means `settings_path()`, where a file that is not there means no profiles.

    Raises:
        WrongUseError: The named file is not there, is no TOML, or states something that is not understood.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "slideway.toml"
        >>> _ = file.write_text('[scanner.old-leica]\ndefault_mpp = 0.5\nvendor = "leica"')
        >>> load_profiles(file)
        (ScannerProfile(name='old-leica', default_mpp=0.5, vendor='leica', scanner='', folder=''),)
    """
    is_named = path is not None or "SLIDEWAY_CONFIG" in os.environ
    path = path or settings_path()
    if not is_named and not path.exists():
        return ()
    try:
        with path.open("rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise WrongUseError(f"{path.name}: the settings file cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongUseError(f"{path.name}: not a TOML file: {error}") from error
    if unknown := sorted(settings.keys() - {"scanner"}):
        raise WrongUseError(f"{path.name}: unknown table '{unknown[0]}'; known is [scanner.<name>]")
    tables = settings.get("scanner", {})
    if not isinstance(tables, dict):
        raise WrongUseError(f"{path.name}: 'scanner' is no table; write [scanner.<name>]")
    return tuple(_profile_from(name, table, path.name) for name, table in tables.items())


def decide_resolution(slide: Slide, *, given: float | None, profiles: Sequence[ScannerProfile], path: Path) -> Slide:
    """Return the slide with the resolution that counts: given, else from metadata, else from a scanner profile.

    Args:
        slide: As its file describes it.
        given: µm/px at level 0 that a person stated; None when nobody did.
        profiles: From `load_profiles`; asked only when the file states nothing.
        path: Where the slide lies, for profiles with a folder.

    Raises:
        WrongUseError: `given` is no possible resolution, or two profiles fit equally well and disagree.
    """
    if given is not None:
        return dataclasses.replace(slide, resolution=_given_resolution(slide, given))
    if slide.resolution.mpp is not None:
        return slide
    profile = _find_profile(slide, profiles, path)
    if profile is None:
        return slide
    found = Resolution(profile.default_mpp, ResolutionSource.SCANNER_PROFILE, f"scanner profile '{profile.name}'")
    return dataclasses.replace(slide, resolution=found)


def _profile_from(name: str, table: Any, file_name: str) -> ScannerProfile:
    where = f"{file_name}: [scanner.{name}]"
    if not isinstance(table, dict):
        raise WrongUseError(f"{where} is no table; write [scanner.{name}] and default_mpp = 0.25 below it")
    known = {field.name for field in dataclasses.fields(ScannerProfile)} - {"name"}
    if unknown := sorted(table.keys() - known):
        raise WrongUseError(f"{where} has an unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
    mpp = table.get("default_mpp")
    if isinstance(mpp, bool) or not isinstance(mpp, int | float):
        raise WrongUseError(f"{where} needs default_mpp as a number, in microns per pixel at full resolution")
    for key in ("vendor", "scanner", "folder"):
        if not isinstance(table.get(key, ""), str):
            raise WrongUseError(f'{where} needs {key} as text in quotes, {key} = "…"')
    try:
        return ScannerProfile(name, **{**table, "default_mpp": float(mpp)})
    except ValueError as error:
        raise WrongUseError(f"{where}: {error}") from error


def _given_resolution(slide: Slide, given: float) -> Resolution:
    try:
        found = Resolution(given, ResolutionSource.GIVEN, "stated by the user")
    except ValueError as error:
        raise WrongUseError(f"{slide.name}: {error}; state microns per pixel, not an objective such as 20x") from error
    stated = slide.resolution.mpp
    if stated is None or abs(given / stated - 1) <= _NOTED_DIFFERENCE:
        return found
    words = f"the file differs: {slide.resolution.detail} says {stated:.4g} µm/px ({stated / given - 1:+.0%})"
    return dataclasses.replace(found, detail=f"{found.detail}; {words}")


def _find_profile(slide: Slide, profiles: Sequence[ScannerProfile], path: Path) -> ScannerProfile | None:
    matching = [profile for profile in profiles if profile.matches(slide, path)]
    narrowest = max((profile.criteria for profile in matching), default=0)
    best = [profile for profile in matching if profile.criteria == narrowest]
    if len({profile.default_mpp for profile in best}) > 1:
        names = " and ".join(f"'{profile.name}'" for profile in best)
        raise WrongUseError(f"{slide.name}: scanner profiles {names} fit equally well and disagree; narrow one of them")
    return best[0] if best else None


def _lies_in(path: Path, folder: str) -> bool:
    pattern = str(Path(folder).expanduser())
    return any(fnmatch.fnmatch(str(parent), pattern) for parent in path.resolve().parents)
