import re
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from slideway.core.opinion import Kind, TaskQuestion
from slideway.registry.card import read_card
from slideway.registry.encoder_page import write_encoder_page
from slideway.registry.head_page import escape, write_head_page
from slideway.registry.head_records import Bounds, HeadCard, HeadInput, HeadTask, HeadWeights, TaskEvidence
from slideway.registry.records import (
    CardEquivalence,
    CardLicence,
    CardOrigin,
    CardTraining,
    CardUse,
    EquivalenceMachine,
    ModelCard,
)
from slideway.testing.encoders import write_toy_encoder

OURS = {"h1", "h2", "p", "ul", "li", "strong", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = "# a|b\n\n<script>x</script> [link](javascript:x) ![p](x) `code` *b* __b__ ```\n---\n&lt; $x$ ~~s~~"
NOT_ENOUGH = "The lower 95 % bound of its auroc (0.550) is not above the best baseline's figure (nearest cases: 0.797)."


def make_evidence(**changes):
    evidence = TaskEvidence(
        split="leave-one-case-out",
        cases=51,
        positives=20,
        measure="auroc",
        value=Bounds(0.7167, 0.5503, 0.8485),
        baseline="nearest cases",
        baseline_value=Bounds(0.797, 0.6373, 0.9158),
        sensitivity=Bounds(0.2, 0.0573, 0.4366),
        specificity=Bounds(0.9394, 0.7977, 0.9926),
        ece=0.1887,
        answered=0.1887,
        sites=0,
    )
    return replace(evidence, **changes)


def make_tasks(evidence=None):
    neoplastic = TaskQuestion("neoplastic", "Neoplastic?", Kind.BINARY, ("no", "yes"), sites=("kidney",))
    malignant = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"), "neoplastic")
    better = make_evidence(baseline_value=Bounds(0.5, 0.4, 0.6), sites=3)
    return (
        HeadTask(neoplastic, True, "", better),
        HeadTask(malignant, False, NOT_ENOUGH, evidence or make_evidence()),
    )


@pytest.fixture
def card():
    return HeadCard(
        folder=Path("county-1"),
        id="county-1",
        title="County head",
        version="1.0.0",
        state="candidate",
        input=HeadInput("slideway-small", "ab" * 32, 512, "H&E", 20),
        tasks=make_tasks(),
        weights=HeadWeights("cd" * 32, 812_148, 51_679, "abmil"),
        licence=CardLicence("LicenseRef-private", "LICENSE", "Whoever trained it decides."),
        use=CardUse("A second look.", "Any diagnosis."),
        training=CardTraining("A cohort of 51 cases.", "Gated attention, 3 networks averaged."),
        limits=("Only 51 cases.", "One laboratory."),
        metrics={"command": "slideway train malignant --cohort cohort.csv"},
    )


@pytest.fixture
def encoder(tmp_path):
    return write_toy_encoder(tmp_path / "toy")


def row_of(page, title, *, column):
    """A cell of the first table that has the column, in the row of a question."""
    lines = page.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("|") and f"| {column} |" in line)
    columns = [cell.strip() for cell in lines[at].strip("|").split("|")]
    row = next(line for line in lines[at:] if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][columns.index(column)]


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("this head", "0.717 (0.550–0.849)"),
        ("baseline", "0.797 (0.637–0.916)"),
        ("which", "nearest cases"),
        ("cases", "51"),
        ("of them yes", "20"),
        ("hospitals", "unknown"),
        ("sensitivity", "0.200 (0.057–0.437)"),
        ("specificity", "0.939 (0.798–0.993)"),
        ("calibration error", "0.189"),
        ("answered", "18.9%"),
        ("measure", "AUROC"),
    ],
)
def test_evidence_stands_as_on_the_card(card, column, cell):
    assert row_of(write_head_page(card), "Malignant?", column=column) == cell


def test_task_of_several_classes_has_no_sensitivity(card):
    question = TaskQuestion("organ", "Organ", Kind.CLASSES, ("colon", "liver"))
    evidence = make_evidence(measure="accuracy", sensitivity=None, specificity=None, positives=0)
    page = write_head_page(replace(card, tasks=(HeadTask(question, True, "", evidence),)))
    assert row_of(page, "Organ", column="sensitivity") == "–"
    assert row_of(page, "Organ", column="of them yes") == "–"
    assert row_of(page, "Organ", column="measure") == "mean accuracy"


def test_questions_say_what_they_are_asked_below_and_where(card):
    page = write_head_page(card)
    assert row_of(page, "Malignant?", column="asked below") == "neoplastic"
    assert row_of(page, "Neoplastic?", column="sites") == "kidney"
    assert row_of(page, "Malignant?", column="sites") == "any"


def test_only_an_active_head_has_questions_in_force(card):
    assert row_of(write_head_page(card), "Neoplastic?", column="state") == "in force once active (it is candidate)"
    active = write_head_page(replace(card, state="active"))
    assert row_of(active, "Neoplastic?", column="state") == "**in force**"
    assert row_of(active, "Malignant?", column="state") == "off"


def test_why_a_question_is_off_is_told(card):
    assert f"- **Malignant?** is off: {NOT_ENOUGH}" in write_head_page(card)


def test_question_in_force_against_its_figures_is_said_to_be_a_persons_choice(card):
    tasks = (HeadTask(card.tasks[1].question, True, "", make_evidence()),)
    page = write_head_page(replace(card, tasks=tasks))
    assert "**Malignant?** was switched on by a person" in page
    assert "switched on" not in write_head_page(card)


def test_head_without_evidence_says_so(card):
    tasks = tuple(replace(task, evidence=None) for task in card.tasks)
    assert "None: it was not evaluated on unseen cases." in write_head_page(replace(card, tasks=tasks))


def test_page_holds_use_limits_training_licence_and_fingerprints(card):
    page = write_head_page(card)
    for part in (
        "**For:** A second look.",
        "**Not for:** Any diagnosis.",
        "- Only 51 cases.\n- One laboratory.",
        "A cohort of 51 cases.",
        "Gated attention, 3 networks averaged.",
        "LicenseRef-private. Whoever trained it decides.",
        "slideway read SLIDE --head county-1",
        "slideway train malignant --cohort cohort.csv",
        card.fingerprint,
        card.weights.sha256,
        card.input.encoder_fingerprint,
        "each case was judged by networks that had seen all others",
    ):
        assert part in page
    assert page.index("no diagnosis") < page.index("## Questions")


def test_all_methods_of_the_metrics_stand_beside_each_other(card):
    methods = {
        "abmil": {"auroc": {"value": 0.7167, "low": 0.5503, "high": 0.8485}, "ece": 0.1887, "brier": 0.2081},
        "nearest cases": {"auroc": {"value": 0.797, "low": 0.6373, "high": 0.9158}, "ece": 0.1417, "aurc": 0.3156},
    }
    page = write_head_page(replace(card, metrics={"tasks": {"malignant": {"methods": methods}}}))
    assert "| this head | 0.717 (0.550–0.849) | 0.189 | 0.208 | – |" in page
    assert "| nearest cases | 0.797 (0.637–0.916) | 0.142 | – | 0.316 |" in page


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"command": 7, "tasks": "none"},
        {"tasks": {"malignant": []}},
        {"tasks": {"malignant": {"methods": {"abmil": 3, "other": {"auroc": {"value": "x"}, "ece": None}}}}},
    ],
)
def test_metrics_of_another_shape_are_passed_over(card, metrics):
    page = write_head_page(replace(card, metrics=metrics))
    assert row_of(page, "Malignant?", column="this head") == "0.717 (0.550–0.849)"
    assert "Made by:" not in page


def test_same_card_gives_the_same_page_wherever_it_lies(card):
    assert write_head_page(card) == write_head_page(replace(card, folder=Path("elsewhere")))


def assert_is_harmless(page):
    """Rendered, with raw HTML allowed, the page has our own markup only."""
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page)
    body = re.sub(r"<!-- Written[^>]*-->", "", rendered)
    assert set(re.findall(r"<(/?[a-z0-9]+)[^>]*>", body)) <= OURS | {f"/{tag}" for tag in OURS}
    assert re.findall(r"<h2>(.*?)</h2>", body) == [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert body.count("<h1>") == 1
    for table in re.findall(r"<table>.*?</table>", body, re.DOTALL):
        assert not re.search(r"<t[hd]></t[hd]>", table)  # a row that a stray sign cut in two is filled up with these
    return body


def test_hostile_card_of_a_head_is_shown_as_text(card):
    question = TaskQuestion("grade", HOSTILE, Kind.CLASSES, ("no", HOSTILE), sites=(HOSTILE,))
    hostile = replace(
        card,
        title=HOSTILE,
        version=HOSTILE,
        input=replace(card.input, stain=HOSTILE),
        tasks=(HeadTask(question, False, HOSTILE, make_evidence(baseline=HOSTILE)),),
        licence=CardLicence(HOSTILE, "LICENSE", HOSTILE),
        use=CardUse(HOSTILE, HOSTILE),
        training=CardTraining(HOSTILE, HOSTILE),
        limits=(HOSTILE,),
        metrics={"command": HOSTILE, "tasks": {"grade": {"methods": {HOSTILE: {"ece": 0.1}}}}},
    )
    body = assert_is_harmless(write_head_page(hostile))
    shown = (
        "# a|b &lt;script&gt;x&lt;/script&gt; [link](javascript:x) ![p](x) `code` *b* __b__ ``` --- &amp;lt; $x$ ~~s~~"
    )
    assert body.count(shown) == 20  # sign by sign as it was written, also in the cells of tables


def test_command_of_backticks_stays_code(card):
    body = assert_is_harmless(write_head_page(replace(card, metrics={"command": "```"})))
    assert "<pre><code>```\n</code></pre>" in body


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, 0.5 (a) snake_case H&E", "plain words, 0.5 (a) snake_case H&E"),
        ("1. first", r"1\. first"),
        ("1.0.0", "1.0.0"),
        ("- item", r"\- item"),
        ("a\n# b", "a # b"),
        ("&amp; a & b", "&amp;amp; a & b"),
        ("a\x00\x1bb \udce4", "a b"),
        (r"back\slash", r"back\\slash"),
    ],
)
def test_text_is_escaped_where_it_must_be_and_left_alone_elsewhere(text, shown):
    assert escape(text) == shown


def test_page_of_the_encoder_that_ships_holds_its_figures_limits_and_fingerprint():
    folder = Path(__file__).parents[2] / "src" / "slideway" / "registry" / "models" / "slideway-small"
    shipped = read_card(folder)
    page = write_encoder_page(shipped)
    figure = shipped.metrics["pcam_auc"]
    assert f"| pcam_auc | {figure['value']:.4g} | {figure['low']:.4g}–{figure['high']:.4g} |" in page
    assert shipped.fingerprint in page
    assert all(escape(limit) in page for limit in shipped.limits)
    assert "slideway read SLIDE --encoder slideway-small" in page
    assert "| Colon | 9 |" in page
    assert_is_harmless(page)


def test_hostile_card_of_an_encoder_is_shown_as_text(encoder: ModelCard):
    machine = EquivalenceMachine(HOSTILE, 0.9, 0.8, 1.5, 20.0, True, HOSTILE)
    hostile = replace(
        encoder,
        title=HOSTILE,
        input=replace(encoder.input, colour=HOSTILE, resize=HOSTILE),
        output=replace(encoder.output, pooling=HOSTILE, dtype=HOSTILE),
        licence=CardLicence(HOSTILE, "LICENSE", HOSTILE, (HOSTILE,)),
        use=CardUse(HOSTILE, HOSTILE),
        training=CardTraining(HOSTILE, HOSTILE),
        limits=(HOSTILE,),
        metrics={"command": HOSTILE, HOSTILE: {HOSTILE: 1.5}, "subgroups": [{HOSTILE: HOSTILE}]},
        origin=CardOrigin(HOSTILE, HOSTILE, HOSTILE),
        equivalence=CardEquivalence(HOSTILE, HOSTILE, HOSTILE, (machine,)),
    )
    assert_is_harmless(write_encoder_page(hostile))


def test_optimised_form_says_what_it_is_a_form_of(encoder: ModelCard):
    machine = EquivalenceMachine("avx2", 0.99912, 0.99801, 1.52, 21.4, True, "slideway optimise toy")
    page = write_encoder_page(
        replace(encoder, equivalence=CardEquivalence("ef" * 32, "fp16-weights", "cosine above .999", (machine,)))
    )
    assert "ef" * 32 in page
    assert "| avx2 | 0.99912 | 0.99801 | 1.52 | 21.4 | yes | slideway optimise toy |" in page
    assert "optimised form" not in write_encoder_page(encoder)


def test_encoder_without_figures_says_so(encoder: ModelCard):
    bare = write_encoder_page(replace(encoder, metrics={"subgroups": "none", "is_good": True}))
    assert "The card states no figure." in bare
    assert write_encoder_page(encoder) == write_encoder_page(replace(encoder, folder=Path("elsewhere")))
