"""An ONNX file that takes tensors from files its card does not name is refused before an engine opens it."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.errors import UntrustedEncoderError
from slideway.encoders import load_encoder
from slideway.registry import DEFAULT_ENCODER, ModelCard, find_encoder, verify_files
from slideway.registry.onnx_file import list_external_files
from slideway.testing import encoders as toys
from slideway.testing.encoders import ToyGraph, make_toy_onnx, write_toy_encoder


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "weights.onnx"
    path.write_bytes(content)
    return path


def nested(external: str) -> dict[str, bytes]:
    """ONNX files that hide one external tensor in each of the places where a tensor can be."""
    tensor = toys._tensor("hidden", np.zeros(4, np.float32), external)
    message = toys._message
    constant = message(1, b"value") + message(5, tensor)  # attribute with a tensor
    node = message(4, b"Constant") + message(5, constant)
    graph = message(5, tensor)
    inner = message(4, b"If") + message(5, message(1, b"then_branch") + message(6, graph))
    sparse = message(1, tensor)
    return {
        "initializer": message(7, graph),
        "attribute of a node": message(7, message(1, node)),
        "list of tensors": message(7, message(1, message(5, message(10, tensor)))),
        "subgraph": message(7, message(1, inner)),
        "list of graphs": message(7, message(1, message(5, message(11, graph)))),
        "sparse initializer": message(7, message(15, sparse)),
        "sparse attribute": message(7, message(1, message(5, message(22, sparse)))),
        "function": message(7, b"") + message(25, message(7, node)),
        "default of a function": message(7, b"") + message(25, message(11, constant)),
        "training": message(7, b"") + message(20, message(2, graph)),
        "second graph": message(7, b"") + message(7, graph),
    }


@pytest.mark.parametrize("place", list(nested("x")))
def test_external_tensor_is_found_wherever_it_hides(tmp_path: Path, place: str) -> None:
    assert list_external_files(written(tmp_path, nested("../../etc/shadow")[place])) == {"../../etc/shadow"}


def test_ordinary_files_name_no_other(tmp_path: Path) -> None:
    assert list_external_files(written(tmp_path, make_toy_onnx(ToyGraph()))) == set()
    assert list_external_files(find_encoder(DEFAULT_ENCODER).weights_path) == set()


def test_tensor_marked_external_without_a_place_counts(tmp_path: Path) -> None:
    tensor = toys._message(8, b"t") + toys._number(14, 1)
    assert list_external_files(written(tmp_path, toys._message(7, toys._message(5, tensor)))) == {""}


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x3a\xff\xff\xff\xff\x0f", b"\x08\x07", b"\x3a\x02\x0b\x0c"]
)
def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list_external_files(written(tmp_path, content))


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_damaged_files_end_in_an_answer_or_a_value_error(tmp_path_factory, cut, flips) -> None:
    content = bytearray(make_toy_onnx(ToyGraph(), external="weights.onnx.data"))
    for place, byte in flips:
        content[place % len(content)] = byte
    path = written(tmp_path_factory.mktemp("damaged"), bytes(content[: len(content) - cut]))
    with contextlib.suppress(ValueError):
        assert isinstance(list_external_files(path), set)


@pytest.mark.parametrize("external", ["other.bin", "weights.onnx.data.2", "../toy.data", "/etc/hostname"])
def test_model_that_takes_tensors_from_an_unnamed_file_is_refused(
    tmp_path: Path, toy: ModelCard, external: str
) -> None:
    weights = make_toy_onnx(ToyGraph(), external=external)
    toy.weights_path.write_bytes(weights)
    honest = replace(toy, weights=replace(toy.weights, sha256=hashlib.sha256(weights).hexdigest()))
    golden = toys.make_golden(ToyGraph(), honest.fingerprint)
    toy.golden_path.write_bytes(golden)
    with pytest.raises(UntrustedEncoderError, match="the card does not name"):
        verify_files(toys.replace_golden_hash(honest, golden))


def test_second_file_that_the_card_names_by_its_hash_is_loaded_and_one_byte_of_it_counts(tmp_path: Path) -> None:
    card = write_toy_encoder(tmp_path / "two", external="weights.onnx.data")
    assert card.data_path is not None
    assert load_encoder(card).width == 8
    content = bytearray(card.data_path.read_bytes())
    content[5] ^= 1
    card.data_path.write_bytes(bytes(content))
    with pytest.raises(UntrustedEncoderError, match=r"weights\.onnx\.data is not the file"):
        load_encoder(card)


def test_engine_opens_no_other_file_even_past_the_check(tmp_path: Path, toy: ModelCard, monkeypatch) -> None:
    toy.weights_path.write_bytes(make_toy_onnx(ToyGraph(), external="beside.bin"))
    (toy.folder / "beside.bin").write_bytes(ToyGraph().weights.tobytes())
    monkeypatch.setattr("slideway.encoders.encoder.verify_files", lambda _: None)
    monkeypatch.chdir(toy.folder)  # where onnxruntime would look for it
    with pytest.raises(UntrustedEncoderError, match="cannot load"):
        load_encoder(toy, engine="onnxruntime")
