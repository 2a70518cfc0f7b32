import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

for needed in ("matplotlib", "torch", "sklearn", "threadpoolctl"):
    pytest.importorskip(needed)

from slideway.core.opinion import Answer, Kind, TaskQuestion  # noqa: E402
from slideway.heads.referral import ReferralPolicy  # noqa: E402
from slideway.learning.crossval import ABMIL, METHODS  # noqa: E402
from slideway.learning.evaluation import TaskJudgement, draw_evidence, measure_task  # noqa: E402
from slideway.learning.external import THIS_HEAD  # noqa: E402
from slideway.learning.report import compose_page, write_evaluation_page, write_predictions  # noqa: E402
from slideway.learning.sample import Sample  # noqa: E402
from slideway.learning.tile_heads import TILE_SCORE  # noqa: E402
from slideway.registry.head_records import HeadCard, HeadInput, HeadTask, HeadWeights  # noqa: E402
from slideway.registry.records import CardLicence, CardTraining, CardUse  # noqa: E402

COUNT = 24
COLUMNS = ("probability", "p-value")
HOSTILE = "<script>alert(1)</script> & $\\frac{"
MALIGNANT = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
ORGAN = TaskQuestion("organ", "Organ", Kind.CLASSES, ("colon", "liver", "lung"))
GRADE = TaskQuestion("grade", "Grade", Kind.ORDINAL, ("1", "2", "3"), "malignant")
POLICY = ReferralPolicy()


class Tables(HTMLParser):
    """Rows of every table of a page, by its caption, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, list[list[str]]]] = []
        self.text = ""
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.part = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.alts += [value for name, value in attrs if name == "alt"]
        if tag == "table":
            self.found.append(("", []))
        elif tag == "tr":
            self.found[-1][1].append([])
        elif tag in ("td", "th"):
            self.found[-1][1][-1].append("")
        if tag in ("caption", "td", "th", "style"):
            self.part = tag

    def handle_endtag(self, tag):
        if tag == self.part:
            self.part = ""

    def handle_data(self, data):
        if self.part == "caption":
            self.found[-1] = (self.found[-1][0] + data, self.found[-1][1])
        elif self.part in ("td", "th"):
            self.found[-1][1][-1][-1] += data
        if self.part != "style":
            self.text += data

    def of(self, caption: str, number: int = 0) -> list[dict[str, str]]:
        """Rows of a table as head of column to cell."""
        matching = [rows for words, rows in self.found if words.startswith(caption)]
        head, *rows = matching[number]
        return [{name: cell.strip() for name, cell in zip(head, row, strict=True)} for row in rows]


def make_sample(questions, labels, **facts):
    names = tuple(f"patient-slide-{i}" for i in range(COUNT))
    cases = tuple(f"case-number-{i // 2}" for i in range(COUNT))
    return Sample((Path(),) * COUNT, cases, questions, labels, facts, ("",) * COUNT, names)


def make_judged(question, *, methods=METHODS, seed=0, refer_all=False):
    """A judgement of every slide: the better a method the earlier it stands."""
    random = np.random.default_rng(seed)
    size = len(question.labels)
    labels = np.arange(COUNT) % size
    probabilities = {}
    for place, method in enumerate(methods):
        logits = random.normal(size=(COUNT, size)) + (2 - 0.7 * place) * np.eye(size)[labels]
        probabilities[method] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p_values = random.random((COUNT, size))
    p_values[np.arange(COUNT), labels] = np.maximum(p_values[np.arange(COUNT), labels], 0.05)
    leading = [question.labels[i] for i in probabilities[methods[0]].argmax(axis=1)]
    answers, answered = [], []
    for i, label in enumerate(leading):
        kind = (Answer.REFER, Answer.ANSWER, Answer.ANSWER, Answer.NOT_READABLE)[i % 4]
        kind = Answer.SET if question.kind is not Kind.BINARY and i % 8 == 2 else kind
        kind = Answer.REFER if refer_all else kind
        answers.append(kind)
        answered.append({Answer.SET: question.labels[:2], Answer.NOT_READABLE: ()}.get(kind, (label,)))
    return TaskJudgement(
        question, np.arange(COUNT), labels, probabilities, p_values, tuple(answers), tuple(map(tuple, answered))
    )


def make_evaluation(sample, judged, **changes):
    evaluation = {
        "head": "county-1",
        "slideway": "0.1.0",
        "command": "slideway train malignant --cohort cohort.csv",
        "of": "slides",
        "split": "case-folds",
        "folds": 5,
        "slides": COUNT,
        "cases": COUNT // 2,
        "sites": 2,
        "policy": dict(POLICY.__dict__),
        "training": {"rank": 64, "seeds": [0, 1, 2]},
        "tasks": [measure_task(sample, one, POLICY) for one in judged],
        "leave_site_out": None,
    }
    return {**evaluation, **changes}


def make_card(evaluation, questions, *, state="candidate", in_force=False, with_evidence=True):
    tasks = []
    for question, figures in zip(questions, evaluation["tasks"], strict=True):
        evidence = draw_evidence(figures, split="case-folds", sites=2) if with_evidence else None
        tasks.append(HeadTask(question, in_force, "" if in_force else "Its bound is too low.", evidence))
    return HeadCard(
        folder=Path(),
        id="county-1",
        title="County head",
        version="1.0.0",
        state=state,
        input=HeadInput("slideway-small", "ab" * 32, 512, "H&E", 20),
        tasks=tuple(tasks),
        weights=HeadWeights("cd" * 32, 1000, 51_679, "abmil"),
        licence=CardLicence("LicenseRef-private", "LICENSE", "Whoever trained it decides."),
        use=CardUse("A second look.", "Any diagnosis."),
        training=CardTraining("A cohort.", "Gated attention."),
        limits=("Only twelve cases.",),
        metrics={},
    )


def make_all(questions=(MALIGNANT, ORGAN, GRADE), **facts):
    judged = tuple(make_judged(question, seed=i) for i, question in enumerate(questions))
    labels = {one.question.id: one.labels for one in judged}
    sample = make_sample(questions, labels, **facts)
    evaluation = make_evaluation(sample, judged)
    return sample, judged, evaluation, make_card(evaluation, questions)


@pytest.fixture(scope="module")
def whole():
    return make_all(site=("North", "South") * (COUNT // 2), scanner=("A",) * 20 + ("B",) * 4)


def write(folder, card, evaluation, judged):
    return Tables(write_evaluation_page(folder, card=card, evaluation=evaluation, judged=judged).read_text("utf-8"))


def said(figure):
    if isinstance(figure, dict):
        return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"
    return f"{figure:.3f}"


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory):
    _, judged, evaluation, card = whole
    curve = [
        {
            "task": figures["task"],
            "cases": cases,
            "measure": figures["measure"],
            "methods": {name: own[figures["measure"]] for name, own in figures["methods"].items()},
        }
        for cases in (3, 6, 12)
        for figures in evaluation["tasks"]
    ]
    full = {**evaluation, "learning_curve": curve, "leave_site_out": evaluation["tasks"][:1]}
    return write(tmp_path_factory.mktemp("page"), card, full, judged)


def test_every_figure_of_every_method_stands_on_the_page(page, whole):
    names = {
        "auroc": "AUROC",
        "accuracy": "Mean accuracy",
        "plain_accuracy": "Plain accuracy",
        "weighted_kappa": "Weighted kappa",
        "sensitivity_at_specificity_90": "Sensitivity at specificity 0.9",
        "sensitivity": "Sensitivity",
        "specificity": "Specificity",
        "ece": "ECE",
        "brier": "Brier",
        "aurc": "AURC",
    }
    for number, figures in enumerate(whole[2]["tasks"]):
        rows = {row["Method"]: row for row in page.of("Head and baselines on the same folds", number)}
        assert set(rows) == {"This head", "mean-pool + logistic regression", "nearest cases"}
        for method, own in figures["methods"].items():
            row = rows["This head" if method == ABMIL else method]
            assert {key: row[names[key]] for key in own} == {key: said(value) for key, value in own.items()}


def test_overview_sets_the_head_against_the_cards_baseline(page, whole):
    rows = page.of("The head against the better baseline")
    for row, figures, task in zip(rows, whole[2]["tasks"], whole[3].tasks, strict=True):
        assert row["Question"] == figures["title"]
        assert row["This head"] == said(figures["methods"][ABMIL][figures["measure"]])
        assert row["Which"] == task.evidence.baseline
        assert row["Better baseline"] == said(figures["methods"][task.evidence.baseline][figures["measure"]])
        assert row["Answer or set"] == f"{figures['answered']:.1%}"
        assert row["ECE"] == said(figures["methods"][ABMIL]["ece"])


def test_sets_of_each_label_stand_against_the_promise(page, whole):
    for number, figures in enumerate(whole[2]["tasks"]):
        rows = page.of("Conformal sets: promised 90.0%", number)
        assert [row["True label"] for row in rows] == [*figures["labels"], "All"]
        for row in rows[:-1]:
            assert row["Set holds it"] == said(figures["sets"]["coverage_by_label"][row["True label"]])
            assert row["Mean size of set"] == f"{figures['sets']['size_by_label'][row['True label']]:.2f}"
        assert rows[-1]["Set holds it"] == said(figures["sets"]["coverage"])


def test_subgroups_stand_with_their_figures_and_too_small_ones_without(page, whole):
    figures = whole[2]["tasks"][0]
    rows = page.of("The head in subgroups")
    assert [row["Subgroup"] for row in rows] == ["site: North", "site: South", "scanner: A", "scanner: B"]
    for row, own in zip(rows, figures["subgroups"], strict=True):
        assert row["AUROC"] == (said(own["auroc"]) if "auroc" in own else "too few slides")
        assert row["Referred or not readable"] == f"{own['referred']:.1%}"
    assert rows[-1]["AUROC"] == "too few slides"


def test_missed_slides_are_told_with_their_bound(page, whole):
    figures = whole[2]["tasks"][0]
    missed, answers = figures["missed"], figures["answers"]
    left = answers["answer"] + answers["set"]
    assert f"The rule refers {COUNT - left} of {COUNT} slides: {missed['referred']['value']:.1%}" in page.text
    assert f"Among the {left} slides it answers, {int(missed['missed'])} " in page.text
    assert f"with 95 % confidence below {missed['of_unreferred_below']:.1%}" in page.text
    assert f"confidence below {missed['of_positive_below']:.1%}" in page.text
    assert page.text.count("The rule refers") == 1  # the other questions have no yes and no


def test_plots_are_those_of_the_kind_of_question(page):
    starts = [alt.split(" ")[0] for alt in page.alts]
    assert starts == [
        *("Of", "ROC", "Reliability", "Risk-coverage", "Learning", "Conformal"),
        *("Of", "Confusion", "Reliability", "Risk-coverage", "Learning", "Conformal"),
        *("Of", "Confusion", "Reliability", "Risk-coverage", "Learning", "Conformal"),
    ]


def test_drawn_answers_add_up_to_those_of_the_evaluation(page, whole):
    bars = [alt for alt in page.alts if alt.startswith(f"Of {COUNT} slides: ")]
    for bar, figures in zip(bars, whole[2]["tasks"], strict=True):
        counts = {name: int(count) for name, count in re.findall(r"([a-z, ]+?) (\d+)", bar.split(": ")[1])}
        counts = {name.strip(", "): count for name, count in counts.items()}
        answers = figures["answers"]
        assert counts["answer, right"] + counts["answer, wrong"] == answers["answer"]
        assert counts.get("set with the truth", 0) + counts.get("set without", 0) == answers["set"]
        assert counts["refer"] == answers["refer"]
        assert counts["not readable"] == answers["not-readable"]


def test_drawn_area_is_the_measured_one(page, whole):
    roc = next(alt for alt in page.alts if alt.startswith("ROC"))
    for method, own in whole[2]["tasks"][0]["methods"].items():
        assert f"{'This head' if method == ABMIL else method} {own['auroc']['value']:.3f}" in roc


def test_left_out_hospitals_have_a_table_of_their_own(page, whole):
    rows = page.of("Each hospital left out in turn")
    assert rows[0]["AUROC"] == said(whole[2]["tasks"][0]["methods"][ABMIL]["auroc"])


def test_page_says_what_it_is_before_any_figure(page):
    assert page.text.index("Research starter, not a diagnosis") < page.text.index("All questions")
    assert "12 cases of 2 hospitals" in page.text
    assert "5 folds: cases dealt into folds" in page.text


def test_page_holds_command_settings_limits_and_fingerprints(page, whole):
    card = whole[3]
    for part in (
        "slideway train malignant --cohort cohort.csv",
        "0, 1, 2",
        "Only twelve cases.",
        "Any diagnosis.",
        card.fingerprint,
        card.input.encoder_fingerprint,
        card.weights.sha256,
    ):
        assert part in page.text


def test_page_names_no_slide_and_no_case(page):
    everything = page.text + " ".join(page.alts)
    assert "patient-slide" not in everything
    assert "case-number" not in everything


def test_child_question_says_what_it_is_asked_below(page):
    assert "Asked below “Malignant?”" in page.text


def test_same_evaluation_gives_the_same_page(tmp_path, whole):
    _, judged, evaluation, card = whole
    evaluation = {**evaluation, "tasks": evaluation["tasks"][:1]}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_evaluation_page(tmp_path / name, card=card, evaluation=evaluation, judged=judged)
    pages = [(tmp_path / name / "evaluation.html").read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]
    assert b"\r" not in pages[0]


def test_missing_parts_are_left_out(tmp_path, whole):
    _, judged, evaluation, card = whole
    bare = {key: value for key, value in evaluation.items() if key not in ("leave_site_out", "of")}
    bare["tasks"] = [
        {key: value for key, value in figures.items() if key not in ("subgroups", "method")}
        for figures in evaluation["tasks"][:1]
    ]
    found = write(tmp_path, card, {**bare, "sites": 0}, judged)
    assert "an unknown number of hospitals" in found.text
    assert not [alt for alt in found.alts if alt.startswith("Learning")]
    assert "Each hospital left out" not in found.text
    assert "The head in subgroups" not in found.text


def test_without_judgements_the_tables_are_whole_and_only_plots_are_missing(tmp_path, whole):
    _, _, evaluation, card = whole
    found = write(tmp_path, card, evaluation, ())
    assert [alt.split(" ")[0] for alt in found.alts] == ["Conformal"] * 3
    assert len(found.of("Head and baselines on the same folds")) == 3


def test_hostile_labels_titles_and_commands_are_shown_and_do_nothing(tmp_path):
    question = TaskQuestion("organ", HOSTILE, Kind.CLASSES, ("gut", HOSTILE, "lung"))
    _, judged, evaluation, card = make_all((question,), site=(HOSTILE, "South") * (COUNT // 2))
    evaluation["command"] = HOSTILE
    card = replace(card, title=HOSTILE, limits=(HOSTILE,), use=CardUse(HOSTILE, HOSTILE))
    found = write(tmp_path, card, evaluation, judged)
    assert "script" not in found.tags
    assert found.text.count(HOSTILE) > 8


@pytest.mark.parametrize(
    ("state", "in_force", "words"),
    [
        ("active", True, "Switched on by a person."),
        ("candidate", True, "answered by default only once the head is active; it is a candidate now"),
        ("active", False, "Its bound is too low."),
    ],
)
def test_state_of_a_question_is_told_with_its_reason(whole, state, in_force, words):
    evaluation = {**whole[2], "tasks": whole[2]["tasks"][:1]}
    card = make_card(evaluation, (MALIGNANT,), state=state, in_force=in_force, with_evidence=False)
    task = compose_page(card, evaluation, ()).tasks[0]
    assert words in task.state
    assert task.is_in_force == (state == "active" and in_force)


def test_head_that_refers_everything_has_missed_nothing_it_could_know(tmp_path):
    judged = (make_judged(MALIGNANT, refer_all=True),)
    sample = make_sample((MALIGNANT,), {"malignant": judged[0].labels})
    evaluation = make_evaluation(sample, judged)
    found = write(tmp_path, make_card(evaluation, (MALIGNANT,)), evaluation, judged)
    assert "It answers none, so nothing is known" in found.text
    assert "referral rule:" not in found.text


def test_external_cohort_has_no_baselines_and_no_word_of_calibration_on_itself(tmp_path):
    judged = (make_judged(MALIGNANT, methods=(THIS_HEAD,)),)
    sample = make_sample((MALIGNANT,), {"malignant": judged[0].labels})
    evaluation = make_evaluation(sample, judged, split="external", folds=1, training={})
    evaluation["tasks"][0]["slides_by_label"] = [20, 4]
    card = make_card(evaluation, (MALIGNANT,), with_evidence=False)
    found = write(tmp_path, card, evaluation, judged)
    assert "a finished head on a cohort it has not learnt from" in found.text
    assert [row["Method"] for row in found.of("The head", 1)] == ["This head"]
    assert found.of("The head against")[0]["Which"] == "none trained"
    assert "Ring:" not in found.text
    assert "Ring: 9" in write(tmp_path, card, {**evaluation, "split": "case-folds"}, judged).text


def test_tiles_without_cases_are_called_optimistic_and_counted_as_tiles(tmp_path):
    judged = (make_judged(MALIGNANT, methods=(TILE_SCORE, "nearest tiles")),)
    sample = make_sample((MALIGNANT,), {"malignant": judged[0].labels})
    evaluation = make_evaluation(sample, judged, split="tiles", of="tiles", slides=0, tiles=COUNT, sites=0)
    found = write(tmp_path, make_card(evaluation, (MALIGNANT,)), evaluation, judged)
    assert "optimistic, and by how much cannot be known" in found.text
    assert f"{COUNT} tiles, H&E" in found.text
    assert f"Of {COUNT} tiles: " in found.alts[0]
    assert "slides" not in found.of("Conformal sets")[0]
    assert found.of("Head and baselines")[0]["Method"] == "This head"


def test_predictions_name_every_slide_with_truth_probabilities_and_answer(tmp_path, whole):
    sample, judged, _, _ = whole
    write_predictions(tmp_path / "predictions.csv", sample, judged)
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * COUNT
    for one in judged:
        own = [row for row in rows if row["task"] == one.question.id]
        for i, row in enumerate(own):
            assert (row["name"], row["case"]) == (sample.names[i], sample.cases[i])
            assert row["truth"] == one.question.labels[one.labels[i]]
            assert row["answer"] == one.answers[i].value
            assert row["named"] == "|".join(one.answered[i])
            told = [[float(row[f"{what} of {label}"]) for label in one.question.labels] for what in COLUMNS]
            assert told == [
                pytest.approx(one.probabilities[ABMIL][i], abs=1e-6),
                pytest.approx(one.p_values[i], abs=1e-6),
            ]
            others = {label for other in judged for label in other.question.labels} - set(one.question.labels)
            assert all(row[f"probability of {label}"] == "" for label in others)
