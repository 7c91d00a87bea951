"""Clocks of client processes that can be stepped, by libfaketime: the wall clock alone, as if somebody set it."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

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

    def environment(self) -> dict[str, str]:
        """What the process is to be started with."""
        return {
            "LD_PRELOAD": str(self._preloaded),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # as older releases call it
        }

    def set(self, shift: str) -> None:
        """Put it forward or back: so far from the true time."""
        replacement = self._file.with_suffix(".new")
        replacement.write_text(f"{shift}\n")
        replacement.replace(self._file)

    def step(self, rng: random.Random) -> None:
        """Put it seconds, hours or days forward or back."""
        self.set(rng.choice(SHIFTS))


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
