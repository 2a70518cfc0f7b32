"""`slideway cohort`: counts, the next command, and refusals before anything is trained."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from slideway.bundles import BagWriter
from slideway.cli.cohort import KINDS, command
from slideway.core.errors import CohortError, LeakageError, WrongUseError
from slideway.core.tissue import TileGrid
from slideway.learning.layouts import LAYOUTS


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def answer(*arguments):
    done = run(*arguments, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.output)


@pytest.fixture
def camelyon(tmp_path):
    for name in ("normal_001", "normal_002", "tumor_001", "tumor_002"):
        path = tmp_path / "images" / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_text(name, encoding="utf-8")
    return tmp_path


def test_the_kinds_of_the_command_are_the_layouts():
    assert tuple(LAYOUTS) == KINDS


def test_a_public_cohort_becomes_a_file_with_counts_and_the_next_command(camelyon):
    said = answer("camelyon16", camelyon)
    assert (said["rows"], said["cases"]) == (4, 4)
    assert said["labels"] == {"malignant": {"no": 2, "yes": 2}}
    assert said["fold"] == {"train": 4}
    assert "site" not in said
    assert said["next"] == f"slideway train malignant --cohort {camelyon / 'cohort.csv'}"
    assert (camelyon / "cohort.csv").read_text(encoding="utf-8").startswith("slide,case,stain,fold,malignant\n")
    again = answer("check", camelyon / "cohort.csv")
    assert again["labels"] == said["labels"]


def test_in_words_it_says_the_same(camelyon):
    out = camelyon / "my cohort.csv"
    done = run("camelyon16", camelyon, "--out", out)
    assert "4 slides of 4 cases" in done.output
    assert "malignant    no 2, yes 2" in done.output
    assert f"next: slideway train malignant --cohort '{out}'" in done.output


def test_a_file_of_the_users_is_not_replaced_unasked(camelyon):
    (camelyon / "cohort.csv").write_text("mine", encoding="utf-8")
    assert isinstance(run("camelyon16", camelyon).exception, WrongUseError)
    assert (camelyon / "cohort.csv").read_text(encoding="utf-8") == "mine"
    assert run("camelyon16", camelyon, "--replace").exception is None
    assert isinstance(run("check", camelyon / "cohort.csv", "--replace").exception, WrongUseError)
    assert isinstance(run("check", camelyon).exception, WrongUseError)


def test_tiles_get_a_table_and_their_own_next_command(tmp_path):
    for i, tissue in enumerate(("ADI", "ADI", "TUM", "TUM")):
        path = tmp_path / "NCT-CRC-HE-100K" / tissue / f"{tissue}-{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    said = answer("nct-crc", tmp_path)
    assert (said["of"], said["rows"], said["cases"]) == ("tiles", 4, 0)
    assert said["next"] == f"slideway train tissue --tiles {tmp_path / 'tiles.csv'}"
    assert "of unnamed cases" in run("check", tmp_path / "tiles.csv").output


def test_an_order_is_quoted_for_the_shell(tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["patient,stage"]
    stages = {"000": "negative", "001": "negative", "020": "itc", "021": "itc", "022": "negative", "002": "macro"}
    for patient, stage in stages.items():
        name = f"patient_{patient}_node_0.tif"
        (tmp_path / "images" / name).write_text(name, encoding="utf-8")
        lines.append(f"{name},{stage}")
    (tmp_path / "stages.csv").write_text("\n".join(lines), encoding="utf-8")
    said = answer("camelyon17", tmp_path, "--task", "stage:negative<itc<micro<macro")
    assert "train 'stage:negative<itc<micro<macro' --cohort" in said["next"]
    assert any("a class needs 2 cases: macro" in note for note in said["notes"])


def test_a_column_that_cannot_be_trained_is_named_and_does_not_hide_the_others(camelyon):
    text = "slide,case,malignant,organ\nimages/normal_001.tif,a,no,x\nimages/normal_002.tif,b,no,x\n"
    text += "images/tumor_001.tif,c,yes,x\nimages/tumor_002.tif,d,yes,x\n"
    (camelyon / "c.csv").write_text(text, encoding="utf-8")
    said = answer("check", camelyon / "c.csv")
    assert said["trainable"] == ["malignant"]
    assert "organ has one class only" in said["refused"]["organ"]
    assert "! cannot be trained" in run("check", camelyon / "c.csv").output
    assert isinstance(run("check", camelyon / "c.csv", "--task", "organ").exception, CohortError)


def test_a_public_cohort_without_two_classes_asks_for_labels(camelyon):
    for name in ("tumor_001", "tumor_002"):
        (camelyon / "images" / f"{name}.tif").unlink()
    said = answer("camelyon16", camelyon)
    assert said["trainable"] == []
    assert said["next"].startswith(f"add a column of labels to {camelyon / 'cohort.csv'}")
    assert isinstance(run("check", camelyon / "cohort.csv").exception, CohortError)


def test_a_label_that_the_site_tells_is_refused_unless_accepted(camelyon):
    text = "slide,case,malignant,site\nimages/normal_001.tif,a,no,X\nimages/normal_002.tif,b,no,X\n"
    text += "images/tumor_001.tif,c,yes,Y\nimages/tumor_002.tif,d,yes,Y\n"
    (camelyon / "c.csv").write_text(text, encoding="utf-8")
    done = run("check", camelyon / "c.csv", "--task", "malignant")
    assert isinstance(done.exception, LeakageError)
    assert done.exception.exit_code == 2
    assert any("read off site" in note for note in answer("check", camelyon / "c.csv", "--allow-confounded")["notes"])


def write_bag(folder, vectors, sha):
    folder.mkdir(parents=True)
    n = len(vectors)
    grid = TileGrid(np.stack([np.arange(n) % 8, np.arange(n) // 8], 1).astype(np.int32), 224, 0.5, 0.5)
    with BagWriter(folder / "bag.safetensors", grid, vectors.shape[1]) as writer:
        writer.write(np.arange(n), vectors, np.ones(n, np.float32))
        writer.finish(encoder_id="toy", fingerprint="f" * 64, slide_sha256=sha.rjust(64, "0"))


def test_a_second_scan_in_another_case_is_refused(tmp_path):
    random = np.random.default_rng(0)
    slides = [random.standard_normal((64, 32)).astype(np.float32) for _ in range(6)]
    for i, vectors in enumerate(slides):
        write_bag(tmp_path / f"s{i}", vectors, str(i))
    lines = ["slide,case,malignant", *(f"s{i},c{i},{'yes' if i % 2 else 'no'}" for i in range(6)), ""]
    (tmp_path / "c.csv").write_text("\n".join(lines), encoding="utf-8")
    assert answer("check", tmp_path / "c.csv")["notes"] == []
    shutil.rmtree(tmp_path / "s4")
    write_bag(tmp_path / "s4", slides[1] + 0.1 * random.standard_normal((64, 32)).astype(np.float32), "44")
    done = run("check", tmp_path / "c.csv")
    assert isinstance(done.exception, LeakageError)
    assert "s1 (case c1) and s4 (case c4), near-duplicate" in str(done.exception)
