"""The live board, drawn by rich; this module is imported only if rich is installed."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pqcore.demo.display import PlainBoard, Sheet, Tally


class LiveBoard(PlainBoard):
    """A table that changes, with notes above it."""

    def __init__(self, tally: Tally, *, painted: bool = False) -> None:
        super().__init__(tally)
        self._console = Console()
        # A second console records the printed lines. This console records the table only once, not at each change.
        self._canvas = Console(record=True, file=io.StringIO(), width=96) if painted else None
        self._caught = False
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=8)

    def live(self) -> Live:
        return self._live

    def note(self, text: str) -> None:
        """Report an event."""
        self._print(text, style="red" if text.startswith("killed") else "")

    def refresh(self) -> None:
        """Record the table for the picture when half of the jobs are done; rich itself refreshes the terminal."""
        if self._canvas is not None and not self._caught and self.tally.done.total() * 2 >= self.tally.jobs:
            self._caught = True
            self._canvas.print(self._draw())

    def paint(self, file: Path) -> None:
        """Write a picture of the output, as SVG."""
        if self._canvas is not None:
            svg = self._canvas.export_svg(title="make demo")
            file.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))  # would load remote fonts

    def _print(self, shown: RenderableType, style: str = "") -> None:
        for console in (self._console, self._canvas):
            if console is not None:
                console.print(shown, style=style, highlight=False)

    def show(self, sheet: Sheet) -> None:
        """Show a table."""
        table = Table(title=sheet.title, title_justify="left", title_style="bold")
        for place, column in enumerate(sheet.columns):
            numbers = any(isinstance(row[place], int) for row in sheet.rows)
            table.add_column(column, justify="right" if numbers else "left")
        for *cells, last in sheet.rows:
            style = {"yes": "green", "NO": "bold red"}.get(str(last), "")
            table.add_row(*map(str, cells), Text(str(last), style))
        self._print(table)

    def _draw(self) -> Group:
        tally = self.tally
        table = Table("driver", box=None, padding=(0, 2, 0, 0))
        for column in ("put", "done", "done/s", "workers", "killed"):
            table.add_column(column, justify="right")
        for driver in tally.drivers:
            counts = (tally.put[driver], tally.done[driver], round(tally.rate(driver)), tally.alive[driver])
            table.add_row(driver, *map(str, counts), str(tally.killed[driver] or ""))
        bar = Table.grid(padding=(0, 2, 0, 0))
        done = tally.done.total()
        label = f"{done:>{len(str(tally.jobs))}} of {tally.jobs} done" if tally.began else "workers connect"
        bar.add_row(ProgressBar(total=tally.jobs, completed=done, width=46), f"{label}  {tally.rate():5.0f}/s")
        return Group(table, bar)
