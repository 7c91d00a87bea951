"""Figures: the measured values, and their spread over the rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One number, measured several times.

    Attributes:
        median: The median of all values.
        least, most: The extremes. q1, q3: The quartiles. low, high: A 95 % interval of the true median; the extremes,
        if there are fewer than `FEWEST` values.
        values: The measured values, in the order of the rounds.
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
        """Return the figure of at least one measurement."""
        ordered = sorted(values)
        q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        low, high = _interval(ordered)
        return cls(statistics.median(ordered), ordered[0], ordered[-1], q1, q3, low, high, tuple(values))

    def as_json(self, *, values: bool = True) -> dict[str, Any]:
        """Return the figure for the report, rounded to significant digits."""
        made: dict[str, Any] = {
            name: rounded(getattr(self, name)) for name in ("median", "least", "most", "q1", "q3", "low", "high")
        }
        made["rounds"] = len(self.values)
        if values:
            made["values"] = [rounded(value) for value in self.values]
        return made


FEWEST = 6
"""The smallest number of values for a 95 % interval of the median: with five values, the extremes miss it one time in
sixteen."""


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median, by ranks, without an assumption about the distribution.

    Each value is below the median half of the time, so the number of such values is binomial. If there are too few
    values, the extremes are returned.
    """
    number = len(ordered)
    if number > 200:
        first = math.floor(number / 2 - 0.98 * math.sqrt(number))  # the binomial distribution is nearly normal
        return ordered[first], ordered[number - 1 - first]
    first, tail = 0, 1 / 2**number
    while first < number // 2 and tail + math.comb(number, first + 1) / 2**number <= 0.025:
        first += 1
        tail += math.comb(number, first) / 2**number
    return ordered[first], ordered[number - 1 - first]


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians.

    Attributes:
        value: The ratio.
        low, high: A 95 % interval of it.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, one: Mapping[str, Any], other: Mapping[str, Any]) -> Ratio:
        """Return the ratio of two figures of reports, by the method of variance estimates recovery (MOVER).

        The arms of the two intervals are added in logarithms, as independent errors are.
        """
        if min(one["low"], other["low"]) <= 0:
            value = one["median"] / other["median"] if other["median"] else math.inf
            return cls(value, 0.0, math.inf)
        value = one["median"] / other["median"]
        down = math.hypot(math.log(one["median"] / one["low"]), math.log(other["high"] / other["median"]))
        up = math.hypot(math.log(one["high"] / one["median"]), math.log(other["median"] / other["low"]))
        return cls(value, value * math.exp(-down), value * math.exp(up))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(max(math.ceil(share * len(ordered)) - 1, 0), len(ordered) - 1)]


def rounded(value: float) -> float:
    """Return a number with five significant digits."""
    return float(f"{value:.5g}")
