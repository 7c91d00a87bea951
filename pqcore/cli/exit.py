"""The end of the process, which functions that still run in threads are not to hold up."""

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
"""Seconds that threads are given to end by themselves."""
AT_EXIT = 5.0
"""Seconds that what was registered with `atexit` may take, if the interpreter cannot end as usual."""


def leave(code: int) -> int:
    """End the process at once if functions still run in threads; else return the exit code.

    The interpreter would wait for those that are no daemons, and take itself apart under those that are.
    """
    names = _lingering()
    if not names:
        return code
    logger.warning("functions still run, in %s: they end with the process", ", ".join(names))
    last = threading.Thread(target=atexit._run_exitfuncs, daemon=True)  # flushes buffers
    last.start()
    last.join(AT_EXIT)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or a pipe that nobody reads
            stream.flush()
    os._exit(code)


def _lingering() -> list[str]:
    """The names of such threads that do not end soon."""
    deadline = time.monotonic() + LINGER
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    others = [each for each in others if not each.daemon or each.name.startswith("pqcore-job")]
    for thread in others:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return [thread.name for thread in others if thread.is_alive()]
