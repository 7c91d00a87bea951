"""The proof: conditions that hold if every job was done exactly once, in SQL over the tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pqcore.demo.display import Sheet
from pqcore.demo.files import sha256

# Each query returns the expected number, and the actual number.
CHECKS = {
    "jobs put: different ids": "SELECT %(jobs)s, count(DISTINCT job_id) FROM demo_put",
    "jobs in the queue's table": "SELECT %(jobs)s, count(*) FROM queue JOIN demo_put ON job_id = id",
    "results": "SELECT %(jobs)s, count(*) FROM demo_results",
    "results: different job ids": "SELECT %(jobs)s, count(DISTINCT job_id) FROM demo_results",
    "jobs without a result": """
        SELECT 0, count(*) FROM demo_put WHERE job_id NOT IN (SELECT job_id FROM demo_results)""",
    "jobs done twice": """
        SELECT 0, count(*) FROM (SELECT FROM demo_results GROUP BY job_id HAVING count(*) > 1) AS twice""",
    "results of jobs that were not put": """
        SELECT 0, count(*) FROM demo_results WHERE job_id NOT IN (SELECT job_id FROM demo_put)""",
    "results with the same hash when computed again": """
        SELECT %(jobs)s, count(*) FROM demo_results
        JOIN demo_put USING (job_id, path) JOIN demo_files USING (path, sha256)""",
    "jobs left in the queue": "SELECT 0, count(*) FROM queue WHERE dequeued_at IS NULL",
    "orders with their job": """
        SELECT (SELECT count(*) FROM demo_put WHERE ordered), count(*)
        FROM demo_orders JOIN queue ON job_id = id""",
    "orders without a job": """
        SELECT 0, count(*) FROM demo_orders WHERE job_id NOT IN (SELECT id FROM queue)""",
    "orders rolled back": "SELECT %(undone)s, count(DISTINCT job_id) FROM demo_undone",
    "what is left of those": """
        SELECT 0, (SELECT count(*) FROM queue JOIN demo_undone ON job_id = id)
          + (SELECT count(*) FROM demo_orders JOIN demo_undone USING (job_id))
          + (SELECT count(*) FROM demo_results JOIN demo_undone USING (job_id))""",
    "workers killed holding a job": "SELECT %(killed)s, count(DISTINCT worker) FROM demo_held",
    "those jobs: done once, by another": """
        SELECT %(killed)s, count(*) FROM demo_held JOIN demo_results AS result USING (job_id)
        WHERE result.worker <> demo_held.worker""",
}

HELD = """
SELECT demo_held.job_id, demo_held.worker, coalesce(string_agg(result.worker, ', '), 'nobody')
FROM demo_held LEFT JOIN demo_results AS result USING (job_id)
GROUP BY demo_held.job_id, demo_held.worker ORDER BY demo_held.job_id
"""

BY_DRIVER = """
SELECT result.driver,
  (SELECT count(*) FROM demo_put WHERE driver = result.driver),
  count(*),
  count(*) FILTER (WHERE demo_put.driver <> result.driver),
  count(DISTINCT worker),
  round(count(*) / (SELECT extract(epoch FROM max(done_at) - min(done_at)) FROM demo_results))::int
FROM demo_results AS result LEFT JOIN demo_put USING (job_id)
GROUP BY result.driver ORDER BY result.driver
"""


def hash_anew(directory: Path, paths: Iterable[str]) -> list[tuple[str, str]]:
    """Hash each file again."""
    return [(path, sha256(directory / path)) for path in sorted(set(paths))]


def check_all(connection: Any, jobs: int, undone: int, killed: int) -> tuple[list[Sheet], bool]:
    """Run all checks.

    Args:
        connection: A psycopg connection whose search path has the tables.
        jobs: The expected number of moved jobs.
        undone: The number of orders that were rolled back.
        killed: The expected number of killed workers.

    Returns:
        The results, and whether all of them are as expected.
    """
    expected = {"jobs": jobs, "undone": undone, "killed": killed}
    rows: list[tuple[str, int, int, str]] = []
    for name, sql in CHECKS.items():
        must, found = connection.execute(sql, expected).fetchone()
        rows.append((name, int(must), int(found), "yes" if must == found else "NO"))
    by_driver = ("driver", "put", "done", "of these put by another driver", "workers", "done/s")
    sheets = [
        Sheet("By driver", by_driver, connection.execute(BY_DRIVER).fetchall()),
        Sheet("Killed with a job in hand", ("job", "killed", "done by"), connection.execute(HELD).fetchall()),
        Sheet("Exactly once?", ("what", "must be", "is", "holds"), rows),
    ]
    return sheets, all(holds == "yes" for *_, holds in rows)
