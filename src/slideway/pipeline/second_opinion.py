"""Ask a second head, by another encoder, about tiles of a slide that was read, and say what both opinions come to."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slideway.core.bag import EmbeddingBag, require_same_encoder
from slideway.core.errors import UnknownHeadError, UnreadableBagError, UntrustedHeadError, WrongUseError
from slideway.core.opinion import Answer, Evidence, Finding, Opinion
from slideway.core.slide import Resolution, ResolutionSource
from slideway.core.tissue import QualityGrade, Reason, TileGrid, Verdict
from slideway.encoders import load_encoder
from slideway.heads import find_novelty
from slideway.heads.diagnose import SlideFacts, form_opinion
from slideway.heads.discordance import WHY, AskedTiles, Discordance, choose_tiles_to_ask, compare_findings
from slideway.heads.head import load_head
from slideway.pipeline.opinions import choose_heads, describe_opinions, gather_facts
from slideway.pipeline.output import explain_write_error
from slideway.pipeline.result import write_result
from slideway.pipeline.slide_library import ReadSlide
from slideway.pipeline.survey import survey_slide
from slideway.registry.card import ModelCard
from slideway.registry.head_records import HeadCard
from slideway.registry.heads import find_head
from slideway.slides import OpenedSlide, open_slide
from slideway.slides.files import hash_slide

SCHEMA = "slideway-second-opinion/1.0"
FILE = "second-opinion.json"
JPEG_QUALITY = 90  # chroma halved, as scanners store; docs/second-opinion.md says what it weighs
_SEED_DIGITS = 16  # of the slide's hash: the same slide asks for the same tiles


@dataclass(frozen=True)
class FirstFinding:
    """A finding of the reading, as result.json keeps it.

    Attributes:
        finding: The finding, without its evidence.
        entry: The entry in result.json.
        card: Card of the head that made it.
    """

    finding: Finding
    entry: dict[str, Any]
    card: HeadCard


@dataclass(frozen=True)
class SecondOpinion:
    """What came of asking.

    Attributes:
        asked: Whether the second head was asked.
        words: Why not; empty when it was.
        result: Contents of second-opinion.json; empty when nothing was asked.
    """

    asked: bool
    words: str
    result: dict[str, Any]


@dataclass(frozen=True)
class _PlacedGrid(TileGrid):
    """Squares of another size about the centres of a grid's tiles; `column_row` stays that of the first grid."""

    corners: NDArray[np.int32]

    @property
    def xy_level0_px(self) -> NDArray[np.int32]:
        """(n, 2) int32, top-left corner of each square in level-0 pixels; may lie beyond the slide's edge."""
        return self.corners


def place_tiles(grid: TileGrid, *, tile_px: int, tile_mpp: float) -> TileGrid:
    """Squares as another encoder reads them, each with the centre of a tile of `grid`."""
    edge = tile_px * tile_mpp / grid.slide_mpp
    centres = (grid.column_row.astype(np.float64) + 0.5) * grid.tile_level0_px
    corners = np.rint(centres - edge / 2).astype(np.int32)
    return _PlacedGrid(grid.column_row, tile_px, tile_mpp, grid.slide_mpp, corners)


def ask_second_opinion(
    reading: ReadSlide,
    slide: Path,
    *,
    encoder: ModelCard,
    head: str | Path,
    tiles: int = 64,
    always: bool = False,
) -> SecondOpinion:
    """Ask a second head about the tiles that matter most, and write what both opinions come to beside the reading.

    Args:
        reading: An output folder of `read_slide` with findings.
        slide: The slide's file.
        encoder: Card of the second encoder.
        head: The second head, of that encoder.
        tiles: Tiles to ask for, at most.
        always: Ask also where every first finding is a plain answer.

    Raises:
        WrongUseError: The reading has no finding, none to a question of the second head, or the file is another slide.
        UnknownHeadError: A head is not installed.
        FingerprintMismatchError: A head reads another encoder's bags.
        UnreadableBagError: The reading is damaged.
        UnreadableSlideError: The slide cannot be read.
    """
    card = choose_heads(encoder, [head]).cards[0]
    first = _find_shared(reading, card)
    open_questions = [f for f in first if f.finding.answer is not Answer.ANSWER]
    if not open_questions and not always:
        told = "; ".join(f"{f.finding.task.title} {f.finding.labels[0]}" for f in first)
        return SecondOpinion(False, f"Nothing was asked: the first opinion answers plainly ({told}).", {})
    if not len(reading.bag):
        return SecondOpinion(False, "Nothing was asked: no tile of the slide was read, so there is none to show.", {})
    if hash_slide(slide) != reading.bag.slide_sha256:
        raise WrongUseError(
            f"{slide.name} is not the slide that was read into {reading.folder.name}: its content differs. Give the "
            "file that was read, unchanged"
        )
    return _Asking(reading, slide, encoder, card).ask(first, open_questions or first, tiles)


def _find_shared(reading: ReadSlide, second: HeadCard) -> list[FirstFinding]:
    """Findings of the reading to questions that the second head answers too."""
    entries = reading.result.get("findings") or []
    if not entries:
        raise WrongUseError(
            f"{reading.folder.name}: no finding in its result.json, so there is nothing to compare; read the slide "
            "with a head first: slideway read SLIDE --head ID"
        )
    asked = {(task.question.id, task.question.labels) for task in second.tasks}
    first = [_restore(reading, entry) for entry in entries]
    shared = [found for found in first if (found.finding.task.id, found.finding.task.labels) in asked]
    if not shared:
        raise WrongUseError(
            f"{second.id} answers {', '.join(task.question.id for task in second.tasks)}; the reading has findings to "
            f"{', '.join(found.finding.task.id for found in first)}: no question with the same labels is shared"
        )
    return shared


def _restore(reading: ReadSlide, entry: Any) -> FirstFinding:
    """A finding as the head gave it; what it says of evidence stays in result.json."""
    try:
        card = _find_first_head(reading, entry["head"]["id"], entry["head"]["sha256"])
        question = {task.question.id: task.question for task in card.tasks}[entry["task"]]
        finding = Finding(
            question,
            Answer(entry["answer"]),
            tuple(map(str, entry["labels"])),
            {str(label): float(share) for label, share in entry["probabilities"].items()},
            tuple(Reason(reason["code"], reason["text"]) for reason in entry["reasons"]),
            Evidence(),
            bool(entry["in_force"]),
            tuple(Reason(reason["code"], reason["text"]) for reason in entry.get("cautions", ())),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableBagError(
            f"{reading.folder.name}: a finding in its result.json is damaged ({error}); read the slide again"
        ) from error
    return FirstFinding(finding, entry, card)


def _find_first_head(reading: ReadSlide, head_id: str, sha256: str) -> HeadCard:
    try:
        card = find_head(head_id)
    except UnknownHeadError as error:
        raise UnknownHeadError(
            f"{reading.folder.name} was read with head {head_id}, which is not installed here; its attention says "
            "which tiles to ask for: install it, or read the slide again"
        ) from error
    if card.weights.sha256 != sha256:
        raise UntrustedHeadError(
            f"{reading.folder.name} was read with another version of {head_id} than the one installed; read the slide "
            "again"
        )
    return card


@dataclass
class _Asking:
    """One question to a second head; each method is one step."""

    reading: ReadSlide
    slide: Path
    encoder: ModelCard
    card: HeadCard

    def ask(self, first: Sequence[FirstFinding], unsure: Sequence[FirstFinding], count: int) -> SecondOpinion:
        began = time.perf_counter()
        asked = self._choose(unsure, count)
        with open_slide(self.slide) as opened:
            chosen = time.perf_counter()
            places = self._place(asked)
            packed, lost = _read_as_jpeg(opened, places)
            received = time.perf_counter()
            facts = self._gather_facts(opened)
        judged = time.perf_counter()
        bag = self._encode(places, packed, asked)
        encoded = time.perf_counter()
        opinion = form_opinion(self.card, load_head(self.card), bag, facts)
        comparisons = _compare(first, opinion, bag)
        seconds = {
            "choose": chosen - began,
            "read": received - chosen,
            "facts": judged - received,
            "encode": encoded - judged,
            "opinion": time.perf_counter() - encoded,
        }
        result = self._describe(asked, packed, lost, bag, opinion, comparisons, seconds)
        _write(self.reading, result)
        return SecondOpinion(True, "", result)

    def _choose(self, unsure: Sequence[FirstFinding], count: int) -> AskedTiles:
        """Tiles by attention of the heads that are unsure, by novelty and by chance; in the order of the bag."""
        bag = self.reading.bag
        attention = np.zeros(len(bag))
        for card in {found.card.id: found.card for found in unsure}.values():
            require_same_encoder(card.input.encoder_fingerprint, bag.fingerprint)
            attention += load_head(card).score(bag).attention
        novelty = find_novelty(bag)
        asked = choose_tiles_to_ask(
            attention,
            None if novelty is None else novelty.percentile,
            bag.grid.column_row,
            count=count,
            seed=int(bag.slide_sha256[:_SEED_DIGITS], 16),
        )
        order = np.argsort(asked.tiles)
        return AskedTiles(asked.tiles[order], asked.why[order])

    def _place(self, asked: AskedTiles) -> TileGrid:
        edge = self.encoder.input
        grid = self.reading.bag.grid.select(asked.tiles)
        return place_tiles(grid, tile_px=edge.tile_px, tile_mpp=edge.mpp)

    def _gather_facts(self, opened: OpenedSlide) -> SlideFacts:
        """Stain and scale judged anew, quality as it was graded when the slide was read."""
        facts, edge = self.reading.result["slide"], self.reading.bag.grid
        resolution = Resolution(edge.slide_mpp, ResolutionSource(facts["mpp_source"]), str(facts.get("mpp_detail", "")))
        slide = replace(opened.slide, resolution=resolution)
        survey = survey_slide(opened, slide, tile_px=edge.tile_px, tile_mpp=edge.tile_mpp)
        site = str(self.reading.result.get("site", ""))
        return gather_facts(opened, survey, _restore_quality(self.reading), site=site)

    def _encode(self, places: TileGrid, packed: dict[int, bytes], asked: AskedTiles) -> EmbeddingBag:
        """A bag of what the wire gives; tiles that could not be read are not in it."""
        encoder = load_encoder(self.encoder)
        kept = np.array(sorted(packed), np.int64)
        vectors = np.empty((len(kept), encoder.width), np.float16)
        for row, index in enumerate(kept):
            vectors[row] = encoder.encode(_unpack(packed[int(index)])[None])[0]
        focus = np.asarray(self.reading.bag.focus)[asked.tiles[kept]]
        grid = _PlacedGrid(
            places.column_row[kept], places.tile_px, places.tile_mpp, places.slide_mpp, places.xy_level0_px[kept]
        )
        sha256 = self.reading.bag.slide_sha256
        return EmbeddingBag(vectors, grid, focus, self.encoder.id, self.encoder.fingerprint, sha256)

    def _describe(
        self,
        asked: AskedTiles,
        packed: dict[int, bytes],
        lost: int,
        bag: EmbeddingBag,
        opinion: Opinion,
        comparisons: list[dict[str, Any]],
        seconds: dict[str, float],
    ) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "slide_sha256": bag.slide_sha256,
            "encoder": {"id": self.encoder.id, "fingerprint": self.encoder.fingerprint},
            "head": {
                "id": self.card.id,
                "version": self.card.version,
                "fingerprint": self.card.fingerprint,
                "strangeness": None if opinion.strangeness is None else round(opinion.strangeness, 4),
            },
            "asked": {
                "tiles": len(asked.tiles),
                "of_tiles": len(self.reading.bag),
                "lost_tiles": lost,
                "why": {name: int((asked.why == i).sum()) for i, name in enumerate(WHY)},
                "positions": asked.tiles.tolist(),
                "jpeg_quality": JPEG_QUALITY,
                "bytes": sum(map(len, packed.values())),
                "slide_bytes": self.reading.result["slide"].get("bytes"),
            },
            "comparisons": comparisons,
            "timing": {
                "total_s": round(sum(seconds.values()), 3),
                "steps_s": {step: round(taken, 3) for step, taken in seconds.items()},
            },
        }


def _read_as_jpeg(opened: OpenedSlide, places: TileGrid) -> tuple[dict[int, bytes], int]:
    """Tiles as they would travel, by their place in the grid; and how many could not be read."""
    packed: dict[int, bytes] = {}
    lost = 0
    for batch in opened.read_tiles(places):
        packed |= {int(index): _pack(tile) for index, tile in zip(batch.indices, batch.tiles, strict=True)}
        lost += len(batch.lost)
    return packed, lost


def _pack(tile: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _unpack(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
        return np.asarray(picture.convert("RGB"), np.uint8)


def _restore_quality(reading: ReadSlide) -> QualityGrade:
    told = reading.result["quality"]
    reasons = tuple(Reason(reason["code"], reason["text"]) for reason in told["reasons"])
    return QualityGrade(Verdict(told["verdict"]), reasons, dict(told.get("measures", {})))


def _compare(first: Sequence[FirstFinding], opinion: Opinion, bag: EmbeddingBag) -> list[dict[str, Any]]:
    """Every shared question with both opinions; a question that the second head does not reach is left out."""
    second = {finding.task.id: finding for finding in opinion.findings}
    entries = {entry["task"]: entry for entry in describe_opinions([opinion], bag)}
    return [
        _tell(found, entries[found.finding.task.id], compare_findings(found.finding, second[found.finding.task.id]))
        for found in first
        if found.finding.task.id in second
    ]


def _tell(first: FirstFinding, second: dict[str, Any], compared: Discordance) -> dict[str, Any]:
    combined = compared.combined
    return {
        "task": combined.task.id,
        "title": combined.task.title,
        "agreement": compared.agreement,
        "first": _shorten(first.entry),
        "second": _shorten(second),
        "combined": {
            "answer": combined.answer.value,
            "labels": list(combined.labels),
            "probabilities": {label: round(share, 4) for label, share in combined.probabilities.items()},
            "reasons": [{"code": reason.code, "text": reason.text} for reason in compared.reasons],
            "in_force": combined.in_force,
            "validated": False,
        },
    }


def _shorten(entry: dict[str, Any]) -> dict[str, Any]:
    kept = ("answer", "labels", "probabilities", "reasons", "cautions", "in_force", "head")
    return {key: entry[key] for key in kept if key in entry}


def _write(reading: ReadSlide, result: dict[str, Any]) -> None:
    """Write second-opinion.json, then its summary into result.json; each file is the old or the new one, whole."""
    held = [one for one in reading.result.get("second_opinions", ()) if one["head"]["id"] != result["head"]["id"]]
    summary = {key: result[key] for key in ("encoder", "head", "asked", "comparisons", "timing")}
    files = sorted({*reading.result["files"], FILE})
    changed = {**reading.result, "second_opinions": [*held, summary], "files": files}
    try:
        _replace_file(reading.folder / FILE, result)
        _replace_file(reading.folder / "result.json", changed)
    except OSError as error:
        raise explain_write_error(error, reading.folder) from error


def _replace_file(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_result(part, content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def say_second_opinion(told: SecondOpinion) -> str:
    """Both opinions side by side, what they come to, and what it cost, as lines for a person."""
    if not told.asked:
        return told.words
    result = told.result
    asked = result["asked"]
    why = ", ".join(f"{count} by {name}" for name, count in asked["why"].items() if count)
    lines = [f"second opinion by {result['head']['id']} ({result['encoder']['id']}) on {asked['tiles']} tiles ({why})"]
    for one in result["comparisons"]:
        lines += [
            f"  {one['title']}",
            f"    first    {_say(one['first'])}  ({one['first']['head']['id']})",
            f"    second   {_say(one['second'])}  ({one['second']['head']['id']})",
            f"    together {_say(one['combined'])}: {one['agreement']}",
            *(f"      - {reason['text']}" for reason in one["combined"]["reasons"]),
        ]
    if not result["comparisons"]:
        lines.append("  the second head did not reach a question of the first: its parent's answer is no")
    lines.append(
        f"  {asked['bytes'] / 1000:.0f} kB as JPEG {asked['jpeg_quality']} would travel; "
        f"{result['timing']['total_s']:.1f} s here. Research, not validated; never a diagnosis."
    )
    return "\n".join(lines)


def _say(finding: dict[str, Any]) -> str:
    words = {"refer": "refer to an expert", "not-readable": "not readable", "set": " or ".join(finding["labels"])}
    if finding["answer"] != Answer.ANSWER.value:
        return words[finding["answer"]]
    label = finding["labels"][0]
    return f"{label}, {finding['probabilities'][label]:.2f}"
