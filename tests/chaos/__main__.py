"""``python -m tests.chaos``; see the package."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from .run import BACKENDS, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long faults are injected."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses faults, and what clients do.")
@click.option("--backend", multiple=True, metavar="NAME", help="Only clients of this backend; may be given again.")
@click.option("--clients", type=click.IntRange(1), default=2, show_default=True, help="Of each backend.")
def main(seconds: float, seed: int, backend: tuple[str, ...], clients: int) -> None:
    """Have clients put and take while everything fails, and prove what became of each job. Exit code 1 for a loss."""
    console = Console()
    chosen = [kind for kind in BACKENDS if not backend or kind[0] in backend] * clients
    with console.status("") as status:
        verdict, injected = run(seconds, seed, chosen, told=status.update)
    for title, counts in (("faults injected", injected), ("what clients were told", verdict.counts)):
        table = Table(title, "times")
        for name, number in sorted(counts.items()):
            table.add_row(name, f"{number:,}")
        console.print(table)
    for loss in verdict.losses:
        console.print(loss, style="red", markup=False)
    console.print(f"{injected.total()} faults, seed {seed}: {len(verdict.losses)} losses")
    if verdict.losses or not verdict.counts["put ok"]:
        raise SystemExit(1)


main()
