"""Clocks of clients and of a server that can be stepped, by libfaketime: only the wall clock, as if somebody set it."""

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
"""The file with the machine's uptime in seconds, which libfaketime does not change."""
SHIFTS = ("+3h", "-3h", "+40d", "-40d", "+90s", "-90s", "+0")
_PLACES = ("usr/lib/*/faketime", "usr/lib/faketime", "usr/lib64/faketime", "usr/local/lib/faketime")
# Some releases of the library, with some Pythons, break the waits of threads.
_TRIAL = "import threading, time; threading.Event().wait(0.01); print(time.time())"


class Clock:
    """The clock of one process.

    Args:
        file: The file that tells the library how far the clock is off.
        preloaded: The result of `library`.
    """

    def __init__(self, file: Path, preloaded: Path) -> None:
        self._file = file
        self._preloaded = preloaded
        file.write_text("+0\n")

    def environment(self, *, often: bool = True) -> dict[str, str]:
        """Return the environment to start the process with.

        Args:
            often: Whether the library reads the file each time the process asks for the time; otherwise every second or
                two.
        """
        return {
            "LD_PRELOAD": str(self._preloaded),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            **({"FAKETIME_NO_CACHE": "1"} if often else {"FAKETIME_CACHE_DURATION": "1"}),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the name in older releases
        }

    def set(self, shift: str) -> None:
        """Set the clock this far from the true time."""
        replacement = self._file.with_suffix(".new")
        replacement.write_text(f"{shift}\n")
        replacement.chmod(0o644)  # a server reads it as another user
        replacement.replace(self._file)

    def step(self, rng: random.Random) -> None:
        """Set the clock forward or back by seconds, hours or days."""
        self.set(rng.choice(SHIFTS))


class ServerClock:
    """The clock of a server, which is restarted with the library preloaded.

    No time comes twice: each step goes further from the true time than the one before. The library calls malloc to read
    the clock's file. PostgreSQL asks for the time in its SIGALRM handler, too. If the signal interrupted malloc, the
    session hangs. So the library reads the file rarely, and sessions notice a step within `LATE` seconds.

    Args:
        server: The running server.
        folder: The folder of the clock's file, accessible to the server's user.
        preloaded: The result of `library`.

    Attributes:
        unsteady: For each step, the machine's uptimes between which some sessions may not have noticed the step.

    Raises:
        OSError: The library does not work with this server.
    """

    FIRST, FURTHER = 3 * 3600, 600
    """The first step, and how much further each later step goes, in seconds."""
    LATE = 2.0
    """Seconds until all sessions have noticed a step."""

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
        """Set the clock hours ahead of the true time (``+``), or behind it (``-``)."""
        self._steps += 1
        self._set(f"{sign}{self.FIRST + self.FURTHER * self._steps}")

    def right(self) -> None:
        """Set the clock to the true time."""
        self._set("+0")

    def pass_all(self) -> None:
        """Set the clock further ahead than ever, so that all leases have run out and all jobs are due."""
        self._steps += 3
        self.step("+")


@cache
def library() -> Path | None:
    """Return the first library that is found and works here, for preloading; None without one."""
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
