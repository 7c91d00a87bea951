"""Hooks of the site's build: documents that lie outside of docs/ and are linked to, and charts.

Links are written for those who read the files: from ``docs/`` they lead to ``../examples/...``.  On the site such
a document is a page below ``project/``, at the same path.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
OUTSIDE = "project"
# The path of a link: what follows, as `#anchor`, stays.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
CHART = re.compile(r"^```mermaid\n((?:%%[^\n]*\n)?xychart-beta\n.*?)^```$", re.DOTALL | re.MULTILINE)
HIDDEN = re.compile(r"^<!--\s*invisible-code-block:.*?-->\n*", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the documents outside that are linked to, and those that these link to."""
    wanted = [page.src_uri for page in files.documentation_pages()]
    while wanted:
        page = wanted.pop()
        for target in _targets(page, (ROOT / _written(page)).read_text("utf-8")):
            uri = _on_site(target)
            path = ROOT / target
            if uri.startswith(OUTSIDE) and path.is_file() and files.get_file_from_path(uri) is None:
                level = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, uri, content=path.read_text("utf-8"), inclusion=level))
                if path.suffix == ".md":
                    wanted.append(uri)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead to where the documents are on the site, draw the charts, and leave out what is hidden."""
    here = page.file.src_uri
    below = posixpath.dirname(_written(here))

    def moved(link: re.Match[str]) -> str:
        target = _document(posixpath.normpath(posixpath.join(below, link[1])))
        if not (ROOT / target).exists():
            return link[1]  # MkDocs says so
        return posixpath.relpath(_on_site(target), posixpath.dirname(here) or ".")

    return CHART.sub(lambda chart: _drawn(chart[1]), LINK.sub(moved, HIDDEN.sub("", markdown)))


def _targets(page: str, markdown: str) -> list[str]:
    """The paths, from the root of the project, that a page of the site links to."""
    below = posixpath.dirname(_written(page))
    return [_document(posixpath.normpath(posixpath.join(below, link))) for link in LINK.findall(markdown)]


def _document(path: str) -> str:
    """The document that a link to a folder means, as a code host shows it."""
    return f"{path}/README.md" if (ROOT / path / "README.md").is_file() else path


def _on_site(path: str) -> str:
    """Where on the site a document is, of the path from the root of the project."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def _written(uri: str) -> str:
    """The path from the root of the project, of where a document is on the site."""
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"


def _drawn(chart: str) -> str:
    """A chart of lines as an SVG.

    Args:
        chart: In Mermaid's language, as `pqcore bench --markdown` writes it.
    """
    title = _found(r'title "(.*)"', chart)
    colours = _found(r'"plotColorPalette": "(.*?)"', chart).split(", ")
    x_axis = re.search(r'x-axis "(.*)" \[(.*)\]', chart)
    y_axis = re.search(r'y-axis "(.*)" (\S+) --> (\S+)', chart)
    lines = [json.loads(line) for line in re.findall(r"^ *line (\[.*\])", chart, re.MULTILINE)]
    if x_axis is None or y_axis is None or not 0 < len(lines) <= len(colours):
        msg = f"a chart that cannot be drawn: {chart}"
        raise ValueError(msg)
    names = [name.strip().strip('"') for name in x_axis[2].split(",")]
    bottom, top = float(y_axis[2]), float(y_axis[3])
    left, width, height = 60, 560, 220

    def x(index: int) -> float:
        return left + width * index / max(len(names) - 1, 1)

    def y(value: float) -> float:
        return 10 + height * (1 - (value - bottom) / ((top - bottom) or 1))

    drawn = []
    for step in range(5):
        value = bottom + (top - bottom) * step / 4
        drawn.append(f'<path d="M{left} {y(value):.1f}h{width}" stroke="currentColor" opacity=".2"/>')
        drawn.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    drawn += [
        f'<text x="{x(index):.1f}" y="{height + 28}" text-anchor="middle">{html.escape(names[index])}</text>'
        for index in range(0, len(names), max(1, len(names) // 8))
    ]
    drawn.append(
        f'<text x="{left + width / 2}" y="{height + 46}" text-anchor="middle">'
        f"{html.escape(x_axis[1])}; up: {html.escape(y_axis[1])}</text>"
    )
    for number, values in enumerate(lines):
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colours[number]}" stroke-width="2"/>')
    series = re.search(r"\((.*)\)$", title)
    if series is not None and len(lines) > 1:
        for number, name in enumerate(series[1].split(", ")):
            place = f'x="{left + number * width / len(lines):.1f}" y="{height + 66}"'
            drawn.append(f'<text {place} fill="{colours[number]}">{html.escape(name)}</text>')
    return (
        f'<figure><svg viewBox="0 0 {left + width + 20} {height + 76}" role="img" font-size="11" fill="currentColor">'
        f"<title>{html.escape(title)}</title>{''.join(drawn)}</svg>"
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""
