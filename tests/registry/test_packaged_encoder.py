"""The packaged encoder gives the vectors on its card, and a wrong one does not."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from slideway.registry import DEFAULT_ENCODER, ModelCard, find_encoder

Floats = NDArray[np.float32]
Encode = Callable[[NDArray[np.uint8]], Floats]


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return find_encoder(DEFAULT_ENCODER)


@pytest.fixture(scope="module")
def golden(card: ModelCard) -> dict[str, NDArray]:
    return load_file(card.golden_path)


def open_session(weights: bytes, level: str = "ORT_ENABLE_ALL") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def encode(card: ModelCard) -> Encode:
    session = open_session(card.weights_path.read_bytes())
    return lambda tiles: session.run(["vectors"], {"tiles": np.ascontiguousarray(tiles)})[0]


def reproduces(card: ModelCard, got: Floats, expected: Floats) -> bool:
    cosine = (got * expected).sum(1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1))
    near = np.abs(got - expected).max() <= card.golden.max_abs_difference
    return bool(near and cosine.min() >= card.golden.min_cosine)


def test_golden_tiles_reproduce_singly_and_together(card: ModelCard, golden, encode: Encode) -> None:
    assert reproduces(card, encode(golden["tiles"]), golden["vectors"])
    singly = np.concatenate([encode(golden["tiles"][i : i + 1]) for i in range(len(golden["tiles"]))])
    assert reproduces(card, singly, golden["vectors"])


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED"])
def test_golden_tiles_reproduce_whatever_the_engine_rewrites(card: ModelCard, golden, level: str) -> None:
    session = open_session(card.weights_path.read_bytes(), level)
    assert reproduces(card, session.run(None, {"tiles": golden["tiles"]})[0], golden["vectors"])


def test_golden_tiles_hold_tissue_blank_black_and_noise(golden) -> None:
    spread = golden["tiles"].reshape(8, -1).std(axis=1)
    assert (spread[:5] > 15).all()
    assert list(spread[5:7]) == [0, 0]
    assert spread[7] > 60


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("mean wrong by half a per cent", lambda t: np.clip(t.astype(np.int16) - 1, 0, 255).astype(np.uint8)),
        ("std wrong by two per cent", lambda t: np.clip(t * 0.98, 0, 255).astype(np.uint8)),
        ("red and blue exchanged", lambda t: t[..., ::-1]),
        ("tile cut at another size", lambda t: np.stack([cv2.resize(x[8:-8, 8:-8], (224, 224)) for x in t])),
        ("tile one pixel off", lambda t: np.roll(t, 1, axis=2)),
        ("rows and columns exchanged", lambda t: t.transpose(0, 2, 1, 3)),
    ],
)
def test_wrong_preparation_of_tiles_does_not_pass(card: ModelCard, golden, encode: Encode, fault: str, spoil) -> None:
    assert not reproduces(card, encode(spoil(golden["tiles"])), golden["vectors"])


def test_half_precision_does_not_pass_as_full(card: ModelCard, golden, encode: Encode) -> None:
    # bf16, which OpenVINO chooses by itself on some processors, keeps eight bits of each number
    rounded = (golden["vectors"].view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert not reproduces(card, rounded, golden["vectors"])


@pytest.mark.parametrize("place", [0.1, 0.35, 0.6, 0.85])
def test_flipped_exponent_of_one_weight_does_not_pass(card: ModelCard, golden, place: float) -> None:
    # Four bytes in a row, since tensors need not begin at a multiple of four: one of them is the exponent's.
    # A flipped bit at the end of a mantissa changes no vector that matters; only the hash sees that.
    weights = bytearray(card.weights_path.read_bytes())
    start = int(place * len(weights))
    for i in range(start, start + 4):
        weights[i] ^= 0x40
    got = open_session(bytes(weights)).run(None, {"tiles": golden["tiles"]})[0]
    with np.errstate(all="ignore"):
        assert not reproduces(card, got, golden["vectors"])


def test_weights_are_small_and_of_an_opset_that_the_oldest_supported_engine_reads(card: ModelCard) -> None:
    assert card.weights.bytes <= 16_000_000
    session = open_session(card.weights_path.read_bytes())
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("tiles", "tensor(uint8)", [224, 224, 3])
    assert (result.name, result.type, result.shape[1:]) == ("vectors", "tensor(float)", [card.output.width])


def test_vectors_fit_into_half_floats(golden) -> None:
    halved = golden["vectors"].astype(np.float16).astype(np.float32)
    assert np.abs(halved - golden["vectors"]).max() < 0.01
