"""The outcomes of cells: kept in one file each, so that a long matrix can be run in pieces, and shown as one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import Missing, run
from .servers import ROOT

if TYPE_CHECKING:
    from .cells import Cell

FOLDER = ROOT / "reports" / "matrix"
HEAD = ("cell", "what", "server", "Python", "psycopg2, psycopg, asyncpg", "passed", "failed", "not offered", "run")

INTRODUCTION = """# Where the conformance suite was run

`python -m tests.matrix --markdown docs/matrix.md` writes this page, and keeps the rows of cells that it did not run;
[the conformance suite](conformance.md#servers-drivers-and-pythons) explains it. *Queues* runs the modules about queues;
*all* also runs those about tasks and workers; *short* runs a few modules of both; *one_client*, *behind_proxy* and
*promotion* are modules of `tests/matrix/`. *Not offered* counts tests that were not run, because they need an ability
that the backend, or the connection to the server, lacks. Times are UTC, followed by the commit; a plus means that files
differed from it. A later run with the same or more modules and drivers replaces a row.
"""


PARTS = ("all", "queues", "short")
_FAILED = "## Failed"
_NOT_OFFERED = "## Not offered"


@dataclass
class Outcome:
    """The outcome of a cell.

    Attributes:
        cell: The name of the cell.
        part: The modules of the suite that were run: ``all``, ``queues`` or ``short``.
        backends: The tested backends; empty for all.
        at: The beginning of the run, in UTC.
        revision: The revision of the project.
        server, python, drivers: Versions.
        passed, failed, skipped: The numbers of tests.
        seconds: The duration of the run.
        failures: Names of the tests that failed.
        reasons: Why tests were skipped, with their numbers.
        missing: Why the cell was not run.
    """

    cell: str
    part: str
    backends: tuple[str, ...]
    at: str
    revision: str
    server: str = ""
    python: str = ""
    drivers: list[str] = field(default_factory=list)
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: int = 0
    failures: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    missing: str = ""

    @property
    def good(self) -> bool:
        """Whether it was run, and nothing failed."""
        return not self.missing and not self.failed and self.passed > 0

    @property
    def key(self) -> str:
        """What its files are called."""
        return key(self.cell, self.part, self.backends)

    def what(self, module: str) -> str:
        """What was run: a module of its own, or else modules of the suite."""
        return f"{module or self.part}, {', '.join(self.backends) or 'each backend'}"

    def supersedes(self, older: Outcome) -> bool:
        """Whether it is a later run of the same cell, with the same or more modules and backends."""
        modules = self.part in (older.part, "all")
        backends = not self.backends or (bool(older.backends) and set(self.backends) >= set(older.backends))
        return self.cell == older.cell and self.at > older.at and not self.missing and modules and backends

    def keep(self) -> None:
        """Write it, over the last one of its kind."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{self.key}.json").write_text(json.dumps(asdict(self), indent=2) + "\n")


def key(cell: str, part: str, backends: Sequence[str]) -> str:
    """Return the name of an outcome's files."""
    return "-".join([*cell.split(), part, *backends])


def now() -> str:
    """Return the time in its kept form."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")


def revision() -> str:
    """The commit that is tested; with a plus, if files differ from it."""
    try:
        commit = run("git", "rev-parse", "--short", "HEAD", folder=ROOT).strip()
        changed = run("git", "status", "--porcelain", "--untracked-files=no", folder=ROOT).strip()
    except Missing:  # not a clone
        return ""
    return commit + ("+" if changed else "")


def kept() -> dict[str, Outcome]:
    """Return the kept outcomes, by `key`."""
    found = {}
    for file in sorted(FOLDER.glob("*.json")):
        if file.name.endswith(".report.json"):
            continue
        values = json.loads(file.read_text())
        outcome = Outcome(**{**values, "backends": tuple(values["backends"])})
        found[outcome.key] = outcome
    return found


def rows(cells: Iterable[Cell], outcomes: Iterable[Outcome]) -> list[tuple[str, ...]]:
    """Return the table, in the order of the cells; a cell that was not run has the reason."""
    by_cell: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_cell.setdefault(outcome.cell, []).append(outcome)
    table = []
    for cell in cells:
        ran = by_cell.get(cell.name, [])
        told = [one for one in ran if not one.missing]
        if not told:
            why = ran[-1].missing if ran else "not yet"
            table.append((cell.name, f"not run: {why}", *[""] * (len(HEAD) - 2)))
        for one in told:
            counts = (str(one.passed), str(one.failed), str(one.skipped))
            drivers = ", ".join(one.drivers)
            table.append(
                (cell.name, one.what(cell.module), one.server, one.python, drivers, *counts, f"{one.at} {one.revision}")
            )
    return table


def markdown(cells: Iterable[Cell], outcomes: Sequence[Outcome]) -> str:
    """Return the table as a document, with failed and skipped tests."""
    lines = [
        INTRODUCTION,
        "| " + " | ".join(HEAD) + " |",
        "| --- " * len(HEAD) + "|",
        *("| " + " | ".join(row) + " |" for row in rows(cells, outcomes)),
    ]
    modules = {cell.name: cell.module for cell in cells}
    names = [(one, f"{one.cell} ({one.what(modules[one.cell])})") for one in outcomes if one.cell in modules]
    failed = [f"- {name}: `{test}`" for one, name in names for test in one.failures]
    if failed:
        lines += ["", _FAILED, "", *failed]
    reasons: dict[str, list[str]] = {}
    for one, name in names:
        for reason, number in one.reasons.items():
            reasons.setdefault(reason.removeprefix("not offered: "), []).append(f"  - {name}: {number}")
    if reasons:
        lines += ["", _NOT_OFFERED, ""]
        for reason, where in reasons.items():
            lines += [f"- {reason}", *where]
    return "\n".join(lines) + "\n"


def written(page: Path) -> dict[str, Outcome]:
    """Return the outcomes that a page of `markdown` shows, by `key`: those of other machines, or of other days."""
    found: dict[str, Outcome] = {}
    names: dict[str, Outcome] = {}
    section = reason = ""
    for line in page.read_text("utf-8").splitlines() if page.exists() else ():
        values = [value.strip() for value in line.strip("| ").split(" | ")]
        if len(values) == len(HEAD) and values[-3].isdigit():
            one = _of_row(values)
            found[one.key] = names[f"{one.cell} ({values[1]})"] = one
        elif line.startswith("## "):
            section = line
        elif section == _NOT_OFFERED and line.startswith("- "):
            reason = line[2:]
        elif match := re.fullmatch(r" *- (.*\)): (.*)", line):
            name, told = match.groups()
            if section == _FAILED:
                names[name].failures.append(told.strip("`"))
            elif section == _NOT_OFFERED:
                names[name].reasons[reason] = int(told)
    return found


def _of_row(values: Sequence[str]) -> Outcome:
    cell, what, server, python, drivers, passed, failed, skipped, ran = values
    part, _, backends = what.partition(", ")
    return Outcome(
        cell,
        part if part in PARTS else "all",
        () if backends == "each backend" else tuple(backends.split(", ")),
        ran[: len("2026-01-01 00:00")],
        ran[len("2026-01-01 00:00 ") :],
        server,
        python,
        drivers.split(", "),
        int(passed),
        int(failed),
        int(skipped),
    )


def newest(*sources: dict[str, Outcome]) -> dict[str, Outcome]:
    """Return the newest outcome of each key, without those that a wider run supersedes.

    An outcome that was run comes before one that was missing.
    """
    found: dict[str, Outcome] = {}
    for source in sources:
        for name, one in source.items():
            other = found.get(name)
            if other is None or (not one.missing, one.at) >= (not other.missing, other.at):
                found[name] = one
    return {name: one for name, one in found.items() if not any(other.supersedes(one) for other in found.values())}
