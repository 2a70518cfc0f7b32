"""A card is written all at once and read back as it was, also with what schema 1.1 added."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from slideway.core.errors import UntrustedEncoderError
from slideway.registry import DEFAULT_ENCODER, ModelCard, find_encoder, read_card, write_card
from slideway.registry.card import CardEquivalence, CardOrigin, EquivalenceMachine, change_card
from slideway.testing.encoders import ToyGraph, make_golden, replace_golden_hash, write_toy_encoder

MACHINE = EquivalenceMachine("avx512_vnni", 0.9997, 0.991, 1.7, 41.5, True, "slideway models optimise x", 0.93, -0.002)


def test_card_of_schema_1_0_is_read_and_says_nothing_of_origin_or_permissions(tmp_path: Path) -> None:
    file = write_toy_encoder(tmp_path / "toy").folder / "card.toml"
    older = re.sub(r"permits = \[.*?\]\n", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    file.write_text(older.replace('schema = "1.1"', 'schema = "1.0"'), encoding="utf-8")
    card = read_card(file.parent)
    assert 'schema = "1.0"' in file.read_text(encoding="utf-8")
    assert (card.origin, card.equivalence, card.licence.permits) == (None, None, ())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"state": "shadow"},
        {"origin": CardOrigin("kaiko-vits16", "owner/name", "a" * 40)},
        {"origin": CardOrigin("kaiko-vits16", "model file (1).pth")},
        {"equivalence": CardEquivalence("f" * 64, "int8-dynamic", "median cosine above .99", (MACHINE, MACHINE))},
        {"equivalence": CardEquivalence("f" * 64, "fp16-weights", "gate")},
        {"equivalence": CardEquivalence("0" * 64, "x", "y", (EquivalenceMachine("avx2", 1, 1, 1, 1, False, "c"),))},
        {"metrics": {"auc": 0.9, "subgroups": [{"name": "scanner A", "auc": 0.91, "n": 12}, {"name": "B", "n": 3}]}},
        {"title": 'with "quotes", a \\ and µ', "limits": ("one\nline more", "two")},
    ],
    ids=["as it is", "state", "origin", "file", "form", "form unmeasured", "not passed", "subgroups", "odd words"],
)
def test_card_that_was_written_is_read_back_as_it_was(tmp_path: Path, changes) -> None:
    card = replace(write_toy_encoder(tmp_path / "toy"), **changes)
    write_card(card)
    assert read_card(card.folder) == card
    assert read_card(card.folder).fingerprint == card.fingerprint
    assert 'schema = "1.1"' in (card.folder / "card.toml").read_text(encoding="utf-8")
    assert not list(card.folder.glob(".*"))


def test_packaged_card_can_be_written_again_with_the_same_fingerprint(tmp_path: Path) -> None:
    card = replace(find_encoder(DEFAULT_ENCODER), folder=tmp_path)
    write_card(card)
    assert read_card(tmp_path) == card


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "great"},
        {"id": "Up/and away"},
        {"metrics": {"auc": None}},
        {"metrics": {"auc": (0.9, 0.8)}},
        {"metrics": {"auc": float("nan")}},
        {"origin": CardOrigin("slot", "/home/user/model.pth")},
        {"origin": CardOrigin("slot", "../model.pth")},
        {"origin": CardOrigin("slot", "C:\\model.pth")},
        {"equivalence": CardEquivalence("short", "form", "gate")},
        {"equivalence": CardEquivalence("f" * 64, "form", "gate", (replace(MACHINE, cosine_min=float("nan")),))},
        {"limits": ()},
    ],
)
def test_card_that_could_not_be_read_back_is_not_written(tmp_path: Path, changes) -> None:
    card = write_toy_encoder(tmp_path / "toy")
    before = (card.folder / "card.toml").read_bytes()
    with pytest.raises(ValueError, match=r"toy|Up"):
        write_card(replace(card, **changes))
    assert (card.folder / "card.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ('[origin]\nslot = "s"\nsource = "/etc/passwd"', r"\[origin\] source"),
        ('[origin]\nsource = "x"', r"\[origin\] slot"),
        ("origin = 3", r"\[origin\]"),
        ('[equivalence]\nof = "x"\nform = "f"\ngate = "g"', r"\[equivalence\] of"),
        (f'[equivalence]\nof = "{"a" * 64}"\nform = "f"\ngate = "g"\nmachines = 3', "machines"),
        (f'[equivalence]\nof = "{"a" * 64}"\nform = "f"\ngate = "g"\nmachines = [3]', "equivalence.machines"),
    ],
)
def test_impossible_entry_of_schema_1_1_is_refused_by_name(toy: ModelCard, entry: str, named: str) -> None:
    path = toy.folder / "card.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(entry + "\n" + text if "origin = 3" in entry else f"{text}\n{entry}\n", encoding="utf-8")
    with pytest.raises(UntrustedEncoderError, match=named):
        read_card(toy.folder)


def test_unknown_permission_is_refused(toy: ModelCard) -> None:
    path = toy.folder / "card.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('"redistribute"', '"sell"'), encoding="utf-8")
    with pytest.raises(UntrustedEncoderError, match="permits"):
        read_card(toy.folder)


def test_one_file_name_for_two_things_is_refused(toy: ModelCard) -> None:
    path = toy.folder / "card.toml"
    for name in ("weights.onnx", "Golden.safetensors", "CARD.toml", "weights.onnx.data"):
        with pytest.raises(ValueError, match="two things"):
            write_card(replace(toy, licence=replace(toy.licence, file=name)))
    assert read_card(toy.folder) == toy
    assert path.exists()


def test_card_too_large_or_nested_without_end_is_refused(toy: ModelCard) -> None:
    for content in (b"#" * 1_000_001, b"a = " + b"[" * 50_000):
        (toy.folder / "card.toml").write_bytes(content)
        with pytest.raises(UntrustedEncoderError, match="not valid TOML"):
            read_card(toy.folder)


def test_changing_the_state_keeps_entries_of_a_newer_minor_version(toy: ModelCard) -> None:
    path = toy.folder / "card.toml"
    text = path.read_text(encoding="utf-8").replace('schema = "1.1"', 'schema = "1.9"\nnewly_added = "kept"')
    path.write_text(text, encoding="utf-8")
    assert change_card(toy.folder, state="retired").state == "retired"
    changed = path.read_text(encoding="utf-8")
    assert 'newly_added = "kept"' in changed
    assert 'schema = "1.9"' in changed
    with pytest.raises(ValueError, match="state"):
        change_card(toy.folder, state="great")


def test_golden_tiles_made_for_another_card_are_seen(toy: ModelCard) -> None:
    golden = make_golden(ToyGraph(), "0" * 64)
    toy.golden_path.write_bytes(golden)
    write_card(replace_golden_hash(toy, golden))
    from slideway.registry import verify_files

    with pytest.raises(UntrustedEncoderError, match="made for fingerprint"):
        verify_files(read_card(toy.folder))
