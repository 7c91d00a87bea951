"""The id of this process, without a system call for each check.

A process that is forked in C (as uWSGI does) calls no hook of `os.register_at_fork`. On Linux, a page under
MADV_WIPEONFORK detects such a fork: the kernel gives the child a page of zeros, however the child was forked.
"""

from __future__ import annotations

import mmap
import os
import sys

_WIPE_ON_FORK = 18
"""MADV_WIPEONFORK of Linux 4.14, for which the module `mmap` has no name."""


class _Current:
    """The known id of the current process.

    Attributes:
        id: The id; in a fork that was not noticed yet, the id of the parent.
    """

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id = os.getpid()


def _wiped_page() -> mmap.mmap | bytes:
    """Return a page whose first byte is 1 here and 0 in a forked child; without such pages, the byte is always 0."""
    if sys.platform == "linux":
        try:
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_WIPE_ON_FORK)
        except (OSError, ValueError):
            return b"\0"
        page[0] = 1
        return page
    return b"\0"


current = _Current()
unforked_page = _wiped_page()
"""While the first byte is 1, ``current.id`` is the id of this process. Code that must be fast checks this byte itself,
and then reads ``current.id``; other code calls `process_id`."""


def process_id() -> int:
    """Return the id of this process."""
    if not unforked_page[0]:
        # The id is set first, because another thread that reads a 1 from the page uses the id.
        current.id = os.getpid()
        if isinstance(unforked_page, mmap.mmap):
            unforked_page[0] = 1
    return current.id
