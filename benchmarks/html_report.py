"""A report as one HTML page with charts, which needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import colours, text_tables
from .verdicts import Rules, failures

Row = Mapping[str, Any]
Colours = Mapping[str, str]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { padding: .25em .8em; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.bad { color: #b00020; font-weight: bold; }
tr.good td { color: #14691e; }
.doubts { border: 3px solid #b00020; color: #b00020; padding: .5em 1em; font-weight: bold; }
h2 { margin-top: 2em; }
"""


def html_page(report: Mapping[str, Any], rules: Rules) -> str:
    """Return the page.

    Raises:
        ImportError: plotly is not installed.
    """
    from plotly.offline import get_plotlyjs

    palette = colours.of_report(report)
    parts = ["<h1>pqcore's benchmarks</h1>", _grid(text_tables.environment(report))]
    if any("error" in row for row in report["backends"]):
        parts.append(_grid(text_tables.backends(report)))
    if report["doubts"]:
        parts.append(_list("These figures are not reliable:", report["doubts"]))
    if wrong := failures(report, rules):
        parts.append(_list("What is wrong:", [str(failure) for failure in wrong]))
    if report["targets"]:
        parts += ["<h2>Targets</h2>", _targets_chart(report["targets"], palette)]
        parts.append(_grid(text_tables.targets(report["targets"], rules)))
    for name, rows in text_tables.by_scenario(report["workloads"]).items():
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts += _charts(rows, palette)
        parts.append(_grid(text_tables.workload(rows)))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>pqcore\'s benchmarks</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>\n<body>\n{body}\n</body></html>\n"
    )


def _grid(grid: text_tables.Grid) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if grid.columns[column].startswith(">") else ""
        return f"<{tag}{kind}>{html.escape(text.lstrip('>'))}</{tag}>"

    lines = [f"<p>{html.escape(grid.title)}</p><table><tr>"]
    lines += [cell("th", number, name) for number, name in enumerate(grid.columns)]
    lines.append("</tr>")
    for index, row in enumerate(grid.rows):
        kind = "bad" if index in grid.bad else "good" if index in grid.good else ""
        lines.append(f'<tr class="{kind}">' + "".join(cell("td", n, text) for n, text in enumerate(row)) + "</tr>")
    return "".join(lines) + "</table>"


def _list(title: str, items: Sequence[str]) -> str:
    lines = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f'<div class="doubts">{html.escape(title)}<ul>{lines}</ul></div>'


# Charts


def _figure(title: str, unit: str, traces: Sequence[Any], **layout: Any) -> str:
    import plotly.graph_objects as go

    figure = go.Figure(list(traces))
    figure.update_layout(title=title, yaxis_title=unit, height=420, template="plotly_white", barmode="group", **layout)
    made: str = figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False)
    return made


def _bars(
    name: str, places: Sequence[str], figures: Sequence[Row], colour: str, low: str = "least", high: str = "most"
) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        name=name,
        marker={"color": colour},
        x=list(places),
        y=[figure["median"] for figure in figures],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [figure[high] - figure["median"] for figure in figures],
            "arrayminus": [figure["median"] - figure[low] for figure in figures],
        },
    )


def _targets_chart(rows: Sequence[Row], palette: Colours) -> str:
    import plotly.graph_objects as go

    good = [row for row in rows if "ratio" in row]
    backends = list(dict.fromkeys(row["backend"] for row in good))
    traces: list[Any] = []
    for backend in backends:
        own = [row for row in good if row["backend"] == backend]
        traces.append(
            _bars(
                backend,
                [row["operation"] for row in own],
                [row["ratio"] for row in own],
                palette[backend],
                "low",
                "high",
            )
        )
    highest: dict[str, float] = {}
    for row in good:
        highest[row["operation"]] = max(row["target"], highest.get(row["operation"], 0))
    marker = {"symbol": "line-ew-open", "size": 40, "color": "#b00020", "line": {"width": 3}}
    traces.append(go.Scatter(name="target", x=list(highest), y=list(highest.values()), mode="markers", marker=marker))
    return _figure("pqcore compared with its drivers in bare loops", "ratio", traces)


def _charts(rows: Sequence[Row], palette: Colours) -> Iterator[str]:
    measured = [row for row in rows if "metrics" in row]
    if not measured:
        return
    together = [row for row in measured if row["scenario"] == "scaling"]
    if together:
        yield _scaling(together, palette)
    else:
        for metric, figure in measured[0]["metrics"].items():
            yield _metric(measured, metric, figure["unit"], palette)
    for row in measured:
        if "curve" in row:
            yield from _curves(row, palette[row["backend"]])


def _metric(rows: Sequence[Row], metric: str, unit: str, palette: Colours) -> str:
    traces = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == backend]
        places = [row["variant"] or row["scenario"] for row in own]
        traces.append(_bars(backend, places, [row["metrics"][metric] for row in own], palette[backend]))
    return _figure(f"{rows[0]['title']}: {metric}", unit, traces)


def _scaling(rows: Sequence[Row], palette: Colours) -> str:
    import plotly.graph_objects as go

    traces = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        for kind, dash in (("together", "solid"), ("processes", "dot")):
            own = [row for row in rows if row["backend"] == backend and row["kind"] == kind]
            traces.append(
                go.Scatter(
                    name=f"{backend}, {'processes' if kind == 'processes' else 'threads or tasks'}",
                    x=[row["consumers"] for row in own],
                    y=[row["metrics"]["rate"]["median"] for row in own],
                    mode="lines+markers",
                    line={"dash": dash, "color": palette[backend]},
                )
            )
    return _figure(rows[0]["title"], "/s", traces, xaxis_title="consumers")


def _curves(row: Row, colour: str) -> Iterator[str]:
    import plotly.graph_objects as go

    (over, places), *others = row["curve"].items()
    for name, points in others:
        trace = go.Scatter(name=name, x=places, y=points, mode="lines+markers", line={"color": colour})
        title = f"{row['title']}, {row['backend']}: {name}"
        yield _figure(title, name, [trace], xaxis_title=over)
