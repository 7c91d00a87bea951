"""The live board, drawn by rich; imported only where rich is."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pqcore.demo.board import PlainBoard, Sheet, Tally


class LiveBoard(PlainBoard):
    """A table that changes, with notes above it."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self._console = Console()
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=8)

    def live(self) -> Live:
        return self._live

    def note(self, text: str) -> None:
        """Say that something happened."""
        self._console.print(text, style="red" if text.startswith("killed") else "", highlight=False)

    def refresh(self) -> None:
        """Do nothing: rich draws by its own clock."""

    def show(self, sheet: Sheet) -> None:
        """Show a table."""
        table = Table(title=sheet.title, title_justify="left", title_style="bold")
        for place, column in enumerate(sheet.columns):
            numbers = any(isinstance(row[place], int) for row in sheet.rows)
            table.add_column(column, justify="right" if numbers else "left")
        for row in sheet.rows:
            style = {"yes": "green", "NO": "bold red"}.get(str(row[-1]), "")
            table.add_row(*map(str, row[:-1]), Text(str(row[-1]), style))
        self._console.print(table)

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
