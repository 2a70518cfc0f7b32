"""Where encoders are found: those that are packaged with Slideway, then the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from slideway.core.errors import UnknownEncoderError, UntrustedEncoderError
from slideway.registry.card import CARD_FILE, ModelCard, read_card

DEFAULT_ENCODER = "mobilenetv2-imagenet"
_PACKAGED = Path(__file__).parent / "models"


def models_folder() -> Path:
    """Where the user puts encoders, one folder each; SLIDEWAY_MODELS moves it."""
    given = os.environ.get("SLIDEWAY_MODELS")
    return Path(given) if given else Path(platformdirs.user_data_dir("slideway", appauthor=False)) / "models"


def find_encoder(id_or_folder: str | Path) -> ModelCard:
    """Find an encoder by id, packaged ones first, or read the card in a folder.

    A text without a path separator is an id: a folder of that name in the working directory cannot shadow an encoder.

    Raises:
        UnknownEncoderError: No encoder of that id is installed, or no such folder is there.
        UntrustedEncoderError: Its card cannot be read.
    """
    text = str(id_or_folder)
    if isinstance(id_or_folder, Path) or any(mark in text for mark in ("/", "\\")):
        return _read_folder(Path(id_or_folder))
    cards = {card.id: card for card in list_encoders()}
    if text in cards:
        return cards[text]
    for folder in _model_folders():
        if folder.name == text:
            read_card(folder)  # says what is wrong with it
    raise UnknownEncoderError(
        f"no encoder {text!r}; installed: {', '.join(cards) or 'none'}. Put its folder into {models_folder()}, "
        f"or give the folder with its path (./{text} for one in the working directory)"
    )


def list_encoders() -> tuple[ModelCard, ...]:
    """Cards of all encoders that can be read, packaged ones first; a user's encoder cannot take a packaged id."""
    cards: dict[str, ModelCard] = {}
    for folder in _model_folders():
        try:
            card = read_card(folder)
        except UntrustedEncoderError:
            continue  # one broken folder must not hide the others; asked for by name, it says what is wrong
        cards.setdefault(card.id, card)
    return tuple(cards.values())


def _model_folders() -> list[Path]:
    roots = [root for root in (_PACKAGED, models_folder()) if root.is_dir()]
    return [card.parent for root in roots for card in sorted(root.glob(f"*/{CARD_FILE}"))]


def _read_folder(folder: Path) -> ModelCard:
    if not folder.is_dir():
        installed = ", ".join(card.id for card in list_encoders()) or "none"
        raise UnknownEncoderError(f"no folder {folder.name!r} with an encoder is there; installed by id: {installed}")
    return read_card(folder)
