"""Make a node's folder and enrol it with a cloud; what is there already is never overwritten."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slideway.bundles.policy import EXAMPLE, Level, fingerprint_of, load_policy
from slideway.core.errors import WrongUseError
from slideway.edge.settings import CONFIG, PolicySettings, WatchSettings, describe_settings, parse_settings
from slideway.edge.shelves import ALONE, open_own_store
from slideway.sync.identity import load_keys

POLICY = "policy.toml"
POLICY_EXAMPLE = "policy.example.toml"
_NO_KEY = "0" * 64  # no key has this fingerprint: until the node is enrolled nothing can leave
_HEAD = """\
# Settings of a Slideway node. What is commented out is the default; docs/edge.md says more.
# After a change: stop `slideway edge serve` and start it again.
"""


@dataclass(frozen=True)
class Initiation:
    """What `init_edge` did.

    Attributes:
        made: Names of what it made; what was there is not among them.
        folders: Folders that are watched.
    """

    made: tuple[str, ...]
    folders: tuple[Path, ...]


def init_edge(
    folder: Path, *, watch: Sequence[str] = (), policy: str | None = None, receiver: str = "cloud"
) -> Initiation:
    """Make a node's folder: settings, an example of a policy, keys, the store.

    Args:
        folder: Where.
        watch: Folders that scanners write into; none means `scans` in the folder itself.
        policy: Also write a policy that lets so much leave, once the node is enrolled; None writes none.
        receiver: What the policy calls the cloud.
    """
    made: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    watched = tuple(str(Path(place).expanduser().resolve()) for place in watch)
    if _write_once(folder / CONFIG, write_example(watched, receiver)):
        made.append(CONFIG)
    if _write_once(folder / POLICY_EXAMPLE, EXAMPLE):
        made.append(POLICY_EXAMPLE)
    if policy is not None and _write_once(folder / POLICY, write_quick_policy(Level[policy.upper()], receiver)):
        made.append(POLICY)
    settings = parse_settings((folder / CONFIG).read_text(encoding="utf-8"), folder.resolve())
    if not watched and settings.watch == WatchSettings():
        (folder / "scans").mkdir(exist_ok=True)
    places = settings.places
    made += [] if places.keys.exists() else ["keys"]
    _make_private(places.folder)
    load_keys(places.keys)
    made += [] if (places.folder / "slideway.db").exists() else ["store"]
    with open_own_store(places) as store:
        store.add_tenant(ALONE, name="before the node was enrolled")
    return Initiation(tuple(made), settings.folders)


def write_example(watch: Sequence[str] = (), receiver: str = "cloud") -> str:
    """The text of an `edge.toml` in which every setting stands with its default and what it does."""
    given = {}
    if watch:
        given["watch", "folders"] = "[" + ", ".join(_quote(place) for place in watch) + "]"
    if receiver != PolicySettings().receiver:
        given["policy", "receiver"] = _quote(receiver)
    lines, section = [_HEAD.rstrip()], ""
    for note in describe_settings():
        if note.section != section:
            section = note.section
            lines += ["", f"[{section}]"]
        lines += textwrap.wrap(note.words, 116, initial_indent="# ", subsequent_indent="# ")
        value = given.get((section, note.key))
        lines.append(f"{note.key} = {value}" if value else f"# {note.key} = {note.default}")
    return "\n".join(lines) + "\n"


def write_quick_policy(level: Level, receiver: str) -> str:
    """A policy for a quick start: no key is pinned yet, so nothing leaves before the node is enrolled."""
    return f"""\
# What may leave this laboratory, to whom and why. Written by `slideway edge init --policy {level.word}`.
# Read docs/policy.md and {POLICY_EXAMPLE}, and replace the reason by your own before real slides are read.
version = "1.0"

[receiver.{receiver}]
may_leave = "{level.word}"
reason = "Quick start on the operator's word; nobody has decided on real patients' slides yet."
# Fingerprint of the cloud's key; `slideway edge enrol` fills it in, and until then nothing can leave.
key = "{_NO_KEY}"
must_encrypt = true
"""


def pin_receiver(path: Path, receiver: str, receiving_key: bytes) -> str:
    """Fill the cloud's key into a policy that was written for a quick start; says what is pinned now.

    A key that a person pinned is never changed.

    Returns:
        `pinned`, `already`, `other` (another key is pinned), `missing` (no policy, or it does not name the receiver).
    """
    fingerprint = fingerprint_of(receiving_key)
    if not path.exists():
        return "missing"
    rule = load_policy(path).receivers.get(receiver)
    if rule is None:
        return "missing"
    if rule.key == fingerprint:
        return "already"
    if rule.key != _NO_KEY:
        return "other"
    text = path.read_text(encoding="utf-8")
    part = path.with_name(f".{path.name}.part")
    part.write_text(text.replace(f'key = "{_NO_KEY}"', f'key = "{fingerprint}"', 1), encoding="utf-8")
    if load_policy(part).receivers != {
        name: replace(found, key=fingerprint) if name == receiver else found
        for name, found in load_policy(path).receivers.items()
    }:
        part.unlink()
        return "other"
    part.replace(path)
    return "pinned"


def _quote(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"  # a literal: backslashes of Windows paths stay as they are
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_once(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise WrongUseError(f"{path.name}: cannot be written ({error.strerror}); choose another folder") from error
    return True


def _make_private(folder: Path) -> None:
    """Only this user may look in: answers are pictures of patients."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        folder.chmod(0o700)
