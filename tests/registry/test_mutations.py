"""Each single mistake in an encoder is refused when it is loaded: by hash, by fingerprint, or by its golden tiles.

What golden tiles cannot see is tested too, so that docs/models.md keeps telling the truth about it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save

from slideway.core.errors import UntrustedEncoderError
from slideway.encoders import load_encoder
from slideway.registry import DEFAULT_ENCODER, ModelCard, find_encoder, read_card, write_card
from slideway.testing.encoders import ToyGraph, make_toy_onnx, write_toy_encoder


@pytest.fixture(params=["packaged", "toy"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> ModelCard:
    """A copy that may be spoilt."""
    if request.param == "toy":
        return write_toy_encoder(tmp_path / "encoder")
    return read_card(Path(shutil.copytree(find_encoder(DEFAULT_ENCODER).folder, tmp_path / "encoder")))


def edit(card: ModelCard, pattern: str, replacement: str) -> None:
    path = card.folder / "card.toml"
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1, f"the card has no {pattern}"
    path.write_text(text, encoding="utf-8")


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)


def swap_weights(card: ModelCard) -> None:
    packaged = find_encoder(DEFAULT_ENCODER)
    other = packaged.weights_path.read_bytes() if card.id == "toy" else make_toy_onnx(ToyGraph())
    card.weights_path.write_bytes(other)


def swap_golden(card: ModelCard) -> None:
    golden = load_file(card.golden_path)
    card.golden_path.write_bytes(save({**golden, "vectors": golden["vectors"][::-1].copy()}))


def add_second_file(card: ModelCard) -> None:
    (card.folder / "weights.onnx.data").write_bytes(b"tensors from elsewhere")


MUTATIONS: dict[str, Callable[[ModelCard], None]] = {
    "pooling": lambda c: edit(c, r'^pooling = ".*"', 'pooling = "cls"'),
    "mean": lambda c: edit(c, r"^mean = \[(?s:.*?)\]", "mean = [0.5, 0.5, 0.51]"),
    "mean in another order": lambda c: edit(c, r"^mean = \[(?s:.*?)\]", "mean = [0.406, 0.456, 0.485]"),
    "std": lambda c: edit(c, r"^std = \[(?s:.*?)\]", "std = [0.5, 0.5, 0.51]"),
    "tile_px": lambda c: edit(c, r"^tile_px = \d+", "tile_px = 256"),
    "mpp": lambda c: edit(c, r"^mpp = .*", "mpp = 0.25"),
    "mpp by a hair": lambda c: edit(c, r"^mpp = .*", "mpp = 0.5000001"),
    "resize": lambda c: edit(c, r'^resize = ".*"', 'resize = "bilinear"'),
    "width": lambda c: edit(c, r"^width = \d+", "width = 9"),
    "precision": lambda c: edit(c, r'^precision = ".*"', 'precision = "int8"'),
    "first byte of the weights": lambda c: flip(c.weights_path, 0),
    "one byte of the weights": lambda c: flip(c.weights_path, 0.6),
    "last byte of the weights": lambda c: flip(c.weights_path, 0.9999999),
    "one byte of the golden tiles": lambda c: flip(c.golden_path, 0.4),
    "one byte of the golden vectors": lambda c: flip(c.golden_path, 0.999),
    "one byte of the golden header": lambda c: flip(c.golden_path, 0.003),
    "golden vectors of other tiles": swap_golden,
    "weights of another encoder": swap_weights,
    "weights cut off": lambda c: c.weights_path.write_bytes(c.weights_path.read_bytes()[:-1]) and None,
    "second file of weights": add_second_file,
    "weights' hash on the card": lambda c: edit(c, r"(\[weights\](?s:.*?)sha256 = \")..", r"\g<1>00"),
    "golden hash on the card": lambda c: edit(c, r"(\[golden\](?s:.*?)sha256 = \")..", r"\g<1>00"),
}


def test_encoder_loads_before_it_is_spoilt(encoder: ModelCard) -> None:
    assert load_encoder(encoder).width == encoder.output.width


@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_one_mistake_is_refused(encoder: ModelCard, mutation: str) -> None:
    MUTATIONS[mutation](encoder)
    with pytest.raises(UntrustedEncoderError):
        load_encoder(read_card(encoder.folder))


def restamp(card: ModelCard, **changes: object) -> ModelCard:
    """Make all hashes and the golden tiles' fingerprint agree with the files and a changed card; vectors stay."""
    golden = load_file(card.golden_path)
    weights = hashlib.sha256(card.weights_path.read_bytes()).hexdigest()
    card = replace(card, weights=replace(card.weights, sha256=weights))
    card = replace(card, **changes)  # type: ignore[arg-type]
    content = save(golden, metadata={"fingerprint": card.fingerprint})
    card.golden_path.write_bytes(content)
    card = replace(card, golden=replace(card.golden, sha256=hashlib.sha256(content).hexdigest()))
    write_card(card)
    return read_card(card.folder)


OTHER_GRAPHS = {
    "mean": ToyGraph(mean=(0.5, 0.5, 0.51)),
    "std": ToyGraph(std=(0.5, 0.5, 0.51)),
    "channels exchanged": ToyGraph(mean=(0.7, 0.5, 0.5)),
    "pooling": ToyGraph(pooling="max"),
    "weights": ToyGraph(seed=1),
    "tile_px": ToyGraph(tile_px=32),
    "width": ToyGraph(width=9),
}


@pytest.mark.parametrize("mistake", list(OTHER_GRAPHS))
def test_graph_that_computes_something_else_is_refused_by_golden_tiles_though_every_hash_agrees(
    tmp_path: Path, mistake: str
) -> None:
    card = write_toy_encoder(tmp_path / "toy")
    card.weights_path.write_bytes(make_toy_onnx(OTHER_GRAPHS[mistake]))
    with pytest.raises(UntrustedEncoderError, match=r"do not reproduce|do not accept|belong together"):
        load_encoder(restamp(card))


@pytest.mark.parametrize("mistake", ["tile_px", "width"])
def test_card_that_misstates_a_shape_is_refused_though_every_hash_agrees(encoder: ModelCard, mistake: str) -> None:
    given, output = encoder.input, encoder.output
    changes = {"tile_px": {"input": replace(given, tile_px=15)}, "width": {"output": replace(output, width=9)}}
    with pytest.raises(UntrustedEncoderError, match="do not fit the card"):
        load_encoder(restamp(encoder, **changes[mistake]))


@pytest.mark.parametrize("words", ["mean", "std", "mpp", "resize", "pooling", "precision"])
def test_card_that_misstates_what_the_graph_holds_is_another_encoder_but_golden_tiles_cannot_see_it(
    encoder: ModelCard, words: str
) -> None:
    # Normalisation and pooling live in the graph; mpp and resize happen before it. Somebody who changes the card's
    # words and stamps everything anew gets another fingerprint, so bags never mix, but the words may be wrong.
    # docs/models.md says so; `models add` takes them from the slot, never from hand.
    given, output, weights = encoder.input, encoder.output, encoder.weights
    changes = {
        "mean": {"input": replace(given, mean=(0.1, 0.2, 0.3))},
        "std": {"input": replace(given, std=(0.1, 0.2, 0.3))},
        "mpp": {"input": replace(given, mpp=0.25)},
        "resize": {"input": replace(given, resize="bicubic")},
        "pooling": {"output": replace(output, pooling="other words")},
        "precision": {"weights": replace(weights, precision="int8")},
    }
    changed = restamp(encoder, **changes[words])
    assert changed.fingerprint != encoder.fingerprint
    assert load_encoder(changed).card == changed
