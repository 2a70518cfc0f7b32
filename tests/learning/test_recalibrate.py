"""A head's certainty moves to a site's own cases as far as they allow, and nothing else of it moves."""

from dataclasses import replace

import numpy as np
import pytest

from slideway.core.errors import CohortError, FingerprintMismatchError, WrongUseError
from slideway.heads.calibration import Scaling
from slideway.heads.head import load_head, save_head
from slideway.learning.recalibrate import (
    bump_version,
    choose_site,
    recalibrate_tasks,
    require_change,
    require_recalibratable,
    write_recalibrated,
)
from slideway.learning.sample import Sample
from slideway.registry.blobs import hash_file
from slideway.registry.head_card import read_head_card, write_head_card
from slideway.registry.head_records import HEAD_FILE
from slideway.testing.heads import TOY_QUESTIONS, light, make_toy_bag, make_toy_head, write_toy_bag, write_toy_head

NEOPLASTIC = TOY_QUESTIONS[:1]


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """A head that is far too unsure: four times the temperature that its numbers ask for."""
    folder = tmp_path_factory.mktemp("heads") / "toy-head"
    card = write_toy_head(folder, questions=NEOPLASTIC)
    head = make_toy_head(NEOPLASTIC)
    certain = {t: replace(c, scaling=Scaling(4.0)) for t, c in head.certainty.items()}
    save_head(folder / HEAD_FILE, replace(head, certainty=certain), encoder_fingerprint=card.input.encoder_fingerprint)
    path = folder / HEAD_FILE
    card = replace(card, weights=replace(card.weights, sha256=hash_file(path), bytes=path.stat().st_size))
    write_head_card(card)
    return card


def make_sample(folder, cases, *, slides=1, fingerprint=None, wrong=0):
    """Cases in turn without and with a lit tile; of the first `wrong` ones the label is turned."""
    random = np.random.default_rng(5)
    paths, owners, labels = [], [], []
    for number in range(cases * slides):
        case = number // slides
        vectors = random.normal(size=(30, 8)).astype(np.float32)
        vectors[:4] += light(NEOPLASTIC, "neoplastic", ("no", "yes")[case % 2])
        bag = make_toy_bag(vectors, **({} if fingerprint is None else {"fingerprint": fingerprint}))
        paths.append(write_toy_bag(folder / f"{number}.safetensors", bag))
        owners.append(f"local-{case}")
        labels.append(case % 2 if case >= wrong else 1 - case % 2)
    count = len(paths)
    names = tuple(path.name for path in paths)
    return Sample(
        tuple(paths),
        tuple(owners),
        NEOPLASTIC,
        {"neoplastic": np.array(labels)},
        {"site": ("north",) * count},
        ("",) * count,
        names,
    )


def recalibrated(card, sample):
    return recalibrate_tasks(card, load_head(card), sample)


def test_a_head_too_unsure_gets_surer_and_pools_its_cases_with_the_sites(card, tmp_path):
    (task,) = recalibrated(card, make_sample(tmp_path, 40))
    assert task.fitted.is_changed
    assert task.fitted.gain > 0
    assert task.fitted.scaling.temperature < 4
    assert task.cases_by_label == (20, 20)
    assert task.conformal.cases == (12 + 20, 12 + 20)
    for own, pooled in zip(make_toy_head(NEOPLASTIC).certainty["neoplastic"].conformal.scores, task.conformal.scores,
                           strict=True):  # fmt: skip
        assert set(own) <= set(pooled)  # scored with the scaling of their own sites, as they were
    assert all((np.diff(scores) >= 0).all() and (scores >= 0).all() for scores in task.conformal.scores)


def test_what_is_written_loads_and_only_certainty_differs(card, tmp_path):
    tasks, head = recalibrated(card, make_sample(tmp_path / "bags", 40)), load_head(card)
    (tmp_path / "new").mkdir()
    write_recalibrated(
        tmp_path / "new", card, head, tasks, new_id="north", site="North", command="none", cohort_sha256="0" * 64
    )
    told = read_head_card(tmp_path / "new")
    new = load_head(told)
    assert (told.id, told.version, told.state) == ("north", "1.1.0", "candidate")
    assert told.fingerprint != card.fingerprint
    assert told.tasks == card.tasks  # the evidence is the old head's, and the limits say so
    assert any("before the recalibration" in sentence for sentence in told.limits)
    assert any("North" in sentence for sentence in told.limits)
    assert told.metrics["recalibration"]["tasks"]["neoplastic"]["cases"] == 40
    assert told.metrics["recalibration"]["from_sha256"] == card.weights.sha256
    assert np.array_equal(new.network.members[0].hidden[0], head.network.members[0].hidden[0])
    assert np.array_equal(new.typicality.reference, head.typicality.reference)
    assert new.known.names == head.known.names
    assert new.certainty["neoplastic"].scaling == tasks[0].fitted.scaling


@pytest.mark.parametrize(("cases", "words"), [(18, "20 are needed"), (2, "20 are needed")])
def test_too_few_cases_are_refused_in_words(card, tmp_path, cases, words):
    tasks = recalibrated(card, make_sample(tmp_path, cases))
    assert not tasks[0].fitted.is_changed
    assert tasks[0].conformal is not None
    assert tasks[0].conformal.cases == (12, 12)
    with pytest.raises(CohortError, match=words) as refused:
        require_change(tasks, "north")
    assert refused.value.exit_code == 2


def test_guards_count_cases_not_slides(card, tmp_path):
    tasks = recalibrated(card, make_sample(tmp_path, 12, slides=3))
    assert tasks[0].fitted.cases == 12
    with pytest.raises(CohortError, match="12 cases"):
        require_change(tasks, "north")


def test_what_describes_left_out_cases_no_better_is_not_taken(card, tmp_path):
    good = recalibrated(card, make_sample(tmp_path / "1", 40))[0].fitted.scaling
    folder = tmp_path / "fitted"
    write_toy_head(folder, questions=NEOPLASTIC)
    random = np.random.default_rng(0)
    sample = make_sample(tmp_path / "2", 40)
    sample = replace(sample, labels={"neoplastic": random.integers(0, 2, 40)})  # labels that the tissue does not tell
    (task,) = recalibrated(card, sample)
    losses = task.fitted.gain
    assert task.fitted.is_changed == (losses > 0)
    if task.fitted.is_changed:  # then it is unsurer than with labels that tissue tells
        assert task.fitted.scaling.temperature > good.temperature


def test_bags_of_another_encoder_are_refused(card, tmp_path):
    with pytest.raises(FingerprintMismatchError):
        recalibrated(card, make_sample(tmp_path, 20, fingerprint="e" * 64))


def test_a_site_must_be_named_where_there_are_several():
    assert choose_site(["", ""], None, "ours") == ("ours", [0, 1])
    assert choose_site(["n", "n"], None, "ours") == ("n", [0, 1])
    assert choose_site(["n", "s", "n"], "n", "ours") == ("n", [0, 2])
    with pytest.raises(CohortError, match="--site"):
        choose_site(["n", "s"], None, "ours")
    with pytest.raises(CohortError, match="no slide of site 'west'"):
        choose_site(["n", "s"], "west", "ours")


def test_ids_and_forms_that_cannot_be_are_refused_before_any_work(card, tmp_path):
    with pytest.raises(WrongUseError, match="another id"):
        require_recalibratable(card, card.id)
    with pytest.raises(WrongUseError, match="cannot be an id"):
        require_recalibratable(card, "Ours!")
    tiles = write_toy_head(tmp_path / "tiles", questions=NEOPLASTIC, form="instance")
    with pytest.raises(WrongUseError, match="single tiles"):
        require_recalibratable(tiles, "ours")


def test_versions_go_up():
    assert bump_version("1.0.3") == "1.1.0"
    assert bump_version("2025-a") == "2025-a+site"
