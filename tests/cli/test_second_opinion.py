"""`slideway second-opinion`: both opinions side by side, and an honest word when nothing was asked."""

import json

import pytest
from click.testing import CliRunner

import slideway
from slideway.cli.main import cli
from slideway.core.errors import WrongUseError
from slideway.registry.store import find_encoder
from slideway.testing.encoders import ToyGraph, write_toy_encoder
from slideway.testing.heads import TOY_QUESTIONS, write_toy_head


@pytest.fixture(scope="module")
def reading(small_slide, tmp_path_factory):
    """A reading by an unsure head, and a second encoder and head beside it."""
    models = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIDEWAY_MODELS", str(models))
        for name, graph in (("small", ToyGraph(tile_px=64)), ("big", ToyGraph(tile_px=96))):
            card = write_toy_encoder(models / name, encoder_id=name, graph=graph)
            write_toy_head(
                models / "heads" / f"of-{name}",
                head_id=f"of-{name}",
                questions=TOY_QUESTIONS[:1],
                width=graph.width,
                encoder_id=name,
                encoder_fingerprint=card.fingerprint,
            )
        out = tmp_path_factory.mktemp("out")
        folder = slideway.read_slide(small_slide, out=out, encoder="small", heads=("of-small",)).folder
        why = {"code": "cannot-tell", "text": "Neither no nor yes can be excluded."}
        change_finding(folder, answer="refer", labels=["no", "yes"], reasons=[why])
        yield folder


def change_finding(folder, **more):
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["findings"][0] |= more
    path.write_text(json.dumps(result), encoding="utf-8")


def run(*arguments):
    words = ["second-opinion", *map(str, arguments), "--encoder", "big", "--head", "of-big"]
    return CliRunner().invoke(cli, words, standalone_mode=False)


def test_both_opinions_stand_side_by_side_with_bytes_and_time(reading, small_slide):
    done = run(reading, "--slide", small_slide, "--tiles", 6)
    assert done.exception is None, done.exception
    for words in (
        "first    refer to an expert  (of-small)",
        "second   refer to an expert  (of-big)",
        "together refer to an expert: same",
        "kB as JPEG 90",
        "s here",
    ):
        assert words in done.output


def test_json_is_what_was_written(reading, small_slide):
    done = run(reading, "--slide", small_slide, "--tiles", 6, "--json")
    assert json.loads(done.output) == json.loads((reading / "second-opinion.json").read_text(encoding="utf-8"))


def test_the_head_may_be_a_folder_and_another_file_is_refused(reading, small_slide, tmp_path):
    folder = find_encoder("big").folder.parent / "heads" / "of-big"
    done = CliRunner().invoke(
        cli,
        ["second-opinion", str(reading), "--slide", str(small_slide), "--encoder", "big", "--head", str(folder),
         "--tiles", "3"],
        standalone_mode=False,
    )  # fmt: skip
    assert done.exception is None, done.exception
    other = tmp_path / "other.tif"
    other.write_bytes(small_slide.read_bytes()[:-1])
    assert isinstance(run(reading, "--slide", other).exception, WrongUseError)


def test_a_plain_answer_asks_nothing(reading, small_slide):  # the last of this file: it changes the reading
    change_finding(reading, answer="answer", labels=["no"], reasons=[])
    assert "Nothing was asked" in run(reading, "--slide", small_slide).output
    assert json.loads(run(reading, "--slide", small_slide, "--json").output)["asked"] is None
