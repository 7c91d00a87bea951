"""Making a process end when its parent ends, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def end_with_parent(pipe: int, on_message: Callable[[bytes], None] | None = None) -> None:
    """Have this process killed when its parent dies.

    Only the parent holds the other end of a pipe. When the parent dies, a thread of this process reads the end of the
    pipe. On Linux the kernel kills the process, too, in case the thread never runs.

    Args:
        pipe: The end to read from.
        on_message: Called with each byte that the parent writes.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # this libc has no prctl: only the thread watches
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # If the parent died before the call of prctl, the kernel does nothing, but the thread reads the end of the pipe.
    threading.Thread(target=_watch, args=(pipe, on_message), name="pqcore-parent", daemon=True).start()


def _watch(pipe: int, on_message: Callable[[bytes], None] | None) -> None:
    while said := os.read(pipe, 1):
        if on_message is not None:
            on_message(said)
    os.kill(os.getpid(), signal.SIGKILL)
