"""Runs pqcore's commands in processes of their own, as users do; for the project's tests of them."""

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
    """The variables of a command's process: ours, without what would choose a database, and with these."""
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
        *arguments: Of the command line.
        dsn: For PQCORE_DSN.
        folder: Where it runs.
        variables: Of its environment.
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


def eventually(condition: Callable[[], Any]) -> Any:
    """Ask until the answer is true; for what nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"did not become true in {PATIENCE} seconds"
        pause.wait(0.02)
    return answer


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not buried does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with suppress(OSError):  # no /proc here: then it runs
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


@contextmanager
def group(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process in a session of its own; at the end of the block it is killed, with all that it has started.

    Args:
        command: What is run.
        **options: As for `subprocess.Popen`.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


MARK = "TEST_RUN_OF"
"""The variable of the environment by which the processes of a test run are known; its value is the run's process id."""
_LASTING = ("multiprocessing.resource_tracker", "def guard(")
"""What ends together with the run's process: the tracker of Python's own, and the guard of an embedded server."""
_FORK_SERVER = "multiprocessing.forkserver"
"""In the command of Python's fork server, which ends with the process that started it, and of what the server forks."""


def left_over(run: int) -> list[str]:
    """The processes that tests have started and not ended, where there is /proc: what each is, and of which test.

    Args:
        run: The process id of the test run, which set `MARK`.
    """
    parents: dict[int, int] = {}
    found: dict[int, str] = {}
    lasting: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ends meanwhile
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            variables = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:1_000]
            pid = int(folder.name)
            parents[pid] = int(parent)
            if any(word in command for word in _LASTING):
                lasting.add(pid)
            elif _FORK_SERVER in command and parents[pid] == run:
                continue  # its forked processes are looked at
            elif pid != run and state not in ("Z", "X") and (f"{MARK}={run}" in variables or parents[pid] == run):
                test = next((each for each in variables if each.startswith("PYTEST_CURRENT_TEST=")), "")
                found[pid] = f"process {pid}, {command.strip()}, of {test.partition('=')[2] or 'no test'}"
    return [told for pid, told in sorted(found.items()) if lasting.isdisjoint(_ancestors(parents, pid))]


def _ancestors(parents: Mapping[int, int], pid: int) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


class Command:
    """A command that goes on until told to stop.

    Args:
        *arguments: Of the command line.
        dsn: For PQCORE_DSN.
        folder: Where it runs.
        program: What is run instead of ``python -m pqcore``.
        variables: Of its environment.

    Attributes:
        process: Its process.
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
        """What it has written to stderr so far."""
        return "".join(self._lines)

    def expect(self, pattern: str, times: int = 1) -> list[Any]:
        """Wait until it has written something to stderr so often; what `re.findall` finds."""
        with self._more:
            self._more.wait_for(lambda: self._ended or len(re.findall(pattern, self.log)) >= times, PATIENCE)
            found = re.findall(pattern, self.log)
        assert len(found) >= times, f"{pattern!r} was not written, but:\n{self.log}"
        return found

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end, but wrote:\n{self.log}") from None
        self._reader.join(PATIENCE)  # what it wrote last
        return code

    def __enter__(self) -> Command:  # noqa: PYI034 - no subclasses
        return self

    def __exit__(self, *_: object) -> None:
        workers = [int(pid) for pid in re.findall(r"is process (\d+)", self.log)]
        for pid in (self.process.pid, *workers):  # if all is well, none is left
            if alive(pid):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(PATIENCE)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()
