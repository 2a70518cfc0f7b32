"""Profiles: what is read under each, that the result says so, and that none is silently kept for another."""

import json

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import slideway
from slideway.bundles import read_bag
from slideway.cli.read import command as read_command
from slideway.core.errors import WrongUseError
from slideway.pipeline.result import load_schema
from slideway.pipeline.screen import lay_screen
from slideway.testing import slides as synthetic


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """About 300 tiles on tissue: enough to be screened."""
    path = tmp_path_factory.mktemp("profiles") / "slide.tif"
    return synthetic.write_pyramid(path, width_px=5200, height_px=5200, mpp=0.5)


@pytest.fixture(scope="module")
def readings(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return {
        name: slideway.read_slide(slide, out=out / name, profile=name) for name in ("thrifty", "standard", "thorough")
    }


def test_every_profile_keeps_the_schema(readings):
    for name, reading in readings.items():
        jsonschema.validate(reading.result, load_schema())
        assert reading.result["profile"]["name"] == name


def test_thrifty_reads_a_third_and_says_why(readings):
    profile = readings["thrifty"].result["profile"]
    full = readings["standard"].result["profile"]
    assert profile["candidate_tiles"] == full["candidate_tiles"] == full["read_tiles"]
    assert 0.3 < profile["read_tiles"] / profile["candidate_tiles"] < 0.4
    assert sum(profile["reasons"].values()) == profile["read_tiles"]
    assert 0 < profile["screened_tiles"] < profile["candidate_tiles"] / 5
    assert min(profile["reasons"].values()) > 0
    assert full["reasons"] == {}
    assert full["saved_tiles_percent"] == full["screened_tiles"] == 0


def test_what_thrifty_reads_has_the_same_vectors_as_in_a_standard_reading(readings):
    thrifty, full = readings["thrifty"].bag, readings["standard"].bag
    place = {tuple(at): i for i, at in enumerate(full.grid.column_row.tolist())}
    same = [place[tuple(at)] for at in thrifty.grid.column_row.tolist()]
    assert np.array_equal(thrifty.vectors, full.vectors[same])
    assert thrifty.fingerprint == full.fingerprint


def test_the_bag_holds_reason_and_weight_of_each_tile(readings):
    folder = readings["thrifty"].folder
    stored, bag = load_file(folder / "bag.safetensors"), read_bag(folder / "bag.safetensors")
    assert bag.sampling is not None
    assert np.array_equal(stored["reason"], bag.sampling.reason)
    assert bag.sampling.counts == readings["thrifty"].result["profile"]["reasons"]
    assert stored["weight"].sum() == pytest.approx(readings["standard"].result["profile"]["read_tiles"], rel=1e-4)
    assert "weight" not in load_file(readings["standard"].folder / "bag.safetensors")
    assert readings["standard"].bag.sampling is None


def test_the_report_says_in_words_that_not_every_tile_was_looked_at(readings):
    pages = {name: (r.folder / "report.html").read_text(encoding="utf-8") for name, r in readings.items()}
    assert "not every tile was looked at" in pages["thrifty"]
    assert "not every tile was looked at" not in pages["standard"]
    assert "Thorough profile" in pages["thorough"]


def test_thorough_reads_more_than_standard(readings):
    thorough, full = readings["thorough"], readings["standard"]
    places = [{tuple(at) for at in r.bag.grid.column_row.tolist()} for r in (full, thorough)]
    assert places[0] < places[1]
    assert thorough.result["grid"]["blurred_tiles"] == 0


def test_a_thrifty_reading_is_the_same_every_time(slide, readings, tmp_path):
    again = slideway.read_slide(slide, out=tmp_path, profile="thrifty", threads=1)
    first = readings["thrifty"].folder / "bag.safetensors"
    assert (again.folder / "bag.safetensors").read_bytes() == first.read_bytes()


def test_another_profile_is_read_again_and_said(slide, tmp_path):
    runner = CliRunner()

    def read(*more):
        done = runner.invoke(read_command, [str(slide), "--out", str(tmp_path), "--json", *more], standalone_mode=False)
        assert done.exception is None, done.output
        return json.loads(done.output)

    answers = [read(*more) for more in (["--profile", "thrifty"], ["--profile", "thrifty"], [])]
    assert [answer["status"] for answer in answers] == ["read", "kept", "read"]
    assert answers[2]["instead_of"] == "profile thrifty"
    assert answers[2]["profile"]["name"] == "standard"


def test_a_small_slide_is_read_whole_under_thrifty_too(small_slide, tmp_path):
    reading = slideway.read_slide(small_slide, out=tmp_path, profile="thrifty")
    profile = reading.result["profile"]
    assert profile["read_tiles"] == profile["candidate_tiles"]
    assert profile["saved_tiles_percent"] == 0
    assert reading.bag.sampling is None
    assert "not every tile" not in (reading.folder / "report.html").read_text(encoding="utf-8")


def test_an_unknown_profile_is_wrong_use(small_slide, tmp_path):
    with pytest.raises(WrongUseError, match="thrifty, standard, thorough"):
        slideway.read_slide(small_slide, out=tmp_path, profile="fast")


def test_wide_tiles_cover_exactly_the_tiles_that_lie_in_them(readings):
    grid = readings["standard"].bag.grid
    wide, lies_in, parts = lay_screen(grid)
    assert parts == 4
    assert wide.tile_mpp == 2.0
    inside = grid.xy_level0_px - wide.xy_level0_px[lies_in]
    assert inside.min() >= 0
    assert (inside + grid.tile_level0_px).max() <= wide.tile_level0_px + 1
