"""``python -m tests.matrix``; see the package."""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .cells import CELLS, SHORT_CELLS, Cell
from .outcomes import HEAD, kept, key, markdown, newest, rows, written

SHOWN = (0, 1, 5, 6, 7)
"""The columns that a terminal has room for."""


def cells() -> tuple[Cell, ...]:
    """All that there are."""
    if util.find_spec("tests.matrix.settings") is None:
        return CELLS
    more: tuple[Cell, ...] = import_module("tests.matrix.settings").SETTINGS
    return (*CELLS, *more)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", multiple=True, metavar="TEXT", help="Cells whose name begins so, as in 'postgres'; may be given again."
)
@click.option("--quick", is_flag=True, help="Only the modules of the suite about queues, not those about workers.")
@click.option("--short", is_flag=True, help="Only a few cells, modules and backends.")
@click.option("--backend", multiple=True, metavar="NAME", help="Only this backend; may be given again.")
@click.option("--again", is_flag=True, help="Run cells that were run before, too, and passed.")
@click.option("--list", "listed", is_flag=True, help="Show what was run and what was not, and run nothing.")
@click.option(
    "--markdown", "document", type=click.Path(dir_okay=False, path_type=Path), help="Write the table into this file."
)
def main(
    only: tuple[str, ...],
    quick: bool,
    short: bool,
    backend: tuple[str, ...],
    again: bool,
    listed: bool,
    document: Path | None,
) -> None:
    """Run the conformance suite over servers, poolers, drivers and Pythons; one table.

    The result of each cell is kept in reports/matrix. A cell that has passed is not run again without an option, so the
    matrix can be run in pieces. What this machine has not got is said to be missing. The exit code is 1 if a requested
    cell failed, or if none of them was ever run.
    """
    console = Console()
    every = cells()
    chosen = [cell for cell in every if not only or any(cell.name.startswith(text) for text in only)]
    if short and not only:
        chosen = [cell for cell in chosen if cell.name in SHORT_CELLS]
    part = "short" if short else "queues" if quick else "all"
    outcomes = kept()
    for cell in () if listed else chosen:
        backends = backend or ((SHORT_CELLS[cell.name],) if short and cell.name in SHORT_CELLS else ())
        name = key(cell.name, part, backends)
        if not again and name in outcomes and outcomes[name].good:
            console.print(f"{cell.name}: passed before, on {outcomes[name].at}")
            continue
        with console.status(cell.name):
            outcome = cell.run(part, backends)
        outcome.keep()
        outcomes[name] = outcome
        console.print(f"{cell.name}: {outcome.missing or f'{outcome.passed} passed, {outcome.failed} failed'}")
    table = Table(*(HEAD[place] for place in SHOWN), title="conformance")
    for row in rows(chosen, outcomes.values()):
        table.add_row(*(row[place] for place in SHOWN))
    console.print(table)
    if document is not None:
        document.write_text(markdown(every, list(newest(written(document), outcomes).values())), "utf-8")
    names = {cell.name for cell in chosen}
    ran = [outcome for outcome in outcomes.values() if outcome.cell in names and not outcome.missing]
    if not listed and (not ran or any(outcome.failed for outcome in ran)):
        raise SystemExit(1)


main()
