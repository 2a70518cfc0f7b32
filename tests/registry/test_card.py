"""A model card is read strictly, and a change in it or in its files does not go unnoticed."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from slideway.core.errors import UntrustedEncoderError
from slideway.registry import (
    DEFAULT_ENCODER,
    ModelCard,
    find_encoder,
    fingerprint_card,
    list_encoders,
    read_card,
    verify_files,
)


@pytest.fixture(scope="module")
def packaged() -> ModelCard:
    return find_encoder(DEFAULT_ENCODER)


@pytest.fixture
def folder(packaged: ModelCard, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packaged.folder, tmp_path / "encoder"))


def edit(folder: Path, pattern: str, replacement: str) -> None:
    card = folder / "card.toml"
    text, count = re.subn(pattern, replacement, card.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1, f"the card has no {pattern}"
    card.write_text(text, encoding="utf-8")


def stamp(folder: Path, file: str) -> None:
    """Put a changed file's hash into the card, as someone would who wants the change to pass."""
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    card = folder / "card.toml"
    text = card.read_text(encoding="utf-8")
    card.write_text(re.sub(rf'(file = "{file}"\nsha256 = )"\w+"', rf'\1"{digest}"', text), encoding="utf-8")


def test_every_packaged_card_is_read_and_its_files_are_those_it_names() -> None:
    cards = list_encoders()
    assert DEFAULT_ENCODER in [card.id for card in cards]
    for card in cards:
        verify_files(card)
        assert card.weights_path.stat().st_size == card.weights.bytes
        assert (card.folder / card.licence.file).read_text(encoding="utf-8").strip()


def test_packaged_card_states_limits_uses_and_credit_for_its_golden_tiles(packaged: ModelCard) -> None:
    assert len(packaged.limits) >= 3
    assert "diagnosis" in packaged.use.not_intended.lower()
    assert "Histopathology Atlas" in packaged.licence.note
    assert packaged.metrics["command"].startswith("python bench/")


def test_fingerprint_is_the_one_that_existing_bags_carry(packaged: ModelCard) -> None:
    # A change here makes every stored bag incomparable: only with new weights, input, pooling or precision.
    assert packaged.fingerprint == "9abac04fdddfaf865066404a6f1120a0862fdfddecf13246564c52e927105b67"


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        (r"^tile_px = 224", "tile_px = 256"),
        (r"^mpp = 0.5", "mpp = 0.25"),
        (r"^mean = \[0.485", "mean = [0.5"),
        (r"^std = \[0.229", "std = [0.5"),
        (r'^resize = "area"', 'resize = "bicubic"'),
        (r"^pooling = \".*\"", 'pooling = "cls"'),
        (r"^width = 512", "width = 768"),
        (r'^precision = "fp32"', 'precision = "int8"'),
        (r'(?s)(\[weights\].*?sha256 = ")..', r"\g<1>00"),
    ],
)
def test_changed_entry_gives_another_fingerprint_and_is_refused(
    packaged: ModelCard, folder: Path, pattern: str, changed: str
) -> None:
    edit(folder, pattern, changed)
    card = read_card(folder)
    assert card.fingerprint != packaged.fingerprint
    with pytest.raises(UntrustedEncoderError):
        verify_files(card)


@pytest.mark.parametrize("entry", [r'^title = ".*"', r'^note = ".*"', r'^intended = ".*"', r"^max_abs_difference = .*"])
def test_changed_words_and_tolerances_leave_the_fingerprint(packaged: ModelCard, folder: Path, entry: str) -> None:
    name = entry[1:].split(" ", maxsplit=1)[0]
    edit(folder, entry, f"{name} = 0.5" if "max" in name else f'{name} = "other words"')
    assert read_card(folder).fingerprint == packaged.fingerprint


def test_whole_number_for_mpp_gives_the_same_fingerprint_as_a_decimal(folder: Path) -> None:
    edit(folder, r"^mpp = 0.5", "mpp = 1")
    whole = read_card(folder).fingerprint
    edit(folder, r"^mpp = 1", "mpp = 1.0")
    assert read_card(folder).fingerprint == whole


@settings(max_examples=15, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@pytest.mark.parametrize("file", ["weights.onnx", "golden.safetensors"])
def test_one_flipped_bit_anywhere_in_a_file_is_refused(packaged: ModelCard, tmp_path_factory, file, place, bit) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    for name in ("weights.onnx", "golden.safetensors"):
        (folder / name).hardlink_to(packaged.folder / name) if name != file else None
    content = bytearray((packaged.folder / file).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / file).write_bytes(content)
    with pytest.raises(UntrustedEncoderError, match=f"{file} is not the file its card names"):
        verify_files(replace(packaged, folder=folder))


@pytest.mark.parametrize("file", ["weights.onnx", "golden.safetensors"])
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UntrustedEncoderError, match=file):
        verify_files(read_card(folder))


def test_second_weights_file_that_the_card_does_not_name_is_refused(folder: Path) -> None:
    (folder / "weights.onnx.data").write_bytes(b"tensors from elsewhere")
    with pytest.raises(UntrustedEncoderError, match=r"weights\.onnx\.data"):
        verify_files(read_card(folder))


def test_second_weights_file_is_part_of_the_fingerprint(packaged: ModelCard, folder: Path) -> None:
    (folder / "weights.onnx.data").write_bytes(b"tensors")
    edit(
        folder, r'^precision = "fp32"', f'precision = "fp32"\ndata_sha256 = "{hashlib.sha256(b"tensors").hexdigest()}"'
    )
    assert read_card(folder).fingerprint != packaged.fingerprint


def test_card_changed_together_with_its_hashes_is_refused_since_golden_tiles_know_their_fingerprint(
    folder: Path,
) -> None:
    with (folder / "weights.onnx").open("ab") as weights:
        weights.write(b"\0")
    stamp(folder, "weights.onnx")
    with pytest.raises(UntrustedEncoderError, match="golden tiles were made for fingerprint"):
        verify_files(read_card(folder))


def test_golden_tiles_of_another_size_or_width_are_refused(folder: Path) -> None:
    golden = load_file(folder / "golden.safetensors")
    for tensors in (
        {"tiles": golden["tiles"][:, :128, :128].copy(), "vectors": golden["vectors"]},
        {"tiles": golden["tiles"], "vectors": golden["vectors"][:, :100].copy()},
        {"tiles": golden["tiles"][:0].copy(), "vectors": golden["vectors"][:0].copy()},
        {"tiles": golden["tiles"], "vectors": np.zeros((), np.float32)},
    ):
        (folder / "golden.safetensors").write_bytes(save(tensors))
        stamp(folder, "golden.safetensors")
        with pytest.raises(UntrustedEncoderError, match="do not fit the card"):
            verify_files(read_card(folder))


def test_golden_file_that_is_no_safetensors_file_is_refused(folder: Path) -> None:
    (folder / "golden.safetensors").write_bytes(b"not tensors")
    stamp(folder, "golden.safetensors")
    with pytest.raises(UntrustedEncoderError, match="no golden tiles"):
        verify_files(read_card(folder))


def test_newer_major_schema_is_refused_and_newer_minor_is_read(folder: Path) -> None:
    edit(folder, r'^schema = "1.1"', 'schema = "1.7"\nnewly_added = "ignored"')
    assert read_card(folder).id == DEFAULT_ENCODER
    edit(folder, r'^schema = "1.7"', 'schema = "2.0"')
    with pytest.raises(UntrustedEncoderError, match="update Slideway"):
        read_card(folder)


@pytest.mark.parametrize(
    ("pattern", "wrong", "named"),
    [
        (r'^schema = "1.1"\n', "", "schema"),
        (r'^schema = "1.1"', "schema = 1.1", "schema"),
        (r'^id = ".*"', 'id = "../elsewhere"', "id must be"),
        (r'^state = ".*"', 'state = "great"', "state must be"),
        (r"^tile_px = 224", "tile_px = 224.0", r"\[input\] tile_px"),
        (r"^tile_px = 224", "tile_px = true", r"\[input\] tile_px"),
        (r"^mpp = 0.5", "mpp = 0", r"\[input\] mpp"),
        (r"^mpp = 0.5", "mpp = nan", r"\[input\] mpp"),
        (r"^mpp = 0.5", "mpp = inf", r"\[input\] mpp"),
        (r"^mean = .*", "mean = [0.5, 0.5]", r"\[input\] mean"),
        (r"^std = .*", "std = [0.5, nan, 0.5]", r"\[input\] std"),
        (r"^std = .*", "std = [0.5, 0, 0.5]", r"\[input\] std"),
        (r'^file = "weights.onnx"', 'file = "../weights.onnx"', r"\[weights\] file"),
        (r'^file = "weights.onnx"', r"file = 'C:\\weights.onnx'", r"\[weights\] file"),
        (r'^sha256 = "..', 'sha256 = "XY', r"\[weights\] sha256"),
        (r"^\[golden\]", "[silver]", r"\[golden\]"),
        (r"(?s)^\[metrics\].*\Z", "", r"\[metrics\]"),
        (r"(?s)^plain = \[.*?^\]", "plain = []", r"\[limits\] plain"),
        (r'^title = ".*"', 'title = " "', "title must be a text"),
        (r'^title = ".*"', "title = [[[", "not valid TOML"),
    ],
)
def test_impossible_entry_is_refused_by_its_name(folder: Path, pattern: str, wrong: str, named: str) -> None:
    edit(folder, pattern, wrong)
    with pytest.raises(UntrustedEncoderError, match=named):
        read_card(folder)


def test_folder_without_a_card_and_card_in_another_encoding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UntrustedEncoderError, match="no readable card"):
        read_card(tmp_path)
    (tmp_path / "card.toml").write_bytes(b'title = "\xff\xfe"')
    with pytest.raises(UntrustedEncoderError, match="not valid TOML"):
        read_card(tmp_path)


def test_fingerprint_of_a_card_is_the_documented_hash() -> None:
    card = find_encoder(DEFAULT_ENCODER)
    canonical = (
        '{"mean":[0.485,0.456,0.406],"mpp":0.5,"pooling":"' + card.output.pooling + '","precision":"fp32",'
        '"resize":"area","std":[0.229,0.224,0.225],"tile_px":224,"weights":"' + card.weights.sha256 + '","width":512}'
    )
    assert fingerprint_card(card) == hashlib.sha256(canonical.encode()).hexdigest()
