"""The benchmarks in a terminal: the progress during the run, and tables as parts end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from . import text_tables
from .compare import Comparison
from .verdicts import Failure, Rules, undecided, verdict


class Terminal:
    """A view of the progress and the results.

    Nothing is drawn during a measurement: the bar moves when a step begins.

    Args:
        rules: The rules by which the run is judged.
    """

    def __init__(self, rules: Rules) -> None:
        width = None if sys.stdout.isatty() else 200
        self.console = Console(width=width)
        self._rules = rules
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._title = ""
        self._steps = 0

    def begin(self, title: str, steps: int) -> None:
        self._title = title.partition(":")[0]
        self._steps = -1
        if not self.console.is_terminal:
            self.console.print(Text(f"{title} ..."))
            return
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=steps)
        self._progress.start()

    def step(self, what: str) -> None:
        if self._progress is not None:
            self._steps += 1
            self._progress.update(self._task, completed=self._steps, description=f"{self._title}: {what}", refresh=True)

    def end(self, part: str, rows: list[dict[str, Any]]) -> None:
        self._stop()
        if part == "environment":
            self.show(text_tables.environment(rows[0]))
            self.warn(rows[0]["doubts"])
            if any("error" in row for row in rows[0]["backends"]):
                self.show(text_tables.backends(rows[0]))
        elif part == "targets":
            self.show(text_tables.targets(rows, self._rules))
        else:
            self.show(text_tables.workload(rows))

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        """Remove the progress bar in every case."""
        self._stop()

    def show(self, grid: text_tables.Grid) -> None:
        """Print a table."""
        grid = grid.within(self.console.width)
        made = Table(title=Text(grid.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for name in grid.columns:
            made.add_column(
                Text(name.lstrip(">")), justify="right" if name.startswith(">") else "left", overflow="fold"
            )
        for index, row in enumerate(grid.rows):
            style = "bold red" if index in grid.bad else "green" if index in grid.good else ""
            made.add_row(*map(Text, row), style=style)
        self.console.print(made)

    def warn(self, doubts: Sequence[str]) -> None:
        """Show prominently what makes the figures less reliable."""
        if doubts:
            text = Text("\n".join(["These figures are not reliable:", *doubts]))
            self.console.print(Panel(text, title="NOT DURABLE", border_style="bold red", style="red"))

    def conclude(self, report: dict[str, Any], failures: Sequence[Failure]) -> None:
        """Show how the run ended."""
        self.warn(report["doubts"])
        for failure in failures:
            self.console.print(Text(str(failure), style="bold red"))
        unclear = undecided(report, self._rules)
        for line in unclear:
            self.console.print(Text(line, style="yellow"))
        lost = sum(row.get("lost", 0) + row.get("taken_twice", 0) for row in report["workloads"] + report["targets"])
        verdicts = {verdict(row, self._rules) for row in report["targets"]}
        met = ", all targets met" if verdicts == {"pass"} and not failures else ""
        said = f"{'failed' if failures else 'done'} in {report['seconds']:.0f} s: {lost:,} jobs lost{met}"
        self.console.print(Text(said, style="bold red" if failures else "bold green"))

    def told(self, lines: Sequence[str], failures: Sequence[Failure]) -> None:
        """Print lines, and then the failures."""
        self.console.print(Text("\n".join(lines)))
        for failure in failures:
            self.console.print(Text(str(failure), style="bold red"))

    def compared(self, found: Comparison, fail_under: float | None) -> None:
        """Show the changes between two reports, or two builds.

        Args:
            found: The changes.
            fail_under: The lowest allowed ratio; None if nothing is judged.
        """
        if found.differences:
            text = Text("\n".join(["What differs between the two:", *found.differences]))
            self.console.print(Panel(text, border_style="yellow"))
        self.show(text_tables.comparison(found, fail_under))
        for name in found.new:
            self.console.print(Text(f"only in the second: {name}"))
        wrong = found.broken if fail_under is None else found.failures(fail_under)
        for failure in wrong:
            self.console.print(Text(str(failure), style="bold red"))
        if fail_under is None:
            return
        unclear = found.undecided(fail_under)
        for line in unclear:
            self.console.print(Text(line, style="yellow"))
        if wrong:
            return
        judged = sum(change.verdict(fail_under) == "pass" for change in found.changes)
        said = f"{judged} passed, {len(unclear)} undecided, none failed"
        self.console.print(Text(said, style="yellow" if unclear or not judged else "bold green"))
