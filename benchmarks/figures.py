"""Numbers: what was measured, and how far the rounds lie apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number, measured several times.

    Attributes:
        median: Of all.
        least, most: The extremes.
        q1, q3: The quartiles.
        low, high: Between these the true median lies, nineteen times of twenty; the extremes, of less than six.
        values: What was measured, in the order of the rounds.
    """

    median: float
    least: float
    most: float
    q1: float
    q3: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of some measurements, of which there is at least one."""
        ordered = sorted(values)
        q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        low, high = _interval(ordered)
        return cls(statistics.median(ordered), ordered[0], ordered[-1], q1, q3, low, high, tuple(values))

    def as_json(self, *, values: bool = True) -> dict[str, Any]:
        """The figure as the report has it, rounded to what means something."""
        made: dict[str, Any] = {
            name: rounded(getattr(self, name)) for name in ("median", "least", "most", "q1", "q3", "low", "high")
        }
        made["rounds"] = len(self.values)
        if values:
            made["values"] = [rounded(value) for value in self.values]
        return made


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by ranks: it presumes nothing of how the values are distributed."""
    number = len(ordered)
    if number < 6:  # there is none of so few
        return ordered[0], ordered[-1]
    reach = 0.98 * math.sqrt(number)
    first = max(math.floor(number / 2 - reach), 0)
    last = min(math.ceil(number / 2 + reach), number - 1)
    return ordered[first], ordered[last]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(max(math.ceil(share * len(ordered)) - 1, 0), len(ordered) - 1)]


def rounded(value: float) -> float:
    """A number with five significant digits."""
    return float(f"{value:.5g}")
