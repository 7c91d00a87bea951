"""Clocks of clients and a server that can be stepped, by libfaketime: the wall clock alone, as if somebody set it."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import psycopg

from pqcore_backends.embedded import EmbeddedServer

UPTIME = "/proc/uptime"
"""Has the seconds that the machine runs, which libfaketime leaves as they are."""
SHIFTS = ("+3h", "-3h", "+40d", "-40d", "+90s", "-90s", "+0")
_PLACES = ("usr/lib/*/faketime", "usr/lib/faketime", "usr/lib64/faketime", "usr/local/lib/faketime")
# Some releases of the library, with some Pythons, break the waits of threads.
_TRIAL = "import threading, time; threading.Event().wait(0.01); print(time.time())"


class Clock:
    """The clock of one process.

    Args:
        file: Where it is written how it goes.
        preloaded: What `library` gave.
    """

    def __init__(self, file: Path, preloaded: Path) -> None:
        self._file = file
        self._preloaded = preloaded
        file.write_text("+0\n")

    def environment(self, *, often: bool = True) -> dict[str, str]:
        """Return the environment to start the process with.

        Args:
            often: Whether the file is read each time that the process asks for the time; else every second or two.
        """
        return {
            "LD_PRELOAD": str(self._preloaded),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            **({"FAKETIME_NO_CACHE": "1"} if often else {"FAKETIME_CACHE_DURATION": "1"}),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # as older releases call it
        }

    def set(self, shift: str) -> None:
        """Put it forward or back: so far from the true time."""
        replacement = self._file.with_suffix(".new")
        replacement.write_text(f"{shift}\n")
        replacement.chmod(0o644)  # a server reads it as another user
        replacement.replace(self._file)

    def step(self, rng: random.Random) -> None:
        """Put it seconds, hours or days forward or back."""
        self.set(rng.choice(SHIFTS))


class ServerClock:
    """The clock of a server, which is started again under the library.

    No time comes twice: each step goes further from the true time than the one before. The library reads the clock's
    file with malloc. PostgreSQL asks for the time in its handler of SIGALRM too, which may have interrupted malloc, and
    then the session hangs. So the file is read rarely, and sessions notice a step within `LATE` seconds.

    Args:
        server: The server, which runs.
        folder: Where its clock is, open to the user that the server runs as.
        preloaded: What `library` gave.

    Attributes:
        unsteady: For each step, from which uptime of the machine to which other some sessions may not go by it.

    Raises:
        OSError: The library does not work with this server.
    """

    FIRST, FURTHER = 3 * 3600, 600
    """Seconds of the first step, and those that each other one goes further."""
    LATE = 2.0
    """Seconds until all sessions go by a step."""

    def __init__(self, server: EmbeddedServer, folder: Path, preloaded: Path) -> None:
        own = folder / preloaded.name
        shutil.copy(preloaded, own)
        self._clock = Clock(folder / "clock", own)
        self._clock.set("+1h")
        self._steps = 0
        self.unsteady: list[tuple[float, float]] = []
        programs, folder = server.programs, folder / "bin"
        folder.mkdir()
        script = folder / "postgres"
        variables = " ".join(f"{name}='{value}'" for name, value in self._clock.environment(often=False).items())
        script.write_text(f"#!/bin/sh\n{variables} exec '{programs}/postgres' \"$@\"\n")
        for path in (own, folder, script):
            path.chmod(0o755)
        server.kill()
        server.programs = folder
        server.start()
        with psycopg.connect(server.dsn()) as session:
            [ahead] = session.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone() or [0.0]
        self._clock.set("+0")
        if not 3000 < ahead - time.time() < 4200:
            server.kill()
            server.programs = programs
            server.start()
            raise OSError(f"{preloaded} does not put a server's clock forward")

    def _set(self, shift: str) -> None:
        now = float(Path(UPTIME).read_text().split()[0])
        self.unsteady.append((now - 0.1, now + self.LATE + 1))
        self._clock.set(shift)

    def step(self, sign: str) -> None:
        """Put it hours ahead of the true time (``+``), or behind (``-``)."""
        self._steps += 1
        self._set(f"{sign}{self.FIRST + self.FURTHER * self._steps}")

    def right(self) -> None:
        """Put it right."""
        self._set("+0")

    def pass_all(self) -> None:
        """Put it further ahead than it ever was: all leases have run out, and all jobs are due."""
        self._steps += 3
        self.step("+")


@cache
def library() -> Path | None:
    """The library that is preloaded: the first that is found, and works here; None without one."""
    spec = importlib.util.find_spec("libfaketime")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    found = [path for folder in folders for path in sorted(folder.rglob("libfaketime*.so*"))]
    found += [path for place in _PLACES for path in sorted(Path("/").glob(f"{place}/libfaketimeMT.so*"))]
    return next((path for path in found if _works(path)), None)


def _works(path: Path) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(Path(folder, "clock"), path)
        command = [sys.executable, "-c", _TRIAL]
        times = []
        for shift in ("+0", "+3h"):
            clock.set(shift)
            environment = {**os.environ, **clock.environment()}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode or done.stderr:
                return False
            times.append(float(done.stdout))
    return 3 * 3600 - 60 < times[1] - times[0] < 3 * 3600 + 60
