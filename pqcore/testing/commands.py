"""Running pqcore's commands for the project's own tests: in separate processes, as users do, or in this process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pqcore.testing.harness import PATIENCE


def environment(dsn: str | None, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables for a command's process.

    The process gets the given variables, and the variables of this process, except those that choose a database.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PQCORE_"))}
    return {**kept, **({} if dsn is None else {"PQCORE_DSN": dsn}), **(variables or {})}


def run(
    *arguments: str,
    dsn: str | None = None,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        *arguments: Arguments of the command line.
        dsn: The value of PQCORE_DSN.
        folder: The working directory.
        variables: More environment variables.
    """
    return subprocess.run(
        [sys.executable, "-m", "pqcore", *arguments],
        cwd=folder,
        env=environment(dsn, variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )


def invoke(
    *arguments: str,
    dsn: str | None = None,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end as `run` does, but in this process, without the start of an interpreter.

    This function suits commands that import no module of the test, and start no process or thread that outlives them.
    """
    from click.testing import CliRunner

    from pqcore.cli.app import app

    inherited = {name: None for name in (*os.environ, "PGCONNECT_TIMEOUT") if name.startswith(("PG", "PQCORE_"))}
    before = Path.cwd()
    os.chdir(folder or before)
    try:
        done = CliRunner().invoke(app, arguments, env={**inherited, **environment(dsn, variables)}, prog_name="pqcore")
    finally:
        os.chdir(before)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def eventually(condition: Callable[[], Any]) -> Any:
    """Call a function repeatedly until it returns a true value, and return this value."""
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"did not become true in {PATIENCE} seconds"
        pause.wait(0.02)
    return answer


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):  # without /proc, assume that it runs
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


@contextmanager
def group(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process in a new session; the end of the block kills it, with all its child processes.

    Args:
        command: The command to run.
        **options: Options of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


MARK = "TEST_RUN_OF"
"""The environment variable that marks the processes of a test run; its value is the run's process id."""
_LASTING = ("multiprocessing.resource_tracker", "def guard(")
"""Processes that end together with the run's process: Python's resource tracker, and the guard of an embedded server.
"""
_FORK_SERVER = "multiprocessing.forkserver"
"""A part of the command line of Python's fork server, which ends with the process that started it. Processes that the
fork server forks have the same command line."""


def left_over(run: int) -> list[str]:
    """Return the command and the test of each process that a test started and did not end; none without /proc.

    Args:
        run: The process id of the test run, which set `MARK`.
    """
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    lasting: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended meanwhile
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            variables = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:1_000]
            pid = int(folder.name)
            parents[pid] = int(parent)
            if any(word in command for word in _LASTING):
                lasting.add(pid)
            elif _FORK_SERVER in command and parents[pid] == run:
                continue  # check the processes that the fork server forked, not the server itself
            elif pid != run and state not in ("Z", "X") and (f"{MARK}={run}" in variables or parents[pid] == run):
                test = next((each for each in variables if each.startswith("PYTEST_CURRENT_TEST=")), "")
                found[pid] = f"process {pid}, {command.strip()}, of {test.partition('=')[2] or 'no test'}"
    return [told for pid, told in sorted(found.items()) if lasting.isdisjoint(_ancestors(parents, pid))]


def _ancestors(parents: Mapping[int, int], pid: int) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


class Command:
    """A command that runs until it is told to stop.

    Args:
        *arguments: Arguments of the command line.
        dsn: The value of PQCORE_DSN.
        folder: The working directory.
        program: The program to run in place of ``python -m pqcore``.
        variables: More environment variables.

    Attributes:
        process: The command's process.
    """

    def __init__(
        self,
        *arguments: str,
        dsn: str | None,
        folder: Path,
        program: tuple[str, ...] = ("-m", "pqcore"),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=folder,
            env=environment(dsn, variables),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._ended = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    @property
    def log(self) -> str:
        """Return what the command has written to stderr up to now."""
        return "".join(self._lines)

    def expect(self, pattern: str, times: int = 1) -> list[Any]:
        """Wait until stderr matches a pattern a number of times; return what `re.findall` finds."""
        with self._more:
            self._more.wait_for(lambda: self._ended or len(re.findall(pattern, self.log)) >= times, PATIENCE)
            found = re.findall(pattern, self.log)
        assert len(found) >= times, f"{pattern!r} was not written, but:\n{self.log}"
        return found

    def signal(self, number: int) -> None:
        """Send the command a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the command's end, and return its exit code."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the command did not end; its log:\n{self.log}") from None
        self._reader.join(PATIENCE)  # wait until the thread has read the last output
        return code

    def __enter__(self) -> Command:  # noqa: PYI034 - no subclasses
        return self

    def __exit__(self, *_: object) -> None:
        workers = [int(pid) for pid in re.findall(r"is process (\d+)", self.log)]
        for pid in (self.process.pid, *workers):  # usually, all of these processes have ended already
            if alive(pid):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(PATIENCE)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()
