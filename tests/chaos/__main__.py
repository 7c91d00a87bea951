"""``python -m tests.chaos``; see the package."""

from __future__ import annotations

import signal
import sys

import click
from rich.console import Console
from rich.table import Table

from .failover import run as run_failover
from .run import BACKENDS, Report, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long faults are injected."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Chooses faults, and what clients do.")
@click.option("--backend", multiple=True, metavar="NAME", help="Only clients of this backend; may be given again.")
@click.option("--clients", type=click.IntRange(1), default=2, show_default=True, help="Of each backend.")
@click.option("--fault", multiple=True, metavar="WORD", help="Only faults with this in their name; may be given again.")
@click.option(
    "--failover",
    type=click.Choice(["also", "only", "no"]),
    default="also",
    show_default=True,
    help="A primary that is killed, its synchronous standby promoted, time and again: half as long, after the rest.",
)
def main(
    seconds: float, seed: int, backend: tuple[str, ...], clients: int, fault: tuple[str, ...], failover: str
) -> None:
    """Run clients while everything fails, and prove the outcome of each job. The exit code is 1 if a job is lost."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # mounted disks and started processes are removed
    console = Console()
    chosen = [kind for kind in BACKENDS if not backend or kind[0] in backend] * clients
    if not chosen:
        raise click.BadParameter(f"no clients of {', '.join(backend)}", param_hint="--backend")
    bad = False
    if failover != "only":
        with console.status("") as status:
            report = run(seconds, seed, chosen, status.update, only=fault)
        bad |= show(console, "one server", report, seed)
    if failover != "no":
        with console.status("") as status:
            report = run_failover(seconds / (1 if failover == "only" else 2), seed, chosen, status.update)
        bad |= show(console, "a primary and its standby", report, seed)
    if bad:
        raise SystemExit(1)


def show(console: Console, title: str, report: Report, seed: int) -> bool:
    """Print the result of a run; return whether it has losses."""
    console.rule(title)
    for heading, counts in (
        ("faults injected", report.injected),
        ("what clients were told", report.verdict.counts),
        ("errors that they were given", report.verdict.errors),
    ):
        table = Table(heading, "times")
        for name, number in sorted(counts.items()):
            table.add_row(name, f"{number:,}")
        console.print(table)
    for name, why in sorted(report.missing.items()):
        console.print(f"NOT INJECTED: {name}: {why}", style="bold yellow", markup=False)
    for loss in report.verdict.losses:
        console.print(loss, style="red", markup=False)
    console.print(f"{report.injected.total()} faults, seed {seed}: {len(report.verdict.losses)} losses")
    return bool(report.verdict.losses) or not report.verdict.counts["put ok"]


main()
