"""The statements of concurrency limits and FIFO groups that are composed.

`limit_statements.sql` has those that are run as they are written.  Places under a limit, and turns in a group, are
given and given up under an advisory lock of the key (`lock_keys`), which is held to the end of the transaction.  The
statements that follow it in the transaction have newer snapshots (READ COMMITTED), so they see what the last holder of
the lock did.
"""

from __future__ import annotations

from pqcore.sql.fragments import HELD_ONES, OF_QUEUE, ORDER
from pqcore.sql.statement_set import StatementSet, composed, from_file

_IN = "statement_timestamp() + :{}::float8 * interval '1 second'"
# Of the rows that are held, those that nobody has locked.
_FREE_ONES = f" WHERE id = ANY (ARRAY(SELECT id FROM {{table}}{HELD_ONES} FOR UPDATE SKIP LOCKED)) AND {OF_QUEUE}"
# The number of excuses is given, not computed: whether the admission took effect may be unknown.
_AS_BEFORE = (
    "excused = (SELECT given.excused"
    " FROM unnest(:ids::bigint[], :excuses::int[]) AS given (job, excused) WHERE given.job = id)"
)


class LimitStatements(StatementSet):
    """The statements of limits and groups."""

    file = "limit_statements.sql"

    lock_keys = from_file()
    try_keys = from_file()

    @composed()
    def count_slots(self) -> str:
        """Count the places that are taken under each key, and tell whether a job is parked. The keys are locked."""
        return (
            "SELECT gate.key, (SELECT count(*) FROM {slots} WHERE q_name = :q_name::text AND key = gate.key),"
            " (SELECT id FROM {table} WHERE q_name = :q_name::text AND parked_on = gate.key"
            f" ORDER BY {ORDER} LIMIT 1) IS NOT NULL"
            " FROM unnest(:keys::text[]) AS gate (key)"
        )

    slots_of = from_file()
    group_heads = from_file()
    take_slots = from_file(rows=False)

    @composed()
    def admit(self) -> str:
        """Give admitted jobs their whole lease.

        The fetch has excused the attempt, and leased the job for a short time only.  A row that somebody has locked is
        skipped (SKIP LOCKED), so that no admission waits: it is tried again, or comes when that lease has run out.
        """
        return (
            f"UPDATE {{table}} SET leased_until = {_IN.format('lease')}, excused = excused - 1,"
            f" dedup_key = CASE WHEN id = ANY (:started::bigint[]) THEN NULL ELSE dedup_key END{_FREE_ONES}"
            " RETURNING id"
        )

    @composed()
    def park(self) -> str:
        """Park jobs: lease them without an end, to nobody. No fetch finds them; locked rows are skipped."""
        return f"UPDATE {{table}} SET leased_until = 'infinity', parked_on = :key::text{_FREE_ONES} RETURNING id"

    @composed()
    def postpone(self) -> str:
        """Lease jobs for a delay, after which they are fetched again. Locked rows are skipped, as by `admit`."""
        return f"UPDATE {{table}} SET leased_until = {_IN.format('delay')}{_FREE_ONES} RETURNING id"

    @composed()
    def put_back(self) -> str:
        """Give up leases as if the jobs had not been fetched; see `LEASE_HELD`."""
        return (
            f"UPDATE {{table}} SET leased_until = NULL, {_AS_BEFORE}{HELD_ONES}"
            " RETURNING id, pg_notify(:channel::text, '')::text"
        )

    @composed(rows=False)
    def put_back_later(self) -> str:
        """Put jobs back for later. Wakes nobody: fetches find them when the time is up, as leases that ran out."""
        return f"UPDATE {{table}} SET leased_until = {_IN.format('delay')}, {_AS_BEFORE}{HELD_ONES}"

    free_slots = from_file(rows=False)
    free_places = from_file(rows=False)

    @composed()
    def unpark(self) -> str:
        """Let parked jobs in under a key, as far as it has places. The key is locked.

        The places are given to these jobs here: a newer job cannot slip in.
        """
        return f"""
WITH next AS (
  SELECT id FROM {{table}} WHERE q_name = :q_name::text AND parked_on = :key::text
  ORDER BY {ORDER} LIMIT (SELECT greatest(:places::int - count(*), 0) FROM {{slots}}
    WHERE q_name = :q_name::text AND key = :key::text)
  FOR UPDATE SKIP LOCKED
), freed AS (
  UPDATE {{table}} SET leased_until = NULL, parked_on = NULL
  WHERE id = ANY (ARRAY(SELECT id FROM next)) AND {OF_QUEUE} RETURNING *
), kept AS (
  INSERT INTO {{slots}} (q_name, key, job_id) SELECT :q_name::text, :key::text, id FROM freed ON CONFLICT DO NOTHING
)
SELECT id, headers::text, (
    SELECT count(*) FROM {{slots}} WHERE q_name = :q_name::text AND key = :key::text
  ) AS used, pg_notify(:channel::text, '')::text
FROM freed ORDER BY {ORDER}"""

    park_again = from_file(rows=False)
    unpark_head = from_file()
    sweep_slots = from_file(rows=False)
    slots_of_parked = from_file()

    @composed()
    def parked_keys(self) -> str:
        """Give the keys on which jobs are parked, each with the headers of its next job. Reads only.

        It skips from key to key through the index, however many jobs wait on each.
        """
        return f"""
WITH RECURSIVE found AS (
  SELECT min(parked_on) AS parked_on FROM {{table}} WHERE q_name = :q_name::text AND parked_on IS NOT NULL
  UNION ALL
  SELECT (SELECT min(parked_on) FROM {{table}} WHERE q_name = :q_name::text AND parked_on > found.parked_on)
  FROM found WHERE found.parked_on IS NOT NULL
)
SELECT parked_on, (SELECT headers::text FROM {{table}} WHERE q_name = :q_name::text AND parked_on = found.parked_on
  ORDER BY {ORDER} LIMIT 1)
FROM found WHERE parked_on IS NOT NULL"""
