"""The content of a report as tables of text, which the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .compare import Comparison
from .verdicts import Rules, below_floor, first_line, noise_of, verdict, wanted

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: The title above the table.
        columns: The names of the columns; those of numbers begin with ``>``.
        rows: The rows of texts.
        bad: The numbers of the rows that report a problem.
        good: The numbers of the rows that report success.
        spare: The names of columns that may be left out for lack of room, the least important first.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    bad: set[int] = field(default_factory=set)
    good: set[int] = field(default_factory=set)
    spare: tuple[str, ...] = ()

    def within(self, width: int) -> Grid:
        """Return the table within a number of characters, as far as possible."""
        spare = [*self.spare]
        kept = [*range(len(self.columns))]
        while spare and sum(max(len(row[n]) for row in [self.columns, *self.rows]) + 3 for n in kept) >= width:
            name = spare.pop(0)
            kept = [n for n in kept if self.columns[n] != name]
        columns = tuple(self.columns[n] for n in kept)
        return Grid(self.title, columns, [tuple(row[n] for n in kept) for row in self.rows], self.bad, self.good)


def number(value: float) -> str:
    """Return a number for people."""
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def backends(report: Row) -> Grid:
    """Return the table of backends, with the reasons why some were not measured."""
    grid = Grid("backends", ("backend", "mode", ""), [])
    for row in report["backends"]:
        if "error" in row:
            grid.bad.add(len(grid.rows))
        grid.rows.append((row["label"], row["mode"], f"failed: {first_line(row)}" if "error" in row else "measured"))
    return grid


def targets(rows: Sequence[Row], rules: Rules) -> Grid:
    """Return the comparison with bare loops and with pgbench."""
    columns = (
        *("operation", "backend", ">pqcore", ">bare loop", ">ratio", ">95 %", ">target", ">CPU", ">at most"),
        *(">round trips", ">of bare loop", ">of pgbench", ">floor", "machine", "verdict", "bare loop is"),
    )
    spare = ("bare loop is", ">95 %", ">floor", ">of bare loop", ">at most", ">target", "machine")
    grid = Grid("pqcore compared with its drivers in bare loops, and with pgbench", columns, [], spare=spare)
    for row in rows:
        said = verdict(row, rules)
        if said in ("failed", "FALLS SHORT"):
            grid.bad.add(len(grid.rows))
        elif said == "pass":
            grid.good.add(len(grid.rows))
        if "error" in row:
            grid.rows.append((row["operation"], row["backend"], *[""] * 12, said, first_line(row)))
            continue
        ratio = row.get("ratio")
        share = row.get("of_pgbench")
        grid.rows.append(
            (
                row["operation"],
                row["backend"],
                f"{number(row['pqcore']['median'])}/s",
                f"{number(row['bare']['median'])}/s" if ratio else "",
                f"{ratio['median']:.3f}" if ratio else "",
                f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else "",
                f"{wanted(row, rules):g}" if ratio else "",
                f"{row['cpu_ratio']['median']:.2f}" if "cpu_ratio" in row else "",
                f"{row['cpu_bound']:g}" if "cpu_ratio" in row else "",
                f"{row['wire']['round_trips']:.2g}" if "wire" in row else "",
                f"{row['bare_wire']['round_trips']:.2g}" if "bare_wire" in row else "",
                "" if share is None else f"{share:.2f}",
                f"{row['floor']:g}",
                "" if "machine" not in row else "busy" if noise_of(row) else "quiet",
                f"{said}: below the floor" if below_floor(row, rules) else said,
                row["how"] if ratio else "the backend names none",
            )
        )
    return grid


def workload(rows: Sequence[Row]) -> Grid:
    """Return the table of one workload."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("metrics", {})))
    beside = any("of_pgbench" in row for row in rows)
    variants = any(row["variant"] for row in rows)
    columns = ["backend"]
    columns += ["variant"] if variants else []
    spread = any(figure["rounds"] > 1 for row in rows for figure in row.get("metrics", {}).values())
    for name in names:
        columns += [f">{'median' if name == 'rate' else name}", *([">least to most"] if spread else [])]
    columns += [">of pgbench"] if beside else []
    columns += [">WAL B/op", ">commits/op", ">dead rows/op", ">lost"]
    spare = (">dead rows/op", ">commits/op", ">WAL B/op", ">least to most", ">of pgbench")
    grid = Grid(f"{rows[0]['scenario']}: {rows[0]['title']}" if rows else "", tuple(columns), [], spare=spare)
    for row in rows:
        cells = [row["backend"], *([row["variant"]] if variants else [])]
        if "metrics" not in row:
            grid.bad.add(len(grid.rows))
            grid.rows.append((*cells, first_line(row), *[""] * (len(columns) - len(cells) - 1)))
            continue
        for name in names:
            figure = row["metrics"][name]
            unit = figure["unit"] if figure["unit"].startswith("/") else f" {figure['unit'].partition(' at ')[0]}"
            cells += [f"{number(figure['median'])}{'' if '/ ' in unit else unit}"]
            cells += [f"{number(figure['least'])} to {number(figure['most'])}"] if spread else []
        if beside:
            cells.append(f"{row['of_pgbench']['median']:.2f}" if "of_pgbench" in row else "")
        per = row["per_operation"]
        cells += [number(per["wal_bytes"]), f"{per['commits']:.2f}", f"{per['dead_rows']:.2f}"]
        cells.append(str(row["lost"] + row["taken_twice"]))
        if row["lost"] or row["taken_twice"] or "error" in row:
            grid.bad.add(len(grid.rows))
        grid.rows.append(tuple(cells))
    return grid


def by_scenario(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each workload."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["scenario"], []).append(row)
    return found


def environment(report: Row) -> Grid:
    """Return the table of the environment."""
    found = report["environment"]
    server = found["server"]
    where = ", on ".join(filter(None, (server["origin"], server["file_system"])))
    rows: list[tuple[str, ...]] = [
        ("pqcore", f"{found['pqcore']}{', commit ' + found['commit'] if found['commit'] else ''}"),
        ("Python", f"{found['python']} on {found['platform']}"),
        ("machine", f"{found['cpus']} CPUs, {found['processor']}, load {', '.join(map(str, found['load']))}"),
        ("drivers", ", ".join(f"{name} {version}" for name, version in found["drivers"].items())),
        (
            "PostgreSQL",
            f"{server['version']} ({where})",
        ),
        ("settings", ", ".join(f"{name}={value}" for name, value in server["settings"].items())),
        ("scale", f"{report['scale']}, {report['started']}"),
    ]
    return Grid("environment", ("", ""), rows)


def comparison(found: Comparison, fail_under: float | None = None) -> Grid:
    """Return the changes between two reports, or two builds."""
    columns = (
        *("scenario", "variant", "backend", "metric", ">before", ">after"),
        *(">times as good", ">95 %", ">rounds", "beside", ""),
    )
    grid = Grid("what changed", columns, [], spare=(">before", ">after", "beside", ">rounds"))
    for change in found.changes:
        said = change.verdict(fail_under) if fail_under is not None else change.kind
        if said in ("worse", "FALLS SHORT"):
            grid.bad.add(len(grid.rows))
        elif said == "better":
            grid.good.add(len(grid.rows))
        grid.rows.append(
            (
                change.scenario,
                change.variant,
                change.backend,
                f"{change.metric} ({change.unit})",
                number(change.before),
                number(change.after),
                f"{change.ratio:.3f}",
                f"{change.low:.2f} to {change.high:.2f}",
                str(change.rounds),
                change.yardstick,
                said,
            )
        )
    return grid
