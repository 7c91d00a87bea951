"""``python -m tests.matrix``; see the package."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from .cells import CELLS, Outcome


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", multiple=True, metavar="TEXT", help="Cells whose name begins so, as in 'postgres'; may be given again."
)
@click.option("--quick", is_flag=True, help="Only the modules of the suite about queues, not those about workers.")
@click.option("--backend", multiple=True, metavar="NAME", help="Only this backend; may be given again.")
@click.option("--list", "listed", is_flag=True, help="Show the cells, and run nothing.")
def main(only: tuple[str, ...], quick: bool, backend: tuple[str, ...], listed: bool) -> None:
    """Run the conformance suite over servers, poolers, drivers and Pythons; one table.

    What this machine has not got is said to be missing. Exit code 1 if anything failed, or nothing ran.
    """
    console = Console()
    cells = [cell for cell in CELLS if not only or any(cell.name.startswith(text) for text in only)]
    if listed:
        for cell in cells:
            console.print(cell.name)
        return
    options = tuple(f"--pqcore-backend={name}" for name in backend)
    table = Table("", *(("passed", "failed", "skipped", "seconds")), "", title="conformance")
    outcomes: list[Outcome] = []
    for cell in cells:
        with console.status(cell.name):
            outcome = cell.run(quick=quick, options=options)
        outcomes.append(outcome)
        remark = outcome.missing or ", ".join(outcome.failures[:5])
        counts = (outcome.passed, outcome.failed, outcome.skipped, round(outcome.seconds))
        table.add_row(cell.name, *("" if outcome.missing else str(count) for count in counts), remark)
        console.print(f"{cell.name}: {outcome.missing or f'{outcome.passed} passed, {outcome.failed} failed'}")
    console.print(table)
    ran = [outcome for outcome in outcomes if not outcome.missing]
    if not ran or any(outcome.failed for outcome in ran):
        raise SystemExit(1)


main()
