"""Models come and go: all at once, weights kept once, nothing half-written, what came with Slideway untouched."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from slideway.core.errors import (
    DiskFullError,
    OutputError,
    RetiredEncoderError,
    UnknownEncoderError,
    UntrustedEncoderError,
    WrongUseError,
)
from slideway.encoders import load_encoder
from slideway.registry import DEFAULT_ENCODER, ModelCard, find_encoder, list_encoders, read_card, write_card
from slideway.registry import staging as staging_module
from slideway.registry import store as store_module
from slideway.registry.blobs import BLOBS
from slideway.registry.store import find_model, install_model, list_broken, remove_model, set_state
from slideway.testing.encoders import ToyGraph, replace_golden_hash, write_toy_encoder

pytestmark = pytest.mark.usefixtures("own_models")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def blobs(models: Path) -> list[str]:
    return [name for name in names(models / BLOBS) if not name.startswith(".")]


def test_installed_model_is_found_by_id_and_runs(own_models: Path, toy: ModelCard) -> None:
    (toy.folder / "notes.txt").write_text("not part of it", encoding="utf-8")
    card = install_model(toy.folder, check=load_encoder)
    assert card == replace(toy, folder=own_models / "toy")
    assert find_encoder("toy").fingerprint == toy.fingerprint
    assert sorted(names(card.folder)) == sorted(card.file_names)
    assert load_encoder(card).width == 8


def test_same_model_again_changes_nothing(own_models: Path, toy: ModelCard) -> None:
    card = install_model(toy.folder)
    before = card.weights_path.stat().st_ino
    assert install_model(toy.folder) == card
    assert card.weights_path.stat().st_ino == before
    assert names(own_models) == [BLOBS, "toy"]


def test_same_model_again_puts_a_damaged_one_right(toy: ModelCard) -> None:
    card = install_model(toy.folder)
    card.weights_path.write_bytes(b"damaged")  # the blob too: it is the same file
    install_model(toy.folder)
    assert load_encoder(card)


def test_another_model_under_the_same_id_is_refused_unless_it_may_replace(tmp_path: Path, toy: ModelCard) -> None:
    other = write_toy_encoder(tmp_path / "other", graph=ToyGraph(seed=1))
    install_model(toy.folder)
    with pytest.raises(WrongUseError, match="--replace"):
        install_model(other.folder)
    assert find_encoder("toy").fingerprint == toy.fingerprint
    install_model(other.folder, replace=True)
    assert find_encoder("toy").fingerprint == other.fingerprint


def test_replacing_drops_the_old_weights(own_models: Path, tmp_path: Path, toy: ModelCard) -> None:
    install_model(toy.folder)
    other = write_toy_encoder(tmp_path / "other", graph=ToyGraph(seed=1))
    install_model(other.folder, replace=True)
    assert blobs(own_models) == [other.weights.sha256]
    assert names(own_models) == [BLOBS, "toy"]


def test_weights_shared_by_two_models_lie_on_the_disk_once(own_models: Path, toy: ModelCard) -> None:
    first = install_model(toy.folder)
    second = install_model(toy.folder, model_id="toy-b")
    assert second.id == "toy-b"
    assert second.fingerprint == first.fingerprint
    assert first.weights_path.samefile(second.weights_path)
    assert first.weights_path.samefile(own_models / BLOBS / toy.weights.sha256)


def test_weights_go_with_their_last_model(own_models: Path, toy: ModelCard) -> None:
    install_model(toy.folder)
    install_model(toy.folder, model_id="toy-b")
    remove_model("toy")
    assert blobs(own_models) == [toy.weights.sha256]
    assert load_encoder(find_encoder("toy-b"))
    remove_model("toy-b")
    assert names(own_models) == []


def test_second_weights_file_is_kept_once_too(own_models: Path, tmp_path: Path) -> None:
    card = write_toy_encoder(tmp_path / "two", external="weights.onnx.data")
    installed = install_model(card.folder)
    assert blobs(own_models) == sorted([card.weights.sha256, card.weights.data_sha256])
    assert load_encoder(installed)


def test_where_hard_links_do_not_work_each_model_has_its_own_copy(
    own_models: Path, toy: ModelCard, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    card = install_model(toy.folder)
    assert blobs(own_models) == []
    assert load_encoder(card)
    remove_model("toy")
    assert not card.folder.exists()


def test_damaged_blob_is_not_taken_for_good_weights(own_models: Path, toy: ModelCard) -> None:
    first = install_model(toy.folder)
    (own_models / BLOBS / toy.weights.sha256).write_bytes(b"damaged")
    second = install_model(toy.folder, model_id="toy-b")
    assert load_encoder(second)
    with pytest.raises(UntrustedEncoderError, match="install the encoder again"):
        load_encoder(first)


@pytest.mark.parametrize("file", ["weights.onnx", "golden.safetensors", "LICENSE", "card.toml"])
def test_folder_that_lacks_a_file_is_not_installed(own_models: Path, toy: ModelCard, file: str) -> None:
    (toy.folder / file).unlink()
    with pytest.raises(UntrustedEncoderError, match=file):
        install_model(toy.folder)
    assert names(own_models) == []


def test_changed_weights_are_not_installed(own_models: Path, toy: ModelCard) -> None:
    toy.weights_path.write_bytes(toy.weights_path.read_bytes() + b"\0")
    with pytest.raises(UntrustedEncoderError, match="not the file its card names"):
        install_model(toy.folder)
    assert names(own_models) == []


def test_golden_tiles_without_a_fingerprint_are_not_installed(own_models: Path, toy: ModelCard) -> None:
    save_file(load_file(toy.golden_path), toy.golden_path)
    write_card(replace_golden_hash(toy, toy.golden_path.read_bytes()))
    with pytest.raises(UntrustedEncoderError, match="does not carry the card's fingerprint"):
        install_model(toy.folder)
    assert names(own_models) == []


def test_check_that_fails_leaves_nothing_and_keeps_what_was_there(own_models: Path, tmp_path: Path, toy) -> None:
    install_model(toy.folder)

    def refuse(card: ModelCard) -> None:
        raise UntrustedEncoderError(f"{card.id}: golden tiles")

    other = write_toy_encoder(tmp_path / "other", graph=ToyGraph(seed=1))
    with pytest.raises(UntrustedEncoderError, match="golden tiles"):
        install_model(other.folder, replace=True, check=refuse)
    assert find_encoder("toy").fingerprint == toy.fingerprint
    assert names(own_models) == [BLOBS, "toy"]
    assert blobs(own_models) == [toy.weights.sha256]


def test_disk_that_fills_up_leaves_nothing(own_models: Path, toy: ModelCard, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="disk is full"):
        install_model(toy.folder)
    assert names(own_models) == []


def test_disk_that_is_too_small_is_known_before_anything_is_copied(
    own_models: Path, toy: ModelCard, monkeypatch
) -> None:
    usage = shutil.disk_usage(own_models.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(DiskFullError, match="0 MB are free"):
        install_model(toy.folder)
    assert names(own_models) == []


def test_interrupt_in_the_middle_leaves_nothing(own_models: Path, toy: ModelCard) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_model(toy.folder, progress=interrupt)
    assert names(own_models) == []


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_what_a_killed_installation_left_is_removed_by_the_next(own_models: Path, toy: ModelCard) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from slideway.registry.store import install_model\n"
        "install_model(pathlib.Path(sys.argv[1]), check=lambda card: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(toy.folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(own_models)) == 1  # hidden
    assert [card.id for card in list_encoders()] == [DEFAULT_ENCODER]
    install_model(toy.folder)
    assert names(own_models) == [BLOBS, "toy"]


def test_killed_between_the_two_renames_the_older_model_stands(own_models: Path, toy: ModelCard) -> None:
    install_model(toy.folder)
    gone_process = subprocess.Popen([sys.executable, "-c", ""])
    gone_process.wait()
    (own_models / "toy").rename(own_models / f".toy.{gone_process.pid}-0123abcd.old")
    staging_module.remove_leftovers(own_models)
    assert load_encoder(find_encoder("toy"))


def test_rename_that_fails_puts_the_older_model_back(own_models: Path, tmp_path: Path, toy, monkeypatch) -> None:
    install_model(toy.folder)
    other = write_toy_encoder(tmp_path / "other", graph=ToyGraph(seed=1))
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EACCES, "in use")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail_for_new)
        with pytest.raises(OutputError, match="in use"):
            install_model(other.folder, replace=True)
    assert find_encoder("toy").fingerprint == toy.fingerprint


@pytest.mark.parametrize("taken", [DEFAULT_ENCODER, "blobs", "trusted"])
def test_id_that_belongs_to_slideway_is_refused(own_models: Path, toy: ModelCard, taken: str) -> None:
    with pytest.raises(WrongUseError, match="belongs to Slideway"):
        install_model(toy.folder, model_id=taken)
    with pytest.raises(WrongUseError, match="cannot be an id"):
        install_model(toy.folder, model_id=f"../{taken}")
    assert names(own_models) == []


def test_packaged_encoder_is_not_installed_a_second_time(own_models: Path) -> None:
    with pytest.raises(WrongUseError, match="nothing to install"):
        install_model(find_encoder(DEFAULT_ENCODER).folder)
    assert names(own_models) == []


def test_packaged_encoder_can_be_neither_removed_nor_changed() -> None:
    with pytest.raises(WrongUseError, match="came with Slideway and cannot be removed"):
        remove_model(DEFAULT_ENCODER)
    with pytest.raises(WrongUseError, match="came with Slideway"):
        set_state(DEFAULT_ENCODER, "retired")
    assert find_encoder(DEFAULT_ENCODER).state == "active"


@pytest.mark.parametrize("wrong", ["../source/toy", "a/b", ".", "..", "a\\b", ".hidden"])
def test_only_an_id_can_be_removed_never_a_path(toy: ModelCard, wrong: str) -> None:
    with pytest.raises(WrongUseError, match="no id"):
        remove_model(wrong)
    with pytest.raises(WrongUseError, match="no id"):
        set_state(wrong, "retired")
    assert toy.weights_path.exists()


@pytest.mark.parametrize("unknown", ["nobody", BLOBS, "trusted"])
def test_model_that_is_not_there_cannot_be_removed(toy: ModelCard, unknown: str) -> None:
    install_model(toy.folder)
    with pytest.raises(UnknownEncoderError, match="installed"):
        remove_model(unknown)


def test_model_with_a_broken_card_is_listed_as_broken_and_can_be_removed(own_models: Path, toy: ModelCard) -> None:
    card = install_model(toy.folder)
    (card.folder / "card.toml").write_text("schema = 7", encoding="utf-8")
    assert list(list_broken()) == ["toy"]
    with pytest.raises(WrongUseError, match="broken"):
        install_model(toy.folder)
    remove_model("toy")
    assert names(own_models) == []


def test_model_in_a_folder_of_another_name_is_replaced_and_removed_by_its_id(own_models: Path, tmp_path, toy) -> None:
    shutil.copytree(toy.folder, own_models / "by-hand")
    other = write_toy_encoder(tmp_path / "other", graph=ToyGraph(seed=1))
    install_model(other.folder, replace=True)
    assert names(own_models) == ["blobs", "by-hand"]
    remove_model("toy")
    assert names(own_models) == []


def test_retired_encoder_reads_no_slide_but_can_be_looked_at(toy: ModelCard) -> None:
    install_model(toy.folder)
    assert set_state("toy", "retired").state == "retired"
    for way in ("toy", str(find_model("toy").folder), find_model("toy").folder):
        with pytest.raises(RetiredEncoderError, match="models state toy active"):
            find_encoder(way)
    assert find_model("toy").state == "retired"
    assert set_state("toy", "active").fingerprint == toy.fingerprint
    assert find_encoder("toy")


@pytest.mark.parametrize("state", ["candidate", "shadow", "active"])
def test_encoder_in_any_other_state_is_read_with_when_named(toy: ModelCard, state: str) -> None:
    install_model(toy.folder)
    set_state("toy", state)
    assert find_encoder("toy").state == state


def test_there_is_no_fifth_state(toy: ModelCard) -> None:
    install_model(toy.folder)
    with pytest.raises(ValueError, match="state"):
        set_state("toy", "great")


def test_source_is_left_as_it_was_and_moved_only_when_asked(toy: ModelCard) -> None:
    before = sorted(names(toy.folder))
    install_model(toy.folder)
    assert names(toy.folder) == before
    assert read_card(toy.folder) == toy
    install_model(toy.folder, model_id="moved", move=True)
    assert store_module.find_model("moved").fingerprint == toy.fingerprint
