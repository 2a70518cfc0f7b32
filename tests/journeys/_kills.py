"""A campaign of kills: three nodes, their readers, a cloud's API and worker and its PostgreSQL, killed over and over.

Kills are `SIGKILL` to real processes. Half are at named places (`core/crash.py`), half at random moments. Between nodes
and cloud stands a relay that delivers requests twice, late, out of order, by halves, or swallows the answer. Everything
that is drawn comes from one seed; the interleaving of processes does not, so a seed repeats the plan and not the run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from slideway.core.crash import CRASH_POINTS
from slideway.testing import postgres
from slideway.testing.line import Malice, MeanRelay

from ._kinds import SlideKind, make_kinds, write_head
from ._nodes import (
    CloudHome,
    EdgeHome,
    Findings,
    check_all,
    enrol,
    invite,
    is_settled,
    make_cloud,
    make_edge,
    make_encoder,
    make_unique,
    read_states,
)
from ._zygote import Zygote

CHILD_POINTS = tuple(name for name in CRASH_POINTS if name.startswith("edge.child-"))
EDGE_POINTS = tuple(
    name for name in CRASH_POINTS if name.startswith(("edge.", "sync.", "mailbox.")) and name not in CHILD_POINTS
)
WORKER_POINTS = ("cloud.after-lease", "cloud.before-opinion", "cloud.after-opinion")
API_POINTS = tuple(
    name for name in CRASH_POINTS if name.startswith(("tus.", "mailbox.", "cloud.")) and name not in WORKER_POINTS
)
assert set(EDGE_POINTS + CHILD_POINTS + API_POINTS + WORKER_POINTS) == set(CRASH_POINTS)
# Nodes differ in their settings: one lets regions leave, one answers alone after a second, one keeps nothing.
ONLY_AT = {"edge.child-after-regions": "lab-1", "edge.after-alone": "lab-2", "edge.after-evict": "lab-3"}
# Of a hundred kills at random moments.
VICTIMS = {"edge": 34, "reader": 18, "api": 22, "worker": 16, "database backend": 8, "database": 2}
_COULD_NOT_FINISH = 6  # exit code: who supervises it starts it again
_SPARED_SECONDS = 6.0
# A process that did not come to its place in so long gets another life; the next is half as long again, up to the
# longest, because on a busy computer everything takes longer.
_LIFE_SECONDS, _LONGEST_LIFE_SECONDS = 12.0, 120.0
# Kinds of slides, as cards of a deck that is dealt to the end and shuffled anew: so each comes, in any run.
DECK = {"sure-no": 5, "sure-yes": 4, "unsure": 6, "glass": 1, "text": 1, "cut": 1, "huge": 1, "loop": 1}
_MOST_OPEN = 2  # slides in hand at a node: enough that every kill hits something


@dataclass
class Slot:
    """A process that is started again whenever it ends.

    Attributes:
        role: `edge`, `api` or `worker`.
        words: What `slideway` is called with.
        log: Where it writes.
        points: Crash points that it can be armed with.
        home: Of an edge.
        pid: Of the process that runs now.
        started: When.
        is_armed: It, or its first reader, will die at a named place.
        is_spared: It is not armed, and not killed in its first seconds.
        life_seconds: How long it may take to come to its place.
    """

    role: str
    words: tuple[str, ...]
    log: Path
    points: tuple[str, ...]
    home: EdgeHome | None = None
    pid: int = 0
    started: float = 0.0
    is_spared: bool = False
    is_armed: bool = False
    life_seconds: float = _LIFE_SECONDS


@dataclass
class Outcome:
    """What a campaign did and found.

    Attributes:
        seed: Of all that was drawn.
        at_points: Kills by named place, as `role place`.
        at_random: Kills at random moments, by victim.
        repeated: What the relay did, by name.
        slides: Put into the nodes' folders.
        refused_starts: Times that a process of the cloud ended by itself because its database was just dead.
        findings: What is wrong.
        seconds: How long the kills took, and how long until all had settled after the last.
    """

    seed: int
    at_points: Counter[str] = field(default_factory=Counter)
    at_random: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    slides: int = 0
    refused_starts: int = 0
    findings: Findings = field(default_factory=Findings)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def kills(self) -> int:
        return sum(self.at_points.values()) + sum(self.at_random.values())

    @property
    def missed(self) -> set[str]:
        """Named places at which nothing was killed."""
        return set(CRASH_POINTS) - {key.split(" ")[1] for key in self.at_points}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"seed {self.seed}: {self.kills} kills in {self.seconds[0]:.0f} s, settled {self.seconds[1]:.0f} s later"
        yield f"  at named places {sum(self.at_points.values())}, missed: {sorted(self.missed) or 'none'}"
        yield "  " + ", ".join(f"{key} {count}" for key, count in sorted(self.at_points.items()))
        yield f"  at random moments {sum(self.at_random.values())}: {dict(self.at_random)}"
        yield f"  the relay: {dict(self.repeated)}"
        yield f"  starts of the cloud without its database: {self.refused_starts}"
        yield f"  slides {self.slides}; {dict(self.findings.counted)}"
        yield f"  wrong: {self.findings.wrong[:40] or 'nothing'}"


class Campaign:
    """Kills until enough were killed and every named place was hit, then lets all settle and looks."""

    def __init__(
        self,
        folder: Path,
        database: postgres.PostgresServer,
        *,
        seed: int,
        tell: Callable[[str], None] = lambda _: None,
        pause_seconds: float = 0.5,
        name: str = "kills",
    ) -> None:
        """Make all homes.

        Args:
            folder: For everything.
            database: A PostgreSQL server that the campaign may kill.
            seed: Of all that is drawn.
            tell: Hears how it goes.
            pause_seconds: Mean pause between kills at random moments.
            name: Of the database in the server.
        """
        self._random = random.Random(seed)
        self._database, self._tell, self._pause_seconds = database, tell, pause_seconds
        self._kinds = make_kinds(folder / "kinds")
        self._deck: list[str] = []
        self.outcome = Outcome(seed)
        url = database.add_database(name, owner="slideway")
        self.cloud: CloudHome = make_cloud(folder / "cloud", tls=False, isolate=False, store=url, provisional=0.5)
        self.relay = MeanRelay(self.cloud.settings.server.port, seed=seed)
        encoder = make_encoder(folder / "toy")
        write_head(folder / "models", encoder)
        self.edges = [
            make_edge(folder / "north-1", encoder, "north", "lab-1", policy="regions"),
            make_edge(folder / "north-2", encoder, "north", "lab-2", alone_hours=0.4 / 3600),
            make_edge(folder / "south-1", encoder, "south", "lab-3", kept_days=-1.0),
        ]
        self._zygote = Zygote(folder, models=folder / "models")
        config = ("--config", str(self.cloud.config))
        self._slots = [
            Slot("api", ("cloud", "serve", "--role", "api", *config), folder / "api.log", API_POINTS),
            Slot(
                "worker",
                ("cloud", "serve", "--role", "worker", "--port", "0", *config),
                folder / "worker.log",
                WORKER_POINTS,
            ),
        ]
        for edge in self.edges:
            words = ("edge", "serve", "--config", str(edge.config))
            points = tuple(point for point in EDGE_POINTS if ONLY_AT.get(point, edge.node) == edge.node)
            self._slots.append(Slot("edge", words, folder / f"{edge.node}.log", points, edge))
        self._counted: set[int] = set()
        self._next_feed = 0.0
        self._is_calm = self._is_enough = False

    def close(self) -> None:
        """End everything."""
        self._zygote.close()
        self.relay.close()

    def run(self, kills: int, *, seconds: float, settle_seconds: float = 300.0, all_points: bool = True) -> Outcome:
        """Go through it.

        Args:
            kills: At least so many.
            seconds: Give up after so long, with what was reached.
            settle_seconds: How long everything may take to settle after the last kill.
            all_points: Go on until every named place was hit, too.
        """
        for edge in self.edges:
            code = invite(self.cloud, edge)
            if not self._slots[0].pid:
                self._start(self._slots[0])
                self._wait_for_api()
            enrol(edge, f"http://127.0.0.1:{self.relay.port}", code)
        began = told = time.monotonic()
        self.relay.malice = Malice(longest_seconds=3.0)
        next_kill = began + 2.0
        while time.monotonic() - began < seconds:
            if self.outcome.kills >= kills and not (all_points and self.outcome.missed):
                break
            self._tend()
            self._is_enough = sum(self.outcome.at_random.values()) >= kills / 2
            if time.monotonic() > next_kill and not (self._is_enough and all_points):
                self._kill_someone()
                next_kill = time.monotonic() + self._random.expovariate(1 / self._pause_seconds)
            if time.monotonic() - told > 20:
                told = time.monotonic()
                self._tell(f"{told - began:.0f} s: {self.outcome.kills} kills, {self._count_slides()} slides, "
                           f"missed {sorted(self.outcome.missed)}; " + "; ".join(read_states(self.edges)))  # fmt: skip
            time.sleep(0.03)
        killed = time.monotonic()
        self._settle(settle_seconds)
        self.outcome.seconds = killed - began, time.monotonic() - killed
        self._stop()
        self.outcome.repeated = self.relay.seen
        self.outcome.slides = self._count_slides()
        found = check_all(self.edges, self.cloud)
        self.outcome.findings.wrong += found.wrong
        self.outcome.findings.counted = found.counted
        return self.outcome

    def _count_slides(self) -> int:
        return sum(len(edge.put) for edge in self.edges)

    def _wait_for_api(self) -> None:
        import socket

        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.cloud.settings.server.port), timeout=1),
            ):
                return
            time.sleep(0.05)
        raise AssertionError(f"the cloud did not start: {self._slots[0].log.read_text()[-2000:]}")

    def _tend(self) -> None:
        """Start again what ended, and give nodes something to do."""
        running = self._count_ends()
        now = time.monotonic()
        for slot in self._slots:
            if slot.pid not in running:
                self._start(slot)
            elif not self._is_calm and now - slot.started > slot.life_seconds and self._zygote.kill(slot.pid):
                self.outcome.at_random[slot.role] += 1  # it did not come to its place: another life
                slot.life_seconds = min(1.5 * slot.life_seconds, _LONGEST_LIFE_SECONDS)
        if now > self._next_feed and not self._is_calm:
            self._next_feed = now + 0.3
            for edge in self.edges:
                self._feed(edge)

    def _count_ends(self) -> set[int]:
        """Processes that run; of those that ended at a named place, take note."""
        running = set()
        slots = {slot.pid: slot for slot in self._slots}
        roles = {pid: slot.role for pid, slot in slots.items()}
        for one in self._zygote.look():
            if one["status"] is None:
                running.add(one["pid"])
            elif one["pid"] not in self._counted:
                self._counted.add(one["pid"])
                if one["status"] == -signal.SIGKILL and not one["killed"] and one["crash"]:
                    place = one["crash"].partition(":")[0]
                    role = "reader" if one["kind"] == "child" else roles.get(one["pid"], "?")
                    self.outcome.at_points[f"{role} {place}"] += 1
                    came = slots.get(one["parent"] if one["kind"] == "child" else one["pid"])
                    if came is not None:
                        came.life_seconds = _LIFE_SECONDS
                elif one["status"] == _COULD_NOT_FINISH and roles.get(one["pid"]) in ("api", "worker"):
                    self.outcome.refused_starts += 1
                elif one["kind"] == "serve" and one["status"] != -signal.SIGKILL:
                    self.outcome.findings.wrong.append(f"{roles.get(one['pid'])} ended by itself with {one['status']}")
        return running

    def _start(self, slot: Slot) -> None:
        crash, child_crash, drawn = "", "", self._random.random()
        slot.is_spared = drawn < (
            0.1 if self._is_enough else 0.3
        )  # every third life is left alone for a while: what is killed must also get on
        if not (self._is_calm or slot.is_spared):
            if slot.role == "edge" and drawn < 0.6:
                node = slot.home.node if slot.home else ""
                places = tuple(point for point in CHILD_POINTS if ONLY_AT.get(point, node) == node)
                child_crash = self._pick("reader", places)
            else:
                crash = self._pick(slot.role, slot.points)
                is_later = self._random.random() < 0.3 and not self._is_enough
                crash += f":{self._random.randint(2, 4)}" if is_later else ""
        slot.is_armed = bool(crash or child_crash)
        slot.pid = self._zygote.start(*slot.words, log=slot.log, crash_at=crash, child_crash_at=child_crash)
        slot.started = time.monotonic()

    def _pick(self, role: str, points: tuple[str, ...]) -> str:
        """A place, those that were hit seldom first."""
        fewest = min(self.outcome.at_points[f"{role} {point}"] for point in points)
        seldom = [point for point in points if self.outcome.at_points[f"{role} {point}"] == fewest]
        return self._random.choice(seldom if self._is_enough or self._random.random() < 0.85 else list(points))

    def _feed(self, edge: EdgeHome) -> None:
        try:
            states = edge.states()
        except Exception:  # noqa: BLE001  # the store may be in the hands of a process that was just killed
            return
        in_hand = len(edge.put) - sum(states[end] for end in ("reported", "referred", "rejected"))
        if in_hand >= _MOST_OPEN:
            return
        kind, number, drawn = self._deal(), len(edge.put), self._random.random()
        folder = "urgent/" if drawn < 0.25 else ""
        content = make_unique(kind.content, f"{edge.node} {number}")
        edge.drop(content, f"{folder}{kind.name}-{number}{kind.suffix}", kind.expected)
        if drawn > 0.9:
            edge.drop(content, f"again-{number}{kind.suffix}", kind.expected)

    def _deal(self) -> SlideKind:
        """The next kind of slide."""
        if not self._deck:
            self._deck = [name for name, count in DECK.items() for _ in range(count)]
            self._random.shuffle(self._deck)
        return self._kinds[self._deck.pop()]

    def _kill_someone(self) -> None:
        victim = self._random.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        if victim == "database":
            self._database.kill()
            self._start_database()
            self.outcome.at_random[victim] += 1
        elif victim == "database backend":
            self._kill_backend()
        elif victim == "reader":
            running = [one["pid"] for one in self._zygote.look() if one["kind"] == "child" and one["status"] is None]
            if running and self._zygote.kill(self._random.choice(running)):
                self.outcome.at_random[victim] += 1
        else:
            youngest = self._random.uniform(0.0, 8.0 if victim == "edge" else 1.5)
            now = time.monotonic()
            old = [slot for slot in self._slots if slot.role == victim and now - slot.started > youngest]
            slots = [slot for slot in old if not slot.is_spared or now - slot.started > _SPARED_SECONDS]
            if self._random.random() < 0.7:
                slots = [slot for slot in slots if not slot.is_armed]  # the others are on their way to their place
            if slots and self._zygote.kill(self._random.choice(slots).pid):
                self.outcome.at_random[victim] += 1

    def _kill_backend(self) -> None:
        """One server process of PostgreSQL: it then throws all others away too and recovers from its log."""
        try:
            with psycopg.connect(f"host=127.0.0.1 port={self._database.port} user=admin dbname=postgres") as asking:
                busy = "SELECT pid FROM pg_stat_activity WHERE usename = 'slideway' ORDER BY state = 'active' DESC"
                rows = asking.execute(busy).fetchall()
        except psycopg.Error:
            return
        if rows:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rows[0][0], signal.SIGKILL)
                self.outcome.at_random["database backend"] += 1

    def _start_database(self) -> None:
        ends = time.monotonic() + 30
        while True:
            try:
                self._database.start()
                return
            except RuntimeError:  # processes of the killed one still hold its memory
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)

    def _settle(self, seconds: float) -> None:
        """No more kills, no more mishaps; processes that are armed are replaced."""
        self._is_calm, self.relay.malice = True, None
        self._tend()
        for slot in self._slots:
            self._zygote.kill(slot.pid)
        ends = time.monotonic() + seconds
        quiet = 0
        while time.monotonic() < ends and quiet < 3:
            self._tend()
            quiet = quiet + 1 if self._is_quiet() else 0
            time.sleep(0.3)
        if quiet < 3:
            self.outcome.findings.wrong.append("not settled: " + "; ".join(read_states(self.edges)))

    def _is_quiet(self) -> bool:
        if self.relay.pending or not all(is_settled(edge) for edge in self.edges):
            return False
        busy = "SELECT count(*) FROM jobs WHERE state IN ('waiting', 'leased')"
        if any(edge.ask(busy)[0][0] for edge in self.edges):
            return False
        try:
            url = self.cloud.settings.store_url.replace("+psycopg", "").replace("slideway@", "admin@")
            with psycopg.connect(url) as asking:
                left = asking.execute(busy).fetchone()[0]
                left += asking.execute("SELECT count(*) FROM outbox WHERE state IN ('waiting', 'sent')").fetchone()[0]
        except psycopg.Error:
            return False
        return not left

    def _stop(self) -> None:
        for slot in self._slots:
            self._zygote.kill(slot.pid, signal.SIGTERM)
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            ours = {slot.pid: one for one in self._zygote.look() for slot in self._slots if one["pid"] == slot.pid}
            if all(one["status"] is not None for one in ours.values()):
                bad = [one["status"] for one in ours.values() if one["status"] != 0]
                if bad:
                    self.outcome.findings.wrong.append(f"ended with {bad} when asked to")
                return
            time.sleep(0.1)
        self.outcome.findings.wrong.append("did not end when asked to")


def run_campaign(
    folder: Path,
    *,
    seed: int,
    kills: int,
    seconds: float,
    all_points: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    **more: Any,
) -> Outcome:
    """Run one with a database of its own; the outcome."""
    programs = postgres.find_postgres()
    assert programs is not None, postgres.WHY_NOT
    with postgres.run_postgres(programs) as server:
        server.add_role("slideway")
        campaign = Campaign(folder, server, seed=seed, tell=tell, **more)
        try:
            return campaign.run(kills, seconds=seconds, all_points=all_points)
        finally:
            campaign.close()
