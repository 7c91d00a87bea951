"""Figures in a document: the text between two marks is replaced by the measured values.

The marks are comments of Markdown, which are not shown::

    <!-- measured: targets -->
    <!-- /measured -->

The names are ``environment``, ``targets`` and those of the workloads; ``scaling chart`` and similar names for charts;
and ``peers``, which the comparison with peers fills.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import colours, text_tables
from .text_tables import Grid, Row
from .verdicts import Rules

_PLACE = re.compile(r"(<!-- measured: ([\w ]+) -->\n)(.*?)(<!-- /measured -->)", re.DOTALL)


def fill(path: Path, blocks: Mapping[str, str]) -> None:
    """Put blocks into the places with their names; other places do not change.

    Args:
        path: A document, or a folder: then all documents in it and in its folders.
        blocks: The texts, by the name of their place.
    """
    for document in sorted(path.glob("**/*.md")) if path.is_dir() else [path]:
        _fill_document(document, blocks)


def _fill_document(path: Path, blocks: Mapping[str, str]) -> None:
    text = path.read_text(encoding="utf-8")

    def replaced(place: re.Match[str]) -> str:
        block = blocks.get(place[2])
        return place[0] if block is None else f"{place[1]}\n{block}\n\n{place[4]}"

    filled = _PLACE.sub(replaced, text)
    if filled != text:
        path.write_text(filled, encoding="utf-8")


def blocks(report: Row, rules: Rules) -> dict[str, str]:
    """Return the measurements as Markdown, by name."""
    palette = colours.of_report(report)
    found = {"environment": table(text_tables.environment(report))}
    if report["targets"]:
        found["targets"] = table(text_tables.targets(report["targets"], rules))
    for name, rows in text_tables.by_scenario(report["workloads"]).items():
        found[name] = table(text_tables.workload(rows))
        charts = [*_charts([row for row in rows if "metrics" in row], palette)]
        if charts:
            found[f"{name} chart"] = "\n\n".join(charts)
    return found


def table(grid: Grid) -> str:
    """Return a table in Markdown."""
    rule = ["---:" if name.startswith(">") else "---" for name in grid.columns]
    lines = [[name.lstrip(">") for name in grid.columns], rule, *grid.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)


def _charts(rows: Sequence[Row], palette: Mapping[str, str]) -> Iterator[str]:
    if rows and rows[0]["scenario"] == "scaling":
        yield from _scaling(rows, palette)
    for row in rows:
        if "curve" in row:
            (over, places), *others = row["curve"].items()
            for name, points in others:
                yield _chart(
                    f"{row['title']}, {row['backend']}: {name}",
                    over,
                    places,
                    name,
                    {name: points},
                    [palette[row["backend"]]],
                )


def _scaling(rows: Sequence[Row], palette: Mapping[str, str]) -> Iterator[str]:
    for kind, title in (("together", "threads or tasks"), ("processes", "processes")):
        own = [row for row in rows if row["kind"] == kind]
        lines = {
            backend: [row["metrics"]["rate"]["median"] for row in own if row["backend"] == backend]
            for backend in dict.fromkeys(row["backend"] for row in own)
        }
        counts = sorted({row["consumers"] for row in own})
        if lines and all(len(points) == len(counts) for points in lines.values()):
            yield _chart(
                f"{rows[0]['title']}: {title} ({', '.join(lines)})",
                "consumers",
                counts,
                "/s",
                lines,
                [palette[backend] for backend in lines],
            )


def _chart(
    title: str,
    over: str,
    places: Sequence[Any],
    unit: str,
    lines: Mapping[str, Sequence[float]],
    palette: Sequence[str],
) -> str:
    top = max(max(points) for points in lines.values())
    made = [
        "```mermaid",
        f'%%{{init: {{"themeVariables": {{"xyChart": {{"plotColorPalette": "{", ".join(palette)}"}}}}}}}}%%',
        "xychart-beta",
        f'  title "{title}"',
        f'  x-axis "{over}" [{", ".join(f"{place:g}" for place in places)}]',
        f'  y-axis "{unit}" 0 --> {top * 1.1:.0f}',
        *(f"  line [{', '.join(f'{point:.0f}' for point in points)}]" for points in lines.values()),
        "```",
    ]
    return "\n".join(made)
