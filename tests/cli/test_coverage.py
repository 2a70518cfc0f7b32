"""`slideway coverage` as people and scripts call it."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from slideway.cli.coverage import command, gather_trained
from slideway.core.errors import OutputError, WrongUseError
from slideway.core.opinion import Kind, TaskQuestion
from slideway.registry import heads
from slideway.registry.head_records import Bounds, HeadCard, HeadInput, HeadTask, HeadWeights, TaskEvidence
from slideway.registry.records import CardLicence, CardTraining, CardUse


def make_task(task_id: str = "malignant", *, site: str = "lung", cases: int = 80, in_force: bool = True) -> HeadTask:
    question = TaskQuestion(task_id, "Is it?", Kind.BINARY, ("no", "yes"), sites=(site,) if site else ())
    figure = Bounds(0.96, 0.93, 0.98)
    evidence = TaskEvidence(
        split="leave-one-case-out",
        cases=cases,
        positives=cases // 2,
        measure="auroc",
        value=figure,
        baseline="mean-pool",
        baseline_value=Bounds(0.9, 0.8, 0.95),
        sensitivity=figure,
        specificity=figure,
        ece=0.03,
        answered=0.9,
    )
    return HeadTask(question, in_force, "" if in_force else "off", evidence)


def make_card(*tasks: HeadTask, head_id: str = "county-lung", state: str = "active") -> HeadCard:
    return HeadCard(
        folder=Path("heads") / head_id,
        id=head_id,
        title=head_id,
        version="1",
        state=state,
        input=HeadInput("toy", "0" * 64, 8, "H&E", 1),
        tasks=tasks,
        weights=HeadWeights("0" * 64, 1, 1, "abmil"),
        licence=CardLicence(id="MIT", file="LICENSE", note="", permits=()),
        use=CardUse(intended="", not_intended=""),
        training=CardTraining(data="", note=""),
        limits=(),
        metrics={},
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def says(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exception is None, done.exception
    return done.stdout


def answer(*arguments: object) -> dict[str, Any]:
    return json.loads(says(*arguments, "--json"))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[HeadCard]:
    """Heads that are installed; none until a test adds one."""
    cards: list[HeadCard] = []
    monkeypatch.setattr(heads, "list_heads", lambda: tuple(cards))
    return cards


def test_without_heads_it_says_zero(installed: list[HeadCard]) -> None:
    assert answer()["total"] == {"catalogued": 91.40, "trained": 0.0, "validated": 0.0}
    lines = says().splitlines()
    assert any(line.startswith("validated      0.00 %") for line in lines)
    assert not any("#" in line for line in lines if "|" in line)


def test_a_good_head_is_counted_and_named(installed: list[HeadCard]) -> None:
    installed.append(make_card(make_task()))
    assert answer()["total"]["validated"] == 21.98
    (line,) = [line for line in says().splitlines() if line.startswith("lung ")]
    assert "#" * 22 in line
    assert "validated (county-lung)" in line


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (make_card(make_task(cases=59)), "59 cases"),
        (make_card(make_task(), state="candidate"), "not in force"),
        (make_card(make_task(in_force=False)), "not in force"),
    ],
)
def test_a_head_that_does_not_suffice_is_trained_only_and_says_why(
    installed: list[HeadCard], card: HeadCard, why: str
) -> None:
    installed.append(card)
    assert answer()["total"] == {"catalogued": 91.40, "trained": 21.98, "validated": 0.0}
    assert f"not validated: county-lung: {why}" in says()


def test_a_head_that_was_never_evaluated_has_no_case(installed: list[HeadCard]) -> None:
    task = make_task()
    (trained,) = gather_trained([make_card(HeadTask(task.question, True, "", None))])
    assert (trained.cases, trained.split, trained.sensitivity_low) == (0, "", None)


def test_figures_from_memory_are_marked() -> None:
    lines = {line.split()[0]: line for line in says().splitlines() if line}
    assert "1.93*" in lines["bladder"]
    assert "21.98 " in lines["lung"]
    assert "6.90" in lines["(all"]


def test_one_site_shows_entities_tasks_and_bars() -> None:
    said = says("--site", "lung")
    for words in ("8140/3  malignant", "8250/2  in situ", "lung.grade", "IASLC 2020", "0.90 sensitivity", "C33-C34"):
        assert words in said
    assert "(not checked: " in says("--site", "cervix-uteri")
    assert "grade: not asked" in says("--site", "nasopharynx")
    assert "nothing: it is not read on slides" in says("--site", "leukaemia")


def test_one_site_as_json_holds_the_same(installed: list[HeadCard]) -> None:
    installed.append(make_card(make_task(site="prostate")))
    found = answer("--site", "prostate")
    assert (found["stage"], found["validated_by"]) == ("validated", ["county-lung"])
    assert {"morphology": "8140/3", "behaviour": "malignant"}.items() <= found["entities"][0].items()
    grade = next(task for task in found["tasks"] if task["id"] == "prostate.grade")
    assert (grade["kind"], grade["labels"], grade["level"]) == ("ordinal", ["1", "2", "3", "4", "5"], "multi-site")


def test_unknown_site_is_wrong_use() -> None:
    done = run("--site", "lungs")
    assert isinstance(done.exception, WrongUseError)
    assert "lungs is no site of the catalogue" in str(done.exception)


@pytest.mark.parametrize("name", ["chart.svg", "chart.PNG"])
def test_chart_is_written_beside_the_answer(tmp_path: Path, name: str) -> None:
    done = run("--chart", tmp_path / name, "--json")
    assert done.exception is None
    assert json.loads(done.stdout)["total"]["trained"] == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    content = (tmp_path / name).read_bytes()
    if name.endswith("svg"):
        assert content.startswith(b"<svg")
    else:
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 800


def test_chart_of_another_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = run("--chart", tmp_path / "chart.pdf")
    assert isinstance(done.exception, WrongUseError)
    assert list(tmp_path.iterdir()) == []


def test_chart_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    done = run("--chart", tmp_path / "missing" / "chart.svg")
    assert isinstance(done.exception, OutputError)
    assert list(tmp_path.iterdir()) == []


def test_help_names_what_it_shows() -> None:
    with click.Context(command) as context:
        text = command.get_help(context)
    for word in ("catalogued", "trained", "validated", "--site", "--chart", "--json"):
        assert word in text
