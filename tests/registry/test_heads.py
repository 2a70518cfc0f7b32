"""Heads come and go as whole folders, beside encoders and never taken for them."""

import shutil
from dataclasses import replace

import pytest

from slideway.core.errors import (
    OutputError,
    UnknownHeadError,
    UntrustedEncoderError,
    UntrustedHeadError,
    WrongUseError,
)
from slideway.registry import heads as registry
from slideway.registry.card import read_card
from slideway.registry.head_card import read_head_card, write_head_card
from slideway.registry.heads import (
    find_head,
    heads_folder,
    install_head,
    is_packaged_head,
    list_broken_heads,
    list_heads,
    remove_head,
    set_head_state,
    switch_task,
    verify_head_files,
)
from slideway.registry.store import install_model, list_broken, list_encoders
from slideway.testing.heads import TOY_QUESTIONS, write_toy_head


@pytest.fixture(autouse=True)
def only_own(own_models, tmp_path, monkeypatch):
    """A packaged folder of the test's own, so that what ships does not matter here."""
    packaged = tmp_path / "packaged"
    monkeypatch.setattr(registry, "_PACKAGED", packaged)
    return packaged


@pytest.fixture
def source(tmp_path):
    return write_toy_head(tmp_path / "source" / "toy-head")


@pytest.fixture
def other(tmp_path):
    """Another head of the same id."""
    return write_toy_head(tmp_path / "other" / "toy-head", questions=TOY_QUESTIONS[:2])


def test_installed_head_is_found_whole_and_nothing_else_of_its_folder_is_taken(source):
    (source.folder / "predictions.csv").write_text("case,label\n", encoding="utf-8")
    card = install_head(source.folder)
    assert source.state == "active"
    assert card == replace(source, folder=heads_folder() / "toy-head", state="candidate")  # a person here decides
    assert find_head("toy-head") == card
    assert list_heads() == (card,)
    assert sorted(path.name for path in card.folder.iterdir()) == ["LICENSE", "card.toml", "head.safetensors"]
    assert not [path for path in heads_folder().iterdir() if path.name.startswith(".")]
    verify_head_files(card)


def test_same_head_again_changes_nothing_not_even_what_a_person_decided(source):
    install_head(source.folder)
    set_head_state("toy-head", "shadow")
    switch_task("toy-head", "organ", on=False, reason="Not trusted here.")
    before = find_head("toy-head")
    assert install_head(source.folder) == before
    assert find_head("toy-head") == before
    assert install_head(source.folder, replace_it=True).state == "candidate"


def test_same_head_again_mends_a_damaged_one(source):
    card = install_head(source.folder)
    card.weights_path.write_bytes(b"damaged")
    install_head(source.folder)
    verify_head_files(find_head("toy-head"))


def test_another_head_of_the_same_id_needs_another_id_or_to_replace(source, other):
    first = install_head(source.folder)
    with pytest.raises(WrongUseError, match="is installed already and is another head"):
        install_head(other.folder)
    assert find_head("toy-head") == first
    beside = install_head(other.folder, head_id="second")
    assert (beside.id, beside.fingerprint) == ("second", other.fingerprint)
    replaced = install_head(other.folder, replace_it=True)
    assert [card.fingerprint for card in list_heads()] == [other.fingerprint] * 2
    assert find_head("toy-head") == replaced


@pytest.mark.parametrize("bad", ["../evil", "a/b", "a\\b", ".hidden", "Großes", "", "x" * 65])
def test_id_that_is_no_id_is_refused_and_writes_nothing(source, bad):
    before = sorted(source.folder.parent.parent.rglob("*"))
    if bad:
        with pytest.raises(WrongUseError, match="cannot be an id"):
            install_head(source.folder, head_id=bad)
    else:
        assert install_head(source.folder, head_id=bad).id == "toy-head"
        return
    assert sorted(source.folder.parent.parent.rglob("*")) == before


def test_folder_that_holds_another_head_is_never_overwritten(source, other):
    install_head(other.folder, head_id="other")
    (heads_folder() / "other").rename(heads_folder() / "toy-head")  # as a person may rename it
    for replace_it in (False, True):
        with pytest.raises(WrongUseError, match="among the heads holds 'other'"):
            install_head(source.folder, replace_it=replace_it)
    assert find_head("other").fingerprint == other.fingerprint


def test_replacing_finds_the_head_whatever_its_folder_is_called(source, other):
    install_head(source.folder)
    (heads_folder() / "toy-head").rename(heads_folder() / "aaa")
    install_head(other.folder, replace_it=True)
    assert [card.fingerprint for card in list_heads()] == [other.fingerprint]


def test_broken_folder_is_listed_explained_replaced_on_demand_and_removed(source):
    broken = heads_folder() / "toy-head"
    broken.mkdir(parents=True)
    (broken / "card.toml").write_text('kind = "head"\n', encoding="utf-8")
    assert list(list_broken_heads()) == ["toy-head"]
    assert list_heads() == ()
    with pytest.raises(UntrustedHeadError, match="has no schema"):
        find_head("toy-head")
    with pytest.raises(WrongUseError, match="is broken"):
        install_head(source.folder)
    install_head(source.folder, replace_it=True)
    assert list_broken_heads() == {}
    (broken / "card.toml").write_text("", encoding="utf-8")
    remove_head("toy-head")
    assert not broken.exists()


def test_broken_folder_does_not_hide_the_others(source):
    install_head(source.folder)
    (heads_folder() / "another").mkdir()
    (heads_folder() / "another" / "card.toml").write_text("=", encoding="utf-8")
    assert [card.id for card in list_heads()] == ["toy-head"]


@pytest.mark.parametrize("missing", ["card.toml", "head.safetensors", "LICENSE"])
def test_head_that_is_not_whole_is_refused_and_leaves_nothing(source, missing):
    (source.folder / missing).unlink()
    with pytest.raises(UntrustedHeadError):
        install_head(source.folder)
    assert list_heads() == ()
    assert not heads_folder().is_dir() or not any(heads_folder().iterdir())


def test_head_with_changed_weights_is_refused(source):
    with source.weights_path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UntrustedHeadError, match="not the file its card names"):
        install_head(source.folder)


def test_failed_replacement_leaves_the_older_head(source, other):
    first = install_head(source.folder)
    (other.folder / "LICENSE").unlink()
    with pytest.raises(UntrustedHeadError):
        install_head(other.folder, replace_it=True)
    assert find_head("toy-head") == first
    verify_head_files(first)


def test_place_that_cannot_be_written_is_an_output_error(source, own_models):
    own_models.parent.mkdir(exist_ok=True)
    own_models.write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(OutputError):
        install_head(source.folder)


def test_removed_head_is_gone_and_unknown_ones_are_named(source):
    card = install_head(source.folder)
    remove_head("toy-head")
    assert not card.folder.exists()
    with pytest.raises(UnknownHeadError, match="installed: none"):
        remove_head("toy-head")
    install_head(source.folder)
    with pytest.raises(UnknownHeadError, match="installed: toy-head"):
        find_head("somebody")


@pytest.mark.parametrize("change", [remove_head, lambda head: set_head_state(head, "shadow")])
def test_folder_given_by_path_is_not_an_installed_head(source, change):
    with pytest.raises(WrongUseError, match="is no id of an installed head"):
        change(str(source.folder))
    assert read_head_card(source.folder) == source


def test_head_is_read_from_a_folder_by_its_path(source, tmp_path, monkeypatch):
    assert find_head(source.folder) == source
    assert find_head(str(source.folder)) == source
    monkeypatch.chdir(source.folder.parent)
    with pytest.raises(UnknownHeadError):
        find_head("toy-head")  # a folder of that name in the working directory is no installed head
    with pytest.raises(UnknownHeadError, match="no folder 'nowhere'"):
        find_head(tmp_path / "nowhere")


def test_state_is_changed_on_the_card_alone(source):
    card = install_head(source.folder)
    for state in ("shadow", "retired", "active"):
        assert set_head_state("toy-head", state) == replace(card, state=state) == find_head("toy-head")
    with pytest.raises(ValueError, match="state must be"):
        set_head_state("toy-head", "asleep")
    assert find_head("toy-head").state == "active"
    verify_head_files(find_head("toy-head"))


def test_task_is_switched_by_a_person_with_a_reason(source):
    install_head(source.folder)
    off = switch_task("toy-head", "grade", on=False)
    assert [task.in_force for task in off.tasks] == [True, True, False, True]
    assert off.tasks[2].off_because == "Switched off by a person."
    assert switch_task("toy-head", "grade", on=False, reason="Too few G3.").tasks[2].off_because == "Too few G3."
    again = switch_task("toy-head", "grade", on=True)
    assert (again.tasks[2].in_force, again.tasks[2].off_because) == (True, "")
    assert again == find_head("toy-head")
    with pytest.raises(WrongUseError, match="has no task 'stage'; it has neoplastic, malignant, grade, organ"):
        switch_task("toy-head", "stage", on=True)


def test_packaged_head_cannot_be_changed_removed_or_displaced(only_own, source, other):
    shutil.copytree(source.folder, only_own / "toy-head")
    card = find_head("toy-head")
    assert is_packaged_head(card)
    for change in (
        lambda: remove_head("toy-head"),
        lambda: set_head_state("toy-head", "retired"),
        lambda: switch_task("toy-head", "organ", on=False),
    ):
        with pytest.raises(WrongUseError, match="came with Slideway"):
            change()
    for replace_it in (False, True):
        with pytest.raises(WrongUseError, match="belongs to a head of Slideway's"):
            install_head(other.folder, replace_it=replace_it)
    assert read_head_card(card.folder) == card


def test_users_head_cannot_take_a_packaged_id_by_being_put_there(only_own, source, other):
    shutil.copytree(source.folder, only_own / "toy-head")
    shutil.copytree(other.folder, heads_folder() / "toy-head")
    assert [card.fingerprint for card in list_heads()] == [source.fingerprint]


def test_heads_and_encoders_never_show_up_as_each_other(source, toy):
    encoders, broken = [card.id for card in list_encoders()], list_broken()
    install_head(source.folder)
    assert [card.id for card in list_encoders()] == encoders
    assert list_broken() == broken
    install_model(toy.folder)
    assert [card.id for card in list_heads()] == ["toy-head"]
    assert list_broken_heads() == {}
    with pytest.raises(UntrustedEncoderError):
        read_card(source.folder)
    with pytest.raises(UntrustedHeadError, match="is not a head's card"):
        install_head(toy.folder)
    with pytest.raises(UntrustedEncoderError):
        install_model(source.folder)


def test_encoder_may_have_the_id_of_a_head(source, toy, tmp_path):
    install_model(toy.folder, model_id="twin")
    install_head(source.folder, head_id="twin")
    remove_head("twin")
    assert "twin" in [card.id for card in list_encoders()]


def test_no_encoder_can_be_installed_over_the_heads(toy, source):
    install_head(source.folder)
    with pytest.raises(WrongUseError, match="belongs to Slideway"):
        install_model(toy.folder, model_id="heads")
    assert find_head("toy-head").id == "toy-head"


def test_card_edited_by_hand_into_another_head_is_seen_as_another(source):
    install_head(source.folder)
    labels = tuple(reversed(source.tasks[3].question.labels))
    turned = replace(source.tasks[3], question=replace(source.tasks[3].question, labels=labels))
    write_head_card(replace(source, tasks=(*source.tasks[:3], turned)))
    with pytest.raises(WrongUseError, match="another head"):
        install_head(source.folder)
