"""A check whether the machine is quiet, because only then a ratio of wall times is meaningful.

The probe waits for a moment in which nothing of the benchmark runs, and reads what the processors did meanwhile. Then
it times a Python loop, and commits that must be flushed, a few times each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pqcore.errors import PQError

from .observer import Observer
from .summary import rounded

WAIT = 0.2
"""Seconds for which the processors are observed: twenty ticks of each."""
IDLE = 0.85
"""The lowest idle share of the processors' time: with two processors, a single busy one leaves a half."""
STEAL = 0.02
"""The largest share of the processors' time that the hypervisor may give to other machines."""
LOOPS, LOOP_SPREAD = 24, 1.3
"""How often a loop of a millisecond is timed, and the limit of its upper quartile as a multiple of the fastest run."""
FLUSHES, FLUSH_SPREAD = 16, 2.0
"""How often a commit is timed, and the limit of the upper quartile as a multiple of the lower one."""
FLUSH = "SELECT pg_logical_emit_message(true, 'pqcore-bench', '')"
"""A statement that writes only a record of write-ahead log, which its commit flushes."""
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Probe:
    """The result of a probe.

    Attributes:
        idle: The idle share of the processors' time; None if unknown.
        steal: The share that other virtual machines had; None if unknown.
        loop: The upper quartile of a loop's times, as a multiple of the shortest.
        flush: The upper quartile of a commit's times, as a multiple of the lower one; None if no server can measure it.
        flush_ms: The median time of such a commit, in milliseconds; None if no server can measure it.
    """

    idle: float | None
    steal: float | None
    loop: float
    flush: float | None = None
    flush_ms: float | None = None

    def noise(self) -> str:
        """Return why the machine is not quiet; "" if it is."""
        if self.steal is not None and self.steal > STEAL:
            return f"{self.steal:.0%} of the processors' time is stolen by other machines"
        if self.idle is not None and self.idle < IDLE:
            return f"{1 - self.idle:.0%} of the processors' time goes to other programs"
        if self.loop > LOOP_SPREAD:
            return f"the same loop takes {self.loop:.2f} times as long now and then"
        if self.flush is not None and self.flush > FLUSH_SPREAD:
            return f"a commit takes {self.flush:.1f} times as long now and then"
        return ""

    def as_json(self) -> dict[str, Any]:
        found = {name: None if value is None else rounded(value) for name, value in asdict(self).items()}
        return {"quiet": not self.noise(), "noise": self.noise(), **found}


def probe(server_observer: Observer | None = None) -> Probe:
    """Probe the machine for a quarter of a second."""
    idle, steal = _shares(_ticks, WAIT)
    loops = sorted(_timed(_loop) for _ in range(LOOPS))
    flushes = [] if server_observer is None else _flushes(server_observer)
    if not flushes:
        return Probe(idle, steal, _quartile(loops, 3) / loops[0])
    spread = _quartile(flushes, 3) / _quartile(flushes, 1)
    return Probe(idle, steal, _quartile(loops, 3) / loops[0], spread, statistics.median(flushes) * 1e3)


def worse(one: Probe, other: Probe) -> Probe:
    """Return the probe that found more noise; if both found some, the first."""
    return one if one.noise() else other


def _shares(read: Callable[[], Sequence[int]], seconds: float) -> tuple[float | None, float | None]:
    """Return the idle and the stolen share of the processors' time in the next seconds."""
    before = read()
    time.sleep(seconds)
    spent = [after - earlier for after, earlier in zip(read(), before, strict=False)]
    if len(spent) < 8 or sum(spent[:8]) <= 0:
        return None, None
    total = sum(spent[:8])  # guest times, the ninth and tenth value, are part of the first and second
    return (spent[3] + spent[4]) / total, spent[7] / total


def _ticks() -> Sequence[int]:
    """Return the processors' times since the start: user, nice, system, idle, iowait, irq, softirq, steal, ..."""
    with suppress(OSError):
        return [int(number) for number in _STAT.read_text(encoding="ascii").partition("\n")[0].split()[1:]]
    return []


def _loop() -> None:
    total = 0
    for number in range(20_000):
        total += number


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _flushes(server_observer: Observer) -> list[float]:
    try:
        return sorted(_timed(lambda: server_observer.one(FLUSH)) for _ in range(FLUSHES))
    except PQError:  # the server has no such function, or the role may not use it
        return []


def _quartile(ordered: Sequence[float], which: int) -> float:
    return statistics.quantiles(ordered, n=4, method="inclusive")[which - 1]
