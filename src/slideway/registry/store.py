"""Where encoders are found: those that are packaged with Slideway, then the user's own, which come and go here."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from slideway.core.errors import (
    RetiredEncoderError,
    UnknownEncoderError,
    UntrustedEncoderError,
    WrongUseError,
)
from slideway.registry.blobs import BLOBS, share_blob, take_blob
from slideway.registry.card import CARD_FILE, ModelCard, change_card, read_card
from slideway.registry.staging import Staging, remove_folder, require_space, write_fence
from slideway.registry.verify import require_golden_stamp, verify_files

DEFAULT_ENCODER = "slideway-small"
TRUSTED = "trusted"
HEADS = "heads"
_PACKAGED = Path(__file__).parent / "models"
_RESERVED = {BLOBS, TRUSTED, HEADS}
_BLOCK_BYTES = 1 << 20

Check = Callable[[ModelCard], object]
Progress = Callable[[int, int], object]


def models_folder() -> Path:
    """Where the user puts encoders, one folder each; SLIDEWAY_MODELS moves it."""
    given = os.environ.get("SLIDEWAY_MODELS")
    return Path(given) if given else Path(platformdirs.user_data_dir("slideway", appauthor=False)) / "models"


def find_encoder(id_or_folder: str | Path) -> ModelCard:
    """Find an encoder to read slides with: as `find_model`, but a retired one is refused.

    Raises:
        UnknownEncoderError: No encoder of that id is installed, or no such folder is there.
        UntrustedEncoderError: Its card cannot be read.
        RetiredEncoderError: It was taken out of use.
    """
    card = find_model(id_or_folder)
    if card.state == "retired":
        raise RetiredEncoderError(
            f"{card.id} is retired: no slide is read with it any more, bags it made stay readable; choose another "
            f"(`slideway models list`), or take it back with `slideway models state {card.id} active`"
        )
    return card


def find_model(id_or_folder: str | Path) -> ModelCard:
    """Find a model in any state by id, packaged ones first, or read the card in a folder.

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


def list_broken() -> dict[str, str]:
    """Folders whose card cannot be read, with the reason."""
    broken: dict[str, str] = {}
    for folder in _model_folders():
        try:
            read_card(folder)
        except UntrustedEncoderError as error:
            broken[folder.name] = str(error)
    return broken


def is_packaged(card: ModelCard) -> bool:
    """Whether a model came with Slideway, and so can be neither changed nor removed."""
    return card.folder.parent == _PACKAGED


def install_model(
    source: Path,
    *,
    replace: bool = False,
    model_id: str | None = None,
    move: bool = False,
    check: Check | None = None,
    progress: Progress | None = None,
) -> ModelCard:
    """Verify a model's folder and copy it to the user's models, all or nothing.

    The same model again changes nothing, unless the installed one was damaged: then it is put right.

    Args:
        source: Folder with card, weights, golden tiles and licence; what else lies in it is not taken.
        replace: Let it take the place of another model of the same id.
        model_id: Install it under this id instead of the one on its card; the fingerprint stays.
        move: Take the files out of the source instead of copying them, where they are on the models' disk.
        check: Called with the card of the copy before it is put in place; what it raises stops the installation.
        progress: Told bytes done and bytes in all.

    Returns:
        Card of the installed model.

    Raises:
        UntrustedEncoderError: A file is missing or is not the one the card names.
        WrongUseError: Another model has this id, or the id belongs to Slideway.
        OutputError: The models' folder cannot be written, or the disk is full; nothing half-written stays.
    """
    card, root = _read_folder(source), models_folder()
    id_ = model_id or card.id
    if not replace and (installed := already_installed(id_, card.fingerprint)) is not None:
        return installed
    require_free_place(id_, card.fingerprint, replace=replace)
    with stage_model(id_) as staging:
        sizes = [_size_of(card, name) for name in card.file_names]
        require_space(root, sum(sizes))
        done = 0
        for name, size in zip(card.file_names, sizes, strict=True):
            _bring(card, name, staging.path / name, move=move)
            done += size
            if progress is not None:
                progress(done, sum(sizes))
        if id_ != card.id:
            change_card(staging.path, model_id=id_)
        return settle_model(staging, id_, check)


def stage_model(id_: str) -> Staging:
    """A hidden folder beside the place of a model; see `settle_model`."""
    return Staging(models_folder(), _folder_of(id_).name)


def settle_model(staging: Staging, id_: str, check: Check | None) -> ModelCard:
    """Verify what was staged, share its weights with models that have the same, and put it in its place.

    Raises:
        UntrustedEncoderError: A file is not the one the card names, or the card is another model's.
    """
    card = read_card(staging.path)
    if card.id != id_:
        raise UntrustedEncoderError(f"{id_}: the card says it is {card.id}; card and source do not belong together")
    verify_files(card)
    require_golden_stamp(card)
    if check is not None:
        check(card)
    share_blob(models_folder(), card.weights.sha256, card.weights_path)
    if card.data_path is not None:
        share_blob(models_folder(), card.weights.data_sha256, card.data_path)
    return read_card(staging.commit())


def already_installed(id_: str, fingerprint: str) -> ModelCard | None:
    """The installed model of that id, when it has this fingerprint and its files are whole; else None."""
    card = _find_own(id_)
    if card is None or card.fingerprint != fingerprint:
        return None
    try:
        verify_files(card)
    except UntrustedEncoderError:
        return None
    return card


def require_free_place(id_: str, fingerprint: str, *, replace: bool) -> None:
    """Refuse an id that belongs to Slideway, and one that another model has unless it may be replaced.

    Raises:
        WrongUseError: The id is taken.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", id_):
        raise WrongUseError(f"{id_!r} cannot be an id: small letters, digits, dots, - and _, at most 64")
    packaged = next((card for card in list_encoders() if card.id == id_ and is_packaged(card)), None)
    if packaged is not None and packaged.fingerprint == fingerprint:
        raise WrongUseError(f"{id_!r} came with Slideway and is this very model already; there is nothing to install")
    if packaged is not None or id_ in _RESERVED:
        raise WrongUseError(
            f"the id {id_!r} belongs to Slideway; the model needs another one (slideway models add --id)"
        )
    card = _find_own(id_)
    _require_own_folder(id_)
    is_taken = card.fingerprint != fingerprint if card is not None else _folder_of(id_).exists()
    if is_taken and not replace:
        which = (
            f"another model (fingerprint {card.fingerprint[:12]})" if card is not None else "a folder that is broken"
        )
        raise WrongUseError(
            f"{id_!r} is installed already and is {which}; this one is {fingerprint[:12]}: embeddings of the two do "
            "not mix. Give it another id with --id, or let it take the place with --replace"
        )


def remove_model(id_: str) -> None:
    """Remove one of the user's models; its weights go with it unless another model shares them.

    Raises:
        UnknownEncoderError: None of that id is installed.
        WrongUseError: It came with Slideway.
        OutputError: It cannot be removed.
    """
    _require_id(id_)
    _require_own_folder(id_)
    folder = _folder_of(id_)
    if not (folder / CARD_FILE).exists():
        find_model(id_)
        raise WrongUseError(f"{id_} came with Slideway and cannot be removed; read with another through --encoder")
    remove_folder(folder.parent, folder.name)


def set_state(id_: str, state: str) -> ModelCard:
    """Change the state of one of the user's models; returns its new card.

    Raises:
        UnknownEncoderError: None of that id is installed.
        WrongUseError: It came with Slideway.
        ValueError: There is no such state.
        OutputError: Its card cannot be written.
    """
    _require_id(id_)
    card = find_model(id_)
    if is_packaged(card):
        raise WrongUseError(f"{id_} came with Slideway and stays {card.state}; read with another through --encoder")
    with write_fence(card.folder):
        return change_card(card.folder, state=state)


def _require_id(text: str) -> None:
    if not text or any(mark in text for mark in ("/", "\\")) or text.startswith("."):
        raise WrongUseError(f"{text!r} is no id of an installed model; `slideway models list` shows them")


def _require_own_folder(id_: str) -> None:
    """Refuse an id that is only the name of a folder in which another model lies."""
    folder = models_folder() / id_
    if _find_own(id_) is not None or not (folder / CARD_FILE).is_file():
        return
    try:
        card = read_card(folder)
    except UntrustedEncoderError:
        return  # broken, so it may be replaced or removed by its folder's name
    if card.id != id_:
        raise WrongUseError(f"no model {id_!r} is installed; the folder of that name holds {card.id!r}: use that id")


def _find_own(id_: str) -> ModelCard | None:
    return next((card for card in list_encoders() if card.id == id_ and not is_packaged(card)), None)


def _folder_of(id_: str) -> Path:
    """Where one of the user's models is, or would be: a folder made by hand may have another name than the id."""
    card = _find_own(id_)
    return card.folder if card is not None else models_folder() / id_


def _size_of(card: ModelCard, name: str) -> int:
    try:
        return (card.folder / name).stat().st_size
    except OSError as error:
        raise UntrustedEncoderError(
            f"{card.id}: {name} cannot be read ({error.strerror}); the model is not whole"
        ) from error


def _bring(card: ModelCard, name: str, target: Path, *, move: bool) -> None:
    hashes = {card.weights.file: card.weights.sha256, f"{card.weights.file}.data": card.weights.data_sha256}
    if name in hashes and take_blob(models_folder(), hashes[name], target):
        return
    if move and not (card.folder / name).is_symlink():
        shutil.move(card.folder / name, target)
        return
    try:
        source = (card.folder / name).open("rb")
    except OSError as error:
        raise UntrustedEncoderError(
            f"{card.id}: {name} cannot be read ({error.strerror}); the model is not whole"
        ) from error
    with source, target.open("xb") as copy:
        while block := source.read(_BLOCK_BYTES):
            copy.write(block)
        copy.flush()
        os.fsync(copy.fileno())


def _model_folders() -> list[Path]:
    roots = [root for root in (_PACKAGED, models_folder()) if root.is_dir()]
    found = [card.parent for root in roots for card in sorted(root.glob(f"*/{CARD_FILE}"))]
    return [folder for folder in found if not folder.name.startswith(".")]  # hidden: not yet whole


def _read_folder(folder: Path) -> ModelCard:
    if not folder.is_dir():
        installed = ", ".join(card.id for card in list_encoders()) or "none"
        raise UnknownEncoderError(f"no folder {folder.name!r} with an encoder is there; installed by id: {installed}")
    return read_card(folder)
