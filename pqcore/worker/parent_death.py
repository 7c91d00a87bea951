"""Processes that end with the one that started them, however that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def end_with_parent(pipe: int, hear: Callable[[bytes], None] | None = None) -> None:
    """Have this process killed when its parent dies.

    The parent holds the other end of a pipe, and nobody else does: when it dies, the
    pipe is at its end, which a thread notices.  On Linux the kernel kills too, in case the
    thread never gets its turn.

    Args:
        pipe: The end to read from.
        hear: Told what the parent writes.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a libc without it: the thread is there
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # If the parent died before that, the pipe says so.
    threading.Thread(target=_watch, args=(pipe, hear), name="pqcore-parent", daemon=True).start()


def _watch(pipe: int, hear: Callable[[bytes], None] | None) -> None:
    while said := os.read(pipe, 1):
        if hear is not None:
            hear(said)
    os.kill(os.getpid(), signal.SIGKILL)
