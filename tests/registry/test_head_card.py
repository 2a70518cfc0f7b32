"""A head's card is read back as it was written, and every impossible entry is named."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.errors import UntrustedHeadError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.registry.head_card import is_head_folder, read_head_card, write_head_card
from slideway.registry.head_records import Bounds, HeadInput, HeadTask, HeadWeights, TaskEvidence
from slideway.registry.records import PERMISSIONS, STATES, CardLicence, CardTraining, CardUse
from slideway.testing.encoders import write_toy_encoder
from slideway.testing.heads import write_toy_head

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda text: text.strip())
SHARES = st.floats(0, 1)
BOUNDS = st.lists(SHARES, min_size=3, max_size=3).map(sorted).map(lambda own: Bounds(own[1], own[0], own[2]))
COUNTS = st.integers(0, 10**9)
EVIDENCE = st.builds(
    TaskEvidence,
    split=st.sampled_from(["leave-one-case-out", "case-folds", "leave-site-out", "own-split", "tiles"]),
    cases=st.integers(1, 10**6),
    positives=COUNTS,
    measure=st.sampled_from(["auroc", "accuracy"]),
    value=BOUNDS,
    baseline=WORDS,
    baseline_value=BOUNDS,
    sensitivity=st.none() | BOUNDS,
    specificity=st.none() | BOUNDS,
    ece=SHARES,
    answered=SHARES,
    sites=COUNTS,
)
METRICS = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
IDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@st.composite
def tasks(draw):
    ids = draw(st.lists(st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True), min_size=1, max_size=4, unique=True))
    made = []
    for number, id_ in enumerate(ids):
        kind = draw(st.sampled_from(Kind))
        free = st.lists(WORDS, min_size=2, max_size=5, unique=True).map(tuple)
        question = TaskQuestion(
            id_,
            draw(WORDS),
            kind,
            ("no", "yes") if kind is Kind.BINARY else draw(free),
            draw(st.sampled_from(["", *ids[:number]])),
            tuple(draw(st.lists(WORDS, max_size=2))),
        )
        is_on = draw(st.booleans())
        made.append(HeadTask(question, is_on, "" if is_on else draw(WORDS), draw(st.none() | EVIDENCE)))
    return tuple(made)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_head(tmp_path_factory.mktemp("heads") / "toy")


@pytest.fixture
def folder(tmp_path):
    return write_toy_head(tmp_path / "toy").folder


def edit(folder: Path, pattern: str, changed: str) -> None:
    card = folder / "card.toml"
    text, count = re.subn(pattern, changed, card.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1, f"the card has no {pattern}"
    card.write_text(text, encoding="utf-8")


@settings(max_examples=60, deadline=None)
@given(
    id_=IDS,
    words=st.lists(WORDS, min_size=8, max_size=8),
    state=st.sampled_from(STATES),
    given_tasks=tasks(),
    bags=st.builds(HeadInput, IDS, SHA256, st.integers(1, 9000), WORDS, st.integers(1, 900)),
    weights=st.builds(
        HeadWeights, SHA256, st.integers(1, 2**40), st.integers(1, 2**40), st.sampled_from(["abmil", "instance"])
    ),
    permits=st.lists(st.sampled_from(PERMISSIONS), unique=True).map(tuple),
    limits=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
    metrics=st.dictionaries(WORDS, METRICS, max_size=4),
)
def test_every_card_is_read_back_as_it_was_written(
    toy, id_, words, state, given_tasks, bags, weights, permits, limits, metrics
):
    card = replace(
        toy,
        id=id_,
        title=words[0],
        version=words[1],
        state=state,
        input=bags,
        tasks=given_tasks,
        weights=weights,
        licence=CardLicence(words[2], "LICENSE", words[3], permits),
        use=CardUse(words[4], words[5]),
        training=CardTraining(words[6], words[7]),
        limits=limits,
        metrics=metrics,
    )
    write_head_card(card)
    assert read_head_card(card.folder) == card
    write_head_card(toy)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "Not An Id"},
        {"id": ""},
        {"title": " "},
        {"state": "asleep"},
        {"tasks": ()},
        {"limits": ()},
        {"metrics": {"pair": (1, 2)}},
        {"metrics": {"nothing": None}},
        {"metrics": {"figure": float("nan")}},
        {"title": "half a pair \ud800"},
    ],
)
def test_card_that_could_not_be_read_back_is_not_written(toy, changes):
    before = (toy.folder / "card.toml").read_bytes()
    with pytest.raises(ValueError, match=r"card|surrogates"):
        write_head_card(replace(toy, **changes))
    assert (toy.folder / "card.toml").read_bytes() == before
    assert sorted(path.name for path in toy.folder.iterdir()) == ["LICENSE", "card.toml", "head.safetensors"]


def test_task_that_stands_before_its_parent_or_twice_is_not_written(toy):
    for wrong in ((toy.tasks[1], toy.tasks[0]), (toy.tasks[0], toy.tasks[0])):
        with pytest.raises(ValueError, match="stands twice, or before its parent"):
            write_head_card(replace(toy, tasks=wrong))


@pytest.mark.parametrize("schema", ["2.0", "10.1"])
def test_newer_major_version_is_refused(folder, schema):
    edit(folder, r'^schema = ".*"', f'schema = "{schema}"')
    with pytest.raises(UntrustedHeadError, match=f"schema {schema}, this Slideway reads 1.x; update Slideway"):
        read_head_card(folder)


def test_newer_minor_version_with_entries_unknown_here_is_read(folder):
    edit(folder, r'^schema = "1.0"', 'schema = "1.9"\nfuture = "entry"')
    assert read_head_card(folder).id == "toy-head"


@pytest.mark.parametrize("schema", ["", 'schema = "one"\n', "schema = 1.0\n"])
def test_card_without_a_schema_is_refused(folder, schema):
    edit(folder, r'^schema = ".*"\n', schema)
    with pytest.raises(UntrustedHeadError, match="has no schema"):
        read_head_card(folder)


@pytest.mark.parametrize(
    ("pattern", "changed", "named"),
    [
        (r'^id = "toy-head"', 'id = "Toy Head"', r"id must be"),
        (r'^title = ".*"', 'title = "  "', r"title must be a text"),
        (r'^state = "active"', 'state = "on"', r"state must be"),
        (r'^encoder_fingerprint = ".*"', 'encoder_fingerprint = "abc"', r"\[input\] encoder_fingerprint"),
        (r"^width = 8", "width = 0", r"\[input\] width must be a whole number above 0"),
        (r"^width = 8", "width = 8.0", r"\[input\] width"),
        (r"^width = 8", "width = true", r"\[input\] width"),
        (r"^min_tiles = 1", "min_tiles = -1", r"\[input\] min_tiles"),
        (r'^stain = ".*"\n', "", r"\[input\] stain"),
        (r'^sha256 = ".*"', 'sha256 = "00"', r"\[weights\] sha256"),
        (r'^form = "abmil"', 'form = "pickle"', r"\[weights\] form"),
        (r'^file = "LICENSE"', 'file = "../../etc/passwd"', r"\[licence\] file"),
        (r'(?s)^permits = \[.*?\]', 'permits = ["everything"]', r"\[licence\] permits"),
        (r'^kind = "binary"', 'kind = "fuzzy"', r"\[tasks\] kind"),
        (r'(?s)^labels = \[.*?\]', 'labels = ["yes", "no"]', r"labels of a binary task are no, yes"),
        (r'(?s)^labels = \[.*?\]', 'labels = "no yes"', r"\[tasks\] labels must be a list of labels"),
        (r'^in_force = true', 'in_force = "yes"', r"\[tasks\] in_force must be true or false"),
        (r'^split = ".*"', 'split = "by-slide"', r"\[tasks\.evidence\] split"),
        (r'^measure = "auroc"', 'measure = "luck"', r"\[tasks\.evidence\] measure"),
        (r"^ece = .*", "ece = nan", r"\[tasks\.evidence\] ece"),
        (r"^answered = .*", "answered = 2", r"\[tasks\.evidence\] answered"),
        (r"^positives = .*", "positives = -1", r"\[tasks\.evidence\] positives"),
        (r"^positives = .*", "positives = false", r"\[tasks\.evidence\] positives"),
        (r"^cases = .*", "cases = 0", r"\[tasks\.evidence\] cases"),
        (r"^low = .*", "low = 0.97", r"\[tasks\.evidence\.value\] value must be .* within its own low and high"),
        (r"^low = .*", "low = -0.2", r"\[tasks\.evidence\.value\] value must be from 0 to 1"),
        (r"^high = .*", "high = 0.93", r"\[tasks\.evidence\.value\] value must be"),
        (r"^high = .*", "high = inf", r"\[tasks\.evidence\.value\] high"),
        (r'^parent = "neoplastic"', 'parent = "grade"', r"before its parent 'grade'"),
        (r'^id = "malignant"', 'id = "neoplastic"', r"stands twice"),
        (r'(?s)^plain = \[.*?\]', "plain = []", r"every model has limits"),
        (r"^\[training\]", "[trained]", r"has no section \[training\]"),
    ],
)  # fmt: skip
def test_impossible_entry_is_named(folder, pattern, changed, named):
    edit(folder, pattern, changed)
    with pytest.raises(UntrustedHeadError, match=named):
        read_head_card(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a = " + b"[" * 20_000, b"x" * 1_000_001, b"tasks = 3\n"])
def test_file_that_is_no_card_is_refused(folder, content):
    (folder / "card.toml").write_bytes(content)
    assert not is_head_folder(folder)
    with pytest.raises(UntrustedHeadError):
        read_head_card(folder)


def test_encoders_card_is_not_taken_for_a_heads_and_says_so(tmp_path, folder):
    encoder = write_toy_encoder(tmp_path / "encoder").folder
    assert is_head_folder(folder)
    assert not is_head_folder(encoder)
    assert not is_head_folder(tmp_path / "nowhere")
    with pytest.raises(UntrustedHeadError, match="is not a head's card"):
        read_head_card(encoder)


def test_fingerprint_is_of_what_decides_the_meaning_and_of_nothing_else(toy):
    question = toy.tasks[3].question
    turned = replace(toy.tasks[3], question=replace(question, labels=tuple(reversed(question.labels))))
    worded = replace(toy.tasks[3], question=replace(question, title="Tissue of origin"))
    changed = [
        replace(toy, weights=replace(toy.weights, sha256="0" * 64)),
        replace(toy, input=replace(toy.input, encoder_fingerprint="0" * 64)),
        replace(toy, tasks=(*toy.tasks[:3], turned)),
        replace(toy, tasks=toy.tasks[:3]),
    ]
    same = [replace(toy, title="x", state="retired", limits=("y",)), replace(toy, tasks=(*toy.tasks[:3], worded))]
    assert len({toy.fingerprint, *(card.fingerprint for card in changed)}) == 5
    assert {card.fingerprint for card in same} == {toy.fingerprint}


def test_task_is_in_force_only_when_its_head_is_active(toy):
    states = {state: replace(toy, state=state).is_in_force(toy.tasks[0]) for state in STATES}
    assert states == {"candidate": False, "shadow": False, "active": True, "retired": False}
    assert not toy.is_in_force(replace(toy.tasks[0], in_force=False))


def test_head_beats_its_baseline_only_with_the_lower_bound_of_its_figure(toy):
    evidence = toy.tasks[0].evidence
    close = Bounds(0.9, 0.85, 0.95)
    assert evidence.beats_baseline
    assert not replace(evidence, value=close, baseline_value=close).beats_baseline
    assert not replace(evidence, value=close, baseline_value=Bounds(0.85, 0.8, 0.9)).beats_baseline
