"""Encoders: trusted only after their golden tiles reproduce, and bounded while they encode."""

import dataclasses
import json
import shutil
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slideway.core.errors import UntrustedEncoderError, WrongUseError
from slideway.encoders import available_engines, choose_engine, encode_tiles, load_encoder, remember_engine
from slideway.encoders.encode import BATCHES_PER_THREAD
from slideway.encoders.engines import memory_path
from slideway.encoders.speed import EngineSpeed
from slideway.registry.card import ModelCard, read_card
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.slides import TileBatch


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return find_encoder(DEFAULT_ENCODER)


@pytest.mark.parametrize("engine", available_engines())
def test_the_packaged_encoder_reproduces_its_golden_tiles(card, engine):
    encoder = load_encoder(card, engine=engine, threads=2)
    golden = load_file(card.golden_path)
    got = encoder.encode(golden["tiles"])
    assert got.dtype == np.float32
    assert np.abs(got - golden["vectors"]).max() <= card.golden.max_abs_difference


@pytest.mark.parametrize("engine", available_engines())
def test_a_vector_does_not_depend_on_its_neighbours_in_the_batch(card, engine):
    encoder = load_encoder(card, engine=engine)
    tiles = load_file(card.golden_path)["tiles"]
    alone = np.concatenate([encoder.encode(tile[None]) for tile in tiles])
    assert np.allclose(alone, encoder.encode(tiles), atol=1e-3)


def other_card(card: ModelCard, folder, change) -> ModelCard:
    """A copy whose hashes agree with its files, but whose golden vectors come from another encoder."""
    shutil.copytree(card.folder, folder)
    golden = load_file(folder / card.golden.file)
    save_file(change(golden), folder / card.golden.file)
    return dataclasses.replace(read_card(folder))


def test_golden_vectors_of_another_encoder_are_refused(card, tmp_path, monkeypatch):
    def change(golden):
        return {**golden, "vectors": golden["vectors"][:, ::-1].copy()}

    altered = other_card(card, tmp_path / "m", change)
    monkeypatch.setattr("slideway.encoders.encoder.verify_files", lambda _: None)  # past the hash: golden tiles alone
    with pytest.raises(UntrustedEncoderError, match="do not reproduce"):
        load_encoder(altered)


def test_weights_that_are_no_onnx_are_refused_in_words(card, tmp_path, monkeypatch):
    altered = other_card(card, tmp_path / "m", lambda golden: golden)
    altered.weights_path.write_bytes(b"not a model")
    with pytest.raises(UntrustedEncoderError, match="sha256"):
        load_encoder(altered)
    monkeypatch.setattr("slideway.encoders.encoder.verify_files", lambda _: None)
    with pytest.raises(UntrustedEncoderError, match="cannot load"):
        load_encoder(altered)


def batches_of(n: int, made: list[int]):
    for i in range(n):
        made.append(i)
        yield TileBatch(np.array([2 * i, 2 * i + 1]), np.full((2, 4, 4, 3), i, np.uint8), ())


class SlowEncoder:
    """Counts how many batches are inside at once."""

    width = 1

    def __init__(self) -> None:
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def encode(self, tiles):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.002)
        with self._lock:
            self.inside -= 1
        return tiles[:, 0, 0, :1].astype(np.float32)


def judge_all(tiles):
    return np.ones(len(tiles), np.float32), np.ones(len(tiles), bool)


def test_results_come_in_reading_order_and_memory_stays_bounded():
    encoder, made, seen = SlowEncoder(), [], 0
    for encoded in encode_tiles(batches_of(60, made), encoder, judge=judge_all, threads=3):
        assert encoded.vectors[:, 0].tolist() == [seen, seen]
        seen += 1
        assert len(made) - seen <= BATCHES_PER_THREAD * 3
    assert seen == 60
    assert 1 < encoder.most <= 3


def test_tiles_the_judge_refuses_are_not_encoded():
    def judge(tiles):
        return np.array([0.1, 0.9], np.float32), np.array([False, True])

    encoded = list(encode_tiles(batches_of(3, []), SlowEncoder(), judge=judge, threads=2))
    assert [len(e.vectors) for e in encoded] == [1, 1, 1]
    assert encoded[0].focus.tolist() == pytest.approx([0.1, 0.9])


def test_an_error_while_encoding_reaches_the_caller():
    class Broken(SlowEncoder):
        def encode(self, tiles):
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(encode_tiles(batches_of(20, []), Broken(), judge=judge_all, threads=2))


def test_an_engine_that_is_not_installed_is_wrong_use():
    with pytest.raises(WrongUseError, match="not installed"):
        choose_engine("f", "abacus")


def test_the_fastest_engine_is_remembered_only_when_clearly_faster(card, monkeypatch):
    monkeypatch.setattr("slideway.encoders.engines.available_engines", lambda: ("onnxruntime", "openvino"))
    for openvino, expected in ((103.0, "onnxruntime"), (130.0, "openvino")):
        speeds = (EngineSpeed("openvino", "", openvino, 0.1), EngineSpeed("onnxruntime", "", 100.0, 0.1))
        assert remember_engine(card, speeds) == expected
        assert choose_engine(card.fingerprint) == expected
    assert choose_engine("another encoder") == "onnxruntime"
    memory = json.loads(memory_path().read_text(encoding="utf-8"))
    memory_path().write_text(json.dumps({**memory, "machine": "another processor"}), encoding="utf-8")
    assert choose_engine(card.fingerprint) == "onnxruntime"
    memory_path().write_text("damaged", encoding="utf-8")
    assert choose_engine(card.fingerprint) == "onnxruntime"


def test_an_engine_whose_golden_tiles_fail_is_never_chosen(card):
    speeds = (EngineSpeed("openvino", "", 0.0, 0.1, "golden tiles"), EngineSpeed("onnxruntime", "", 50.0, 0.1))
    assert remember_engine(card, speeds) == "onnxruntime"
