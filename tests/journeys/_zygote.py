"""A process that has imported the program once and forks it on demand: a killed node is back in a tenth of a second.

What it starts are real processes with real sockets and files; `kill -9` ends them as any other. Only the second
or two in which Python imports the program is spared. Waits that are minutes in use are shortened (WAITS), a job has
more attempts (ATTEMPTS), and reports are not drawn.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Module, name, value in use → here. Nothing else differs from `slideway edge serve` and `slideway cloud serve`.
WAITS: tuple[tuple[str, str, float], ...] = (
    ("slideway.store.jobs", "FIRST_WAIT_MS", 200),
    ("slideway.store.jobs", "LONGEST_WAIT_MS", 1_000),
    ("slideway.sync.pump", "_RECEIPT_WAIT_SECONDS", 1.0),
    ("slideway.edge.worker", "_FAULT_PAUSE_SECONDS", 0.5),
    ("slideway.edge.worker", "_POLL_SECONDS", 0.5),
    ("slideway.edge.chores", "_SLOW_SECONDS", 0.5),
    ("slideway.edge.app", "_CHORE_SECONDS", 0.1),
    ("slideway.cloud.worker", "IDLE_SECONDS", 0.4),
    ("slideway.cloud.worker", "_HOUSEKEEPING_SECONDS", 1.0),
)
ATTEMPTS = 1000  # of a job at the cloud, in use 5: here its worker is killed more often than any slide could do
BACKOFF_SECONDS = (0.05, 0.5)  # first and longest pause of a line that fails; in use 1 and 300


class Clock:
    """How much later it is for the processes of a zygote than it really is: a number that all of them share."""

    def __init__(self, path: Path) -> None:
        """Make it, at 0, or share the one that is there."""
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)

    def ahead(self) -> float:
        """Seconds."""
        return float(struct.unpack("<d", self._shared)[0])

    def let_pass(self, seconds: float) -> None:
        """Turn it on."""
        self._shared[:] = struct.pack("<d", self.ahead() + seconds)

    def replace_time(self) -> None:
        """Let `time.time` and `time.monotonic` of this process tell it; before what imports them by name.

        Waits are not touched: what sleeps for a second does so, as on a computer whose clock somebody turns.
        `datetime.now` is not touched either: sync asks it for the night window, which is off here.
        """
        now, monotonic = time.time, time.monotonic
        time.time = lambda: now() + self.ahead()
        time.monotonic = lambda: monotonic() + self.ahead()
        time.time_ns = lambda: round(time.time() * 1e9)
        time.monotonic_ns = lambda: round(time.monotonic() * 1e9)


class Zygote:
    """The other end: asks the zygote to start, kill and tell."""

    def __init__(self, folder: Path, *, models: Path | None = None) -> None:
        """Start it.

        Args:
            folder: For its socket, its log and its clock.
            models: Folder of encoders and heads; None for the user's.
        """
        self._clock = Clock(folder / "clock")
        self._path = folder / "zygote.sock"
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"SLIDEWAY_MODELS": str(models)} if models else {}
        with (folder / "zygote.log").open("wb") as log:
            command = [sys.executable, __file__, str(self._path), str(folder / "clock")]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        ends = time.monotonic() + 60
        while not self._path.exists():
            assert self._process.poll() is None, (folder / "zygote.log").read_text()
            assert time.monotonic() < ends
            time.sleep(0.05)

    def start(self, *words: str, log: Path, crash_at: str = "", child_crash_at: str = "") -> int:
        """Run `slideway` with these words; the process's number."""
        return int(
            _ask(
                self._path,
                {"do": "start", "words": words, "log": str(log), "crash": crash_at, "child_crash": child_crash_at},
            )["pid"]
        )

    def kill(self, pid: int, number: int = signal.SIGKILL) -> bool:
        """Send a signal; False when it had ended before."""
        return bool(_ask(self._path, {"do": "kill", "pid": pid, "signal": int(number)})["was_there"])

    def look(self) -> list[dict[str, Any]]:
        """All processes so far: pid, parent, kind (`serve` or `child`), crash, killed, status (None: it runs)."""
        return list(_ask(self._path, {"do": "look"})["processes"])

    def let_pass(self, seconds: float) -> None:
        """Turn the clocks of all that it started, and will start, on by so much: the wall's and the monotonic one."""
        self._clock.let_pass(seconds)

    def close(self) -> None:
        """Kill all that it started, and it."""
        with contextlib.suppress(OSError):
            for one in self.look():
                if one["status"] is None:
                    self.kill(one["pid"])
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _ask(path: Path | str, content: dict[str, Any], handles: tuple[int, ...] = ()) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(30)
        line.connect(str(path))
        socket.send_fds(line, [json.dumps(content).encode()], list(handles))
        return dict(json.loads(line.recv(2**22)))


class _Child:
    """What `subprocess.Popen` is to the node, for a reader that the zygote forked."""

    def __init__(self, path: str, crash_at: str) -> None:
        to_child, self_in = os.pipe()
        self_out, from_child = os.pipe()
        self._path = path
        asked = {"do": "child", "parent": os.getpid(), "crash": crash_at}
        self.pid = int(_ask(path, asked, (to_child, from_child))["pid"])
        os.close(to_child)
        os.close(from_child)
        self.stdin, self.stdout = os.fdopen(self_in, "wb"), os.fdopen(self_out, "rb")

    def kill(self) -> None:
        """As `Popen.kill`."""
        _ask(self._path, {"do": "kill", "pid": self.pid, "signal": int(signal.SIGKILL)})

    def wait(self) -> None:
        """As `Popen.wait`."""
        while not _ask(self._path, {"do": "is_over", "pid": self.pid})["is_over"]:
            time.sleep(0.005)


class _Nursery:
    """What runs in the zygote."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line.bind(path + ".new")
        self.line.listen(64)
        Path(path + ".new").rename(path)
        self.known: dict[int, dict[str, Any]] = {}

    def run(self) -> None:
        self.line.settimeout(0.5)
        parent = os.getppid()
        while os.getppid() == parent:  # when who started it is gone, all that it started goes too
            self._reap()
            try:
                asking, _ = self.line.accept()
            except TimeoutError:
                continue
            with asking:
                message, handles, _, _ = socket.recv_fds(asking, 65_536, 4)
                if not message:
                    continue
                answer = self._answer(json.loads(message), handles)
                for handle in handles:
                    os.close(handle)
                with contextlib.suppress(OSError):  # who asked was killed meanwhile
                    asking.send(json.dumps(answer).encode())
        for pid, one in self.known.items():
            if one["status"] is None:
                os.kill(pid, signal.SIGKILL)

    def _answer(self, asked: dict[str, Any], handles: list[int]) -> dict[str, Any]:
        do = asked["do"]
        self._reap()
        if do == "look":
            return {"processes": list(self.known.values())}
        if do == "kill":
            return {"was_there": self._kill(asked["pid"], asked["signal"])}
        if do == "is_over":
            return {"is_over": self.known[asked["pid"]]["status"] is not None}
        pid = os.fork()
        if pid == 0:
            _be_born(self.line, asked, handles, self.path)
        self.known[pid] = {
            "pid": pid,
            "parent": asked.get("parent", 0),
            "kind": "child" if do == "child" else "serve",
            "crash": asked["crash"],
            "killed": False,
            "status": None,
        }
        return {"pid": pid}

    def _kill(self, pid: int, number: int) -> bool:
        one = self.known[pid]
        if one["status"] is not None:
            return False
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            one["status"] = os.waitstatus_to_exitcode(status)
            return False
        one["killed"] = one["killed"] or number == signal.SIGKILL
        os.kill(pid, number)
        return True

    def _reap(self) -> None:
        for pid, one in self.known.items():
            if one["status"] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    one["status"] = os.waitstatus_to_exitcode(status)


def _be_born(line: socket.socket, asked: dict[str, Any], handles: list[int], path: str) -> None:
    """In the new process: never returns."""
    try:
        line.close()
        os.environ["SLIDEWAY_CRASH_AT"] = asked["crash"]
        if asked["do"] == "child":
            os.dup2(handles[0], 0)
            os.dup2(handles[1], 1)
            for handle in handles:
                os.close(handle)
            sys.stdin = os.fdopen(0, "r", closefd=False)
            from slideway.edge.child import main

            main()
            os._exit(0)
        os._exit(_serve(asked, path))
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:  # noqa: BLE001  # a fork must never return into its parent's code
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(99)


def _serve(asked: dict[str, Any], path: str) -> int:
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    from slideway.cli.main import main
    from slideway.edge import worker

    place = asked["child_crash"]
    left = [place] if place else []  # the first reader of this node dies there, or each that comes to cut regions
    worker._start_child = lambda: _Child(path, place if "regions" in place else left.pop() if left else "")
    sys.argv = ["slideway", *asked["words"]]
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


def _import_all() -> None:
    """Everything that a node, its reader and a cloud import, and the shortened waits."""
    import importlib

    for name in (
        "slideway.cli.main", "slideway.cli.edge", "slideway.cli.cloud", "slideway.edge.app", "slideway.edge.serve",
        "slideway.edge.child", "slideway.edge.web.app", "slideway.pipeline.read", "slideway.pipeline.folder",
        "slideway.bundles.release", "slideway.bundles.read", "slideway.cloud.app", "slideway.cloud.serve",
        "slideway.cloud.diagnose", "slideway.slides", "slideway.sync.pump", "onnxruntime", "PIL.Image",
        "imagecodecs", "obstore", "uvicorn.protocols.http.h11_impl",
    ):  # fmt: skip
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("psycopg")
        importlib.import_module("slideway.store.postgresql")
    for module, name, value in WAITS:
        loaded = importlib.import_module(module)
        assert hasattr(loaded, name), (module, name)
        setattr(loaded, name, value)
    read: Any = importlib.import_module("slideway.pipeline.read")
    read.draw_reading = lambda *_: {"overlay.png": b"not drawn", "report.html": b"not drawn"}  # most of the time
    from slideway.store.jobs import Jobs
    from slideway.sync.pace import Backoff

    Jobs.enqueue.__kwdefaults__["attempts_allowed"] = ATTEMPTS

    Backoff.__init__.__kwdefaults__.update(first_seconds=BACKOFF_SECONDS[0], most_seconds=BACKOFF_SECONDS[1])


if __name__ == "__main__":
    Clock(Path(sys.argv[2])).replace_time()
    _import_all()
    _Nursery(sys.argv[1]).run()
