"""`slideway recalibrate`: a new head for one site, or a refusal in words with nothing written."""

import csv
import json

import pytest
from click.testing import CliRunner

from slideway.cli.main import cli
from slideway.core.errors import CohortError, LeakageError, WrongUseError
from slideway.heads.head import load_head
from slideway.registry.head_card import read_head_card
from slideway.testing.heads import TOY_QUESTIONS, write_toy_cohort, write_toy_head

for name in ("torch", "sklearn", "threadpoolctl"):
    pytest.importorskip(name, reason="recalibrating needs the train extra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A head whose malignant tiles lie where the cohort's planted ones do."""
    folder = tmp_path_factory.mktemp("heads") / "toy-head"
    write_toy_head(folder, questions=TOY_QUESTIONS[:2], width=16)
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """48 cases of two sites, named as none of the head's."""
    cohort = write_toy_cohort(tmp_path_factory.mktemp("local"), cases=48, seed=3)
    rename(cohort.path, lambda case: f"local-{case}")
    return cohort.path


def rename(path, change):
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({**row, "case": change(row["case"])} for row in rows)


def run(*arguments):
    return CliRunner().invoke(cli, ["recalibrate", *map(str, arguments)], standalone_mode=False)


def test_a_sites_cases_make_a_candidate_of_their_own(folder, local, tmp_path):
    done = run(folder, "--cohort", local, "--site", "site-0", "--id", "north", "--out", tmp_path, "--json")
    assert done.exception is None, done.exception
    told = json.loads(done.output)
    assert told["site"] == "site-0"
    assert told["tasks"]["malignant"]["cases"] == 24
    assert told["tasks"]["malignant"]["changed"] is True
    card = read_head_card(tmp_path / "north")
    assert card.state == "candidate"
    load_head(card)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["north"]


def test_words_say_what_was_done_and_what_next(folder, local, tmp_path):
    done = run(folder, "--cohort", local, "--site", "site-1", "--id", "south", "--out", tmp_path)
    assert "Fitted to 24 cases of this site" in done.output
    assert "slideway models add" in done.output


def test_several_sites_without_a_name_are_refused(folder, local, tmp_path):
    done = run(folder, "--cohort", local, "--id", "ours", "--out", tmp_path / "out")
    assert isinstance(done.exception, CohortError)
    assert not (tmp_path / "out").exists()


def test_too_few_cases_write_nothing(folder, tmp_path):
    cohort = write_toy_cohort(tmp_path / "few", cases=12, sites=1, seed=4)
    rename(cohort.path, lambda case: f"local-{case}")
    done = run(folder, "--cohort", cohort.path, "--id", "ours", "--out", tmp_path / "out")
    assert isinstance(done.exception, CohortError)
    assert done.exception.exit_code == 2
    assert "12 cases with a known label, 20 are needed" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_cases_that_the_head_learnt_from_are_refused(folder, local, tmp_path):
    cohort = write_toy_cohort(tmp_path / "same", cases=24, sites=1, seed=5)
    rename(cohort.path, lambda case: f"case-{int(case.removeprefix('case-')):02d}")
    done = run(folder, "--cohort", cohort.path, "--id", "ours", "--out", tmp_path / "out")
    assert isinstance(done.exception, LeakageError)
    assert not (tmp_path / "out").exists()


def test_a_cohort_without_its_questions_and_the_heads_own_id_are_refused(folder, tmp_path):
    cohort = write_toy_cohort(tmp_path / "organs", cases=24, classes=3, sites=1)
    done = run(folder, "--cohort", cohort.path, "--id", "ours", "--out", tmp_path / "out")
    assert isinstance(done.exception, WrongUseError)
    assert "organ" in str(done.exception)
    done = run(folder, "--cohort", cohort.path, "--id", "toy-head", "--out", tmp_path / "out")
    assert isinstance(done.exception, WrongUseError)
