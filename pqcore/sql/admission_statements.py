"""The statements of admission: which jobs may run under limits, in groups and within rates, and in which shares.

A job that names keys, a share or a priority is put as a *waiting* job, on its lane (`pqcore.lanes`). A statement that
leases plain jobs does not see waiting jobs. `take_lanes` finds the jobs that may run, leases them, and records them
under their keys:

* A take locks rows of ``{keys}`` with SKIP LOCKED, so no session waits for a key, whatever another transaction does.
  Statements that put or end jobs do not lock these rows.
* The column ``running`` of such a row names the jobs that were admitted last. A take reads from each job's own row
  whether the job still runs. So a place is free as soon as the end of its job is committed, however the job ended.
* Each write makes a new ``version``. A take locks a key only if the newest version is the one in the statement's
  snapshot. If another take has admitted a job meanwhile, the key is skipped. So the snapshot shows the key's jobs
  correctly, except for jobs that ended since. These jobs still count. This is safe: the take may admit too few jobs,
  but never too many.
* The newest version comes first in the index, so takes do not read old versions, which a long-lived snapshot keeps. The
  UPDATE finds a locked row by its ``ctid`` alone: with a condition on the queue, it would read old versions from the
  index.
"""

from __future__ import annotations

from pqcore.rows import JOB
from pqcore.sql.fragments import (
    DUE_AT,
    HELD_UNTIL_STARTED,
    IS_FREE,
    IS_GATED,
    LEASED,
    OF_QUEUE,
    ORDER,
    QUEUE_DEFERRED,
    QUEUE_URGENT,
    READY_NOW,
    READY_ORDER,
    STILL_WAITS,
    UNFINISHED,
    UNNAMED,
    URGENT_ORDER,
    VISIBLE_AT,
    WAITING_UNTIL,
)
from pqcore.sql.rewrite import replace
from pqcore.sql.statement_set import StatementSet, composed, from_file

MOST_LANES = 100
"""The largest number of existing lanes, and of lanes with new jobs, that one statement finds."""
PLAIN_SHARE = 1
"""The number of the share for jobs that name no share, which includes jobs without a lane."""
ADOPT = 1_000
"""The largest number of rows whose lanes one statement writes."""

_COLUMNS = "id, expected_at, schedule_at, enqueued_at"
_NEEDS = "SELECT * FROM json_to_recordset(:needs::text::json) AS needs (place int, key text, number int, newest bigint)"
# This query reads the state of each key from the newest version of its row. Rules override values from puts.
_STATE = """
  SELECT wanted.key, row.version, row.running, row.reserved,
    CASE WHEN wanted.newest > row.newest OR row.places IS NULL THEN wanted.number ELSE row.places END AS put_places,
    greatest(wanted.newest, row.newest) AS newest,
    (SELECT number::int FROM {rules} WHERE q_name = :q_name::text AND kind = 'limit' AND name = wanted.key) AS ruled,
    (SELECT true FROM {rules} WHERE q_name = :q_name::text AND kind = 'pause' AND name = wanted.key
      AND (until IS NULL OR until > statement_timestamp())) AS paused,
    rated.rate, least(rated.number, coalesce(
      row.tokens + rated.rate * extract(epoch FROM statement_timestamp() - row.refilled_at)::float8, rated.number
    )) AS tokens
  FROM (SELECT DISTINCT ON (key) key, number, newest FROM needs ORDER BY key, newest DESC) AS wanted
  LEFT JOIN LATERAL (
    SELECT * FROM {keys} WHERE q_name = :q_name::text AND key = wanted.key ORDER BY version DESC LIMIT 1
  ) AS row ON true
  LEFT JOIN LATERAL (
    SELECT number, number / period AS rate FROM {rules}
    WHERE q_name = :q_name::text AND kind = 'rate' AND name = wanted.key LIMIT 1
  ) AS rated ON true"""
# The jobs that were admitted under a key and still run. The query looks up each job in the primary key's index, which
# has entries for few versions of a job's row.
_ALIVE = """
    SELECT array_agg(job.id) AS ids FROM unnest(state.running) AS admitted (id)
    CROSS JOIN LATERAL (
      SELECT id FROM {table} WHERE id = admitted.id AND q_name = :q_name::text
        AND num_nulls(dequeued_at) = 1 AND num_nulls(parked_on) = 1 AND num_nulls(leased_until) = 0 LIMIT 1
    ) AS job"""
# Jobs that the same statement ends: the statement's snapshot still shows their rows, so they are excluded here.
_BUT_ENDED = " AND id <> ALL (ARRAY(SELECT id FROM ended))"
# A statement that ends jobs may lease `times` jobs for each place that the worker has under a key. One of these jobs
# runs, and the others wait in the worker. So the jobs that the worker leased ahead (`own`) do not take a place each.
_FREE = "coalesce(state.ruled, state.put_places, 2147483647) - coalesce(cardinality(alive.ids), 0)"
_OWN = """
  CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM unnest(alive.ids) AS id WHERE id = ANY (ARRAY(SELECT id FROM own))
  ) AS mine"""
_OWN_JOBS = f"""own AS MATERIALIZED (
  SELECT job.id FROM unnest(:own::bigint[], :own_tokens::int[]) AS given (id, token) CROSS JOIN LATERAL (
    SELECT id FROM {{table}} WHERE id = given.id AND {OF_QUEUE} AND attempts = given.token LIMIT 1
  ) AS job
)"""
# A reserved key is only for the lane of the job that reserved it, while that job waits.
_RESERVED = """
    SELECT parked_on AS lane FROM {table} WHERE id = state.reserved AND q_name = :q_name::text
      AND num_nulls(dequeued_at) = 1 AND num_nulls(parked_on) = 0 LIMIT 1"""
_ROOM = f"""
  SELECT state.*, coalesce(alive.ids, '{{{{}}}}') AS alive_ids, holder.lane AS reserved_for,
    CASE WHEN state.paused THEN 0 ELSE least({_FREE}, floor(state.tokens)) END AS free
  FROM state CROSS JOIN LATERAL ({_ALIVE}
  ) AS alive LEFT JOIN LATERAL ({_RESERVED}
  ) AS holder ON true"""
_KEYS = f"""needs AS MATERIALIZED ({_NEEDS}
), state AS MATERIALIZED ({_STATE}
), room AS MATERIALIZED ({_ROOM}
)"""
# A key whose newest version is in the snapshot, and which no other session has locked.
_LOCKED = f"""
  SELECT mine.ctid, mine.key FROM room CROSS JOIN LATERAL (
    SELECT ctid, key FROM {{keys}} WHERE {OF_QUEUE} AND key = room.key AND version = room.version
    FOR UPDATE SKIP LOCKED
  ) AS mine"""
_NO_JOB = (
    "NULL::bigint, NULL::text, NULL::bytea, NULL::text, NULL::int, NULL::timestamp, NULL::timestamp,"
    " NULL::timestamp, NULL::text, NULL::bigint"
)


def _lane_rows(n: int, but: str = "") -> str:
    """Return a query of the first rows of a lane that has free places; for a group, only of its first job."""
    head = f"SELECT {_COLUMNS} FROM {{table}} WHERE {OF_QUEUE} AND parked_on = wanted.lane AND {STILL_WAITS}"
    most = "LIMIT least(wanted.quota, has.free) + :spare::int"
    begun = "wanted.group_key IS NULL AND wanted.after IS NOT NULL"
    bound = "string_to_array(wanted.after, ' ')"
    return f"""
    (SELECT * FROM ({head} ORDER BY {ORDER} LIMIT {n}) AS first
     WHERE wanted.group_key IS NULL AND wanted.after IS NULL {most})
    UNION ALL
    (SELECT * FROM ({head} AND expected_at IS NOT NULL ORDER BY {ORDER} LIMIT {n}) AS first WHERE {begun} {most})
    UNION ALL
    (SELECT * FROM ({head} AND expected_at IS NULL
        AND ({DUE_AT}, id) > (({bound})[1]::timestamptz, ({bound})[2]::bigint)
      ORDER BY {ORDER} LIMIT {n}) AS first WHERE {begun} {most})
    UNION ALL
    (SELECT {_COLUMNS} FROM (
       SELECT {_COLUMNS}, parked_on, leased_until FROM {{table}}
       WHERE {OF_QUEUE} AND group_key = wanted.group_key AND dequeued_at IS NULL{but}
         AND id >= coalesce(({bound})[2]::bigint, 0)
       ORDER BY id LIMIT 1
     ) AS head WHERE wanted.group_key IS NOT NULL AND parked_on = wanted.lane
       AND {IS_FREE})"""


def take_lanes_template(n: int, plain: str) -> str:
    """Return the template of the statement that leases up to ``n`` jobs of some lanes, together with plain jobs.

    Parameters: ``wanted`` has the lanes, in JSON; ``needs`` has the keys of each lane. ``shares`` has the virtual time
    and the weight of each share. ``spare`` is how many additional rows of a lane to look at, because the first rows may
    be locked.

    The last row describes the take. In this row, ``place`` is -2 if other sessions have locked all jobs that could be
    leased, and otherwise -1. If plain jobs are due, the value is -4 or -3 instead. This row also has the seconds until
    a rate has a token, and, in JSON, the keys without a row; if there are such keys, no job is leased.

    Args:
        n: The largest number of rows.
        plain: The statement that returns the due plain jobs, without locking them.
    """
    return f"""
WITH wanted AS MATERIALIZED (
  SELECT * FROM json_to_recordset(:wanted::text::json) AS wanted (
    place int, lane text, group_key text, share int, priority int, quota int, after text)
), shares AS MATERIALIZED (
  SELECT * FROM json_to_recordset(:shares::text::json) AS shares (share int, start float8, weight float8)
), {_KEYS}, has AS MATERIALIZED (
  SELECT place, min(CASE WHEN room.reserved_for <> wanted.lane THEN 0 ELSE coalesce(room.free, {n}) END) AS free
  FROM wanted LEFT JOIN needs USING (place) LEFT JOIN room USING (key) GROUP BY place
), heads AS MATERIALIZED (
  SELECT wanted.place, wanted.share, wanted.priority, head.*
  FROM wanted JOIN has USING (place) CROSS JOIN LATERAL ({_lane_rows(n)}
  ) AS head WHERE has.free > 0
), plain AS (
  SELECT 0 AS place, {PLAIN_SHARE} AS share, 0 AS priority, due.* FROM ({plain}
  ) AS due
), turns AS MATERIALIZED (
  SELECT job.*, shares.start + (row_number() OVER (PARTITION BY share ORDER BY priority DESC, {ORDER}) - 1)
    / shares.weight AS turn
  FROM (SELECT * FROM heads UNION ALL SELECT * FROM plain) AS job JOIN shares USING (share)
), numbered AS MATERIALIZED (
  SELECT turns.id, needs.key, count(*) OVER (PARTITION BY turns.id) AS keys,
    row_number() OVER (PARTITION BY needs.key ORDER BY turn, priority DESC, {ORDER}) AS number
  FROM turns JOIN needs USING (place)
), judged AS MATERIALIZED (
  SELECT id, key, keys, number, free, bool_or(number > free + :spare::int) OVER (PARTITION BY id) AS unfit
  FROM numbered JOIN room USING (key)
), second AS (
  SELECT id FROM (
    SELECT id, keys, free, unfit, count(*) FILTER (WHERE NOT unfit) OVER (PARTITION BY key) AS fit,
      row_number() OVER (PARTITION BY key, unfit, keys ORDER BY number) AS further
    FROM judged
  ) AS alone WHERE unfit AND keys = 1 AND fit + further <= free
), chosen AS MATERIALIZED (
  SELECT *, row_number() OVER (ORDER BY turn, priority DESC, {ORDER}) AS rank FROM turns
  WHERE id NOT IN (SELECT id FROM judged WHERE unfit) OR id IN (SELECT id FROM second) ORDER BY rank LIMIT {n + 20}
), asked AS MATERIALIZED (
  SELECT DISTINCT needs.key FROM needs JOIN chosen USING (place) WHERE rank <= {n} + :spare::int
), missing AS MATERIALIZED (
  SELECT key FROM room WHERE version IS NULL AND key IN (SELECT key FROM asked)
), locked AS MATERIALIZED ({_LOCKED}
  WHERE room.key IN (SELECT key FROM asked) AND NOT EXISTS (SELECT FROM missing)
), allowed AS MATERIALIZED (
  SELECT * FROM chosen WHERE NOT EXISTS (SELECT FROM missing) AND place NOT IN (
    SELECT place FROM needs WHERE key NOT IN (SELECT key FROM locked)
  ) ORDER BY rank
), held AS MATERIALIZED (
  SELECT allowed.* FROM allowed CROSS JOIN LATERAL (
    SELECT FROM {{table}} WHERE id = allowed.id AND {OF_QUEUE} AND dequeued_at IS NULL
      AND {IS_FREE} AND {DUE_AT} <= statement_timestamp()
      AND (allowed.place = 0) = (parked_on IS NULL)
    FOR UPDATE SKIP LOCKED
  ) AS free LIMIT {n} + :spare::int
), picked AS MATERIALIZED (
  SELECT place, id FROM held WHERE id NOT IN (
    SELECT id FROM (
      SELECT held.id, needs.key, row_number() OVER (PARTITION BY needs.key ORDER BY rank) AS number
      FROM held JOIN needs USING (place)
    ) AS each JOIN room USING (key) WHERE each.number > room.free
  ) ORDER BY rank LIMIT {n}
), admitted AS MATERIALIZED (
  SELECT needs.key, array_agg(picked.id) AS ids FROM picked JOIN needs USING (place) GROUP BY needs.key
), written AS (
  UPDATE {{keys}} AS kept SET (version, places, newest, running, tokens, refilled_at, admitted_at, reserved) = (
    SELECT kept.version + 1, room.put_places, room.newest, room.alive_ids || admitted.ids,
      room.tokens - cardinality(admitted.ids), statement_timestamp(), statement_timestamp(),
      CASE WHEN room.reserved_for IS NOT NULL THEN room.reserved END
    FROM admitted JOIN room USING (key) WHERE admitted.key = kept.key
  ) WHERE kept.ctid = ANY (ARRAY(SELECT locked.ctid FROM locked JOIN admitted USING (key)))
), leased AS (
  UPDATE {{table}} SET {LEASED}, dedup_key = CASE WHEN {HELD_UNTIL_STARTED} THEN NULL ELSE dedup_key END
  WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE} RETURNING {JOB}
)
SELECT leased.*, picked.place, NULL::float8, NULL::text FROM leased JOIN picked ON picked.id = leased.id
UNION ALL
SELECT {_NO_JOB}, CASE WHEN EXISTS (SELECT FROM chosen) AND NOT EXISTS (SELECT FROM picked) THEN -2 ELSE -1 END
    - CASE WHEN EXISTS (SELECT FROM plain) THEN 2 ELSE 0 END,
  (SELECT min((1 - tokens) / rate)::float8 FROM room WHERE tokens < 1), (SELECT json_agg(key)::text FROM missing)"""


def end_and_take_template(n: int, plain: str, ended: str) -> str:
    """Return the template of the statement that ends jobs, and leases other jobs as `take_lanes_template` does.

    The statement also returns a row for each ended job, with the id, the token, and ``place`` -5. It notifies
    waiting consumers if fewer jobs were leased than have ended, because then places are free.

    Each key in ``needs`` has a number, ``times``. If ``times`` is above 1, the statement leases this number of jobs for
    each place that other consumers leave free. ``own`` and ``own_tokens`` are the ids and tokens of the jobs that this
    worker leased in this way before. A row with ``place`` -7 has, in JSON, a number for each such key: how many of the
    worker's earlier and new jobs under the key may run concurrently. Takes of other consumers count a place for each of
    these jobs. So while there are more of these jobs than the limit has places, other consumers get no place, and the
    number in the row with ``place`` -7 stays right. If the key has a rate, the statement leases one job for each place.
    Only one lane may have a key with ``times`` above 1.

    Args:
        n: The largest number of rows to lease.
        plain: The statement for plain jobs; see `take_lanes_template`.
        ended: CTEs, of which the last, ``ended``, has the ids and tokens of the ended jobs.
    """
    take = take_lanes_template(n, plain)
    take = replace(take, _ALIVE, replace(_ALIVE, " LIMIT 1", f"{_BUT_ENDED} LIMIT 1"))
    take = replace(take, _lane_rows(n), _lane_rows(n, _BUT_ENDED))
    take = replace(take, "\nWITH wanted AS", f"\nWITH {ended}, {_OWN_JOBS}, wanted AS")
    take = replace(take, "newest bigint)", "newest bigint, times int)")
    take = replace(take, "(key) key, number, newest FROM", "(key) key, number, newest, times FROM")
    each = "CASE WHEN rated.rate IS NULL THEN wanted.times ELSE 1 END AS times"
    take = replace(take, "SELECT wanted.key, row.version", f"SELECT wanted.key, {each}, row.version")
    take = replace(take, f"least({_FREE},", f"least(({_FREE} + mine.number)::float8 * state.times - mine.number,")
    take = replace(take, ") END AS free\n", f") END AS free, {_FREE} + mine.number AS usable\n")
    take = replace(take, ") AS alive LEFT JOIN", f") AS alive{_OWN} LEFT JOIN")
    told = (
        "CASE WHEN (SELECT count(*) FROM ended) > (SELECT count(*) FROM picked)"
        " THEN pg_notify(:channel::text, '')::text END"
    )
    return f"""{take}
UNION ALL
SELECT id, NULL, NULL, NULL, attempts, NULL, NULL, NULL, NULL, NULL, -5, NULL, NULL FROM ended
UNION ALL
SELECT {_NO_JOB}, -6, NULL, {told}
UNION ALL
SELECT {_NO_JOB}, -7, NULL,
  (SELECT json_object_agg(key, CASE WHEN paused THEN 0 ELSE usable END)::text FROM room WHERE times > 1)"""


def _came_due(condition: str = "true") -> str:
    """Return a query of the jobs without ``expected_at`` that became due most recently."""
    order = ", ".join(f"{column} DESC" for column in READY_ORDER.rsplit(", ", 1))
    return (
        f"SELECT * FROM (SELECT id, schedule_at, headers FROM {{table}} WHERE {READY_NOW} AND {condition}"
        f" ORDER BY {order} LIMIT {ADOPT}) AS last LIMIT (SELECT {ADOPT})"
    )


class AdmissionStatements(StatementSet):
    """The statements of admission, except `take_lanes_template`."""

    file = "admission_statements.sql"

    @composed()
    def find_lanes(self) -> str:
        """Find lanes with waiting jobs: lanes with new jobs, and the next lanes after a given one.

        This statement only reads.

        New jobs are the jobs with the highest ids above a bound. The statement finds the other lanes by stepping from
        lane to lane through the index, which costs the same for any number of jobs. In this way, the statement also
        finds jobs that older code parked. A row with the number -1 means that a job that needs
        a lane, and has none yet, became due lately (see `find_unadopted`).
        """
        first = f"SELECT parked_on FROM {{table}} WHERE {OF_QUEUE} AND parked_on > {{0}} ORDER BY parked_on LIMIT 1"
        return f"""
WITH RECURSIVE found (lane, number) AS (
  (SELECT ({first.replace("{0}", ":after::text")}), 1 WHERE :after::text IS NOT NULL)
  UNION ALL
  SELECT ({first.replace("{0}", "found.lane")}), number + 1 FROM found WHERE lane IS NOT NULL AND number < {MOST_LANES}
), arrived AS (
  SELECT parked_on AS lane, id FROM {{table}} WHERE {QUEUE_DEFERRED} AND {VISIBLE_AT} = {WAITING_UNTIL}
    AND id > :newest::bigint ORDER BY id DESC LIMIT {MOST_LANES}
)
SELECT lane, max(id), count(*) FROM arrived WHERE lane IS NOT NULL GROUP BY lane
UNION ALL SELECT lane, NULL, number FROM found WHERE lane IS NOT NULL
UNION ALL SELECT '{UNNAMED}', NULL, -1 WHERE EXISTS (
  SELECT FROM ({_came_due(f"{DUE_AT} > statement_timestamp() - :since::float8 * interval '1 second'")}) AS lately
  WHERE schedule_at IS NOT NULL AND {IS_GATED})"""

    transaction_isolation = from_file()
    create_keys = from_file()
    add_running = from_file(rows=False)
    tell = from_file()

    @composed()
    def find_unnamed(self) -> str:
        """Lock waiting jobs of a lane that names no keys, as older code wrote it; their headers name the keys.

        Locked rows are skipped (SKIP LOCKED).
        """
        return (
            f"SELECT id, headers::text FROM {{table}} WHERE {OF_QUEUE} AND parked_on = :lane::text"
            f" AND {UNFINISHED} ORDER BY {ORDER} LIMIT {ADOPT} FOR UPDATE SKIP LOCKED"
        )

    @composed()
    def find_unadopted(self) -> str:
        """Lock due jobs that name keys but do not wait on a lane, as older code puts them.

        Locked rows are skipped (SKIP LOCKED).

        The statement looks at the first jobs of the two usual classes, because a take has just found such a job there.
        The statement also looks at the jobs that came due last: these jobs were scheduled, and may be behind many jobs
        without a lane.
        """
        heads = " UNION ALL ".join(
            f"(SELECT id FROM (SELECT * FROM (SELECT id, headers FROM {{table}} WHERE {condition} ORDER BY {order}"
            f" LIMIT {ADOPT}) AS first LIMIT (SELECT {ADOPT})) AS head WHERE {IS_GATED})"
            for condition, order in ((READY_NOW, READY_ORDER), (QUEUE_URGENT, URGENT_ORDER))
        )
        heads += f" UNION ALL (SELECT id FROM ({_came_due()}) AS lately WHERE {IS_GATED})"
        return (
            f"SELECT id, headers::text FROM {{table}} WHERE id = ANY (ARRAY({heads})) AND {OF_QUEUE}"
            " AND num_nulls(dequeued_at, leased_until) = 2 FOR UPDATE SKIP LOCKED"
        )

    set_lanes = from_file(rows=False)
    leave_lanes = from_file(rows=False)

    @composed()
    def reserve(self) -> str:
        """Reserve the keys of a lane for its first job, which has waited long.

        If several jobs ask for the same key, the job with the smallest id gets the reservation.

        Like `take_lanes_template`, the statement locks only the newest versions of keys that no other session has
        locked.
        """
        return f"""
WITH {_KEYS}, first AS MATERIALIZED (
  SELECT id FROM {{table}} WHERE {OF_QUEUE} AND parked_on = :lane::text AND {STILL_WAITS} ORDER BY {ORDER} LIMIT 1
), locked AS MATERIALIZED ({_LOCKED}
  WHERE room.reserved_for IS NULL OR room.reserved > (SELECT id FROM first)
)
UPDATE {{keys}} AS kept SET version = version + 1, reserved = (SELECT id FROM first)
WHERE kept.ctid = ANY (ARRAY(SELECT locked.ctid FROM locked)) AND EXISTS (SELECT FROM first) RETURNING key"""

    @composed()
    def explain_keys(self) -> str:
        """Return the state of keys, as a take sees it. This statement only reads.

        The columns of each key are its places by rule and by the newest put, the running jobs, the tokens of its rate,
        the job for which the key is reserved, and the lane of this job.
        """
        return f"""
WITH {_KEYS}
SELECT key, ruled, put_places, alive_ids, rate, tokens, CASE WHEN reserved_for IS NOT NULL THEN reserved END,
  reserved_for
FROM room ORDER BY key"""

    admitted_headers = from_file()
    sweep_keys = from_file(rows=False)
