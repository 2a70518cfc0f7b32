"""A real PostgreSQL server for tests: one in a folder of its own, on a free port, gone at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WHY_NOT = "no PostgreSQL server here: install Debian's postgresql, or put its folder bin into PATH"
_DEBIAN = Path("/usr/lib/postgresql")
_START_SECONDS = 30.0


def find_postgres() -> Path | None:
    """Folder of the server's programs: the newest of Debian's, or one in PATH; None without."""
    found = sorted(_DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]), reverse=True)
    in_path = shutil.which("postgres")
    return found[0].parent if found else Path(in_path).parent if in_path else None


class PostgresServer:
    """A server that can be stopped, killed and started again; its data stay until the end.

    Attributes:
        port: On 127.0.0.1.
    """

    def __init__(self, programs: Path, folder: Path, *, is_durable: bool) -> None:
        self._programs, self._folder, self._is_durable = programs, folder, is_durable
        self._user = _unprivileged_user()
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._run("initdb", "-D", str(folder / "data"), "-U", "admin", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "100"}
        if not self._is_durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port), *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self._user
            )
        give_up = time.monotonic() + _START_SECONDS
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-1000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it in order; open connections are cut."""
        self._end("terminate" if sys.platform == "win32" else "interrupt")

    def kill(self) -> None:
        """Kill it at once, as a loss of power would (without losing what the system holds for the disk)."""
        self._end("kill")

    def add_role(self, role: str) -> None:
        """Add a role that can log in and nothing else: no superuser, bound by row-level security."""
        self._run("createuser", *self._where(), "--no-superuser", "--no-createdb", "--no-createrole", role)

    def add_database(self, name: str, *, owner: str, template: str = "template1") -> str:
        """Add a database and give its URL for its owner."""
        self._run("createdb", *self._where(), "-O", owner, "-T", template, name)
        return self.url(name, owner)

    def url(self, database: str, role: str = "admin") -> str:
        """URL of a database; `admin` is the superuser."""
        return f"postgresql+psycopg://{role}@127.0.0.1:{self.port}/{database}"

    def _where(self) -> tuple[str, ...]:
        return "-h", "127.0.0.1", "-p", str(self.port), "-U", "admin"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, user=self._user, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr.strip()[-1000:]}")

    def _end(self, how: str) -> None:
        if self._process is None:
            return
        if how == "kill":
            self._process.kill()
        elif how == "terminate":
            self._process.terminate()
        else:
            self._process.send_signal(2)  # SIGINT: PostgreSQL's fast shutdown
        self._process.wait(timeout=_START_SECONDS)
        self._process = None


@contextmanager
def serve_or_skip() -> Iterator[PostgresServer]:
    """A server with an ordinary role `slideway`; without one, or its driver, the test is skipped and says why."""
    import pytest  # noqa: PLC0415  # benches run servers without it

    programs = find_postgres()
    if programs is None:
        pytest.skip(WHY_NOT)
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    with run_postgres(programs) as server:
        server.add_role("slideway")
        yield server


@contextmanager
def run_postgres(programs: Path, *, is_durable: bool = False) -> Iterator[PostgresServer]:
    """Run a server for a while.

    Args:
        programs: As `find_postgres` gives it.
        is_durable: Write to disk as in use; otherwise faster, and safe against kills but not against loss of power.
    """
    folder = Path(tempfile.mkdtemp(prefix="slideway-postgres-"))
    try:
        server = PostgresServer(programs, folder, is_durable=is_durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root: then whom to run it as."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415  # not on Windows

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
