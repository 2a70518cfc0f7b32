"""Settings: frozen, documented, and refused with the line."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from slideway.bundles.policy import Level, parse_policy
from slideway.cli.edge import command
from slideway.core.errors import LineDownError, PolicyError, WrongUseError
from slideway.edge.init import init_edge, pin_receiver, write_example, write_quick_policy
from slideway.edge.settings import EdgeSettings, describe_settings, parse_settings, read_settings

DOCS = Path(__file__).parents[2] / "docs" / "edge.md"


def test_example_file_means_the_defaults_and_names_every_setting() -> None:
    text = write_example()
    assert parse_settings(text, Path("/x")) == EdgeSettings(Path("/x"))
    live = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert parse_settings(live, Path("/x")) == EdgeSettings(Path("/x"))
    for note in describe_settings():
        assert f"\n# {note.key} = {note.default}\n" in text


def test_every_setting_stands_in_the_docs_with_its_default() -> None:
    docs = DOCS.read_text("utf-8")
    for note in describe_settings():
        row = f"| `[{note.section}] {note.key}` | `{note.default}` | {note.words} |"
        assert row in docs, row


def test_a_watched_windows_path_is_read_as_it_was_given() -> None:
    given = r"D:\scans\new slides"
    assert parse_settings(write_example([given]), Path("/x")).watch.folders == (given,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[watch]\n\npol_seconds = 1", "line 3: [watch] pol_seconds is not known"),
        ("[wotch]\nx = 1", "line 1: [wotch] is not known"),
        ('[reading]\nworkers = "2"', "line 2: [reading] workers must be a whole number"),
        ("[reading]\nworkers = true", "must be a whole number"),
        ("[web]\nnames = [1]", "must be a list of texts"),
        ("[reading]\nworkers = 0", "[reading] workers = 0: at least 1"),
        ("[watch", "not TOML"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(WrongUseError, match=re.escape(words)):
        parse_settings(text, Path("/x"))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EdgeSettings(Path("/x")).web.port = 1  # type: ignore[misc]


def test_init_makes_a_private_folder_and_changes_nothing_the_second_time(tmp_path: Path) -> None:
    assert set(init_edge(tmp_path / "n").made) == {"edge.toml", "policy.example.toml", "keys", "store"}
    kept = {path: path.read_bytes() for path in (tmp_path / "n").rglob("*.pem")}
    assert init_edge(tmp_path / "n").made == ()
    assert kept == {path: path.read_bytes() for path in kept}
    assert (tmp_path / "n" / "scans").is_dir()
    assert not (tmp_path / "n" / "policy.toml").exists()
    if os.name == "posix":
        assert (tmp_path / "n" / "state").stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
    assert read_settings(tmp_path / "n" / "edge.toml").folders == ((tmp_path / "n" / "scans").resolve(),)


def test_quick_policy_lets_nothing_leave_until_a_key_is_pinned(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert pin_receiver(path, "cloud", b"k" * 32) == "missing"
    path.write_text(write_quick_policy(Level.FEATURES, "cloud"), encoding="utf-8")
    assert parse_policy(path.read_text("utf-8")).receivers["cloud"].key == "0" * 64
    assert pin_receiver(path, "elsewhere", b"k" * 32) == "missing"
    assert pin_receiver(path, "cloud", b"k" * 32) == "pinned"
    assert pin_receiver(path, "cloud", b"k" * 32) == "already"
    before = path.read_bytes()
    assert pin_receiver(path, "cloud", b"other key of thirty-two bytes...") == "other"
    assert path.read_bytes() == before


def test_a_broken_policy_is_not_pinned_over(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[receiver.cloud]\n", encoding="utf-8")
    with pytest.raises(PolicyError):
        pin_receiver(path, "cloud", b"k" * 32)


def test_code_that_begins_with_a_hyphen_is_no_option(tmp_path: Path) -> None:
    init_edge(tmp_path / "n")
    config = str(tmp_path / "n" / "edge.toml")
    done = CliRunner().invoke(command, ["enrol", "https://127.0.0.1:9", f"-Fx_9.{'0' * 20}", "--config", config])
    assert isinstance(done.exception, LineDownError)
