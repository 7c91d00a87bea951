"""The execution of ``pqcore bench``, after its command line was parsed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqcore.errors import ConfigurationError

from . import bounds, concurrent_builds, concurrent_calls, operations, presets, run, text_tables, update_docs
from . import compare as comparing
from . import compare_builds as comparing_builds
from .backends import contenders
from .terminal import Terminal
from .verdicts import Failure, Rules, failures, named, undecided
from .workloads import Options

__all__ = ["Outcome", "main", "named"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        failures: The reasons for a failure, each by name.
        undecided: The targets without a verdict, each with the reason.
        judged: The number of targets.
    """

    failures: list[Failure] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    judged: int = 0


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
    judged: bool | None = None,
    fail_under: float | None = None,
    json_file: str | None = None,
    html_file: str | None = None,
    markdown_path: str | None = None,
    compare: tuple[str, str] | None = None,
    against: str | None = None,
) -> Outcome:
    """Run the benchmarks, and return the outcome.

    Raises:
        ConfigurationError: The request is invalid.
    """
    rules = Rules.chosen(scale or "default", judged, fail_under)
    terminal = Terminal(rules)
    if against:
        if compare or json_file or html_file or markdown_path:
            msg = "--against shows what changed, and writes nothing: leave --compare, --json, --html and --markdown out"
            raise ConfigurationError(msg)
        concurrent = [name for name in scenarios if name in concurrent_builds.NAMES]
        others = tuple(name for name in scenarios if name not in concurrent)
        wrong: list[Failure] = []
        if concurrent:
            wrong += _concurrent(terminal, Path(against), backends, concurrent, scale or "default", rounds, dsn, judged)
        if others or not concurrent:
            request = comparing_builds.Request(
                Path(against),
                backends,
                _operations(others),
                scale or "default",
                comparing_builds.ROUNDS if rounds is None else rounds,
                dsn,
            )
            wrong += _against(terminal, request, fail_under)
        return Outcome(wrong)
    if compare:
        return Outcome(_compare(terminal, compare, fail_under))
    chosen = contenders(backends)
    if listing:
        _list(terminal, chosen)
        return Outcome()
    if html_file and importlib.util.find_spec("plotly") is None:
        msg = "--html needs plotly: pip install 'pqcore[bench]'"
        raise ConfigurationError(msg)
    for file in filter(None, (json_file, html_file)):  # so that an unwritable file fails now, and not at the end
        Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
    options = Options(presets.SCALES[scale or "default"], concurrency, processes, soak)
    try:
        report = run.run(run.Request(chosen, options, scenarios, rounds, dsn), terminal)
    finally:
        terminal.close()
    wrong = failures(report, rules)
    terminal.conclude(report, wrong)
    if json_file:
        Path(json_file).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if html_file:
        from .html_report import html_page

        Path(html_file).write_text(html_page(report, rules), encoding="utf-8")
    if markdown_path:
        update_docs.fill(Path(markdown_path), update_docs.blocks(report, rules))
    return Outcome(wrong, undecided(report, rules), len(report["targets"]))


def _compare(terminal: Terminal, paths: tuple[str, str], fail_under: float | None) -> list[Failure]:
    old, new = (comparing.load(Path(path)) for path in paths)
    found = comparing.compare(old, new)
    terminal.compared(found, fail_under)
    return [] if fail_under is None else found.failures(fail_under)


def _operations(scenarios: tuple[str, ...]) -> list[str]:
    """Return the operations that are chosen; all, if none is."""
    known = {run.TARGETS: list(operations.OPERATIONS)}
    for name in operations.OF_BUILDS:
        known |= {name: [name], f"{run.TARGETS}:{name}": [name]}
    known[operations.MEMORY] = [operations.MEMORY]
    if unknown := sorted(set(scenarios) - set(known)):
        names = ", ".join([*operations.OF_BUILDS, operations.MEMORY, *concurrent_builds.NAMES])
        msg = f"--against measures {names}, and not {', '.join(unknown)}"
        raise ConfigurationError(msg)
    chosen = {operation for name in scenarios or (run.TARGETS,) for operation in known[name]}
    return [name for name in (*operations.OF_BUILDS, operations.MEMORY) if name in chosen]


def _against(terminal: Terminal, request: comparing_builds.Request, fail_under: float | None) -> list[Failure]:
    try:
        found = comparing_builds.compare(request, terminal)
    finally:
        terminal.close()
    terminal.compared(found, fail_under)
    return [] if fail_under is None else found.failures(fail_under)


def _concurrent(
    terminal: Terminal,
    other: Path,
    backends: tuple[str, ...],
    names: list[str],
    scale: str,
    rounds: int | None,
    dsn: str | None,
    judged: bool | None,
) -> list[Failure]:
    """Compare two builds with concurrent callers; a quick run judges no target, unless told to."""
    whole = concurrent_builds.CONCURRENT in names
    request = concurrent_builds.Request(
        other,
        backends,
        [name for name in concurrent_calls.CALLS if whole or f"{concurrent_builds.CONCURRENT}:{name}" in names],
        scale,
        concurrent_builds.ROUNDS if rounds is None else rounds,
        dsn,
    )
    judging = scale != "quick" if judged is None else judged
    try:
        found = concurrent_builds.compare(request, terminal)
    finally:
        terminal.close()
    wrong = found.failures(judged=judging)
    terminal.show(concurrent_builds.grid(found, judged=judging))
    terminal.told([f"before: {found.builds[0]}", f"after: {found.builds[1]}"], wrong)
    return wrong


def _list(terminal: Terminal, chosen: list[Any]) -> None:
    rows: list[tuple[str, ...]] = list(run.scenarios().items())
    terminal.show(text_tables.Grid("scenarios", ("name", ""), rows))
    made = text_tables.Grid(
        "backends, and their targets", ("name", "mode", *(f">{name}" for name in operations.OPERATIONS)), []
    )
    for contender in chosen:
        wanted = bounds.targets_of(contender).values()
        made.rows.append((contender.label, contender.mode, *(f"{value:g}" for value in wanted)))
    terminal.show(made)
