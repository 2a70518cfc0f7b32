"""What a slide that takes over its reader could try, tried."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slideway.slides import sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits differ per system: see docs/security.md")

PROGRAM = """
import ctypes, json, mmap, os, socket, subprocess, sys, threading
from slideway.slides.sandbox import enter_sandbox
from pathlib import Path
target, neighbour, parent = sys.argv[1], sys.argv[2], os.getppid()
limits = enter_sandbox(slide=Path(target))

def in_thread():
    done = []
    thread = threading.Thread(target=lambda: done.append(1))
    thread.start(); thread.join()
    assert done

def raise_limit():
    import resource
    resource.prlimit(0, resource.RLIMIT_FSIZE, (1, 1))

attempts = {
    "socket": lambda: socket.socket(),
    "socketpair": lambda: socket.socketpair(),
    "execve": lambda: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "fork": os.fork,
    "subprocess": lambda: subprocess.run([sys.executable, "-c", ""]),
    "posix_spawn": lambda: os.posix_spawn(sys.executable, [sys.executable], {}),
    "write": lambda: open(target + ".new", "wb"),
    "append": lambda: open(target, "ab"),
    "truncate": lambda: os.truncate(target, 0),
    "unlink": lambda: os.unlink(target),
    "rename": lambda: os.rename(target, target + ".x"),
    "mkdir": lambda: os.mkdir(target + ".d"),
    "mknod": lambda: os.mknod(target + ".n"),
    "link": lambda: os.link(target, target + ".l"),
    "symlink": lambda: os.symlink(target, target + ".s"),
    "chmod": lambda: os.chmod(target, 0o777),
    "utime": lambda: os.utime(target, (0, 0)),
    "setxattr": lambda: os.setxattr(target, "user.a", b"1"),
    "kill": lambda: os.kill(parent, 0),
    "raise_limit": raise_limit,
    "allocate": lambda: bytearray(3_000_000_000),
    "map": lambda: mmap.mmap(-1, 3_000_000_000),
    "neighbour": lambda: open(neighbour, "rb"),
    "list": lambda: os.listdir(os.path.dirname(target)),
    "read": lambda: open(target, "rb").read(),
    "thread": in_thread,
}
answers = {}
for name, attempt in attempts.items():
    try:
        attempt()
        answers[name] = "done"
    except BaseException as error:
        answers[name] = type(error).__name__
print(json.dumps({"limits": limits, "answers": answers}))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("sandbox") / "target"
    target.write_text("as it was")
    neighbour = target.with_name("another patient's slide")
    neighbour.write_text("private")
    command = [sys.executable, "-c", PROGRAM, str(target), str(neighbour)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    neighbour.unlink()
    assert target.read_text() == "as it was"
    assert [file.name for file in target.parent.iterdir()] == ["target"]
    told = json.loads(run.stdout)
    assert {"memory", "no network", "no program started", "no file opened for writing"} <= set(told["limits"])
    answers: dict[str, str] = told["answers"]
    return {**answers, "landlock": str("no other file read" in told["limits"])}


DENIED = [
    *("socket", "socketpair", "execve", "fork", "subprocess", "posix_spawn", "write", "append", "truncate", "unlink"),
    *("rename", "mkdir", "mknod", "link", "symlink", "chmod", "utime", "setxattr", "kill", "raise_limit"),
]


@pytest.mark.parametrize("attempt", DENIED)
def test_the_attempt_is_denied(answers: dict[str, str], attempt: str) -> None:
    assert answers[attempt] == "PermissionError"


@pytest.mark.parametrize("attempt", ["neighbour", "list"])
def test_no_other_file_can_be_read(answers: dict[str, str], attempt: str) -> None:
    if answers["landlock"] == "False":
        pytest.skip("this kernel has no Landlock (Linux 5.13 and newer have it)")
    assert answers[attempt] == "PermissionError"


@pytest.mark.parametrize(("attempt", "error"), [("allocate", "MemoryError"), ("map", "OSError")])
def test_a_big_allocation_fails(answers: dict[str, str], attempt: str, error: str) -> None:
    assert answers[attempt] == error


@pytest.mark.parametrize("needed", ["read", "thread"])
def test_what_readers_need_still_works(answers: dict[str, str], needed: str) -> None:
    assert answers[needed] == "done"


def test_filter_assembles_for_both_architectures() -> None:
    for machine in ("x86_64", "aarch64"):
        program = sandbox.build_filter(machine)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096  # BPF_MAXINSNS


def test_printing_library_cannot_break_the_frames(tmp_path: Path) -> None:
    """The worker speaks on a copy of standard output; the original leads to standard error."""
    program = "import os, sys\nfrom slideway.slides import worker\nworker.main()"
    run = subprocess.run([sys.executable, "-c", program], input=b"", capture_output=True, check=False)
    assert run.stdout == b""
