"""The log of one process: an entry before each act, and one with its outcome after it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any


class Log:
    """A file with one JSON object per line.

    Args:
        path: The file, which is made immediately: a process whose log exists is at work.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, entry: dict[str, Any]) -> None:
        """Add an entry, with the time of the machine's monotonic clock, which no fault steps."""
        with self._lock:
            self._file.write(json.dumps({"log": self._name, **entry, "t": round(time.monotonic(), 3)}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
