"""A whole installation on this computer, for the demo: cloud and node as real processes, each with its own store."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from slideway.core.errors import SlidewayError

TENANT, NODE = "demo-hospital", "lab-1"
HEAD = "slideway-atlas"  # ships, off by default: in the demo it speaks as a research opinion, and says so
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_URL = re.compile(r"slideway (?:cloud|edge): (\S+)")


@dataclass(frozen=True)
class PairAnswer:
    """What became of the demo's slide.

    Attributes:
        state: `reported`, `referred` or `rejected`.
        reason: Why, in words.
        folder: Where the reading lies.
        opinions: (who says it, the question, the answer) of edge and cloud.
        sent: Bytes over the line by tier, payload and overhead; `-` for what belongs to no tier.
        received_bytes: Bytes that came back.
        page: Address of the slide's page at the node.
    """

    state: str
    reason: str
    folder: Path
    opinions: tuple[tuple[str, str, str], ...]
    sent: Mapping[str, tuple[int, int]]
    received_bytes: int
    page: str


class DemoPair:
    """Cloud and node on loopback, joined by TLS; stopped at the end, their folder is the caller's.

    Args:
        folder: An empty folder for both.
    """

    def __init__(self, folder: Path) -> None:
        self._cloud_folder, self._node_folder = folder / "cloud", folder / "node"
        self._running: list[_Running] = []
        self.cloud_url = self.node_url = ""

    def __enter__(self) -> Self:
        try:
            self._start_cloud()
            self._start_node()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End both, the node first, as a service manager would."""
        for running in reversed(self._running):
            running.stop()
        self._running.clear()

    def put(self, slide: Path) -> None:
        """Do what a scanner does: put the slide into the watched folder."""
        shutil.copyfile(slide, self._node_folder / "scans" / slide.name)

    def wait(self, on_state: Callable[[str], None], *, seconds: float = 600.0) -> PairAnswer:
        """Wait until the slide has come to its end.

        Args:
            on_state: Told each state as it is reached.
            seconds: Longest wait.

        Raises:
            SlidewayError: It did not end in time, or a process ended by itself; the last lines of its log are shown.
        """
        deadline, told = time.monotonic() + seconds, ""
        while time.monotonic() < deadline:
            for running in self._running:
                running.require_alive()
            slide = self._find_slide()
            if slide is not None and slide.state.value != told:
                told = slide.state.value
                on_state(told)
            if slide is not None and slide.is_ended:
                return self._gather(slide)
            time.sleep(0.3)
        raise SlidewayError(f"the demo's slide did not come to an end within {seconds:.0f} s; {self._running[-1].tail}")

    def _start_cloud(self) -> None:
        from slideway.cloud.enrolment import invite_node
        from slideway.cloud.init import CA, CONFIG, init_cloud
        from slideway.cloud.settings import read_settings
        from slideway.store.database import open_store

        init_cloud(self._cloud_folder)
        config = self._cloud_folder / CONFIG
        _set(config, {"port = 8443": "port = 0", "heads = []": f'heads = ["{HEAD}"]'})
        with open_store(read_settings(config).store_url) as store:
            store.add_tenant(TENANT, name="The demo's hospital")
            ca_pem = (self._cloud_folder / CA).read_bytes()
            self._code = invite_node(store, TENANT, NODE, ca_pem=ca_pem)
        self.cloud_url = self._start("cloud", config)

    def _start_node(self) -> None:
        from slideway.edge.enrol import enrol_edge
        from slideway.edge.init import init_edge, pin_receiver
        from slideway.edge.settings import CONFIG, read_settings
        from slideway.sync.identity import load_keys

        init_edge(self._node_folder, policy="features")
        config = self._node_folder / CONFIG
        wanted = {
            "poll_seconds": "0.5",
            "quiet_seconds": "1.0",
            "heads": f'["{HEAD}"]',
            "min_free_gb": "0.2",
            "port": "0",
        }
        _set(config, {rf"^# ({key}) = .*$": rf"\1 = {value}" for key, value in wanted.items()}, first_only=True)
        settings = read_settings(config)
        keys = load_keys(settings.places.keys)
        endpoint = enrol_edge(self.cloud_url, self._code, keys, settings.places.endpoint)
        pin_receiver(settings.policy_file, settings.policy.receiver, endpoint.cloud_receiving_key)
        self._settings = settings
        self.node_url = self._start("edge", config)

    def _start(self, role: str, config: Path) -> str:
        running = _Running([sys.executable, "-m", "slideway", role, "serve", "--config", str(config)], role)
        self._running.append(running)
        return running.wait_for_url()

    def _find_slide(self) -> Any:
        from slideway.store.database import open_store

        with open_store(self._settings.places.store_url, read_only=True) as store, store.reading(TENANT) as work:
            return next(iter(work.slides.find_all(limit=1)), None)

    def _gather(self, slide: Any) -> PairAnswer:
        from slideway.edge.words import say_reason
        from slideway.store.database import open_store

        with open_store(self._settings.places.store_url, read_only=True) as store, store.reading(TENANT) as work:
            found = work.findings.of_slide(slide.slide_sha256)
            tiers = work.bytes.totals("tier", direction="out")
            received = work.bytes.total(direction="in").total_bytes
        answers = self._settings.places.answers
        folder = next((path.parent for path in sorted(answers.glob("*/result.json"))), answers)
        opinions = tuple((row.place, row.task, _say(row.content)) for row in found)
        sent = {"-" if tier is None else f"T{tier}": (t.payload_bytes, t.overhead_bytes) for tier, t in tiers.items()}
        page = f"{self.node_url}/slides/{slide.slide_sha256}"
        return PairAnswer(slide.state.value, say_reason(slide.reason), folder, opinions, sent, received, page)


class _Running:
    """A process of ours, its last lines kept."""

    def __init__(self, command: list[str], role: str) -> None:
        self._role = role
        self._lines: list[str] = []
        self._url, self._is_ready = "", threading.Event()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self._stream = self._process.stderr
        self._reader = threading.Thread(target=self._read, args=(self._stream,), daemon=True)
        self._reader.start()

    @property
    def tail(self) -> str:
        """The last lines that it said."""
        return f"the last lines of its {self._role}: " + " | ".join(self._lines[-5:])

    def wait_for_url(self) -> str:
        """Address that it listens on."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready.wait(0.1):
            self.require_alive()
            if time.monotonic() > deadline:
                raise SlidewayError(f"the {self._role} did not start within {_START_SECONDS:.0f} s; {self.tail}")
        return self._url

    def require_alive(self) -> None:
        """Raise when it ended by itself."""
        if self._process.poll() is not None:
            self._reader.join(2)
            raise SlidewayError(f"the {self._role} ended with {self._process.returncode}; {self.tail}")

    def stop(self) -> None:
        """Ask it to end; kill it when it does not."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)  # ends with the stream
        self._stream.close()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines = [*self._lines[-50:], line.strip()]
            if not self._is_ready.is_set() and (found := _URL.search(line)):
                self._url = found[1]
                self._is_ready.set()


def _say(content: Mapping[str, Any]) -> str:
    labels = ", ".join(content.get("labels", [])[:3])
    more = len(content.get("labels", [])) - 3
    force = "" if content.get("in_force") else "; a research opinion, off by default"
    between = labels + (f" and {more} more" if more > 0 else "")
    words = {"answer": between, "set": f"one of {between}", "refer": f"a person decides between {between}"}
    return words.get(str(content.get("answer")), str(content.get("answer"))) + force


def _set(config: Path, changes: Mapping[str, str], *, first_only: bool = False) -> None:
    """Change settings that `init` wrote; each must be there."""
    text = config.read_text(encoding="utf-8")
    for old, new in changes.items():
        pattern = old if first_only else re.escape(old)
        text, n = re.subn(pattern, new, text, count=1, flags=re.MULTILINE)
        assert n == 1, f"{config.name} holds no {old}"
    config.write_text(text, encoding="utf-8")
