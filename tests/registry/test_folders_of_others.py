"""What is not ours stays: other programs' blobs, folders of another model, what a link leads to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slideway.core.errors import UntrustedEncoderError, WrongUseError
from slideway.registry import find_encoder, list_encoders, models_folder, read_card
from slideway.registry.onnx_file import list_external_files
from slideway.registry.store import install_model, remove_model
from slideway.testing.encoders import write_toy_encoder


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SLIDEWAY_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_encoder(tmp_path / "toy").folder


def test_blobs_of_another_program_are_neither_removed_nor_joined(models: Path, toy: Path):
    theirs = models / "blobs" / ("a" * 64)
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"weights of another program")
    install_model(toy)
    remove_model("toy")
    assert [file.name for file in theirs.parent.iterdir()] == [theirs.name]


def test_unused_blobs_go_with_the_last_model_that_used_them(models: Path, toy: Path):
    card = install_model(toy)
    assert (models / "blobs" / card.weights.sha256).samefile(card.weights_path)
    remove_model("toy")
    assert not (models / "blobs").exists()


def test_folder_with_another_models_name_is_neither_removed_nor_replaced(models: Path, toy: Path, tmp_path: Path):
    models.mkdir()
    shutil.copytree(toy, models / "other-name")
    with pytest.raises(WrongUseError, match="holds 'toy'"):
        remove_model("other-name")
    card = tmp_path / "second" / "card.toml"
    shutil.copytree(toy, card.parent)
    card.write_text(card.read_text(encoding="utf-8").replace('id = "toy"', 'id = "other-name"'), encoding="utf-8")
    with pytest.raises(WrongUseError, match="holds 'toy'"):
        install_model(card.parent, replace=True)
    assert find_encoder("toy").folder == models / "other-name"
    with pytest.raises(WrongUseError, match="no id"):
        remove_model("")


def test_linked_model_is_removed_by_its_link_alone(models: Path, toy: Path):
    models.mkdir()
    (models / "toy").symlink_to(toy, target_is_directory=True)
    remove_model("toy")
    assert (toy / "card.toml").is_file()
    assert list(models_folder().iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "wrong"), [("mpp = 0.5", f"mpp = 1{'0' * 400}"), ("bytes = ", f"bytes = 1{'0' * 30}")]
)
def test_number_beyond_all_bounds_makes_one_bad_card_and_hides_no_other(models: Path, toy: Path, entry, wrong):
    models.mkdir()
    shutil.copytree(toy, models / "toy")
    card = models / "toy" / "card.toml"
    card.write_text(card.read_text(encoding="utf-8").replace(entry, wrong, 1), encoding="utf-8")
    with pytest.raises(UntrustedEncoderError):
        read_card(card.parent)
    assert [card.id for card in list_encoders()] == ["slideway-small"]


@pytest.mark.parametrize("key", [b"\xfa\x80\x80\x80\x10", b"\x02"], ids=["33 bits", "field 0"])
def test_field_that_other_readers_would_see_as_another_is_refused(tmp_path: Path, key: bytes):
    file = tmp_path / "weights.onnx"
    file.write_bytes(key + b"\x01x")
    with pytest.raises(ValueError, match="impossible field"):
        list_external_files(file)
