"""The processes of an upgrade, each of one build."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .verdict import Event

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE = 120.0
"""Seconds that a process may take to begin, or to end."""


class Failed(Exception):
    """A process ended as it must not."""


@dataclass(frozen=True)
class Build:
    """A build of pqcore, or pq.

    Attributes:
        name: Its name in the report.
        path: The folder that has its package; None for the packages of this interpreter.
    """

    name: str
    path: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables of a process of this build."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PQCORE_"))}
        return {**bare, "PYTHONPATH": str(self.path or ROOT), "PYTHONUNBUFFERED": "1"}

    def command(self, dsn: str, *arguments: str) -> str:
        """Run a command of the build's command line; return its output.

        Raises:
            Failed: It failed.
        """
        done = subprocess.run(
            [sys.executable, "-m", "pqcore", *arguments],
            cwd=HERE,  # which has no package of pqcore: it would come before that of the build
            env={**self.environment(), "PQCORE_DSN": dsn, "PQCORE_BACKEND": "psycopg"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failed(f"pqcore {' '.join(arguments)} of {self.name} ended with {done.returncode}: {done.stderr}")
        return done.stdout


def unpack(commit: str, folder: Path) -> Build:
    """Return the build of a commit of this repository, unpacked into a folder.

    Raises:
        Failed: The commit is not in this clone.
    """
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "pqcore", "pqcore_backends"],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        raise Failed(f"commit {commit} is not in this clone; fetch its whole history: {archive.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return Build(f"build {commit}", folder)


def revision() -> str:
    """Return the commit of this build; empty if it is no clone."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, check=False
    )
    return found.stdout.decode().strip()


@dataclass
class Client:
    """A process that puts or takes jobs; see `client`.

    Attributes:
        build: The build that it runs.
        name: Its name, which begins the names of the jobs that it puts.
        job: What it does.
        queue: The name of its queue.
        process: The process.
        log: Its log.
        complaints: Its error output.
    """

    build: Build
    name: str
    job: str
    queue: str
    process: subprocess.Popen[bytes]
    log: Path
    complaints: Path

    def events(self) -> list[Event]:
        """Return what the process has done so far."""
        with self.log.open(encoding="utf-8") as lines:
            return [Event(self.name, *json.loads(line)) for line in lines if line.endswith("\n")]

    def said(self) -> str:
        """Return the end of its error output."""
        return self.complaints.read_text("utf-8", "replace")[-2000:]


@dataclass
class Crew:
    """All processes of a run.

    Attributes:
        folder: The folder of their logs.
        everybody: All clients that were ever started.
    """

    folder: Path
    everybody: list[Client] = field(default_factory=list)

    def start(self, build: Build, dsn: str, job: str, queue: str, backend: str) -> Client:
        """Start a process; return it when it has connected, or raises `Failed`."""
        name = f"{build.name} {job} {len(self.everybody)}"
        log, complaints = (self.folder / f"{kind}-{len(self.everybody)}" for kind in ("log", "complaints"))
        log.touch()
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "client.py"), str(log), name, job, queue, dsn, backend],
                cwd=self.folder,
                env=build.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        client = Client(build, name, job, queue, process, log, complaints)
        self.everybody.append(client)
        return client

    def wait_begun(self, clients: Sequence[Client]) -> None:
        """Wait until processes have begun.

        Raises:
            Failed: One of them ended, or takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        for client in clients:
            while not client.log.stat().st_size:
                if client.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{client.name} did not begin: {client.said()}")
                time.sleep(0.02)

    def stop(self, clients: Sequence[Client]) -> None:
        """End processes in order: each finishes what it does.

        Raises:
            Failed: One of them ended with an error, or does not end.
        """
        for client in clients:
            client.process.send_signal(signal.SIGTERM)
        for client in clients:
            try:
                code = client.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                raise Failed(f"{client.name} does not end: {client.said()}") from None
            if code:
                raise Failed(f"{client.name} ended with {code}: {client.said()}")

    def running(self) -> list[Client]:
        """Return the clients that were not stopped."""
        return [client for client in self.everybody if client.process.poll() is None]

    def kill(self) -> None:
        """Kill all processes that still run."""
        for client in self.running():
            client.process.kill()
            client.process.wait()
