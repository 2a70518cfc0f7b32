"""What `slideway train` refuses before it does any work."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from slideway.cli.training import name_command, require_free_folder
from slideway.core.errors import WrongUseError
from slideway.testing.heads import write_toy_head


def test_a_head_never_takes_the_place_of_something_else(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(WrongUseError, match="is no head"):
        require_free_folder(tmp_path, "scans")
    write_toy_head(tmp_path / "old")
    require_free_folder(tmp_path, "old")  # a head may be trained again
    require_free_folder(tmp_path, "new")
    with pytest.raises(WrongUseError, match="take the place"):
        require_free_folder(tmp_path, "bags", beside=(tmp_path / "bags",))
    with pytest.raises(WrongUseError, match="take the place"):
        require_free_folder(tmp_path, "bags", beside=(tmp_path / "bags" / "a" / "bag.safetensors",))


@pytest.mark.parametrize("name", ["County-1", "../evil", "", "a" * 65])
def test_an_id_that_cannot_stand_on_a_card_is_refused_at_once(tmp_path, name):
    with pytest.raises(WrongUseError, match="cannot be an id"):
        require_free_folder(tmp_path, name)


def test_the_command_on_a_card_names_no_folder(monkeypatch):
    said = ["slideway", "train", "malignant", "--cohort", "/data/Mueller_Anna/cohort.csv", "--out=C:\\x\\heads/"]
    monkeypatch.setattr("sys.argv", said)
    assert name_command() == "slideway train malignant --cohort cohort.csv --out=heads"


def test_train_wants_a_cohort_or_a_tile_table(tmp_path):
    from slideway.cli.train import command

    done = CliRunner().invoke(command, ["malignant"])
    assert isinstance(done.exception, WrongUseError)
    assert "--cohort" in str(done.exception)
    assert not list(Path(tmp_path).iterdir())
