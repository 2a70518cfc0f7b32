"""Read one slide: open, check, find tissue, encode, group, draw, and put the answer into one folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from slideway.bundles import BagWriter, export_bag, read_bag
from slideway.core.bag import EmbeddingBag
from slideway.core.catalogue import load_catalogue
from slideway.core.errors import DiskFullError, WrongUseError
from slideway.core.opinion import Opinion
from slideway.core.tissue import QualityGrade, TileGrid
from slideway.encoders import Encoder, encode_tiles, load_encoder
from slideway.heads import find_novelty, group_tiles, select_tiles
from slideway.heads.head import Head
from slideway.pipeline.bundle import bundle_reading, describe_bytes
from slideway.pipeline.drawing import draw_reading
from slideway.pipeline.machine import count_cores, cpu_seconds_of, free_disk_bytes
from slideway.pipeline.opinions import (
    HeadChoice,
    choose_heads,
    describe_opinions,
    gather_facts,
    give_opinions,
    load_heads,
)
from slideway.pipeline.output import OutputFolder, folder_name
from slideway.pipeline.profile import (
    LEAST_TISSUE,
    PROFILES,
    STANDARD,
    THRIFTY,
    ReadingPlan,
    describe_plan,
    plan_all,
    plan_selection,
)
from slideway.pipeline.reading import SlideReading
from slideway.pipeline.result import describe_reading, describe_slide, write_result
from slideway.pipeline.screen import is_worth_screening, screen_slide
from slideway.pipeline.survey import Survey, settle_resolution, survey_slide
from slideway.registry.card import ModelCard
from slideway.registry.store import DEFAULT_ENCODER, find_encoder
from slideway.slides import OpenedSlide, open_slide
from slideway.slides.bands import plan_read
from slideway.slides.files import files_of_slide, hash_slide
from slideway.slides.resolution import ScannerProfile, load_profiles
from slideway.tissue import grade_quality, is_blurred, measure_focus

# Where `threadpool_limits` stands: small matrices on all cores of a busy computer take ten times as long as on one.
BATCH = 8  # tiles a frame from the reader; an encoder takes fewer at a time (encoders/encoder.py)


class Progress(Protocol):
    """Who wants to know how far a reading is."""

    def on_step(self, name: str) -> None:
        """A step begins."""
        ...

    def on_tiles(self, done: int, total: int) -> None:
        """So many tiles of the slide are read."""
        ...


class Quiet:
    """Nobody watches."""

    def on_step(self, name: str) -> None:
        """Ignore."""

    def on_tiles(self, done: int, total: int) -> None:
        """Ignore."""


def read_slide(
    path: str | Path,
    *,
    out: str | Path = "slideway-out",
    mpp: float | None = None,
    estimate_mpp: bool = False,
    encoder: str | Path = DEFAULT_ENCODER,
    engine: str | None = None,
    threads: int | None = None,
    profiles: Sequence[ScannerProfile] | None = None,
    profile: str = STANDARD,
    exports: Sequence[str] = (),
    name: str | None = None,
    heads: Sequence[str | Path] | None = None,
    site: str = "",
    case: str = "",
    progress: Progress | None = None,
) -> SlideReading:
    """Read one slide and write its answer into a folder of its own.

    Args:
        path: Slide file, or folder of a DICOM slide.
        out: Parent of the slide's output folder.
        mpp: Microns per pixel at level 0; overrides what the file states.
        estimate_mpp: Accept an estimate from nuclei when nothing states the resolution; every output is marked.
        encoder: Id of an installed encoder, or a folder with a model card.
        engine: `onnxruntime` or `openvino`; None takes the one measured fastest here.
        threads: Cores to use; None takes all.
        profiles: Scanner profiles; None reads the user's configuration.
        profile: How much is read: `standard` (every tile on tissue), `thrifty` (what a coarse look at the whole tissue
            chooses, about a third) or `thorough` (rims and blurred tiles too); docs/profiles.md.
        exports: Any of `h5`, `h5ad`, `geojson`.
        name: Name of the output folder; None makes it from the file's name.
        heads: Heads that are to speak, by id or folder, whether in force or not; None takes those in force, an empty
            list none.
        site: Where in the body the tissue comes from, as an id of the catalogue; heads of other sites then refer.
        case: Pseudonym of the case, as it may travel; never an accession number (`slideway.registry.pseudonym`).
        progress: Who is told how far it is.

    Returns:
        The reading. No tissue and a slide to rescan are answers, not errors.

    Raises:
        UnreadableSlideError: The file cannot be read; the message names the true cause.
        UnknownResolutionError: Nothing states the microns per pixel.
        UntrustedEncoderError: The encoder does not compute here what its card promises.
        UnknownHeadError: A head that was named is not there.
        UntrustedHeadError: A head does not compute here what it did when it was made.
        FingerprintMismatchError: A head that was named reads another encoder's bags.
        OutputError: The output folder cannot be written; nothing half-written stays.
        WrongUseError: There is no such profile, or no such site in the catalogue.
    """
    if profile not in PROFILES:
        raise WrongUseError(f"there is no profile {profile!r}; profiles are {', '.join(PROFILES)}")
    if site:
        load_catalogue().find_site(site)  # refuses what is none
    card = find_encoder(encoder)
    return _Journey(
        path=Path(path),
        out=Path(out),
        settings={
            "mpp": mpp,
            "estimate": estimate_mpp,
            "exports": tuple(exports),
            "name": name,
            "profile": profile,
            "site": site,
            "case": case,
        },
        card=card,
        choice=choose_heads(card, heads),
        engine=engine,
        threads=threads or count_cores(),
        profiles=load_profiles(None) if profiles is None else profiles,
        progress=progress or Quiet(),
    ).travel()


@dataclass
class _Journey:
    """One slide's way through the rooms; each method is one step."""

    path: Path
    out: Path
    settings: dict[str, Any]
    card: ModelCard
    choice: HeadChoice
    engine: str | None
    threads: int
    profiles: Sequence[ScannerProfile]
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    opened: OpenedSlide | None = None

    def travel(self) -> SlideReading:
        began = time.perf_counter()
        name = self.settings["name"] or folder_name(self.path)
        # Hashing and loading the encoder wait for disk and other cores: both run beside opening the slide.
        with OutputFolder(self.out, name) as output, ThreadPoolExecutor(3) as beside:
            hashing = beside.submit(hash_slide, self.path)
            loading = beside.submit(load_encoder, self.card, engine=self.engine, threads=self.threads)
            consulting = beside.submit(load_heads, self.choice)
            with self._step("open"):
                opened = self.opened = open_slide(self.path)
            with opened:
                plan = self._plan(opened, self._survey(opened), hashing)
                encoder = loading.result()
                bag, focus, lost = self._encode(opened, plan, output.path, encoder, hashing)
                reading = self._describe(plan, bag, focus, lost, output.path)
                with self._step("findings"):
                    reading = self._consult(opened, plan, reading, consulting)
                with self._step("bundle"), threadpool_limits(1, user_api="blas"):
                    self._bundle(plan.survey, reading, output.path)
                with self._step("draw"):
                    drawn = draw_reading(opened, plan.survey, reading, encoder, self.seconds)
            self._finish(output.path, reading, encoder, drawn, began)
            parts = {name: getattr(reading, name) for name in reading.__dataclass_fields__ if name != "bag"}
            del reading  # Windows cannot rename a folder while one of its files is mapped
            folder = output.commit()
        return SlideReading(**{**parts, "folder": folder, "bag": read_bag(folder / "bag.safetensors")})

    def _survey(self, opened: OpenedSlide) -> Survey:
        with self._step("tissue"):
            slide = settle_resolution(
                opened,
                self.path,
                given=self.settings["mpp"],
                estimate=self.settings["estimate"],
                profiles=self.profiles,
            )
            edge = self.card.input
            least = LEAST_TISSUE[self.settings["profile"]]
            return survey_slide(opened, slide, tile_px=edge.tile_px, tile_mpp=edge.mpp, min_tissue_share=least)

    def _plan(self, opened: OpenedSlide, survey: Survey, hashing: Future[str]) -> ReadingPlan:
        profile = self.settings["profile"]
        if profile != THRIFTY or not is_worth_screening(survey.grid):
            return plan_all(profile, survey)
        with self._step("screen"):
            screening = screen_slide(opened, survey)
            selection = select_tiles(screening, seed=int(hashing.result(), 16))
        return plan_selection(profile, survey, selection, screening.wide_tiles)

    def _encode(
        self, opened: OpenedSlide, plan: ReadingPlan, folder: Path, encoder: Encoder, hashing: Future[str]
    ) -> tuple[EmbeddingBag, NDArray[np.float32], NDArray[np.bool_]]:
        """Write the bag; returns it with the focus of every tile of the plan and which of them were lost."""
        grid = plan.survey.grid
        self._require_space(grid, encoder.width)
        path = folder / "bag.safetensors"
        with self._step("encode"), BagWriter(path, grid, encoder.width) as writer:
            focus, lost = self._encode_into(writer, opened, plan, encoder)
            writer.finish(
                encoder_id=self.card.id,
                fingerprint=self.card.fingerprint,
                slide_sha256=hashing.result(),
                sampling=plan.sampling,
            )
        return read_bag(path), focus, lost

    def _encode_into(
        self, writer: BagWriter, opened: OpenedSlide, plan: ReadingPlan, encoder: Encoder
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        grid = plan.survey.grid
        focus = np.full(len(grid), np.nan, np.float32)
        lost = np.zeros(len(grid), bool)
        stored_mpp = _stored_mpp(plan.survey)

        def judge(tiles: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            measured = measure_focus(tiles, mpp=grid.tile_mpp, stored_mpp=stored_mpp)
            return measured, ~is_blurred(measured) | plan.keeps_blurred

        done = 0
        batches = opened.read_tiles(grid, batch=BATCH) if len(grid) else ()
        for encoded in encode_tiles(batches, encoder, judge=judge, threads=self.threads):
            writer.write(encoded.indices[encoded.kept], encoded.vectors, encoded.focus[encoded.kept])
            focus[encoded.indices] = encoded.focus
            lost[list(encoded.lost)] = True
            done += len(encoded.indices) + len(encoded.lost)
            self.progress.on_tiles(done, len(grid))
        return focus, lost

    def _describe(
        self, plan: ReadingPlan, bag: EmbeddingBag, focus: NDArray[np.float32], lost: NDArray[np.bool_], folder: Path
    ) -> SlideReading:
        survey, is_out = plan.survey, is_blurred(focus) & ~lost
        quality = _grade(plan, focus, lost)
        with self._step("heads"), threadpool_limits(1, user_api="blas"):
            groups = group_tiles(bag)
            novelty = find_novelty(bag)
        left_out = survey.grid.select(is_out & (not plan.keeps_blurred))
        n_bytes = sum(file.stat().st_size for file in files_of_slide(self.path))
        slide_result = describe_slide(survey.slide, bag.slide_sha256, n_bytes)
        result = describe_reading(
            slide=slide_result, quality=quality, mask=survey.mask, bag=bag, groups=groups, novelty=novelty
        )
        result["grid"] |= {"blurred_tiles": len(left_out), "lost_tiles": int(lost.sum())}
        result["profile"] = describe_plan(plan, blurred_kept=int(is_out.sum()) - len(left_out))
        return SlideReading(
            slide=survey.slide,
            slide_sha256=bag.slide_sha256,
            quality=quality,
            mask=survey.mask,
            bag=bag,
            blurred=left_out,
            groups=groups,
            novelty=novelty,
            card=self.card,
            folder=folder,
            result=result,
        )

    def _consult(
        self, opened: OpenedSlide, plan: ReadingPlan, reading: SlideReading, consulting: Future[tuple[Head, ...]]
    ) -> SlideReading:
        """Add what the heads say."""
        heads = consulting.result()
        opinions: tuple[Opinion, ...] = ()
        if heads:
            opinions = give_opinions(
                self.choice,
                heads,
                reading.bag,
                gather_facts(opened, plan.survey, reading.quality, site=self.settings["site"]),
            )
        reading.result["site"] = self.settings["site"]
        reading.result["heads"] = self.choice.stamps
        reading.result["heads_off"] = list(self.choice.silent)
        reading.result["findings"] = describe_opinions(opinions, reading.bag)
        return replace(reading, opinions=opinions, heads_off=self.choice.silent)

    def _bundle(self, survey: Survey, reading: SlideReading, folder: Path) -> None:
        """Write what may travel; what of it does is decided when it is released."""
        built = bundle_reading(reading, survey.thumbnail, case=self.settings["case"])
        packed = (folder / "bundle.swb").write_bytes(built.pack())
        reading.result["bytes"] = describe_bytes(built, packed, reading.result["slide"]["bytes"])

    def _finish(
        self, folder: Path, reading: SlideReading, encoder: Encoder, drawn: dict[str, bytes], began: float
    ) -> None:
        result = reading.result
        for file_name, content in drawn.items():
            (folder / file_name).write_bytes(content)
        for kind in self.settings["exports"]:
            export_bag(kind, folder, reading.bag, reading.groups, reading.novelty)
        bag_bytes = (folder / "bag.safetensors").stat().st_size
        encode_s = self.seconds["encode"]
        result["encoder"] = {
            "id": self.card.id,
            "fingerprint": self.card.fingerprint,
            "engine": encoder.engine.words,
            "threads": self.threads,
        }
        result["bag"] = {"width": reading.bag.width, "bytes": bag_bytes}
        result["timing"] = {
            "total_s": round(time.perf_counter() - began, 3),
            "tiles_per_s": round(len(reading.bag) / encode_s, 2) if len(reading.bag) else 0.0,
            "steps_s": {step: round(seconds, 3) for step, seconds in self.seconds.items()},
            "steps_cpu_s": {step: round(seconds, 3) for step, seconds in self.cpu_seconds.items()},
        }
        result["files"] = sorted([file.name for file in folder.iterdir()] + ["result.json"])
        write_result(folder / "result.json", result)

    def _require_space(self, grid: TileGrid, width: int) -> None:
        """Refuse at once what would fill the disk in the middle."""
        needed = 2 * width * len(grid) + 5_000_000  # pictures and report: about 3 MB
        free = free_disk_bytes(self.out)
        if free < needed:
            raise DiskFullError(
                f"{self.out}: {len(grid):,} tiles need about {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; "
                "free some space or choose another folder with --out"
            )

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self.progress.on_step(name)
        began, cpu_began = time.perf_counter(), self._cpu_s()
        yield
        self.seconds[name] = time.perf_counter() - began
        self.cpu_seconds[name] = self._cpu_s() - cpu_began

    def _cpu_s(self) -> float:
        """CPU seconds of this process and its reader so far."""
        reader_s = cpu_seconds_of(self.opened.process_id) if self.opened is not None else 0.0
        return time.process_time() + reader_s


def _grade(plan: ReadingPlan, focus: NDArray[np.float32], lost: NDArray[np.bool_]) -> QualityGrade:
    """Grade the pixels; of a slide that was read in part, each tile counts for all it stands for."""
    survey, judged = plan.survey, focus[~lost]
    if plan.sampling is not None:
        judged = np.repeat(judged, np.rint(plan.sampling.weight[~lost]).astype(np.int64))
    return grade_quality(
        survey.mask,
        slide_mpp=survey.slide.mpp,
        tile_mpp=survey.grid.tile_mpp,
        resolution_source=survey.slide.resolution.source,
        thumbnail=survey.thumbnail,
        focus=judged,
    )


def _stored_mpp(survey: Survey) -> float:
    """Microns per pixel of the level that tiles are read from."""
    grid = survey.grid
    read = plan_read(survey.slide, grid.xy_level0_px[:0], grid.tile_level0_px, grid.tile_px)
    return survey.slide.mpp * survey.slide.levels[read.level].downsample
