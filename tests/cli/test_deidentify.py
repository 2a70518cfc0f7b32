"""`slideway deidentify`: what it says, and what it never says."""

import json

import pytest
from click.testing import CliRunner

from slideway.cli.deidentify import command
from slideway.cli.main import cli
from slideway.core.errors import SlideAccessError, WrongUseError
from slideway.testing import slides


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "Doe_Jane_A26-1.svs"
    return slides.write_svs(path, slides.make_levels(slides.paint_tissue(600, 450)))


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def test_it_says_what_was_removed_kept_and_checked_and_what_to_look_at(slide, tmp_path):
    done = run(slide, tmp_path / "out")
    assert done.exception is None
    for words in ("removed:", "label image", "Aperio User", "kept:", "MPP", "checked:", "look yourself:", "burnt into"):
        assert words in done.output
    assert "Doe" not in done.output
    (copy,) = (tmp_path / "out").iterdir()
    assert copy.name in done.output
    assert copy.suffix == ".svs"


def test_json_names_the_copy_and_never_the_slide(slide, tmp_path):
    done = run(slide, tmp_path / "case.svs", "--json")
    answer = json.loads(done.output)
    assert answer["path"] == str(tmp_path / "case.svs")
    assert answer["bytes_after"] == (tmp_path / "case.svs").stat().st_size
    assert {"label image", "macro image", "Aperio Filename"} <= set(answer["removed"])
    assert "Doe" not in done.output


def test_a_short_key_and_a_missing_slide_are_refused(slide, tmp_path):
    (tmp_path / "key").write_bytes(b"short")
    assert isinstance(run(slide, tmp_path / "out", "--key", tmp_path / "key").exception, WrongUseError)
    assert isinstance(run(tmp_path / "gone.svs", tmp_path / "out").exception, SlideAccessError)
    assert not (tmp_path / "out").exists()


def test_the_command_is_listed():
    assert "deidentify" in CliRunner().invoke(cli, ["--help"]).output
