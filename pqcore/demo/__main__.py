"""The entry point of ``python -m pqcore.demo``; see the package."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pqcore import PQ, AsyncPQ, PQError
from pqcore.demo.display import PlainBoard, Tally
from pqcore.demo.files import choose_files
from pqcore.demo.messages import DemoError
from pqcore.demo.proof import check_all, hash_anew
from pqcore.demo.run import DRIVERS, Plan, Run
from pqcore.demo.tables import demo_schema, write_books
from pqcore.demo.worker_processes import WorkerProcesses

LEAST = 100
"""The smallest number of jobs: with fewer, a worker that will be killed might find no job to hold."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Args:
        arguments: The arguments of the command line; None for those of this process.

    Returns:
        The exit code: 0 if every job was done exactly once; 1 if not, or after an error; 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all context managers exit
    try:
        return 0 if demonstrate(options.jobs, options.directory, options.dsn, options.seed, options.picture) else 1
    except (DemoError, PQError, OSError) as error:
        print(f"the demonstration failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def demonstrate(jobs: int, directory: Path | None, dsn: str | None, seed: int, picture: Path | None = None) -> bool:
    """Move jobs, and show whether each was done exactly once.

    Args:
        jobs: The number of jobs.
        directory: See `choose_files`.
        dsn: The database; None for an embedded server.
        seed: See `choose_files`.
        picture: A file for a picture of the output.

    Returns:
        Whether every job was done exactly once.

    Raises:
        DemoError: A worker failed, no message came for too long, or there are no files.
        PQError: A driver or the embedded server is missing, or the server did not start.
    """
    began = time.monotonic()
    directory, paths = choose_files(directory, jobs, seed)
    _require_drivers()
    board = _open_board(Tally(jobs, DRIVERS), painted=picture is not None)
    with ExitStack() as stack:
        if dsn is None:
            dsn = _start_server(stack, board)
        connection, schema = stack.enter_context(demo_schema(dsn))
        board.note(f"{jobs} jobs: hash files of {directory}")
        with board.live(), WorkerProcesses() as processes:
            books = Run(processes, Plan(dsn, schema, directory, paths), board).perform()
        books.files = hash_anew(directory, paths)
        write_books(connection, books)
        sheets, proven = check_all(connection, jobs, len(books.undone), len(DRIVERS))
    for sheet in sheets:
        board.show(sheet)
    verdict = "Every job was done exactly once" if proven else "NOT PROVEN: see what does not hold"
    board.note(f"\n{verdict}; {time.monotonic() - began:.1f} seconds in all.")
    if picture is not None:
        board.paint(picture)
    return proven


def _open_board(tally: Tally, *, painted: bool = False) -> PlainBoard:
    """Return a live board if rich is installed, and the output is a terminal or a picture; otherwise, a plain board."""
    if importlib.util.find_spec("rich") is None:
        if painted:
            raise DemoError("--picture needs rich: pip install 'pqcore[demo]'")
    elif painted or sys.stdout.isatty():
        from pqcore.demo.live_display import LiveBoard  # this module needs rich

        return LiveBoard(tally, painted=painted)
    return PlainBoard(tally)


def _start_server(stack: ExitStack, board: PlainBoard) -> str:
    from pqcore_backends.embedded import EmbeddedServer

    server = stack.enter_context(EmbeddedServer())
    board.note(f"an embedded PostgreSQL {server.version} runs on port {server.port}")
    return server.dsn()


def _require_drivers() -> None:
    """Fail here, with advice, if a driver is missing; no connection is open yet."""
    for driver in DRIVERS:
        (AsyncPQ if driver == "asyncpg" else PQ)("postgresql:///", backend=driver)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pqcore.demo",
        description="Move jobs through a queue over three drivers, kill workers, and prove that each was done once.",
    )
    parser.add_argument("--jobs", type=_number, default=3000, metavar="N", help=f"at least {LEAST}; default: 3000")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="files to hash; default: Python's own library")
    parser.add_argument("--dsn", help="your own server; default: an embedded one. A schema is made and dropped")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write what was shown as SVG")
    parser.add_argument("--seed", type=int, default=0, help="chooses the files; default: 0")
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < LEAST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {LEAST}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
