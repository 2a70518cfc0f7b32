"""A models' folder and a key folder of the test's own, and toy encoders to fill them with."""

from __future__ import annotations

from pathlib import Path

import pytest

from slideway.registry.card import ModelCard
from slideway.testing.encoders import write_toy_encoder


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("SLIDEWAY_MODELS", str(folder))
    monkeypatch.setenv("SLIDEWAY_KEYS", str(tmp_path / "keys"))
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> ModelCard:
    """A toy encoder that is not installed."""
    return write_toy_encoder(tmp_path / "source" / "toy")
