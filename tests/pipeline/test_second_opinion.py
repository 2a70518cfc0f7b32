"""A second head is asked about a few tiles only, as the wire would give them, and both opinions are kept."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

import slideway
from slideway.core.errors import (
    FingerprintMismatchError,
    UnknownHeadError,
    UnreadableBagError,
    UntrustedHeadError,
    WrongUseError,
)
from slideway.core.opinion import Kind, TaskQuestion
from slideway.core.tissue import TileGrid
from slideway.heads.diagnose import SlideFacts
from slideway.heads.typicality import fit_typicality
from slideway.pipeline import second_opinion
from slideway.pipeline.opinions import gather_facts
from slideway.pipeline.result import load_schema
from slideway.pipeline.second_opinion import ask_second_opinion, place_tiles, say_second_opinion
from slideway.pipeline.slide_library import open_read_slide
from slideway.registry.store import find_encoder
from slideway.testing.encoders import ToyGraph, write_toy_encoder
from slideway.testing.heads import TOY_QUESTIONS, write_toy_head

BIG = ToyGraph(tile_px=96)
SHARED = TOY_QUESTIONS[:2]


def write_head(models, name, encoder, questions=SHARED, **more):
    card = find_encoder(encoder)
    facts = {"width": card.output.width, "encoder_id": card.id, "encoder_fingerprint": card.fingerprint}
    return write_toy_head(models / "heads" / name, head_id=name, questions=questions, **facts, **more)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two encoders of different tiles, a head for each."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIDEWAY_MODELS", str(folder))
        write_toy_encoder(folder / "small", encoder_id="small", graph=ToyGraph(tile_px=64, width=8))
        write_toy_encoder(folder / "big", encoder_id="big", graph=BIG)
        write_head(folder, "edge", "small")
        write_head(folder, "cloud", "big")
        yield folder


@pytest.fixture(scope="module")
def read_once(models, small_slide, tmp_path_factory):
    """One reading, whose findings are made unsure: the toy says a plain no."""
    out = tmp_path_factory.mktemp("out")
    folder = slideway.read_slide(small_slide, out=out, encoder="small", heads=("edge",), engine="onnxruntime").folder
    change_result(folder, be_unsure)
    return folder


@pytest.fixture
def at_home(read_once, monkeypatch):
    """The second head as if it had learnt from slides like this one: nothing is strange to it."""
    own, random = second_opinion.load_head, np.random.default_rng(2)
    seen = np.array(open_read_slide(read_once).bag.vectors, np.float32)
    cases = [seen[random.permutation(len(seen))[:20]] + random.normal(0, 0.3, 8) for _ in range(24)]
    known = fit_typicality(cases)
    monkeypatch.setattr(second_opinion, "load_head", lambda card: replace(own(card), typicality=known))


@pytest.fixture
def folder(read_once, monkeypatch):
    """The reading, as it was before whatever a test does to it; its stain and scale are not judged anew each time."""
    monkeypatch.setattr(
        second_opinion, "gather_facts", lambda opened, survey, quality, site: SlideFacts(quality, "H&E")
    )
    held = (read_once / "result.json").read_text(encoding="utf-8")
    yield read_once
    (read_once / "result.json").write_text(held, encoding="utf-8")
    (read_once / "second-opinion.json").unlink(missing_ok=True)


def change_result(folder, change):
    path = folder / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    change(result)
    path.write_text(json.dumps(result), encoding="utf-8")


def be_unsure(result):
    for finding in result["findings"]:
        assert finding["answer"] == "answer"
        why = {"code": "cannot-tell", "text": "Neither no nor yes can be excluded."}
        finding |= {"answer": "refer", "labels": ["no", "yes"], "reasons": [why]}


def answer_plainly(result):
    for finding in result["findings"]:
        finding |= {"answer": "answer", "labels": ["no"], "probabilities": {"no": 0.9, "yes": 0.1}, "reasons": []}


def ask(folder, slide, *, encoder="big", head="cloud", **more):
    return ask_second_opinion(open_read_slide(folder), slide, encoder=find_encoder(encoder), head=head, **more)


def test_second_head_sees_the_tiles_asked_for_and_both_opinions_are_kept(folder, small_slide):
    told = ask(folder, small_slide, tiles=12)
    assert told.asked
    asked = told.result["asked"]
    assert asked["tiles"] == len(set(asked["positions"])) == sum(asked["why"].values()) == 12
    assert asked["why"]["attention"] > asked["why"]["random"] > 0
    assert asked["lost_tiles"] == 0
    assert 12 * 500 < asked["bytes"] < 12 * 96 * 96 * 3
    assert [one["task"] for one in told.result["comparisons"]] == ["neoplastic", "malignant"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    jsonschema.validate(result, load_schema())
    assert result["second_opinions"][0]["comparisons"] == told.result["comparisons"]
    assert json.loads((folder / "second-opinion.json").read_text(encoding="utf-8")) == told.result
    assert sorted(path.name for path in folder.iterdir()) == result["files"]
    assert [finding["head"]["id"] for finding in result["findings"]] == ["edge", "edge"]  # the first stays as it is


def test_the_same_slide_asks_for_the_same_tiles_and_a_head_has_one_entry(folder, small_slide):
    first = ask(folder, small_slide, tiles=9).result["asked"]["positions"]
    assert ask(folder, small_slide, tiles=9).result["asked"]["positions"] == first
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert len(result["second_opinions"]) == 1


def test_what_is_encoded_is_what_the_wire_gives(folder, small_slide, monkeypatch):
    heard, travelled = [], []
    own = second_opinion.form_opinion

    def listen(card, head, bag, facts):
        heard.append((bag, facts))
        return own(card, head, bag, facts)

    def unpack(content):
        travelled.append(content)
        return np.full((96, 96, 3), 40 * len(travelled), np.uint8)

    monkeypatch.setattr(second_opinion, "gather_facts", gather_facts)
    monkeypatch.setattr(second_opinion, "form_opinion", listen)
    monkeypatch.setattr(second_opinion, "_unpack", unpack)
    told = ask(folder, small_slide, tiles=5)
    bag, facts = heard[0]
    grey = np.stack([np.full((96, 96, 3), 40 * i, np.uint8) for i in range(1, 6)])
    assert np.allclose(bag.vectors, BIG.encode(grey), atol=2e-3)
    assert all(content.startswith(b"\xff\xd8\xff") for content in travelled)
    assert told.result["asked"]["bytes"] == sum(map(len, travelled))
    first = open_read_slide(folder).bag.grid.select(np.array(told.result["asked"]["positions"]))
    assert np.array_equal(bag.grid.xy_level0_px, place_tiles(first, tile_px=96, tile_mpp=0.5).xy_level0_px)
    assert facts.quality is not None
    assert facts.stain  # judged from the slide, not presumed


def test_tiles_of_another_size_have_the_centres_of_the_first(read_once):
    grid = TileGrid(np.array([[0, 0], [3, 5]], np.int32), 64, 0.5, 0.25)
    for tile_px, tile_mpp in ((96, 0.5), (64, 0.25), (224, 0.5)):
        places = place_tiles(grid, tile_px=tile_px, tile_mpp=tile_mpp)
        centres = places.xy_level0_px + places.tile_level0_px / 2
        assert np.abs(centres - (grid.column_row + 0.5) * 128).max() <= 0.5
        assert places.tile_level0_px == tile_px * tile_mpp / 0.25


def test_nothing_is_asked_where_the_first_answers_plainly(folder, small_slide):
    change_result(folder, answer_plainly)
    told = ask(folder, small_slide)
    assert not told.asked
    assert "answers plainly" in told.words
    assert not (folder / "second-opinion.json").exists()
    told = ask(folder, small_slide, always=True, tiles=4)
    assert told.asked
    assert told.result["comparisons"][0]["first"]["answer"] == "answer"


@pytest.mark.usefixtures("at_home")
def test_what_the_first_left_open_is_resolved_by_the_second(folder, small_slide):
    told = ask(folder, small_slide, tiles=8)
    for one in told.result["comparisons"]:
        assert (one["second"]["answer"], one["second"]["labels"]) == ("answer", ["no"])
        assert one["agreement"] == "resolved"
        assert (one["combined"]["answer"], one["combined"]["labels"]) == ("answer", ["no"])
    words = say_second_opinion(told)
    assert "never a diagnosis" in words
    assert "resolved" in words


@pytest.mark.usefixtures("at_home")
def test_a_contradiction_goes_to_a_person(folder, small_slide):
    def say_yes(result):
        answer_plainly(result)
        result["findings"][0] |= {"labels": ["yes"], "probabilities": {"no": 0.1, "yes": 0.9}}

    change_result(folder, say_yes)
    one = ask(folder, small_slide, always=True, tiles=8).result["comparisons"][0]
    assert one["agreement"] == "contradiction"
    assert one["combined"]["answer"] == "refer"
    assert one["combined"]["labels"] == ["yes", "no"]


@pytest.mark.usefixtures("at_home")
def test_a_doubt_in_the_slide_is_not_lifted(folder, small_slide):
    why = {"code": "other-stain", "text": "The slide is stained IHC; the head learnt from H&E only."}
    change_result(folder, lambda result: result["findings"][0].update(labels=[], reasons=[why]))
    one = ask(folder, small_slide, tiles=8).result["comparisons"][0]
    assert one["second"]["answer"] == "answer"
    assert one["combined"]["answer"] == "refer"
    assert [reason["code"] for reason in one["combined"]["reasons"]] == ["doubt-in-slide", "other-stain"]


def test_fewer_tiles_than_the_second_head_needs_are_not_readable(models, folder, small_slide):
    write_head(models, "choosy", "big", min_tiles=10)
    told = ask(folder, small_slide, head="choosy", tiles=9)
    assert {one["second"]["answer"] for one in told.result["comparisons"]} == {"not-readable"}
    assert {one["combined"]["answer"] for one in told.result["comparisons"]} == {"refer"}


def test_another_slide_is_refused(folder, small_slide, tmp_path):
    other = tmp_path / small_slide.name
    other.write_bytes(small_slide.read_bytes() + b"x")
    with pytest.raises(WrongUseError, match="not the slide that was read"):
        ask(folder, other)
    assert not (folder / "second-opinion.json").exists()


def test_a_head_of_another_encoder_is_refused(folder, small_slide):
    with pytest.raises(FingerprintMismatchError, match="reads bags of small"):
        ask(folder, small_slide, head="edge")


def test_a_head_with_other_questions_is_refused_with_both_lists(models, folder, small_slide):
    write_head(models, "stranger", "big", (TaskQuestion("organ", "Organ", Kind.CLASSES, ("heart", "lung")),))
    with pytest.raises(WrongUseError, match=r"answers organ; .* neoplastic, malignant"):
        ask(folder, small_slide, head="stranger")


def test_a_reading_without_findings_is_refused(folder, small_slide):
    change_result(folder, lambda result: result.update(findings=[]))
    with pytest.raises(WrongUseError, match="no finding"):
        ask(folder, small_slide)


def test_a_first_head_that_is_gone_or_changed_is_refused(folder, small_slide):
    change_result(folder, lambda result: result["findings"][0]["head"].update(sha256="0" * 64))
    with pytest.raises(UntrustedHeadError, match="another version"):
        ask(folder, small_slide)
    change_result(folder, lambda result: result["findings"][0]["head"].update(id="gone"))
    with pytest.raises(UnknownHeadError, match="not installed"):
        ask(folder, small_slide)


@pytest.mark.parametrize(
    "damage",
    [
        lambda finding: finding.pop("answer"),
        lambda finding: finding.update(answer="perhaps"),
        lambda finding: finding.update(task="none"),
        lambda finding: finding.update(labels=None),
        lambda finding: finding.update(reasons=[]),
        lambda finding: finding.update(probabilities={"no": "much"}),
    ],
)
def test_damaged_findings_are_named(folder, small_slide, damage):
    change_result(folder, lambda result: damage(result["findings"][0]))
    with pytest.raises(UnreadableBagError, match="damaged"):
        ask(folder, small_slide)
