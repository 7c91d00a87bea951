"""The page of the matrix, from which the rows of other machines and days are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matrix.cells import Cell
from matrix.outcomes import Outcome, markdown, newest, written

CELLS = (Cell("postgres 13"), Cell("pgpool", module="behind_proxy"), Cell("container"))
RAN = Outcome(
    "postgres 13",
    "queues",
    ("psycopg", "asyncpg"),
    "2026-11-28 05:27",
    "66a408f+",
    "PostgreSQL 13.23 behind PgBouncer 1.18.0, session mode",
    "3.11.7",
    ["2.9.13", "3.3.9", "0.32.0"],
    passed=10,
    failed=2,
    skipped=3,
    failures=["test_basics::test_put[psycopg-a: `b`]", "test_order::test_get[asyncpg-async]"],
    reasons={"LISTEN: a pooler is in between, or another": 2, "SESSIONS": 1},
)


def test_page_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = replace(RAN, part="all", backends=(), failures=["test_worker::test_run"], reasons={"SESSIONS": 3})
    proxy = replace(RAN, cell="pgpool", part="all", backends=(), failed=0, failures=[], reasons={}, skipped=0)
    page = tmp_path / "matrix.md"
    assert written(page) == {}
    page.write_text(markdown(CELLS, [RAN, whole, proxy]), "utf-8")
    assert written(page) == {one.key: one for one in (RAN, whole, proxy)}
    assert markdown(CELLS, list(written(page).values())) == page.read_text("utf-8")


def test_newest_outcome_of_a_cell_is_kept_unless_it_was_not_run() -> None:
    later = replace(RAN, at="2026-11-28 05:28", failed=0)
    missing = replace(RAN, at="2026-11-29 00:00", missing="no server")
    for sources in ((RAN, later), (later, RAN), (later, missing), (missing, later)):
        assert newest(*({one.key: one} for one in sources)) == {RAN.key: later}


def test_outcome_that_a_later_and_wider_run_supersedes_is_not_shown() -> None:
    later = replace(RAN, at="2026-11-28 05:28")
    wider = [
        replace(later, part="all"),
        replace(later, backends=("asyncpg", "psycopg", "psycopg2")),
        replace(later, part="all", backends=()),
    ]
    for one in wider:
        assert newest({RAN.key: RAN}, {one.key: one}) == {one.key: one}
    for one in (
        *(replace(each, at=RAN.at) for each in wider),  # not later
        *(replace(each, cell="postgres 14") for each in wider),
        *(replace(each, missing="no server") for each in wider),
        replace(later, part="short"),
        replace(later, backends=("psycopg",)),
        replace(later, part="all", backends=("psycopg2",)),
    ):
        assert newest({RAN.key: RAN}, {one.key: one}) == {RAN.key: RAN, one.key: one}
