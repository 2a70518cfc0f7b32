"""The node's disk: a budget, a high-water mark at which intake stops, a reserve, and what may go when it is tight."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slideway.core.crash import crash_here
from slideway.core.errors import StoreError
from slideway.edge.logs import log
from slideway.edge.node import ACTOR, Node
from slideway.edge.settings import GB, MB
from slideway.edge.words import say_bytes
from slideway.store.outbox import OutboxState
from slideway.store.slides import SlideRecord

FreeBytes = Callable[[Path], int]
_MEASURE_SECONDS = 30.0
_RESUME = 1.05  # intake begins again with a little more room than it stopped at, or it would flutter
_EVICT_FROM = 0.9
BULK = ("bag.safetensors", "bundle.swb", "overlay.png")
_DAY_S = 86_400
_AT_A_TIME = 200
_DONE = {OutboxState.ACKNOWLEDGED, OutboxState.WITHDRAWN}


@dataclass(frozen=True)
class DiskState:
    """How the disk is.

    Attributes:
        used_bytes: What the node's folder holds.
        budget_bytes: What it may hold.
        free_bytes: What is free on its disk.
        min_free_bytes: Below that intake stops.
        stopped_because: Why no slide is taken in, in words; empty while slides are.
    """

    used_bytes: int
    budget_bytes: int
    free_bytes: int
    min_free_bytes: int
    stopped_because: str


class Space:
    """Watches the disk of a node."""

    def __init__(
        self,
        node: Node,
        *,
        free_bytes: FreeBytes = lambda folder: shutil.disk_usage(folder).free,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch a disk.

        Args:
            node: Whose.
            free_bytes: Asks the system.
            monotonic: Seconds that only go on.
        """
        own = node.settings.disk
        self._node, self._free_bytes, self._monotonic = node, free_bytes, monotonic
        self._budget_bytes, self._min_free_bytes = round(own.budget_gb * GB), round(own.min_free_gb * GB)
        self._reserve_bytes = own.reserve_mb * MB
        self._used_bytes, self._measured = 0, float("-inf")
        self._is_stopped = False
        # Numbers of the bundles up to which every answer has gone wholly, or its bulk: they are not looked at again.
        self._all_gone_to = self._bulk_gone_to = 0

    def state(self) -> DiskState:
        """How it is now."""
        free = self._free_bytes(self._node.places.folder)
        if self._monotonic() - self._measured > _MEASURE_SECONDS:
            self.measure()
        factor = _RESUME if self._is_stopped else 1.0
        why = ""
        if free < self._min_free_bytes * factor:
            why = f"only {say_bytes(free)} are free on the disk; {say_bytes(self._min_free_bytes)} must stay free"
        elif self._used_bytes * factor > self._budget_bytes:
            why = f"the budget of {say_bytes(self._budget_bytes)} is used up"
        if bool(why) != self._is_stopped:
            log("intake-stopped" if why else "intake-goes-on", free_bytes=free, used_bytes=self._used_bytes)
        self._is_stopped = bool(why)
        return DiskState(self._used_bytes, self._budget_bytes, free, self._min_free_bytes, why)

    def has_room(self) -> bool:
        """Slides may be taken in."""
        return not self.state().stopped_because

    def measure(self) -> int:
        """Add up what the folder holds; the reserve does not count."""
        self._used_bytes = _size_of(self._node.places.folder) - _size_of(self._node.places.reserve)
        self._measured = self._monotonic()
        return self._used_bytes

    def keep_reserve(self) -> None:
        """Give the reserve up when the disk is full, and make it anew when there is room again."""
        reserve = self._node.places.reserve
        free = self._free_bytes(self._node.places.folder)
        if reserve.exists() and free < min(self._reserve_bytes, self._min_free_bytes) // 4:
            reserve.unlink(missing_ok=True)
            log("reserve-given-up", free_bytes=free)
        elif not reserve.exists() and self._reserve_bytes and free > self._min_free_bytes + 2 * self._reserve_bytes:
            _write_zeros(reserve, self._reserve_bytes)

    def evict(self) -> list[str]:
        """Remove answers of slides that have ended and that the cloud has durably; a scanner's file is never touched.

        Those past their time of service go wholly; of the others, when room is needed, the bulk. The order is that in
        which their bundles were made, and the time the node's own: no computer's clock has a say in what goes.

        Returns:
            Hashes of the slides.
        """
        old = self._evict_old()
        bulk = self._evict_bulk()
        if old or bulk:
            self.measure()
        return [*old, *bulk]

    def _is_tight(self) -> bool:
        state = self.state()
        return bool(state.stopped_because) or state.used_bytes > _EVICT_FROM * state.budget_bytes

    def _evict_old(self) -> list[str]:
        """Answers that are past their time; those behind the first one that is not wait for it."""
        kept_s, evicted, is_whole = self._node.settings.disk.kept_days * _DAY_S, [], True
        for number, slide in self._walk_released(self._all_gone_to):
            if slide.facts.get("evicted") != "all":
                if not slide.is_ended or not self._is_at_cloud(slide):
                    is_whole = False
                    continue
                if self._ended_for_s(slide) <= kept_s:
                    break
                self._remove(slide, everything=True)
                evicted.append(slide.slide_sha256)
            if is_whole:
                self._all_gone_to = number
        return evicted

    def _evict_bulk(self) -> list[str]:
        """The bulk of answers, one after the other, until there is room."""
        evicted, is_whole = [], True
        for number, slide in self._walk_released(self._bulk_gone_to):
            if not slide.facts.get("evicted"):
                if not self._is_tight():
                    break
                if not slide.is_ended or not self._is_at_cloud(slide):
                    is_whole = False
                    continue
                self._remove(slide, everything=False)
                evicted.append(slide.slide_sha256)
                self.measure()
            if is_whole:
                self._bulk_gone_to = number
        return evicted

    def _ended_for_s(self, slide: SlideRecord) -> int:
        """Seconds of service since it ended; where nobody knows, they begin now."""
        served = self._node.served
        for_s = served.since(slide.facts.get("ended_at_s"))
        if for_s is None:
            with self._node.store.transaction(self._node.tenant) as work:
                work.slides.add_facts(slide.slide_sha256, {"ended_at_s": served.seconds()})
        return for_s or 0

    def _walk_released(self, after: int) -> Iterator[tuple[int, SlideRecord]]:
        """Slides in the order in which their bundles were made, each with its bundle's number; some at a time."""
        while True:
            with self._node.store.reading(self._node.tenant) as work:
                rows = work.outbox.find_released(after=after, limit=_AT_A_TIME)
                found = [(row.number, work.slides.get(row.slide_sha256)) for row in rows if row.slide_sha256]
            yield from found
            if len(rows) < _AT_A_TIME:
                return
            after = rows[-1].number

    def _is_at_cloud(self, slide: SlideRecord) -> bool:
        """The cloud has signed for its bundle, and nothing of it waits any more."""
        with self._node.store.reading(self._node.tenant) as work:
            rows = [row for row in work.outbox.find_all(slide_sha256=slide.slide_sha256) if row.blob_sha256]
        states = {row.state for row in rows}
        return OutboxState.ACKNOWLEDGED in states and states <= _DONE

    def _remove(self, slide: SlideRecord, *, everything: bool) -> None:
        folder = self._node.places.answers / slide.slide_sha256
        if everything:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            for name in BULK:
                (folder / name).unlink(missing_ok=True)
        with self._node.store.reading(self._node.tenant) as work:
            sent = {row.blob_sha256 for row in work.outbox.find_all(slide_sha256=slide.slide_sha256)}
        for sha256 in filter(None, sent):  # the bundle, and regions that were asked for
            self._node.outgoing.remove(sha256)
        crash_here("edge.after-evict")
        stage = "all" if everything else "bulk"
        try:
            with self._node.store.transaction(self._node.tenant) as work:
                work.slides.add_facts(slide.slide_sha256, {"evicted": stage})
                work.audit.append("answer-evicted", actor=ACTOR, subject=slide.slide_sha256, details={"stage": stage})
        except StoreError as error:
            log("evicted-not-noted", code=error.code)  # noted at the next turn: removing again does no harm


def _size_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except OSError:
                continue  # gone meanwhile
    return total


def _write_zeros(path: Path, n_bytes: int) -> None:
    """Bytes that are really there: a file with a hole keeps nothing free."""
    block = bytes(MB)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            for _ in range(n_bytes // MB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
