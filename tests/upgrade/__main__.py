"""``python -m tests.upgrade``; see the package."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pqcore_backends.embedded import EmbeddedServer

from .processes import revision, unpack
from .run import Report, Upgrade, from_older, from_pq

COMMIT = "a8d5c0c"
"""The build from which the upgrade goes, of schema version 6."""
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", type=click.IntRange(1000), default=200_000, show_default=True, help="Rows of the table.")
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=5.0, show_default=True, help="Length of each phase, at least."
)
@click.option("--most", type=click.FloatRange(0), default=2.0, show_default=True, help="Seconds that no call may take.")
@click.option("--commit", default=COMMIT, show_default=True, help="The older build; its commit is in this clone.")
@click.option("--start", type=click.Choice(["both", "older", "pq"]), default="both", show_default=True)
@click.option("--dsn", help="A server, as a superuser; by default an embedded one with its usual durability.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(rows: int, seconds: float, most: float, commit: str, start: str, dsn: str | None, file: Path | None) -> None:
    """Upgrade a large table that is in use, and go back. The exit code is 1 if a job was lost or a program waited.

    The table has ROWS rows: of a thousand, 960 are finished, 20 wait, 10 are scheduled, 6 are leased and 4 are dead
    letters. In a table of pq's, which has neither leases nor dead letters, these wait.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(log_path=False)
    reports = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upgrade-")))
        if dsn is None:
            dsn = stack.enter_context(EmbeddedServer(settings=SETTINGS)).dsn()
        scripts = []
        if start != "pq":
            (folder / "older").mkdir()
            old = unpack(commit, folder / "older")
            scripts.append((f"from {old.name}", from_older(old), False))
        if start != "older":
            scripts.append(("from pq 1.9.1", from_pq, True))
        for title, script, of_pq in scripts:
            (logs := folder / title).mkdir()
            upgrade = Upgrade(title, dsn, logs, rows, seconds, most, console.log)
            reports.append(upgrade.run(script, of_pq=of_pq))
            show(console, reports[-1], rows)
    if file is not None:
        about = {"rows": rows, "seconds": seconds, "at": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}"}
        about |= {"commit": revision(), "cores": os.cpu_count() or 0, "load": os.getloadavg()[1]}
        file.write_text(json.dumps({**about, "reports": [asdict(report) for report in reports]}, indent=1), "utf-8")
    if any(report.wrong for report in reports):
        raise SystemExit(1)


def show(console: Console, report: Report, rows: int) -> None:
    """Print a report."""
    facts = report.facts
    size = facts["bytes"] / 1e6
    title = f"{report.title}: {rows:,} rows, {size:,.0f} MB, PostgreSQL {facts['server']}; longest waits in seconds"
    table = Table("phase", "s", "puts", "takes", "put", "take", "delivery", "with keys", title=title)
    for each in report.waits:
        length = each.phase.ended - each.phase.began
        longest = (f"{wait:.3f}" for wait in (each.put, each.take, each.delivery, each.keyed))
        table.add_row(each.phase.name, f"{length:.1f}", f"{each.puts:,}", f"{each.takes:,}", *longest)
    console.print(table)
    for name, length in report.steps.items():
        console.print(f"{name}: {length} s")
    console.print(f"jobs that ran more than once: {report.again}")
    console.print(f"outcomes that workers stored again, because a row was locked: {report.locked}")
    for number, wrong in enumerate(report.wrong):
        if number == 20:
            console.print(f"and {len(report.wrong) - number} more", style="red")
            break
        console.print(wrong, style="red", markup=False, highlight=False)
    console.print(f"{len(report.wrong)} faults")


main()
