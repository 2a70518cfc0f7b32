"""`slideway bytes` as people and scripts call it."""

import json
import math
import shutil
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from PIL import Image

import slideway
from slideway.cli.bytes import command, default_store_url
from slideway.core.errors import BrokenBundleError, UnreachableStoreError, WrongUseError
from slideway.store.database import open_store
from slideway.testing import slides as synthetic


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A slide at the encoder's resolution, and one that was made four times smaller."""
    folder = tmp_path_factory.mktemp("scans")
    fine = synthetic.paint_tissue(1500, 1100)
    synthetic.write_pyramid(folder / "fine.tif", synthetic.make_levels(fine), mpp=0.5)
    coarse = synthetic.paint_tissue(500, 400, mpp=2.0, seed=1)
    synthetic.write_pyramid(folder / "coarse.tif", [coarse], mpp=2.0)
    return folder


@pytest.fixture(scope="module")
def readings(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readings")
    for slide in sorted(scans.iterdir()):
        slideway.read_slide(slide, out=folder, heads=[])
    return folder


def run(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def told(*arguments):
    done = run(*arguments)
    assert done.exception is None, done.exception
    return done.stdout


def answer(*arguments):
    return json.loads(told(*arguments, "--json"))


def test_bytes_are_counted_from_the_bundle_itself(readings):
    slides = {slide["slide"]: slide for slide in answer(readings)["slides"]}
    assert sorted(slides) == ["coarse.tif", "fine.tif"]
    for name, slide in slides.items():
        folder = readings / name.removesuffix(".tif")
        assert slide["bundle_bytes"] == (folder / "bundle.swb").stat().st_size == sum(slide["tier_bytes"])
        assert slide["percent_of_file"] == pytest.approx(100 * slide["bundle_bytes"] / slide["file_bytes"], abs=1e-3)
        assert slide["baselines"] is None


def test_a_coarse_slide_over_budget_says_so_and_why(readings):
    said = told(readings)
    assert "coarse.tif: over budget" in said
    assert "16 times fewer pixels" in said
    assert "fine.tif: a coarse slide" not in said
    assert "2 slides" in said


def test_every_baseline_is_compared_with_an_interval(readings, scans):
    content = answer(readings / "fine", "--baselines", scans, "--sample", 5)
    (slide,) = content["slides"]
    compared = {one["id"]: one for one in slide["baselines"]["compared"]}
    assert list(compared) == ["file", "jpeg", "jpeg2000", "jpeg2000-limit", "jpegxl", "viewing"]
    assert compared["file"]["bytes"] == (scans / "fine.tif").stat().st_size
    for id_ in ("jpeg", "jpegxl"):
        low, high = compared[id_]["bundle_percent_95"]
        assert low < compared[id_]["bundle_percent"] < high
        assert compared[id_]["counted"] == 5 < compared[id_]["tiles"] == slide["tiles"]
        assert compared[id_]["saved_percent"] == pytest.approx(100 - compared[id_]["bundle_percent"], abs=1e-3)
    assert all(level["source"] for level in slide["baselines"]["viewing"])
    assert [total["id"] for total in content["totals"]] == list(compared)


def test_all_counts_every_tile_and_says_so(readings, scans):
    said = told(readings / "fine", "--baselines", scans / "fine.tif", "--all")
    assert "every tile was compressed: exact" in said
    assert "is a model" in said
    assert " to " not in said.split("Baselines:")[0].split("the file as it is")[1]


def test_a_slide_file_finds_its_reading_by_its_content(readings, scans, tmp_path):
    renamed = tmp_path / "other-name.tif"
    shutil.copy(scans / "fine.tif", renamed)
    (slide,) = answer(renamed, "--out", readings)["slides"]
    assert slide["slide"] == "fine.tif"
    assert len(answer(scans, "--out", readings)["slides"]) == 2


def test_a_slide_that_was_not_read_says_how_to_read_it(scans, tmp_path):
    with pytest.raises(WrongUseError, match=r"slideway read fine\.tif"):
        raise run(scans / "fine.tif", "--out", tmp_path / "none").exception


def test_a_folder_of_nothing_is_refused(tmp_path):
    assert isinstance(run(tmp_path).exception, WrongUseError)
    assert "neither a reading" in str(run(tmp_path).exception)


def test_baselines_that_hold_none_of_the_slides_are_refused(readings, tmp_path):
    synthetic.write_pyramid(tmp_path / "fine.tif", width_px=300, height_px=300)
    assert "sha256" in str(run(readings, "--baselines", tmp_path).exception)


def test_a_bundle_that_was_cut_off_is_not_counted(readings, tmp_path):
    folder = tmp_path / "fine"
    shutil.copytree(readings / "fine", folder)
    bundle = folder / "bundle.swb"
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert isinstance(run(folder).exception, BrokenBundleError)
    bundle.unlink()
    assert "--again" in str(run(folder).exception)


def test_the_chart_has_a_bar_for_every_figure_on_a_logarithmic_axis(readings, scans, tmp_path):
    told(readings, "--baselines", scans, "--sample", 4, "--chart", tmp_path / "bytes.svg")
    page = ET.parse(tmp_path / "bytes.svg").getroot()
    rects = [rect for rect in page.iter("{http://www.w3.org/2000/svg}rect") if rect.get("class")]
    kinds = [rect.get("class") for rect in rects]
    assert [kinds.count(kind) for kind in ("file", "other", "bundle", "part")] == [3, 11, 3, 5]  # one each: legend
    (sizes,) = ([s["file_bytes"], s["bundle_bytes"]] for s in answer(readings / "fine")["slides"])
    wide = {kind: float(next(r for r in reversed(rects) if r.get("class") == kind).get("width")) for kind in kinds}
    rules = sorted(float(rect.get("x")) for rect in rects if rect.get("class") == "rule")
    decade_px = rules[1] - rules[0]
    assert wide["file"] - wide["bundle"] == pytest.approx(decade_px * math.log10(sizes[0] / sizes[1]), abs=0.2)
    told(readings / "fine", "--chart", tmp_path / "bytes.png")
    with Image.open(tmp_path / "bytes.png") as picture:
        assert picture.width == 1080
    assert "written as .svg or .png" in str(run(readings, "--chart", tmp_path / "bytes.pdf").exception)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["bytes.png", "bytes.svg"]


@pytest.fixture
def store_url(tmp_path):
    url = f"sqlite:///{(tmp_path / 'node.db').as_posix()}"
    with open_store(url) as store:
        store.add_tenant("here")
        store.add_tenant("there")
        with store.transaction("here") as work:
            work.bytes.record("a" * 64, 0, "out", 700, 300, "cloud", "tus")
            work.bytes.record("a" * 64, 2, "out", 100_000, 2_000, "cloud", "tus")
            work.bytes.record("a" * 64, 2, "out", 0, 5_000, "cloud", "tus")
            work.bytes.record("", None, "in", 40, 400, "cloud", "messages")
        with store.transaction("there") as work:
            work.bytes.record("b" * 64, 1, "out", 30_000, 1_000, "cloud", "tus")
    return url


def test_the_ledger_is_summed_by_slide_tier_and_direction(store_url, monkeypatch):
    monkeypatch.setenv("SLIDEWAY_STORE", store_url)
    rows = answer()["ledger"]
    assert answer("--store", store_url)["ledger"] == rows
    keys = ("slide_sha256", "tier", "direction", "payload_bytes", "overhead_bytes", "transfers")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("", None, "in", 40, 400, 1),
        ("a" * 64, 0, "out", 700, 300, 1),
        ("a" * 64, 2, "out", 100_000, 7_000, 2),
        ("b" * 64, 1, "out", 30_000, 1_000, 1),
    ]
    said = told()
    assert "131 kB" in said  # payload out, of both tenants
    assert "8.3 kB" in said  # overhead out


def test_sent_bytes_of_a_known_slide_stand_beside_its_file(readings, store_url):
    (slide,) = answer(readings / "fine")["slides"]
    with open_store(store_url) as store, store.transaction("here") as work:
        work.bytes.record(slide["sha256"], 0, "out", 600, 400, "cloud", "tus")
    said = told(readings / "fine", "--store", store_url)
    assert f"fine.tif: 1.0 kB sent with overhead, {100_000 / slide['file_bytes']:.3f} % of its file" in said


def test_a_store_that_is_not_there_is_named_and_not_made(tmp_path):
    done = run("--store", f"sqlite:///{(tmp_path / 'none.db').as_posix()}")
    assert isinstance(done.exception, UnreachableStoreError)
    assert not (tmp_path / "none.db").exists()


def test_the_default_store_is_that_of_the_node_whose_settings_lie_here(monkeypatch, tmp_path):
    from slideway.edge.init import init_edge
    from slideway.edge.settings import read_settings

    monkeypatch.delenv("SLIDEWAY_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongUseError, match=r"no edge\.toml here"):
        default_store_url()
    init_edge(tmp_path)
    config = tmp_path / "edge.toml"
    config.write_text(config.read_text("utf-8").replace('# folder = "state"', 'folder = "elsewhere"'), "utf-8")
    assert default_store_url() == read_settings(config).places.store_url
    assert default_store_url().endswith("elsewhere/slideway.db")
