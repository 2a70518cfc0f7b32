"""Encoders are found by id, packaged ones first, or by folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slideway.core.errors import UnknownEncoderError, UntrustedEncoderError
from slideway.registry import DEFAULT_ENCODER, find_encoder, list_encoders, models_folder


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("SLIDEWAY_MODELS", str(folder))
    return folder


def install(own_models: Path, folder_name: str, encoder_id: str) -> Path:
    folder = own_models / folder_name
    folder.mkdir(parents=True)
    card = (find_encoder(DEFAULT_ENCODER).folder / "card.toml").read_text(encoding="utf-8")
    (folder / "card.toml").write_text(card.replace(f'"{DEFAULT_ENCODER}"', f'"{encoder_id}"'), encoding="utf-8")
    return folder


def test_default_encoder_is_packaged() -> None:
    assert find_encoder(DEFAULT_ENCODER).weights_path.is_file()


def test_users_encoder_is_found_by_the_id_on_its_card(own_models: Path) -> None:
    folder = install(own_models, "anything", "hibou-b")
    assert find_encoder("hibou-b").folder == folder
    assert [card.id for card in list_encoders()][-1] == "hibou-b"


def test_users_encoder_cannot_take_the_id_of_a_packaged_one(own_models: Path) -> None:
    install(own_models, "0-first", DEFAULT_ENCODER)
    assert own_models not in find_encoder(DEFAULT_ENCODER).folder.parents
    assert [card.id for card in list_encoders()].count(DEFAULT_ENCODER) == 1


def test_folder_anywhere_is_read_when_given_as_a_path(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_encoder(DEFAULT_ENCODER).folder, tmp_path / "elsewhere"))
    assert find_encoder(folder).folder == folder
    assert find_encoder(str(folder)).folder == folder


def test_folder_in_the_working_directory_does_not_shadow_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / DEFAULT_ENCODER).mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_encoder(DEFAULT_ENCODER).folder.is_absolute()


def test_unknown_id_names_what_is_installed_and_where_to_put_it(own_models: Path) -> None:
    install(own_models, "mine", "hibou-b")
    with pytest.raises(UnknownEncoderError, match=f"{DEFAULT_ENCODER}, hibou-b") as caught:
        find_encoder("uni2-h")
    assert str(models_folder()) in str(caught.value)


def test_folder_that_is_not_there_names_what_is_installed(tmp_path: Path) -> None:
    with pytest.raises(UnknownEncoderError, match=DEFAULT_ENCODER):
        find_encoder(tmp_path / "gone")


def test_broken_card_hides_no_other_encoder_and_says_what_is_wrong_when_asked_for(own_models: Path) -> None:
    folder = install(own_models, "broken", "broken")
    (folder / "card.toml").write_text("schema = 7", encoding="utf-8")
    assert find_encoder(DEFAULT_ENCODER).id == DEFAULT_ENCODER
    with pytest.raises(UntrustedEncoderError, match="schema"):
        find_encoder("broken")


def test_models_folder_is_the_users_data_folder_unless_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIDEWAY_MODELS")
    assert models_folder().name == "models"
    assert "slideway" in str(models_folder()).lower()
