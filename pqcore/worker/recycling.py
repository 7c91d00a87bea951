"""The limits after which a process that runs jobs is replaced by a new one: a number of jobs, an amount of memory."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import NamedTuple

from pqcore.errors import ConfigurationError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?\s*", re.IGNORECASE)
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Recycling(NamedTuple):
    """The limits after which a process that runs jobs is replaced, between two jobs.

    Attributes:
        jobs: The largest number of jobs that a process runs; None for no limit.
        memory: Bytes of memory above which a process is replaced; None for no limit.
    """

    jobs: int | None = None
    memory: int | None = None

    @classmethod
    def of(cls, jobs: int | None, memory: int | str | None) -> Recycling:
        """Return the limits that a worker was given.

        Raises:
            ConfigurationError: One of the values is not a valid limit.
        """
        if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
            msg = f"max_jobs is {jobs!r}; give a number of at least 1"
            raise ConfigurationError(msg)
        return cls(jobs, None if memory is None else _memory(memory))


def _memory(given: int | str) -> int:
    try:
        return parse_size(given)
    except ValueError as exc:
        raise ConfigurationError(f"max_memory is {given!r}; {exc}") from None


def parse_size(given: int | str) -> int:
    """Return a size in bytes.

    Args:
        given: Bytes, or text with a unit, as in ``512MB``; a kB has 1,024 bytes.

    Raises:
        ValueError: The value is not a size, or is less than one byte.
    """
    number = 0
    if isinstance(given, str) and (match := _SIZE.fullmatch(given)) is not None:
        number = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    elif isinstance(given, int) and not isinstance(given, bool):
        number = given
    if number < 1:
        msg = "give bytes, or a number and a unit, as in '512MB' or '2GB'"
        raise ValueError(msg)
    return number


def memory_in_use() -> int:
    """Return the bytes of memory that this process holds; where there is no /proc, the most that it ever held."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(pages) * resource.getpagesize()
