"""Where heads are found: those that are packaged with Slideway, then the user's own, which come and go here."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from slideway.core.errors import UnknownHeadError, UntrustedHeadError, WrongUseError
from slideway.registry.blobs import hash_file
from slideway.registry.head_card import HEAD_ID, read_head_card, write_head_card
from slideway.registry.head_records import HeadCard
from slideway.registry.records import CARD_FILE
from slideway.registry.staging import Staging, remove_folder, require_space, write_fence
from slideway.registry.store import HEADS, models_folder

_PACKAGED = Path(__file__).parent / "heads_packaged"


def heads_folder() -> Path:
    """Where the user's heads lie, one folder each: `heads` in the models' folder."""
    return models_folder() / HEADS


def list_heads() -> tuple[HeadCard, ...]:
    """Cards of all heads that can be read, packaged ones first; a user's head cannot take a packaged id."""
    cards: dict[str, HeadCard] = {}
    for folder in _head_folders():
        try:
            card = read_head_card(folder)
        except UntrustedHeadError:
            continue  # one broken folder must not hide the others; asked for by name, it says what is wrong
        cards.setdefault(card.id, card)
    return tuple(cards.values())


def list_broken_heads() -> dict[str, str]:
    """Folders whose card cannot be read, with the reason."""
    broken: dict[str, str] = {}
    for folder in _head_folders():
        try:
            read_head_card(folder)
        except UntrustedHeadError as error:
            broken[folder.name] = str(error)
    return broken


def find_head(id_or_folder: str | Path) -> HeadCard:
    """Find a head by id, packaged ones first, or read the card in a folder (a text with a path separator).

    Raises:
        UnknownHeadError: No head of that id is installed, or no such folder is there.
        UntrustedHeadError: Its card cannot be read.
    """
    text = str(id_or_folder)
    if isinstance(id_or_folder, Path) or any(mark in text for mark in ("/", "\\")):
        folder = Path(id_or_folder)
        if not folder.is_dir():
            raise UnknownHeadError(f"no folder {folder.name!r} with a head is there")
        return read_head_card(folder)
    cards = {card.id: card for card in list_heads()}
    if text in cards:
        return cards[text]
    for folder in _head_folders():
        if folder.name == text:
            read_head_card(folder)  # says what is wrong with it
    raise UnknownHeadError(
        f"no head {text!r}; installed: {', '.join(cards) or 'none'}. Add one with `slideway models add FOLDER`, or "
        f"give its folder with the path (./{text} for one in the working directory)"
    )


def verify_head_files(card: HeadCard) -> None:
    """See that the weights are those that the card names.

    Whether they *compute* what they should is seen when they are loaded: `slideway.heads.load_head`.

    Raises:
        UntrustedHeadError: The file is missing or changed.
    """
    try:
        found = hash_file(card.weights_path)
    except OSError as error:
        raise UntrustedHeadError(
            f"{card.id}: {card.weights_path.name} cannot be read ({error.strerror}); install the head again"
        ) from error
    if found != card.weights.sha256:
        raise UntrustedHeadError(
            f"{card.id}: {card.weights_path.name} is not the file its card names (sha256 {found[:12]} instead of "
            f"{card.weights.sha256[:12]}); it was changed or damaged: install the head again"
        )


def install_head(source: Path, *, replace_it: bool = False, head_id: str | None = None) -> HeadCard:
    """Verify a head's folder and copy it to the user's heads, all or nothing.

    A head that is new here is a candidate, whatever its card says: it speaks of every slide only once a person here
    makes it active. The same head again changes nothing, unless the installed one was damaged: its state and what a
    person switched on or off stay. With `replace_it` the new card counts.

    Args:
        source: Folder with card, weights and licence; what else lies in it is not taken.
        replace_it: Let it take the place of another head of the same id.
        head_id: Install it under this id instead of the one on its card.

    Raises:
        UntrustedHeadError: A file is missing or is not the one the card names.
        WrongUseError: Another head has this id, or the id belongs to Slideway.
        OutputError: The heads' folder cannot be written; nothing half-written stays.
    """
    card = read_head_card(source)
    verify_head_files(card)
    id_ = head_id or card.id
    held = _require_free_place(id_, card, replace_it=replace_it)
    if held is not None and held.fingerprint == card.fingerprint and not replace_it and _is_whole(held):
        return held
    with Staging(heads_folder(), held.folder.name if held is not None else id_) as staging:
        require_space(heads_folder(), card.weights.bytes + 100_000)
        for name in card.file_names:
            try:
                shutil.copyfile(source / name, staging.path / name)
            except FileNotFoundError as error:
                raise UntrustedHeadError(f"{card.id}: {name} is not there; the head is not whole") from error
        is_same = held is not None and held.fingerprint == card.fingerprint and not replace_it
        state = held.state if held is not None and is_same else "candidate"
        write_head_card(replace(card, folder=staging.path, id=id_, state=state))
        verify_head_files(read_head_card(staging.path))
        return read_head_card(staging.commit())


def set_head_state(id_: str, state: str) -> HeadCard:
    """Change the state of one of the user's heads; returns its new card.

    Raises:
        UnknownHeadError: None of that id is installed.
        WrongUseError: It came with Slideway.
    """
    return _change(replace(_find_own(id_), state=state))


def switch_task(id_: str, task_id: str, *, on: bool, reason: str = "") -> HeadCard:
    """Switch one question of a user's head on or off, by a person's decision; returns its new card.

    Args:
        id_: The head.
        task_id: The question.
        on: Whether it is in force from now on.
        reason: Why it is off.

    Raises:
        UnknownHeadError: None of that id is installed.
        WrongUseError: It came with Slideway, or has no such question.
    """
    card = _find_own(id_)
    if task_id not in {task.question.id for task in card.tasks}:
        raise WrongUseError(
            f"{id_} has no task {task_id!r}; it has {', '.join(task.question.id for task in card.tasks)}"
        )
    tasks = tuple(
        replace(task, in_force=on, off_because="" if on else reason or "Switched off by a person.")
        if task.question.id == task_id
        else task
        for task in card.tasks
    )
    return _change(replace(card, tasks=tasks))


def remove_head(id_: str) -> None:
    """Remove one of the user's heads; a broken one by the name of its folder.

    Raises:
        UnknownHeadError: None of that id is installed.
        WrongUseError: It came with Slideway.
    """
    is_broken = id_ in list_broken_heads() and id_ not in {card.id for card in list_heads()}
    folder = heads_folder() / id_ if is_broken else _find_own(id_).folder
    remove_folder(folder.parent, folder.name)


def is_packaged_head(card: HeadCard) -> bool:
    """Whether a head came with Slideway, and so can be neither changed nor removed."""
    return card.folder.parent == _PACKAGED


def _change(card: HeadCard) -> HeadCard:
    with write_fence(card.folder):
        write_head_card(card)
    return card


def _find_own(id_: str) -> HeadCard:
    if any(mark in id_ for mark in ("/", "\\")):
        raise WrongUseError(f"{id_!r} is no id of an installed head; `slideway models list` shows them")
    card = find_head(id_)
    if is_packaged_head(card):
        raise WrongUseError(
            f"{id_} came with Slideway and stays as it is; use it by name with `slideway read --head {id_}`"
        )
    return card


def _require_free_place(id_: str, card: HeadCard, *, replace_it: bool) -> HeadCard | None:
    """The head whose place would be taken; None for a new one."""
    if not re.fullmatch(HEAD_ID, id_):
        raise WrongUseError(f"{id_!r} cannot be an id: small letters, digits, dots, - and _, at most 64")
    held = next((known for known in list_heads() if known.id == id_), None)
    if held is not None and is_packaged_head(held):
        raise WrongUseError(f"the id {id_!r} belongs to a head of Slideway's; give another one with --id")
    if held is not None and held.fingerprint != card.fingerprint and not replace_it:
        raise WrongUseError(
            f"{id_!r} is installed already and is another head (fingerprint {held.fingerprint[:12]}); give this one "
            "another id with --id, or let it take the place with --replace"
        )
    if held is None:
        _require_free_folder(heads_folder() / id_, replace_it=replace_it)
    return held


def _require_free_folder(folder: Path, *, replace_it: bool) -> None:
    """Refuse a folder in which something else lies: a head of another id, or one that is broken."""
    if not folder.exists():
        return
    other = next((known for known in list_heads() if known.folder == folder), None)
    if other is not None:
        raise WrongUseError(
            f"the folder {folder.name!r} among the heads holds {other.id!r}; give this head another id with --id"
        )
    if not replace_it:
        raise WrongUseError(
            f"{folder.name!r} is installed already and is broken; let this head take the place with --replace"
        )


def _is_whole(card: HeadCard) -> bool:
    try:
        verify_head_files(card)
    except UntrustedHeadError:
        return False
    return (card.folder / card.licence.file).is_file()


def _head_folders() -> list[Path]:
    roots = [root for root in (_PACKAGED, heads_folder()) if root.is_dir()]
    found = [card.parent for root in roots for card in sorted(root.glob(f"*/{CARD_FILE}"))]
    return [folder for folder in found if not folder.name.startswith(".")]  # hidden: not yet whole
