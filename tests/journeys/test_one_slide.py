"""One slide from file to answer, by the real command in a real process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import slideway
from slideway.core.errors import UnknownResolutionError
from slideway.core.tissue import Verdict
from slideway.pipeline.result import load_schema
from slideway.testing import slides as synthetic


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slideway", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


@pytest.fixture(scope="module")
def middling_slide(tmp_path_factory):
    """Large enough that a signal meets it in the middle: about 1,500 tiles."""
    path = tmp_path_factory.mktemp("middling") / "middling.tif"
    return synthetic.write_pyramid(path, width_px=8000, height_px=7000, mpp=0.5)


def test_python_api_reads_a_slide_and_result_json_keeps_its_schema(small_slide, tmp_path):
    reading = slideway.read_slide(small_slide, out=tmp_path, exports=("h5", "h5ad", "geojson"))
    result = json.loads((reading.folder / "result.json").read_text(encoding="utf-8"))
    jsonschema.validate(result, load_schema())
    assert result == json.loads(json.dumps(reading.result))
    assert reading.quality.verdict in {Verdict.READABLE, Verdict.LIMITED}
    assert len(reading.bag) == result["grid"]["tiles"] > 20
    assert sorted(p.name for p in reading.folder.iterdir()) == result["files"]
    assert {"overlay.png", "report.html", "bag.safetensors", "bag.h5", "bag.h5ad", "tiles.geojson"} <= set(
        result["files"]
    )
    assert not leftovers(tmp_path)
    vectors = load_file(reading.folder / "bag.safetensors")["vectors"]
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) > len(vectors) // 2


def test_a_second_reading_gives_the_same_bag_to_the_bit(small_slide, tmp_path):
    first = slideway.read_slide(small_slide, out=tmp_path / "1")
    second = slideway.read_slide(small_slide, out=tmp_path / "2", threads=1)
    assert (first.folder / "bag.safetensors").read_bytes() == (second.folder / "bag.safetensors").read_bytes()
    assert np.array_equal(first.groups.group, second.groups.group)


def test_a_second_start_keeps_what_is_read_and_again_reads_it(small_slide, tmp_path):
    answers = [
        json.loads(run("read", small_slide, "--out", tmp_path, "--json", *more).stdout)
        for more in ([], [], ["--again"])
    ]
    assert [answer["status"] for answer in answers] == ["read", "kept", "read"]
    jsonschema.validate(answers[0], load_schema())


def test_a_changed_resolution_is_read_anew(small_slide, tmp_path):
    for more, status in (([], "read"), (["--mpp", "0.4"], "read"), (["--mpp", "0.4"], "kept"), ([], "read")):
        answer = json.loads(run("read", small_slide, "--out", tmp_path, "--json", *more).stdout)
        assert answer["status"] == status, more


def test_missing_resolution_stops_with_4_and_says_what_to_do(tmp_path):
    slide = synthetic.write_pyramid(tmp_path / "no-mpp.tif", mpp=None)
    done = run("read", slide, "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "--mpp" in done.stderr
    assert "profile" in done.stderr
    assert not list((tmp_path / "out").iterdir())
    assert run("read", slide, "--out", tmp_path / "out", "--mpp", "0.5").returncode == 0
    with pytest.raises(UnknownResolutionError):
        slideway.read_slide(slide, out=tmp_path / "out2")


def test_an_estimated_resolution_is_marked_in_every_output(tmp_path):
    slide = synthetic.write_pyramid(tmp_path / "no-mpp.tif", width_px=3000, height_px=2400, mpp=None)
    done = run("read", slide, "--out", tmp_path / "out", "--estimate-mpp")
    assert done.returncode == 0, done.stderr
    assert "ESTIMATED" in done.stdout
    folder = tmp_path / "out" / "no-mpp"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["estimated"] is True
    assert result["slide"]["mpp_source"] == "estimated"
    assert any("estimat" in reason["text"].lower() for reason in result["quality"]["reasons"])
    assert "estimated" in (folder / "report.html").read_text(encoding="utf-8").lower()


def test_a_scanner_profile_gives_the_resolution_and_is_named(tmp_path):
    slide = synthetic.write_pyramid(tmp_path / "no-mpp.tif", mpp=None)
    config = tmp_path / "slideway.toml"
    config.write_text('[scanner.old]\ndefault_mpp = 0.46\nvendor = "generic-tiff"\n', encoding="utf-8")
    answer = json.loads(run("read", slide, "--out", tmp_path / "out", "--config", config, "--json").stdout)
    assert answer["slide"]["mpp_source"] == "scanner-profile"
    assert answer["slide"]["mpp"] == 0.46
    assert "old" in answer["slide"]["mpp_detail"]


def test_one_bad_slide_does_not_stop_the_rest(small_slide, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a-text.svs").write_text("no slide at all")
    (scans / "b-empty.svs").touch()
    (scans / "c-good.tif").write_bytes(small_slide.read_bytes())
    whole = small_slide.read_bytes()
    (scans / "d-cut.tif").write_bytes(whole[: len(whole) // 2])
    (scans / "notes.txt").write_text("not a slide, and not tried")
    done = run("read", scans, "--out", tmp_path / "out", "--json")
    assert done.returncode == 5
    answers = {answer["slide"]["name"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    assert answers["c-good.tif"]["status"] == "read"
    codes = {name: answer["error"]["code"] for name, answer in answers.items() if answer["status"] == "failed"}
    assert codes == {"a-text.svs": "slide-format-unknown", "b-empty.svs": "slide-broken", "d-cut.tif": "slide-broken"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c-good"]


def test_a_slide_without_tissue_is_an_answer(tmp_path):
    glass = np.full((1200, 1600, 3), 244, np.uint8)
    slide = synthetic.write_pyramid(tmp_path / "glass.tif", synthetic.make_levels(glass), mpp=0.5)
    done = run("read", slide, "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["quality"]["verdict"] == "no-tissue"
    assert answer["grid"]["tiles"] == 0
    assert (Path(answer["folder"]) / "overlay.png").stat().st_size > 1000


def test_an_output_folder_that_cannot_be_written_is_wrong_use(small_slide, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("read", small_slide, "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size to stand in for a full disk")
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_and_a_second_run_completes(small_slide, tmp_path):
    import resource

    def fill_up() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = run("read", small_slide, "--out", tmp_path / "out", preexec_fn=fill_up)
    assert done.returncode == 6, done.stderr
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    assert run("read", small_slide, "--out", tmp_path / "out").returncode == 0


def heed_ctrl_c() -> None:
    """Tests started in the background of a shell inherit an ignored SIGINT, which a program rightly keeps ignoring."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_and_wait_for_tiles(slide: Path, out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "slideway", "read", str(slide), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509  no thread runs in the tests here
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            if any(bag.stat().st_size > 10_000 for bag in out.glob(".*.part/bag.safetensors")):
                return process
        time.sleep(0.01)
    raise AssertionError(f"no tile was written: {process.communicate()}")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_half_written_and_a_second_run_completes(middling_slide, tmp_path, number):
    out = tmp_path / "out"
    process = start_and_wait_for_tiles(middling_slide, out)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert list(out.iterdir()) == []
    if number == signal.SIGINT:
        assert run("read", middling_slide, "--out", out).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_what_kill_9_leaves_is_removed_by_the_second_run(middling_slide, tmp_path):
    out = tmp_path / "out"
    process = start_and_wait_for_tiles(middling_slide, out)
    process.kill()
    process.communicate(timeout=30)
    assert leftovers(out)
    assert run("read", middling_slide, "--out", out).returncode == 0
    assert [p.name for p in out.iterdir()] == ["middling"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_reader_killed_in_the_middle_fails_its_slide_only(middling_slide, tmp_path):
    import psutil

    process = start_and_wait_for_tiles(middling_slide, tmp_path / "out")
    for child in psutil.Process(process.pid).children():
        child.send_signal(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    assert "sandboxed reader ended" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_no_patient_data_reaches_outputs_or_messages(tmp_path):
    levels = synthetic.make_levels(synthetic.paint_tissue(2000, 1500))
    slide = synthetic.write_svs(tmp_path / "scan.svs", levels)
    assert synthetic.PATIENT.encode() in slide.read_bytes()
    done = run("read", slide, "--out", tmp_path / "out", "--export", "h5", "--export", "h5ad", "--export", "geojson")
    assert done.returncode == 0, done.stderr
    shown = run("info", slide, "--json").stdout
    assert "Aperio User" in shown  # the field is named ...
    texts = [done.stdout.encode(), done.stderr.encode(), shown.encode()]
    texts += [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(synthetic.PATIENT.encode() in text for text in texts)  # ... its value never


def test_help_teaches_and_wrong_arguments_end_with_2():
    for command in ("", "read", "info", "doctor", "demo", "export", "similar"):
        done = run(*([command] if command else []), "--help")
        assert done.returncode == 0
        assert len(done.stdout) > 300
    assert run("read").returncode == 2
    assert run("nonsense").returncode == 2
    assert run("read", "x.svs", "--mpp", "0").returncode == 2
    assert run("read", "x.svs", "--mpp", "0.5", "--estimate-mpp").returncode == 2
    assert run("read", "x.svs", "--encoder", "nobody").returncode == 2


def test_a_slide_that_is_not_there_ends_with_3(tmp_path):
    done = run("read", tmp_path / "gone.svs", "--out", tmp_path / "out")
    assert done.returncode == 3
    assert "no such file" in done.stderr


def test_doctor_says_what_this_computer_can_do():
    facts = json.loads(run("doctor", "--seconds", "0.2", "--json").stdout)
    assert facts["cores"] >= 1
    assert facts["engines"][0]["tiles_per_s"] > 0
    assert facts["slides_per_hour"]["biopsy"] > facts["slides_per_hour"]["large section"]
    if sys.platform == "linux":
        assert "no network" in facts["sandbox"]
    text = run("doctor", "--seconds", "0.2").stdout
    assert "tiles/s" in text


def test_a_cache_that_cannot_be_written_is_said_and_ends_with_6(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("doctor", "--seconds", "0.2", env={**os.environ, "SLIDEWAY_CACHE": str(tmp_path / "file")})
    assert done.returncode == 6
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr


def test_export_writes_into_the_answer_folder(small_slide, tmp_path):
    slideway.read_slide(small_slide, out=tmp_path)
    done = run("export", tmp_path / "small", "--to", "geojson")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "small" / "tiles.geojson").read_text(encoding="utf-8"))["features"]
    assert run("export", tmp_path, "--to", "h5").returncode == 2


@pytest.mark.skipif(
    "SLIDEWAY_TEST_SLIDES" not in os.environ, reason="SLIDEWAY_TEST_SLIDES names no folder of real slides"
)
def test_every_real_slide_is_read(tmp_path):
    done = run("read", os.environ["SLIDEWAY_TEST_SLIDES"], "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) >= 1
    for answer in answers:
        jsonschema.validate(answer, load_schema())
        assert answer["quality"]["verdict"] in {"readable", "limited"}
        assert answer["tissue"]["area_mm2"] > 0.5
