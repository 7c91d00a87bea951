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
    help="Only these; each with all of its modes.",
)
@click.option("--scenario", "scenarios", metavar="NAME", multiple=True, help="Only these; see --list.")
@click.option(
    "--list", "listing", is_flag=True, help="Show scenarios, backends and their targets, and measure nothing."
)
@click.option("--quick", "scale", flag_value="quick", help="In about two minutes.")
@click.option("--full", "scale", flag_value="full", help="With more rounds and larger tables; takes hours.")
@click.option("--rounds", metavar="N", type=click.IntRange(min=1), help="Turns of each contender in each workload.")
@click.option(
    "--concurrency",
    metavar="N,M",
    multiple=True,
    callback=_numbers,
    help="Have simple workloads done by so many threads or tasks too.",
)
@click.option("--processes", metavar="N,M", multiple=True, callback=_numbers, help="Likewise, by so many processes.")
@click.option("--soak", metavar="TIME", type=duration, help="Let the soak take so long: 3600, or 1h.")
@click.option(
    "--dsn",
    envvar="PQCORE_BENCH_DSN",
    show_envvar=True,
    metavar="URL",
    help="A server; without it an embedded, durable one.",
)
@click.option(
    "--targets/--no-targets",
    "judged",
    default=None,
    help="Whether to fail where a target is missed, as by default but with --quick, or to show the ratios only.",
)
@click.option(
    "--fail-under",
    metavar="RATIO",
    type=click.FloatRange(min=0),
    help="Fail where a ratio to a bare loop, or with --compare or --against to what was before, is below this.",
)
@click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(dir_okay=False, writable=True), help="Write all figures."
)
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="Write a page with charts.",
)
@click.option(
    "--markdown",
    "markdown_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, writable=True),
    help="Put tables and charts between the marks of a document: <!-- measured: targets -->.",
)
@click.option(
    "--compare",
    nargs=2,
    metavar="OLD NEW",
    type=click.Path(exists=True, dir_okay=False),
    help="Compare two files of --json, and measure nothing.",
)
@click.option(
    "--against",
    metavar="BUILD",
    type=click.Path(exists=True),
    help="Compare with another build, side by side: a Python interpreter, a virtual environment or a checkout.",
)
def bench(**options: Any) -> None:
    """Measure puts, gets, leases and workers.

    All backends are measured in alternation, next to bare loops.
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
