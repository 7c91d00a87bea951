"""The end of the process, even if functions still run in threads."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from logging import getLogger

logger = getLogger("pqcore")

LINGER = 1.0
"""Seconds that threads get to end by themselves."""
AT_EXIT = 5.0
"""Seconds that functions registered with `atexit` may take, if the interpreter cannot end as usual."""


def leave(code: int) -> int:
    """End the process immediately if functions still run in threads; otherwise return the exit code.

    The interpreter would wait for threads that are not daemons, and would shut down while daemon threads still run.
    """
    names = _lingering()
    if not names:
        return code
    logger.warning(
        "functions are still running in threads %s; the end of the process stops these functions", ", ".join(names)
    )
    last = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # flushes buffers
    last.start()
    last.join(AT_EXIT)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the stream is closed, or nobody reads the pipe
            stream.flush()
    os._exit(code)


def _lingering() -> list[str]:
    """Return the names of the threads that do not end within `LINGER` seconds."""
    deadline = time.monotonic() + LINGER
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    others = [each for each in others if not each.daemon or each.name.startswith("pqcore-job")]
    for thread in others:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return [thread.name for thread in others if thread.is_alive()]
