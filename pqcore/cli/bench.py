"""The command ``pqcore bench``: benchmarks on this machine, over any installed backend."""

from __future__ import annotations

import importlib
from typing import Any

import click
from click.shell_completion import CompletionItem

from pqcore.cli.errors import CommandFailed, Undecided, UsageError
from pqcore.cli.options import duration
from pqcore.plugins import plugins


def _backends(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in plugins.backend_names() if name.startswith(incomplete)]


def _numbers(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[int, ...]:
    try:
        numbers = tuple(int(number) for part in given for number in part.split(","))
    except ValueError:
        numbers = (0,)
    if not all(number > 0 for number in numbers):
        msg = f"{','.join(given)!r}: give numbers, as in 2,8"
        raise click.BadParameter(msg)
    return numbers


@click.command()
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    shell_complete=_backends,
    help="Measure only these backends, in all their modes; repeatable.",
)
@click.option(
    "--scenario", "scenarios", metavar="NAME", multiple=True, help="Run only these scenarios, which --list shows."
)
@click.option(
    "--list", "listing", is_flag=True, help="Show scenarios, backends and their targets, and measure nothing."
)
@click.option("--quick", "scale", flag_value="quick", help="Run for about two minutes.")
@click.option("--full", "scale", flag_value="full", help="Run for hours, with more rounds and larger tables.")
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(min=1),
    help="How many times each backend runs each workload.",
)
@click.option(
    "--concurrency",
    metavar="N,M",
    multiple=True,
    callback=_numbers,
    help="Also run the simple workloads with these numbers of threads or tasks, such as 2,8.",
)
@click.option(
    "--processes",
    metavar="N,M",
    multiple=True,
    callback=_numbers,
    help="Also run the simple workloads with these numbers of processes, such as 2,8.",
)
@click.option("--soak", metavar="TIME", type=duration, help="How long the scenario 'soak' lasts, as in 90s or 1h.")
@click.option(
    "--dsn",
    envvar="PQCORE_BENCH_DSN",
    show_envvar=True,
    metavar="URL",
    help="The server to measure on; by default, an embedded server with durable commits.",
)
@click.option(
    "--targets/--no-targets",
    "judged",
    default=None,
    help="Fail if a target is missed (--targets), or only show the ratios (--no-targets). "
    "The default is --targets; with --quick, --no-targets.",
)
@click.option(
    "--fail-under",
    metavar="RATIO",
    type=click.FloatRange(min=0),
    help="Fail if pqcore's speed divided by a bare loop's speed is below RATIO. With --compare or --against, divide by "
    "the older build's speed instead.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="Write all figures to FILE, as JSON.",
)
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="Write a page with charts to FILE.",
)
@click.option(
    "--markdown",
    "markdown_path",
    metavar="PATH",
    type=click.Path(exists=True, writable=True),
    help="Put tables and charts between the marks in a document, or in all documents of a folder. "
    "A mark looks like <!-- measured: targets -->.",
)
@click.option(
    "--compare",
    nargs=2,
    metavar="OLD NEW",
    type=click.Path(exists=True, dir_okay=False),
    help="Compare two files that --json wrote, and measure nothing.",
)
@click.option(
    "--against",
    metavar="BUILD",
    type=click.Path(exists=True),
    help="Compare with another build, side by side: a Python interpreter, a virtual environment or a checkout.",
)
def bench(**options: Any) -> None:
    """Measure puts, gets, leases and workers.

    The backends take turns with bare loops, which use the driver without pqcore.
    """
    try:
        command = importlib.import_module("pqcore.benchmarks.command")
    except ImportError as exc:
        if exc.name is not None and exc.name.startswith("pqcore."):
            raise UsageError(f"the benchmarks are not installed: {exc}") from exc
        raise UsageError(f"the benchmarks need {exc.name}: pip install 'pqcore[bench]'") from exc
    outcome = command.main(**options)
    if outcome.failures:
        raise CommandFailed(command.named(outcome.failures))
    if outcome.undecided:
        raise Undecided(f"{len(outcome.undecided)} of {outcome.judged} targets undecided, none missed")


COMMANDS = (bench,)
