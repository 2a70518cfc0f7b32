"""From a cohort file to findings in an answer, by the real commands; and what must never get a plain answer."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest

import slideway
from slideway.core.opinion import Answer
from slideway.pipeline.result import load_schema
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.testing import slides as synthetic
from slideway.testing.heads import write_toy_cohort

STARTERS = ("slideway-atlas", "slideway-nodes", "slideway-oral")
CLOSED = {Answer.REFER, Answer.NOT_READABLE}


def run(*arguments, cwd: Path, expect: int = 0) -> str:
    command = [sys.executable, "-m", "slideway", *map(str, arguments)]
    environment = {**os.environ, "SLIDEWAY_MODELS": str(cwd / "models")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, cwd=cwd, env=environment, encoding="utf-8"
    )
    assert done.returncode == expect, done.stderr[-2000:]
    return done.stdout if expect == 0 else done.stderr


@pytest.fixture(scope="module")
def packaged_bags(tmp_path_factory):
    """Two cohorts of bags as the packaged encoder would have made them, with a planted signal."""
    folder = tmp_path_factory.mktemp("cohorts")
    card = find_encoder(DEFAULT_ENCODER)
    facts = {"width": card.output.width, "fingerprint": card.fingerprint, "tiles": 40, "planted": 8, "strength": 14.0}
    cohort = write_toy_cohort(folder / "ours", cases=16, seed=1, **facts)
    other = write_toy_cohort(folder / "theirs", cases=12, seed=2, **facts)
    rename_cases(other.path, "their-")
    return cohort, other


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rename_cases(path: Path, prefix: str) -> None:
    rows = read_rows(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({**row, "case": prefix + row["case"]} for row in rows)


def test_a_user_trains_evaluates_adds_and_reads(packaged_bags, small_slide, tmp_path):
    pytest.importorskip("torch", reason="training needs the train extra")
    for name in ("sklearn", "matplotlib"):
        pytest.importorskip(name, reason="training needs the train extra")
    cohort, other = packaged_bags
    trained = json.loads(
        run("train", cohort.task, "--cohort", cohort.path, "--id", "ours", "--seeds", 1, "--epochs", 12, "--no-curve",
            "--json", cwd=tmp_path)
    )  # fmt: skip
    folder = tmp_path / "slideway-heads/ours"
    assert {p.name for p in folder.iterdir()} >= {"card.toml", "head.safetensors", "evaluation.html", "predictions.csv"}
    assert trained["tasks"][0]["methods"].keys() >= {"abmil", "mean-pool + logistic regression", "nearest cases"}
    assert trained["tasks"][0]["methods"]["abmil"]["auroc"]["value"] > 0.7  # the planted signal is found
    told = json.loads(run("evaluate", folder, "--cohort", other.path, "--json", cwd=tmp_path))
    assert told["split"] == "external"
    assert told["tasks"][0]["methods"]["this head"]["auroc"]["value"] > 0.7
    assert "learnt from" in run("evaluate", folder, "--cohort", cohort.path, cwd=tmp_path, expect=2)
    assert "ours is installed" in run("models", "add", folder, cwd=tmp_path)
    answer = json.loads(run("read", small_slide, "--head", "ours", "--json", cwd=tmp_path))
    jsonschema.validate(answer, load_schema())
    (finding,) = answer["findings"]
    assert finding["head"]["id"] == "ours"
    assert finding["in_force"] is False  # a candidate speaks only when it is asked
    assert finding["answer"] == "refer"  # painted tissue is like nothing it learnt from
    report = (tmp_path / "slideway-out" / "small" / "report.html").read_text(encoding="utf-8")
    assert finding["title"] in report


def test_heads_in_force_decide_whether_an_answer_still_stands(packaged_bags, small_slide, tmp_path):
    from slideway.testing.heads import write_toy_head

    card = find_encoder(DEFAULT_ENCODER)
    write_toy_head(
        tmp_path / "head",
        head_id="county",
        width=card.output.width,
        encoder_id=card.id,
        encoder_fingerprint=card.fingerprint,
        state="candidate",
    )
    run("models", "add", tmp_path / "head", cwd=tmp_path)

    def read() -> dict:
        return json.loads(run("read", small_slide, "--json", cwd=tmp_path))

    first = read()
    assert (first["status"], first["findings"]) == ("read", [])
    assert any("county" in sentence for sentence in first["heads_off"])
    assert read()["status"] == "kept"
    run("models", "state", "county", "active", cwd=tmp_path)
    second = read()
    assert second["status"] == "read"
    assert {finding["head"]["id"] for finding in second["findings"]} == {"county"}
    assert all(finding["in_force"] for finding in second["findings"])
    assert read()["status"] == "kept"


def write_cohort(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("duplicate", "the same slide twice"),
        ("missing", "not there"),
        ("one class", "one class only"),
        ("mixed fingerprints", "different encoders"),
        ("site for some", "no site"),
        ("split by slide", "stand in two folds"),
        ("label leaks", "can be read off"),
    ],
)
def test_a_wrong_cohort_stops_before_any_training(packaged_bags, tmp_path, fault, words):
    for name in ("torch", "sklearn", "matplotlib", "threadpoolctl"):
        pytest.importorskip(name, reason="training needs the train extra")
    cohort, _ = packaged_bags
    given = read_rows(cohort.path)
    rows = [
        {"slide": str(cohort.path.parent / row["slide"]), "case": row["case"], cohort.task: row[cohort.task]}
        for row in given
    ]
    if fault == "duplicate":
        rows.append(rows[0])
    if fault == "missing":
        rows[3]["slide"] = "nowhere.svs"
    if fault == "one class":
        rows = [row for row in rows if row[cohort.task] == "yes"]
    if fault == "mixed fingerprints":
        foreign = write_toy_cohort(tmp_path / "foreign", cases=2, width=8)
        rows[0]["slide"] = str(foreign.bags[0])
    if fault == "site for some":
        rows = [{**row, "site": "a" if i else ""} for i, row in enumerate(rows)]
    if fault == "split by slide":
        rows = [{**row, "fold": "train" if i % 2 else "test", "case": "one" if i < 2 else row["case"]}
                for i, row in enumerate(rows)]  # fmt: skip
    if fault == "label leaks":
        rows = [{**row, "scanner": f"scanner {row[cohort.task]}"} for row in rows]
    path = write_cohort(tmp_path / "cohort.csv", rows)
    said = run("train", cohort.task, "--cohort", path, "--epochs", 1, cwd=tmp_path, expect=2)
    assert words in said
    assert not (tmp_path / "slideway-heads").exists()


def paint_photo(name: str) -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="photographs come with scikit-image")
    photo = getattr(data, name)()
    photo = np.stack([photo] * 3, axis=2) if photo.ndim == 2 else photo[..., :3]
    canvas = np.full((1800, 1800, 3), 243, np.uint8)
    canvas[300:1500, 300:1500] = cv2.resize(photo, (1200, 1200), interpolation=cv2.INTER_CUBIC)
    return canvas


def paint_ink(width_px: int = 1600, height_px: int = 1200) -> np.ndarray:
    glass = np.full((height_px, width_px, 3), 243, np.uint8)
    cv2.line(glass, (100, 200), (1500, 1000), (20, 40, 160), 90)
    cv2.line(glass, (100, 1000), (1500, 200), (20, 120, 60), 90)
    return glass


CONTROLS = {
    "blank glass": (lambda: np.full((1200, 1600, 3), 243, np.uint8), {"slide-without-tissue", "too-few-tiles"}),
    "ink": (paint_ink, {"slide-without-tissue", "too-few-tiles", "other-stain", "unlike-training"}),
    "blurred": (
        lambda: cv2.GaussianBlur(synthetic.paint_tissue(1600, 1200, mpp=0.5), (0, 0), 8),
        {"slide-to-rescan", "too-few-tiles"},
    ),
    "immunohistochemistry": (lambda: paint_photo("immunohistochemistry"), {"other-stain", "slide-without-tissue"}),
    "cat": (lambda: paint_photo("cat"), {"other-stain", "slide-without-tissue"}),
    "brick": (lambda: paint_photo("brick"), {"other-stain", "slide-without-tissue"}),
    "grass": (lambda: paint_photo("grass"), {"other-stain", "slide-without-tissue"}),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_what_is_no_readable_tissue_of_its_stain_is_never_answered(control, tmp_path):
    paint, codes = CONTROLS[control]
    slide = synthetic.write_pyramid(tmp_path / "control.tif", synthetic.make_levels(paint()), mpp=0.5)
    reading = slideway.read_slide(slide, out=tmp_path, heads=STARTERS)
    findings = [finding for opinion in reading.opinions for finding in opinion.findings]
    assert len(findings) >= len(STARTERS)
    for finding in findings:
        assert finding.answer in CLOSED
        assert codes & {reason.code for reason in finding.reasons}, finding.reasons


def real_slides() -> list[Path]:
    folder = os.environ.get("SLIDEWAY_TEST_SLIDES")
    return sorted(Path(folder).glob("*.tif")) if folder else []


@pytest.mark.skipif(not real_slides(), reason="needs SLIDEWAY_TEST_SLIDES, a folder of real slides")
def test_a_real_slide_passes_the_checks_of_stain_and_scale_and_a_wrong_scale_does_not(tmp_path):
    slide = next(path for path in real_slides() if "metaplasia" in path.name)
    right = slideway.read_slide(slide, out=tmp_path / "right", heads=("slideway-atlas",))
    codes = {r.code for o in right.opinions for f in o.findings for r in f.reasons}
    assert not codes & {"other-stain", "scale-doubtful", "slide-to-rescan", "slide-without-tissue"}
    wrong = slideway.read_slide(slide, out=tmp_path / "wrong", mpp=2.2 * right.slide.mpp, heads=("slideway-atlas",))
    for opinion in wrong.opinions:
        for finding in opinion.findings:
            assert finding.answer in CLOSED
            assert {"scale-doubtful", "too-few-tiles", "slide-to-rescan"} & {r.code for r in finding.reasons}
