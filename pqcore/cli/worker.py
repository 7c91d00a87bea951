"""The command ``pqcore worker``, which runs the jobs of queues."""

from __future__ import annotations

import asyncio
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from pqcore.cli.errors import UsageError
from pqcore.cli.options import duration, size
from pqcore.errors import PQError
from pqcore.instruments import instrument, instrument_names

if TYPE_CHECKING:
    from pqcore.worker import Worker
    from pqcore.worker.health import Address
    from pqcore.worker.supervisor import ParentPipe

logger = logging.getLogger("pqcore.tasks")

LEVELS = ("debug", "info", "warning", "error", "critical")
MARGIN = 10.0
"""Seconds that a supervised worker gets to stop, in addition to the grace period and the time for an answer."""
UNWIND = 1.0
"""Seconds that the remaining coroutines get to end, when they are cancelled after the worker has ended."""


def _instruments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in instrument_names() if name.startswith(incomplete)]


targets_argument = click.argument("targets", nargs=-1, required=True, metavar="MODULE:QUEUE...")
queues_option = click.option(
    "--queues",
    metavar="A,B",
    multiple=True,
    help="The queues of a target that is a PQ; by default, the queues on which tasks are declared.",
)

modules_option = click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Also import this module, which declares tasks; repeatable.",
)


def named_queues(queues: Sequence[str]) -> list[str]:
    """Return the names in the values of ``--queues``."""
    return [name.strip() for each in queues for name in each.split(",") if name.strip()]


def log_to_stderr(level: str) -> None:
    """Write log records to stderr, with the time, the level and the process."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)-8s %(process)d %(name)s: %(message)s", force=False
    )


@click.command()
@targets_argument
@queues_option
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Run at most N jobs concurrently in each process.",
)
@click.option(
    "--processes",
    metavar="P",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of worker processes; if more than 1, another process supervises them.",
)
@click.option(
    "--lease",
    metavar="TIME",
    type=duration,
    default="30s",
    show_default=True,
    help="If a worker dies, its jobs go to other workers after this time.",
)
@click.option(
    "--grace",
    metavar="TIME",
    type=duration,
    default="30s",
    show_default=True,
    help="Time that running jobs get to finish after a stop signal.",
)
@click.option(
    "--poll-interval",
    metavar="TIME",
    type=duration,
    default="2s",
    show_default=True,
    help="Time after which an idle worker looks for jobs, even without a notification.",
)
@click.option(
    "--prefetch",
    metavar="N",
    type=click.IntRange(min=0),
    default=1_000,
    show_default=True,
    help="Fetch at most N jobs ahead from each queue; jobs are fetched ahead only if they run fast.",
)
@click.option(
    "--prefetch-bytes",
    metavar="N",
    type=click.IntRange(min=0),
    default=16 * 2**20,
    show_default=True,
    help="The jobs that are fetched ahead hold at most N bytes of data.",
)
@click.option(
    "--run-in",
    type=click.Choice(["thread", "process"]),
    default="thread",
    show_default=True,
    help="Run plain functions (not coroutine functions) in threads or in processes.",
)
@click.option(
    "--stall-timeout",
    metavar="TIME",
    type=duration,
    default="20s",
    show_default=True,
    help="Close a connection if the server does not answer a statement within this time.",
)
@click.option(
    "--keep-errors",
    type=click.Choice(["all", "type", "none"]),
    default="all",
    show_default=True,
    help="What to store of exceptions; 'type' leaves out messages and tracebacks. A task's own setting overrides this.",
)
@click.option("--burst", is_flag=True, help="Stop when there is nothing to do.")
@click.option(
    "--max-jobs",
    metavar="N",
    type=click.IntRange(min=1),
    help="With --run-in process: replace each process after N jobs.",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    type=size,
    help="With --run-in process: after a job, replace its process if it uses more memory than SIZE, as in 512MB.",
)
@click.option(
    "--health",
    metavar="HOST:PORT",
    help="Answer health checks over HTTP: /live while the event loop runs, /ready while the database answers.",
)
@click.option("--log-jobs", is_flag=True, help="Log one line for each attempt to run a job, whatever --log-level says.")
@modules_option
@click.option(
    "--plugin",
    "instruments",
    metavar="NAME",
    multiple=True,
    shell_complete=_instruments,
    help="Turn on an instrument for metrics, traces or logs, such as prometheus; repeatable.",
)
@click.option("--uvloop", is_flag=True, help="Run on the event loop of uvloop.")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="Log messages of this level and above, to stderr.",
)
@click.option("--supervised", type=int, hidden=True)
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    targets: tuple[str, ...],
    queues: tuple[str, ...],
    processes: int,
    modules: tuple[str, ...],
    instruments: tuple[str, ...],
    uvloop: bool,
    log_level: str,
    supervised: int | None,
    **options: Any,
) -> None:
    """Run the jobs of queues, until stopped.

    A target names a queue in a module, or a PQ or AsyncPQ, or a function that
    returns one of these. For a PQ, the worker runs the queues on which tasks
    are declared, unless --queues names others.
    """
    log_to_stderr(log_level)
    if options["log_jobs"]:
        logging.getLogger("pqcore.worker.jobs").setLevel(logging.INFO)
    if processes > 1 and supervised is None:
        from pqcore.worker.supervisor import Supervisor

        stop = options["stall_timeout"] + MARGIN
        patience = max(options["grace"], options["stall_timeout"]) + stop
        burst = options["burst"]
        command = partial(_again, ctx, _address(options["health"]))
        ctx.exit(Supervisor(command, processes, stop_timeout=patience, stop_now_timeout=stop, burst=burst).run())
    parent_pipe = None
    if supervised is not None:
        from pqcore.worker.supervisor import ParentPipe

        # Made before users' modules are imported, so that the supervisor can stop this process during the imports.
        parent_pipe = ParentPipe(supervised)
    from pqcore.cli.targets import load_queues, look_here
    from pqcore.worker import Worker

    look_here()
    new_loop = _loop_factory(uvloop=uvloop)
    found = load_queues(targets, named_queues(queues), modules)
    for name in instruments:  # after users' modules, which may have turned the instrument on with options
        _enable(name)
    run_worker(Worker(*found, **options), new_loop, parent_pipe)


def run_worker(
    worker: Worker, new_loop: Callable[[], asyncio.AbstractEventLoop], parent_pipe: ParentPipe | None = None
) -> None:
    """Run a worker on a new event loop; unlike `asyncio.run`, do not wait for tasks that never end."""
    loop = new_loop()
    asyncio.set_event_loop(loop)
    try:
        _run_through(loop, loop.create_task(_run(worker, parent_pipe)), worker)
    finally:
        if pending := asyncio.all_tasks(loop):
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.wait(pending, timeout=UNWIND))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def _run_through(loop: asyncio.AbstractEventLoop, running: asyncio.Task[None], worker: Worker) -> None:
    """Run a loop until a worker has ended, even if code in the loop raises an exception that ends event loops.

    While the worker runs, signals raise no exception. So a SystemExit or KeyboardInterrupt that leaves the loop comes
    from a task or callback that a job started. The code that awaits this task gets the exception, too.
    """
    while True:
        try:
            loop.run_until_complete(running)
        except (KeyboardInterrupt, SystemExit):
            if running.done() or not worker.running:
                raise
            logger.exception("the code of a job raised an error that ends event loops; the worker continues")
        else:
            return


async def _run(worker: Worker, parent_pipe: ParentPipe | None) -> None:
    if parent_pipe is None:
        await worker.run(handle_signals=True)
        return
    worker.interrupts_handled = True
    loop = asyncio.get_running_loop()
    running = loop.create_task(worker.run())
    await asyncio.sleep(0)  # the worker has started, and can be stopped
    told = 0

    def stop(level: int) -> None:
        nonlocal told
        for _ in range(told, level):
            worker.stop()
        told = max(told, level)

    def tell(level: int) -> None:
        loop.call_soon_threadsafe(stop, level)

    parent_pipe.attach(tell)
    await running


def _loop_factory(*, uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    if not uvloop:
        return asyncio.new_event_loop
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        raise UsageError("--uvloop needs uvloop: pip install uvloop") from None
    return factory


def _enable(name: str) -> None:
    """Turn an instrument on, unless the user's module has done so."""
    try:
        instrument(name)
    except PQError as exc:
        raise UsageError(f"--plugin {name}: {exc}") from exc
    except Exception as exc:
        raise UsageError(f"--plugin {name}: {type(exc).__name__}: {exc}") from exc


def _address(health: str | None) -> Address | None:
    from pqcore.worker.health import Address

    return None if health is None else Address.of(health)


def _again(ctx: click.Context, health: Address | None, number: int) -> Sequence[str]:
    """Return the command that runs this worker again, as a single process.

    Args:
        ctx: The context of this command.
        health: The address at which the first process answers health checks; each further process uses the next port.
        number: The number of the process, from 1.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    command = [sys.executable, *flags, "-m", "pqcore", "worker", *ctx.params["targets"]]
    for parameter in ctx.command.params:
        value: Any = ctx.params.get(parameter.name or "")
        if not isinstance(parameter, click.Option) or parameter.hidden or parameter.name == "processes":
            continue
        if parameter.name == "health" and health is not None and health.port:
            value = health._replace(port=health.port + number - 1)
        option = parameter.opts[0]
        if parameter.is_flag:
            command += [option] if value else []
        elif value is not None:
            command += [f"{option}={each}" for each in (value if parameter.multiple else [value])]
    return command


COMMANDS = (worker,)
