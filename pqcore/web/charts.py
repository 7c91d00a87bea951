"""Figures over time as the geometry of a chart, for a template to draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pqcore.web.sampling import Figures, Point

WIDTH, HEIGHT = 320.0, 80.0
"""The size of the drawing, in its own units."""
SHORTEST = 60.0
"""The shortest time that a chart covers, in seconds."""
GAP = 5.0
"""The number of samples that must be missing before a line has a gap."""
Reading = Callable[[Figures], float | None]


@dataclass(frozen=True)
class Line:
    """One figure over time.

    Attributes:
        name: The name of the figure.
        kind: The way to draw the line: the end of a CSS class name.
        pieces: The points of each unbroken piece, in the form for an SVG polyline.
        areas: The pieces as closed areas between the line and the base of the chart.
        now: The last value; None if the last sample has none.
    """

    name: str
    kind: str
    pieces: tuple[str, ...]
    areas: tuple[str, ...]
    now: float | None


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: The title.
        unit: The unit of the values: ``jobs``, ``jobs/min`` or ``seconds``.
        lines: The lines.
        top: The value at the upper edge.
        seconds: The time that the chart covers.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    top: float
    seconds: float

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.pieces for line in self.lines)


def chart(
    title: str, unit: str, points: Sequence[Point], gap: float, lines: Sequence[tuple[str, str, Reading]]
) -> Chart:
    """Return a chart of some samples.

    Args:
        title: The title.
        unit: The unit of the values.
        points: The samples, the oldest first.
        gap: The number of seconds without a sample after which a line has a gap.
        lines: For each line its name, its kind, and the function that reads its value from a sample.
    """
    end = points[-1].clock if points else 0.0
    span = max(end - points[0].clock, SHORTEST) if points else SHORTEST
    series = [
        (name, kind, [(point.clock, _finite(read(point.figures))) for point in points]) for name, kind, read in lines
    ]
    top = _rounded_up(max((value for *_, values in series for _, value in values if value is not None), default=0.0))
    made = []
    for name, kind, values in series:
        pieces = _pieces(values, end - span, span, top, gap)
        made.append(
            Line(
                name,
                kind,
                tuple(" ".join(f"{x:.1f},{y:.1f}" for x, y in piece) for piece in pieces),
                tuple(_closed(piece) for piece in pieces),
                values[-1][1] if values else None,
            )
        )
    return Chart(title, unit, tuple(made), top, span)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else max(float(value), 0.0)


def _rounded_up(value: float) -> float:
    """Return the smallest of the numbers 1, 2, 5, 10, 20, ... that is not below a value."""
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(size * step for step in (1, 2, 5, 10, 20) if size * step >= value)


def _pieces(
    values: Sequence[tuple[float, float | None]], start: float, span: float, top: float, gap: float
) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = []
    last: float | None = None
    for clock, value in values:
        if value is not None:
            if last is None or clock - last > gap:
                pieces.append([])
            pieces[-1].append(((clock - start) / span * WIDTH, HEIGHT - value / top * HEIGHT))
        last = None if value is None else clock
    # A single sample would be an invisible point, so it is drawn as a short line.
    return [piece if len(piece) > 1 else [(piece[0][0] - 2, piece[0][1]), piece[0]] for piece in pieces]


def _closed(piece: Sequence[tuple[float, float]]) -> str:
    inner = " ".join(f"L{x:.1f},{y:.1f}" for x, y in piece)
    return f"M{piece[0][0]:.1f},{HEIGHT:.1f} {inner} L{piece[-1][0]:.1f},{HEIGHT:.1f} Z"
