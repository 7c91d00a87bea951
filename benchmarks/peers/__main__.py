"""`python -m benchmarks.peers`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from pqcore.errors import PQError

from ..environment import server
from ..update_docs import fill
from .environments import VARIABLE, cache_folder
from .measuring import Plan, run, trouble
from .runner import CONCURRENT, WORKLOADS
from .systems import OURS, PEERS, Contender
from .table import blocks, ratios, render


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write; return the exit status.

    1 if a job was lost or taken twice, 2 if nothing was measured.
    """
    keys = [workload.key for workload in WORKLOADS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Compare pqcore with its peers, on the same server, in alternation.",
    )
    parser.add_argument("--dsn", help="a server, on which databases are made and dropped (default: an embedded one)")
    parser.add_argument("--rounds", type=int, help="how often each workload is measured (default: 3, or 1 if quick)")
    parser.add_argument("--quick", action="store_true", help="measure less of everything, in under a minute")
    parser.add_argument("--only", action="append", metavar="NAME", help="systems whose name contains NAME, and pqcore")
    parser.add_argument(
        "--workload",
        action="append",
        choices=[*keys, "concurrent"],
        help="only this workload (may be repeated); 'concurrent' means all with concurrent callers",
    )
    parser.add_argument(
        "--dead", type=int, metavar="N", help="jobs to take before a workload under an old snapshot (default: 2,000)"
    )
    parser.add_argument("--how", action="store_true", help="say what each system does for each workload")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the report, with all rounds")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="PATH",
        help="put the report between the marks in a document, or in all documents of a folder",
    )
    parser.add_argument("--show", type=Path, metavar="PATH", help="print such a report again, and measure nothing")
    parser.add_argument(
        "--cache",
        type=Path,
        default=cache_folder(),
        help=f"the folder of the environments (default: %(default)s; {VARIABLE})",
    )
    options = parser.parse_args(arguments)
    if options.show is not None:
        report = json.loads(options.show.read_text(encoding="utf-8"))
        _write(report, options)
        return 0
    plan = Plan(rounds=1, seconds=0.15, samples=6, dead=500, limit=45) if options.quick else Plan()
    if options.rounds is not None:
        plan = replace(plan, rounds=max(1, options.rounds), limit=None)
    if options.dead is not None:
        plan = replace(plan, dead=max(0, options.dead))
    chosen = [key for name in options.workload or keys for key in (CONCURRENT if name == "concurrent" else (name,))]
    plan = replace(plan, workloads=tuple(dict.fromkeys(chosen)))
    peers = [peer for peer in PEERS if _is_wanted(peer, options.only) and not (options.quick and peer.slow)]
    try:
        with server(options.dsn) as (dsn, _):
            report = asyncio.run(run(dsn, [*OURS, *peers], plan, options.cache, _say))
    except (PQError, psycopg.Error) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    report["ratios"] = ratios(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    _write(report, options)
    return 1 if trouble(report) else 0


def _write(report: dict[str, Any], options: argparse.Namespace) -> None:
    print(render(report, how=options.how))
    if options.markdown is not None:
        fill(options.markdown, blocks(report))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _is_wanted(peer: Contender, names: Sequence[str] | None) -> bool:
    return not names or any(name.lower() in peer.title.lower() for name in names)


if __name__ == "__main__":
    sys.exit(main())
