"""`slideway drift`: an alarm when slides change, none when they do not, and a plain word when nothing can be judged."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from slideway.cli.main import cli
from slideway.core.errors import FingerprintMismatchError, WrongUseError
from slideway.heads.head import KnownCases, save_head
from slideway.registry.blobs import hash_file
from slideway.registry.head_card import write_head_card
from slideway.registry.head_records import HEAD_FILE
from slideway.testing.heads import TOY_QUESTIONS, make_toy_bag, make_toy_head, write_toy_bag, write_toy_head

QUESTIONS = TOY_QUESTIONS[:1]


def write_head(folder, cases):
    """A toy head that knows as many cases, each around a middle of its own."""
    card, head = write_toy_head(folder, questions=QUESTIONS), make_toy_head(QUESTIONS)
    means = np.random.default_rng(9).normal(0, 0.5, (cases, 8)).astype(np.float32)
    names = tuple(f"case-{i}" for i in range(cases))
    known = KnownCases(names, means, {"neoplastic": ("no",) * cases})
    path = folder / HEAD_FILE
    save_head(path, replace(head, known=known), encoder_fingerprint=card.input.encoder_fingerprint)
    card = replace(card, weights=replace(card.weights, sha256=hash_file(path), bytes=path.stat().st_size))
    write_head_card(card)
    return card


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("heads") / "toy-head", 80).folder


def write_reading(folder, number, *, shift=0.0, fingerprint=None, tiles=20):
    """A reading, its bag written in the order of its number."""
    random = np.random.default_rng(100 + number)
    vectors = random.normal(0, 0.3, (tiles, 8)) + random.normal(0, 0.5, 8) + shift
    bag = make_toy_bag(vectors, **({} if fingerprint is None else {"fingerprint": fingerprint}))
    place = folder / f"reading-{number:03d}"
    path = write_toy_bag(place / "bag.safetensors", bag)
    slide = {"name": f"{number}.svs", "sha256": bag.slide_sha256, "mpp": 0.5, "mpp_source": "metadata"}
    encoder = {"id": bag.encoder_id, "fingerprint": bag.fingerprint}
    result = {"schema": "slideway-result/1.2", "estimated": False, "slide": slide, "encoder": encoder, "files": []}
    (place / "result.json").write_text(json.dumps(result), encoding="utf-8")
    os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))


def run(folder, head, *more):
    return CliRunner().invoke(cli, ["drift", str(folder), "--head", str(head), *map(str, more)], standalone_mode=False)


def told(folder, head, *more):
    done = run(folder, head, *more, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.output)


def test_ordinary_slides_raise_no_alarm(head, tmp_path):
    for number in range(30):
        write_reading(tmp_path, number)
    result = told(tmp_path, head)
    assert result["windows_judged"] == 11
    assert result["windows_in_alarm"] == 0
    assert result["alarm_now"] is False
    assert result["reference_cases"] == 80
    assert "ALARM" not in run(tmp_path, head).output


def test_changed_slides_raise_an_alarm_that_names_the_window(head, tmp_path):
    for number in range(24):
        write_reading(tmp_path, number, shift=0.0 if number < 12 else 1.5)
    result = told(tmp_path, head, "--window", 10)
    points = {point["reading"]: point for point in result["points"]}
    assert points["reading-008"]["t_squared"] is None  # a window is not full yet
    assert points["reading-011"]["alarms"] == []
    assert "mean" in points["reading-023"]["alarms"]
    assert points["reading-023"]["t_squared"] > result["thresholds"]["t_squared"]
    assert result["alarm_now"] is True
    done = run(tmp_path, head, "--window", 10)
    assert "ALARM (mean" in done.output
    assert "docs/drift.md" in done.output
    assert done.return_value == 0


def test_slides_come_in_the_order_in_which_they_were_read_or_by_name(head, tmp_path):
    for number in range(6):
        write_reading(tmp_path, number)
        path = tmp_path / f"reading-{number:03d}" / "bag.safetensors"
        os.utime(path, (2_000_000_000 - number,) * 2)
    names = [f"reading-{number:03d}" for number in range(6)]
    assert [point["reading"] for point in told(tmp_path, head, "--by", "name")["points"]] == names
    assert [point["reading"] for point in told(tmp_path, head)["points"]] == names[::-1]


def test_too_few_slides_are_said_to_be_too_few(head, tmp_path):
    for number in range(7):
        write_reading(tmp_path, number)
    result = told(tmp_path, head)
    assert result["windows_judged"] == 0
    assert "7 slides were read, a window holds 20" in result["not_judged_because"]
    assert "not judged" in run(tmp_path, head).output


def test_too_few_known_cases_are_said_to_be_too_few(tmp_path):
    small = write_head(tmp_path / "small-head", 25).folder
    for number in range(21):
        write_reading(tmp_path / "out", number, shift=5.0)
    result = told(tmp_path / "out", small)
    assert "25 cases" in result["not_judged_because"]
    assert result["thresholds"] == {"t_squared": None, "mmd": None}
    assert result["windows_in_alarm"] == 0


def test_a_slide_counts_once_and_what_does_not_count_is_counted(head, tmp_path):
    for number in range(5):
        write_reading(tmp_path / "first", number)
    write_reading(tmp_path / "second", 0)
    write_reading(tmp_path / "second", 7, tiles=0)
    write_reading(tmp_path / "second", 8, fingerprint="e" * 64)
    (tmp_path / "first" / "reading-001" / "result.json").unlink()
    result = told(tmp_path, head, "--window", 5)
    assert result["slides"] == 4
    assert result["left_out"] == {
        "other_encoder": 1,
        "unreadable": ["reading-001"],
        "read_again": 1,
        "without_tiles": 1,
    }


def test_slides_of_another_encoder_alone_are_refused(head, tmp_path):
    write_reading(tmp_path, 0, fingerprint="e" * 64)
    assert isinstance(run(tmp_path, head).exception, FingerprintMismatchError)


def test_a_folder_without_readings_or_without_tiles_is_refused(head, tmp_path):
    assert isinstance(run(tmp_path, head).exception, WrongUseError)
    write_reading(tmp_path, 0, tiles=0)
    assert "nothing to watch" in str(run(tmp_path, head).exception)
