"""Processes that are told, and tell, line by line."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pqcore.testing.harness import PATIENCE

HERE = Path(__file__).parent


class Process:
    """One of the programs next to this file.

    Args:
        *command: The file's name, and arguments.

    Attributes:
        lines: The output of the process so far.
    """

    def __init__(self, *command: str) -> None:
        self._name = " ".join((command[0], *command[2:]))
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / command[0]), *command[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._more:
                    self.lines.append(line.rstrip("\n"))
                    self._more.notify_all()
        with self._more:
            self._process.wait()
            self._more.notify_all()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def expect(self, more: int, than: int = 0) -> None:
        """Wait until it has written that many more lines."""
        with self._more:
            self._more.wait_for(lambda: len(self.lines) >= than + more or self._ended, PATIENCE)
            assert len(self.lines) >= than + more, f"{self._name} said only {self.lines[than:]}"

    @property
    def _ended(self) -> bool:
        return self._process.returncode is not None

    def end(self) -> list[str]:
        """End the process in order; return all of its output."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with self._more:
            assert self._more.wait_for(lambda: self._ended, PATIENCE), f"{self._name} does not end"
        assert self._process.returncode == 0
        return self.lines

    def kill(self) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._reader.join(PATIENCE)
        self._process.stdin.close()


@contextmanager
def running(*commands: tuple[str, ...]) -> Iterator[list[Process]]:
    """Processes, which are killed at the end if they have not ended."""
    with ExitStack() as stack:
        started = []
        for command in commands:
            started.append(Process(*command))
            stack.callback(started[-1].kill)
        yield started
