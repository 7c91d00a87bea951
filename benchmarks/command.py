"""What ``pqcore bench`` does, once its command line is read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pqcore.errors import ConfigurationError

from . import compare as comparing
from . import document, run, scales, tables, targets
from .contenders import contenders
from .terminal import Terminal
from .verdicts import failures
from .workloads import Options


def main(
    *,
    backends: tuple[str, ...] = (),
    scenarios: tuple[str, ...] = (),
    listing: bool = False,
    scale: str | None = None,
    rounds: int | None = None,
    concurrency: tuple[int, ...] = (),
    processes: tuple[int, ...] = (),
    soak: float | None = None,
    dsn: str | None = None,
    judged: bool = True,
    fail_under: float | None = None,
    json_file: str | None = None,
    html_file: str | None = None,
    markdown_file: str | None = None,
    compare: tuple[str, str] | None = None,
) -> list[str]:
    """Do it; why it failed, each by name.

    Raises:
        ConfigurationError: What was asked for cannot be.
    """
    terminal = Terminal(fail_under, judged=judged)
    if compare:
        return _compare(terminal, compare, fail_under)
    chosen = contenders(backends)
    if listing:
        _list(terminal, chosen)
        return []
    if html_file and importlib.util.find_spec("plotly") is None:
        msg = "--html needs plotly: pip install 'pqcore[bench]'"
        raise ConfigurationError(msg)
    for file in filter(None, (json_file, html_file)):  # not to fail at the end
        Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
    options = Options(scales.SCALES[scale or "default"], concurrency, processes, soak)
    try:
        report = run.run(run.Request(chosen, options, scenarios, rounds, dsn), terminal)
    finally:
        terminal.close()
    wrong = failures(report, fail_under, judged=judged)
    terminal.conclude(report, wrong)
    if json_file:
        Path(json_file).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if html_file:
        from .page import page

        Path(html_file).write_text(page(report, fail_under, judged=judged), encoding="utf-8")
    if markdown_file:
        document.fill(Path(markdown_file), document.blocks(report, fail_under, judged=judged))
    return wrong


def _compare(terminal: Terminal, paths: tuple[str, str], fail_under: float | None) -> list[str]:
    old, new = (comparing.load(Path(path)) for path in paths)
    found = comparing.compare(old, new)
    terminal.compared(found)
    return [
        f"{change.backend}, {change.scenario} {change.variant} {change.metric}: {change.ratio:.2f} of what it was"
        for change in (found.below(fail_under) if fail_under is not None else [])
    ]


def _list(terminal: Terminal, chosen: list[Any]) -> None:
    rows: list[tuple[str, ...]] = list(run.scenarios().items())
    terminal.show(tables.Grid("scenarios", ("name", ""), rows))
    made = tables.Grid(
        "backends, and their targets", ("name", "mode", *(f">{name}" for name in targets.OPERATIONS)), []
    )
    for contender in chosen:
        wanted = targets.targets_of(contender).values()
        made.rows.append((contender.label, contender.mode, *(f"{value:g}" for value in wanted)))
    terminal.show(made)
