"""The colours of charts: a backend has the same colour in all charts and reports."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from .pgbench import LABEL

KNOWN: Mapping[str, str] = {
    LABEL: "#7f7f7f",
    "psycopg": "#1f77b4",
    "psycopg-async": "#17becf",
    "psycopg2": "#2ca02c",
    "asyncpg": "#ff7f0e",
}
"""The colours of pgbench, and of the backends that pqcore brings."""
OTHERS = ("#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#393b79", "#637939", "#843c39", "#7b4173")
"""Colours for other backends: a backend's name determines where the search for a free colour begins."""


def colours(labels: Iterable[str]) -> dict[str, str]:
    """Return a different colour for each label."""
    chosen: dict[str, str] = {}
    for label in sorted(set(labels)):
        number = zlib.crc32(label.encode())
        places = [OTHERS[(number + step) % len(OTHERS)] for step in range(len(OTHERS))]
        free = [place for place in places if place not in chosen.values()]
        chosen[label] = KNOWN.get(label) or (free[0] if free else _hue(number, taken=chosen.values()))
    return chosen


def of_report(report: Mapping[str, Any]) -> dict[str, str]:
    """Return a colour for each backend of a report."""
    rows = [*report["targets"], *report["workloads"]]
    return colours([row["label"] for row in report["backends"]] + [row["backend"] for row in rows])


def _hue(number: int, taken: Iterable[str]) -> str:
    """Return a colour that is not used yet, after all listed ones are used."""
    used = set(taken)
    while True:
        parts = colorsys.hls_to_rgb(number % 360 / 360, 0.35 + number % 7 * 0.05, 0.7)
        made = "#" + "".join(f"{round(255 * part):02x}" for part in parts)
        if made not in used:
            return made
        number += 47
