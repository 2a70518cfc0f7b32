"""What all tests share: a small synthetic slide, real slides when a folder is named, a cache of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slideway.testing.slides import write_pyramid


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or settings."""
    root = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("SLIDEWAY_CACHE", str(root / "cache"))
    (root / "empty.toml").touch()
    monkeypatch.setenv("SLIDEWAY_CONFIG", str(root / "empty.toml"))


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic H&E-like pyramid of 2048 × 1536 px at 0.5 µm/px."""
    path = tmp_path_factory.mktemp("slides") / "small.tif"
    write_pyramid(path, width_px=2048, height_px=1536, mpp=0.5)
    return path


def real_slides() -> list[Path]:
    """Real slides of the folder that SLIDEWAY_TEST_SLIDES names; none without it."""
    folder = os.environ.get("SLIDEWAY_TEST_SLIDES")
    return sorted(Path(folder).glob("*.tif")) if folder else []
