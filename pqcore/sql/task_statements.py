"""The statements of tasks and workers: keys, limits, retries, dead letters, results, ticks.

As those of `pqcore.sql.dialect`, and under the same rules.  Places under a
concurrency limit, and turns in a FIFO group, are given and given up under an
advisory lock of the key (`lock_keys`, held to the end of the transaction); the
statements that follow it in the transaction have newer snapshots (READ COMMITTED),
so they see what the last holder of the lock did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pqcore.rows import DEAD_LETTER
from pqcore.sql.fragments import (
    AFTER_WAY,
    COLUMNS,
    DUE_AT,
    HELD_ANYWHERE,
    HELD_ONE,
    HELD_ONES,
    IDENTITY,
    IS_DEFERRED,
    IS_READY,
    IS_URGENT,
    MADE_WAY,
    OF_PUT,
    OF_QUEUE,
    ONE_MORE,
    ORDER,
    PUT_AT,
    TIMES,
    come_back,
)

if TYPE_CHECKING:
    from pqcore.sql.statement import Compile, Query, Retention

_NOW = "statement_timestamp()"
_IN = "{} + :{}::float8 * interval '1 second'"
_PUT_COLUMNS = "q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key"
_PUT_VALUES = (
    f":q_name::text, :data::text::json, :payload::bytea, :serializer::text, {_NOW}, {TIMES},"
    " :headers::text::json, :group_key::text, :dedup_key::text"
)
_CONFLICT = "ON CONFLICT (q_name, dedup_key) WHERE dedup_key IS NOT NULL AND dequeued_at IS NULL"
_HOLDER = "q_name = :q_name::text AND dedup_key = :dedup_key::text AND dequeued_at IS NULL"
_WAITING = "dequeued_at IS NULL AND (leased_until IS NULL OR parked_on IS NOT NULL)"
# A new job, but for its id and place: with a clean record, and no place under limits but those that it asks for.
_REPLACED = (
    "data = :data::text::json, payload = :payload::bytea, serializer = :serializer::text,"
    f" schedule_at = coalesce(:schedule_at::timestamptz, {_IN.format(_NOW, 'schedule_in')}),"
    f" expected_at = coalesce(:expected_at::timestamptz, {_IN.format(_NOW, 'expected_in')}),"
    " headers = :headers::text::json, group_key = :group_key::text, leased_until = NULL, parked_on = NULL,"
    " failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL"
)
_TELL_REPLACED = """
), freed AS (
  DELETE FROM {slots} WHERE q_name = :q_name::text AND job_id = ANY (ARRAY(SELECT id FROM put))
)
SELECT id, put_at, pg_notify(:channel::text, '')::text FROM put"""
# Those of the rows that are held which nobody has locked.
_FREE_ONES = f" WHERE id = ANY (ARRAY(SELECT id FROM {{table}}{HELD_ONES} FOR UPDATE SKIP LOCKED)) AND {OF_QUEUE}"
_DEAD_COLUMNS = COLUMNS.replace("dequeued_at, ", "")
# A job that was taken and deleted, as its taker has it.
_TAKEN = f"""SELECT :id::bigint AS id, :q_name::text AS q_name, :enqueued_at::timestamptz AS enqueued_at,
    :expected_at::timestamptz AS expected_at, :schedule_at::timestamptz AS schedule_at, :data::text::json AS data,
    :token::int AS attempts, :serializer::text AS serializer, :payload::bytea AS payload,
    :stored_headers::text::json AS headers, :failures::int AS failures, :excused::int AS excused
  WHERE NOT EXISTS (SELECT FROM {{table}} WHERE id = :id::bigint AND {OF_QUEUE})
    AND NOT EXISTS (
      SELECT FROM {{dead}} WHERE id = :id::bigint AND {OF_QUEUE} AND enqueued_at = :enqueued_at::timestamptz)"""


def _buried(gone: str) -> str:
    """A statement that makes a dead letter of a row, and gives its id.

    Args:
        gone: What takes the row from where it was.
    """
    columns = (
        _DEAD_COLUMNS.replace(" headers", " coalesce(:headers::text::json, headers)")
        .replace("failures", "least(coalesce(failures, 0), 2147483646) + :failed::int")
        .replace("error", ":error::text::json")
    )
    return f"""
WITH gone AS ({gone}){MADE_WAY["dead"]}, buried AS (
  INSERT INTO {{dead}} ({_DEAD_COLUMNS}, reason) SELECT {columns}, :reason::text FROM gone{AFTER_WAY}
)
SELECT id FROM gone"""


class TaskStatements:
    """The statements, in one driver's paramstyle.

    Args:
        compiled: Compiles a template.
    """

    def __init__(self, compiled: Compile) -> None:
        # Putting under a dedup key.  The unique index decides: of two that come at once one waits for the
        # other's transaction to end, and then finds the key taken or free.
        self.put = compiled(
            "put_keyed",
            f"INSERT INTO {{table}} ({_PUT_COLUMNS}) VALUES ({_PUT_VALUES}) {_CONFLICT} DO NOTHING"
            f" RETURNING {IDENTITY}",
            hot=True,
        )
        # Not by DO UPDATE, which would lock a job that runs, though it changes nothing of it: the worker could not
        # finish the job until the putter's transaction ends.
        self.put_replacing = compiled(
            "put_replacing",
            f"""
WITH replaced AS (
  UPDATE {{table}} AS held SET {_REPLACED} WHERE {_HOLDER} AND {_WAITING} RETURNING {IDENTITY}
), added AS (
  INSERT INTO {{table}} ({_PUT_COLUMNS}) SELECT {_PUT_VALUES} WHERE NOT EXISTS (SELECT FROM replaced)
  {_CONFLICT} DO NOTHING RETURNING {IDENTITY}
), put (id, put_at) AS (
  SELECT * FROM replaced UNION ALL SELECT * FROM added{_TELL_REPLACED}""",
        )
        self.find_duplicate = compiled("find_duplicate", f"SELECT {IDENTITY} FROM {{table}} WHERE {_HOLDER}")
        # Held for a time: the row of the key is locked and looked at as it then is, in one statement; who
        # claimed it puts the job, and writes down its id, in the same transaction: others wait for its end.  The job
        # draws its id as any other does, so that who only puts need not be allowed to choose one.
        self.claim_key = compiled(
            "claim_key",
            """
INSERT INTO {dedup} AS held (q_name, dedup_key, job_id, until)
VALUES (:q_name::text, :dedup_key::text, 0, clock_timestamp() + :period::float8 * interval '1 second')
ON CONFLICT (q_name, dedup_key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
  WHERE held.until <= clock_timestamp()
RETURNING job_id""",
        )
        self.name_holder = compiled(
            "name_holder",
            "UPDATE {dedup} SET job_id = :id::bigint WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text",
            rows=False,
        )
        self.find_held = compiled(
            "find_held",
            f"SELECT job_id, (SELECT {PUT_AT} FROM {{table}} WHERE id = held.job_id AND {OF_QUEUE})"
            " FROM {dedup} AS held WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text",
        )
        self.replace = compiled(
            "replace",
            f"""
WITH put (id, put_at) AS (
  UPDATE {{table}} AS held SET {_REPLACED} WHERE id = :id::bigint AND {OF_QUEUE} AND {_WAITING}
  RETURNING {IDENTITY}{_TELL_REPLACED}""",
        )

        # Limits and groups.
        # It also tells whether the next statements see what the lock's last holder did: not above READ COMMITTED.
        self.lock_keys = compiled(
            "lock_keys",
            "SELECT current_setting('transaction_isolation'), count(pg_advisory_xact_lock(gate.lock)::text)"
            " FROM unnest(:locks::bigint[]) AS gate (lock)",
        )
        # The same, of those locks that are free, in one order for all: a caller that only tries waits for nobody.
        self.try_keys = compiled(
            "try_keys",
            "SELECT gate.lock, pg_try_advisory_xact_lock(gate.lock), current_setting('transaction_isolation')"
            " FROM unnest(:locks::bigint[]) AS gate (lock)",
        )
        self.count_slots = compiled(
            "count_slots",
            "SELECT gate.key, (SELECT count(*) FROM {slots} WHERE q_name = :q_name::text AND key = gate.key),"
            " (SELECT id FROM {table} WHERE q_name = :q_name::text AND parked_on = gate.key"
            f" ORDER BY {ORDER} LIMIT 1) IS NOT NULL"
            " FROM unnest(:keys::text[]) AS gate (key)",
        )
        self.slots_of = compiled(
            "slots_of", "SELECT key, job_id FROM {slots} WHERE q_name = :q_name::text AND job_id = ANY (:ids::bigint[])"
        )
        self.group_heads = compiled(
            "group_heads",
            "SELECT wanted.key, head.id FROM unnest(:groups::text[]) AS wanted (key) CROSS JOIN LATERAL ("
            "SELECT id FROM {table} WHERE q_name = :q_name::text AND group_key = wanted.key AND dequeued_at IS NULL"
            " ORDER BY id LIMIT 1) AS head",
        )
        self.take_slots = compiled(
            "take_slots",
            "INSERT INTO {slots} (q_name, key, job_id)"
            " SELECT :q_name::text, place.key, place.job FROM unnest(:keys::text[], :ids::bigint[]) AS place (key, job)"
            " ON CONFLICT DO NOTHING",
            rows=False,
        )
        # The take has excused the attempt, and leased the job for a short time only.  A row that somebody has locked
        # is passed over, so that no admission waits: it is tried again, and else comes when that lease has run out.
        self.admit = compiled(
            "admit",
            f"UPDATE {{table}} SET leased_until = {_IN.format(_NOW, 'lease')}, excused = excused - 1,"
            f" dedup_key = CASE WHEN id = ANY (:started::bigint[]) THEN NULL ELSE dedup_key END{_FREE_ONES}"
            " RETURNING id",
        )
        # A parked job is leased without an end, to nobody: no take finds it, and none of its indexes has it.
        self.park = compiled(
            "park",
            f"UPDATE {{table}} SET leased_until = 'infinity', parked_on = :key::text{_FREE_ONES} RETURNING id",
        )
        self.postpone = compiled(
            "postpone", f"UPDATE {{table}} SET leased_until = {_IN.format(_NOW, 'delay')}{_FREE_ONES} RETURNING id"
        )
        # The number of excuses is given, not reckoned: whether the admission took effect may be unknown.
        as_before = (
            "excused = (SELECT given.excused"
            " FROM unnest(:ids::bigint[], :excuses::int[]) AS given (job, excused) WHERE given.job = id)"
        )
        self.put_back = compiled(
            "put_back",
            f"UPDATE {{table}} SET leased_until = NULL, {as_before}{HELD_ONES}"
            " RETURNING id, pg_notify(:channel::text, '')::text",
        )
        # Wakes nobody: takes find the jobs when the time is up, as they find leases that ran out.
        self.set_aside = compiled(
            "set_aside",
            f"UPDATE {{table}} SET leased_until = {_IN.format(_NOW, 'delay')}, {as_before}{HELD_ONES}",
            rows=False,
        )
        self.free_slots = compiled(
            "free_slots",
            "DELETE FROM {slots} WHERE q_name = :q_name::text AND job_id = ANY (:ids::bigint[])",
            rows=False,
        )
        self.free_places = compiled(
            "free_places",
            "DELETE FROM {slots} AS slot USING unnest(:keys::text[], :ids::bigint[]) AS place (key, job)"
            " WHERE slot.q_name = :q_name::text AND slot.key = place.key AND slot.job_id = place.job"
            " AND (SELECT num_nulls(parked_on) = 0 FROM {table} WHERE id = place.job AND q_name = :q_name::text)",
            rows=False,
        )
        # Whom a free place is for is decided here, and the place is kept: a newer job cannot slip in.
        self.unpark = compiled(
            "unpark",
            f"""
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
FROM freed ORDER BY {ORDER}""",
        )
        # Undoes `unpark` in its transaction, which has the rows locked: no take has seen them.
        self.park_again = compiled(
            "park_again",
            f"""
WITH again AS (
  UPDATE {{table}} SET leased_until = 'infinity', parked_on = :key::text
  WHERE id = ANY (:ids::bigint[]) AND {OF_QUEUE} RETURNING id
)
DELETE FROM {{slots}}
WHERE q_name = :q_name::text AND key = :key::text AND job_id = ANY (ARRAY(SELECT id FROM again))""",
            rows=False,
        )
        # Only the head of a group, if it is parked: else it is waiting, or runs.
        self.unpark_head = compiled(
            "unpark_head",
            """
WITH head AS (
  SELECT id FROM {table} WHERE q_name = :q_name::text AND group_key = :group::text AND dequeued_at IS NULL
  ORDER BY id LIMIT 1
), free AS (
  SELECT id FROM {table} WHERE id = ANY (ARRAY(SELECT id FROM head)) AND q_name = :q_name::text
    AND parked_on = :key::text
  FOR UPDATE SKIP LOCKED
)
UPDATE {table} SET leased_until = NULL, parked_on = NULL
WHERE id = ANY (ARRAY(SELECT id FROM free)) AND q_name = :q_name::text
RETURNING id, pg_notify(:channel::text, '')::text""",
        )

        # Giving jobs back, and holding on to them.
        self.retry = compiled(
            "retry",
            f"UPDATE {{table}} SET leased_until = NULL, failures = {ONE_MORE.format('failures')},"
            " error = :error::text::json, cancelling = NULL,"
            f" schedule_at = coalesce({_IN.format(_NOW, 'delay')}, schedule_at)"
            f" WHERE {HELD_ONE} RETURNING id, pg_notify(:channel::text, '')::text",
        )
        self.snooze = compiled(
            "snooze",
            f"UPDATE {{table}} SET leased_until = NULL, excused = {ONE_MORE.format('excused')},"
            f" schedule_at = coalesce({_IN.format(_NOW, 'delay')}, schedule_at)"
            f" WHERE {HELD_ONE} RETURNING id, pg_notify(:channel::text, '')::text",
        )
        # As `snooze`, with a word in the row on why; the time since which that has been so is kept. A job that was put
        # off for the same cause for longer than the patience lasts is left as it is.
        since = "extract(epoch FROM statement_timestamp())"
        long_ago = f"{since} - :patience::float8"
        known = "CASE WHEN error->>'type' = :error::text::json->>'type' THEN (error->>'since')::float8 END"
        self.put_off = compiled(
            "put_off",
            f"UPDATE {{table}} SET leased_until = NULL, excused = {ONE_MORE.format('excused')},"
            f" schedule_at = {_IN.format(_NOW, 'delay')},"
            f" error = (:error::text::jsonb || jsonb_build_object('since', coalesce({known}, {since})))::json"
            f" WHERE {HELD_ONE} AND (:patience::float8 IS NULL OR coalesce({known}, {since}) > {long_ago})"
            " RETURNING id, pg_notify(:channel::text, '')::text",
        )
        self.release = compiled(
            "release",
            f"UPDATE {{table}} SET leased_until = NULL, excused = {ONE_MORE.format('excused')}{HELD_ONES}"
            " RETURNING id, pg_notify(:channel::text, '')::text",
        )
        self.beat = compiled(
            "beat",
            f"UPDATE {{table}} SET leased_until = {_IN.format(_NOW, 'lease')}{HELD_ANYWHERE}"
            " RETURNING id, attempts, coalesce(cancelling, false)",
            hot=True,
        )
        # Reads only. A row that has the token, and no lease, was ended by the holder of the lease: one that runs out
        # stays in the row until the job is taken again, under the next token.
        these = f"WHERE id = ANY (:ids::bigint[]) AND {OF_QUEUE}"
        self.find_leases = compiled(
            "find_leases",
            f"SELECT id, attempts, leased_until IS NULL FROM {{table}} {these}"
            f" UNION ALL SELECT id, attempts, true FROM {{archive}} {these}"
            f" UNION ALL SELECT id, attempts, true FROM {{dead}} {these}",
        )
        self.drop = compiled("drop", f"DELETE FROM {{table}} WHERE {HELD_ONE} RETURNING id")

        self.find_headers = compiled(
            "find_headers",
            "SELECT headers::text FROM {table} WHERE id = :id::bigint AND q_name = :q_name::text"
            f" AND num_nulls(dequeued_at) = 1 AND {OF_PUT}",
        )
        # Cancelling what runs: it is asked to stop, and whoever runs it is told.
        self.ask_to_stop = compiled(
            "ask_to_stop",
            "UPDATE {table} SET cancelling = true WHERE id = :id::bigint AND q_name = :q_name::text"
            f" AND dequeued_at IS NULL AND parked_on IS NULL AND leased_until > {_NOW}"
            " RETURNING id, pg_notify(:channel::text, '')::text",
        )
        self.asked_to_stop = compiled(
            "asked_to_stop", "SELECT id FROM {table} WHERE id = ANY (:ids::bigint[]) AND cancelling"
        )

        # Dead letters.  The row moves in one statement, if the lease is held.
        self.bury = compiled(
            "bury",
            _buried(f"DELETE FROM {{table}} WHERE {HELD_ONE} RETURNING *"),
        )
        # The same of a job that a get took for good. A finished row is changed by nobody, but that it may be put
        # again or purged: the DELETE locks the row, and finds it as it was taken, or not. Of a row that was deleted
        # the taker has all that is left. An id that is in neither table belongs to no other job.
        taken = f"id = :id::bigint AND attempts = :token::int AND {OF_QUEUE}"
        self.bury_taken: dict[Retention, Query] = {
            "keep": compiled(
                "bury_taken_keep",
                _buried(f"DELETE FROM {{table}} WHERE {taken} AND num_nulls(dequeued_at) = 0 RETURNING *"),
            ),
            "archive": compiled("bury_taken_archive", _buried(f"DELETE FROM {{archive}} WHERE {taken} RETURNING *")),
            "delete": compiled("bury_taken_delete", _buried(_TAKEN)),
        }
        self.dead_letters = compiled(
            "dead_letters",
            f"SELECT {DEAD_LETTER} FROM {{dead}} WHERE q_name = :q_name::text"
            " ORDER BY died_at DESC, id DESC LIMIT :n::bigint",
        )
        self.dead_letter = compiled(
            "dead_letter", f"SELECT {DEAD_LETTER} FROM {{dead}} WHERE q_name = :q_name::text AND id = :id::bigint"
        )
        of_reason = "(:reason::text IS NULL OR reason = :reason::text)"
        self.count_dead = compiled(
            "count_dead", f"SELECT count(*) FROM {{dead}} WHERE q_name = :q_name::text AND {of_reason}"
        )
        # A fresh start: what it went through is excused. Due immediately. Gives how many rose, and how many were put.
        self.revive = compiled(
            "revive",
            f"""
WITH picked AS (
  SELECT id FROM {{dead}} WHERE q_name = :q_name::text AND (:ids::bigint[] IS NULL OR id = ANY (:ids::bigint[]))
    AND {of_reason}
  ORDER BY died_at LIMIT 1000 FOR UPDATE SKIP LOCKED
), risen AS (
  DELETE FROM {{dead}} WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE} RETURNING *
), {come_back("risen")}, forgotten AS (
  DELETE FROM {{results}} WHERE job_id = ANY (ARRAY(SELECT id FROM same)) AND {OF_QUEUE}
)
SELECT (SELECT count(*) FROM risen), (SELECT count(*) FROM same) + (SELECT count(*) FROM renumbered)""",
        )
        self.purge_dead = compiled(
            "purge_dead",
            f"""
WITH picked AS (
  SELECT id FROM {{dead}} WHERE q_name = :q_name::text AND (:ids::bigint[] IS NULL OR id = ANY (:ids::bigint[]))
    AND died_at <= {_NOW} - :age::float8 * interval '1 second'
  ORDER BY died_at LIMIT 10000 FOR UPDATE SKIP LOCKED
)
DELETE FROM {{dead}} WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE} RETURNING id""",
        )

        # Results and progress. Ids come again (see MADE_WAY): the time of its put tells a job from another with its id.
        # In a row of older code it is NULL: what was written before the job was put is of another job then.
        # `updated_at` is never before that, whatever becomes of the server's clock.
        of_another = "coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at)"
        written = f"greatest({_NOW}, :put_at::timestamptz)"
        self.keep_result = compiled(
            "keep_result",
            "INSERT INTO {results} AS kept (job_id, q_name, state, data, payload, serializer, error, put_at,"
            " updated_at, expires_at) VALUES (:id::bigint, :q_name::text, :state::text, :data::text::json,"
            " :payload::bytea, :serializer::text, :error::text::json, :put_at::timestamptz,"
            f" {written}, {_IN.format(_NOW, 'keep')})"
            " ON CONFLICT (job_id) DO UPDATE SET q_name = excluded.q_name, state = excluded.state,"
            f" data = excluded.data, progress = CASE WHEN {of_another} THEN NULL ELSE kept.progress END,"
            " payload = excluded.payload, serializer = excluded.serializer, error = excluded.error,"
            " put_at = excluded.put_at, updated_at = excluded.updated_at, expires_at = excluded.expires_at"
            " RETURNING pg_notify(:channel::text, '')::text",
        )
        self.report_progress = compiled(
            "report_progress",
            "INSERT INTO {results} AS kept (job_id, q_name, state, progress, put_at, updated_at, expires_at)"
            f" VALUES (:id::bigint, :q_name::text, 'running', :progress::text::json, :put_at::timestamptz, {written},"
            f" {_IN.format(_NOW, 'keep')})"
            " ON CONFLICT (job_id) DO UPDATE SET q_name = excluded.q_name, progress = excluded.progress,"
            f" state = CASE WHEN {of_another} THEN excluded.state ELSE kept.state END,"
            + "".join(
                f" {column} = CASE WHEN {of_another} THEN NULL ELSE kept.{column} END,"
                for column in ("data", "payload", "serializer", "error")
            )
            + " put_at = excluded.put_at, updated_at = excluded.updated_at, expires_at = greatest(CASE WHEN NOT"
            f" {of_another} THEN kept.expires_at END, excluded.expires_at)"
            " RETURNING pg_notify(:channel::text, '')::text",
        )
        self.find_result = compiled(
            "find_result",
            "SELECT state, progress::text, data::text, payload, serializer, error::text FROM {results} AS kept"
            " WHERE job_id = :id::bigint AND q_name = :q_name::text AND coalesce(kept.put_at = :put_at::timestamptz,"
            " (:put_at::timestamptz IS NULL OR kept.updated_at >= :put_at::timestamptz)"
            + "".join(
                f" AND NOT EXISTS (SELECT FROM {{{place}}} WHERE id = :id::bigint AND {OF_QUEUE}"
                " AND enqueued_at > kept.updated_at)"
                for place in ("table", "dead", "archive")
            )
            + ")",
        )
        # Where a job is: of the three tables it can be in at most one has it unfinished.
        times = "enqueued_at AT TIME ZONE 'UTC', schedule_at AT TIME ZONE 'UTC', expected_at AT TIME ZONE 'UTC'"
        found = f"error::text, attempts, headers::text, coalesce(failures, 0), {times}"
        wanted = f"WHERE id = :id::bigint AND q_name = :q_name::text AND {OF_PUT}"
        self.find_job = compiled(
            "find_job",
            f"""
SELECT CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked'
    WHEN leased_until > {_NOW} THEN 'leased' WHEN {DUE_AT} > {_NOW} THEN 'scheduled' ELSE 'ready' END,
  {found} FROM {{table}} {wanted}
UNION ALL SELECT 'dead', {found} FROM {{dead}} {wanted}
UNION ALL SELECT 'done', {found} FROM {{archive}} {wanted}
LIMIT 1""",
        )

        # Batches.  The row is locked by the UPDATE: of the last two jobs that end at once, one finds none pending.
        # A job is counted that shows the batch's token, which a role that only puts cannot read.
        self.open_batch = compiled(
            "open_batch",
            "INSERT INTO {batches} (q_name, total, pending, callback, token)"
            " VALUES (:q_name::text, :total::int, :total::int, :callback::text::json, :token::text) RETURNING id",
        )
        self.batch_progress = compiled(
            "batch_progress",
            "UPDATE {batches} SET pending = pending - :done::int, failed = failed + :failed::int"
            " WHERE id = :id::bigint AND token IS NOT DISTINCT FROM :token::text"
            " RETURNING pending, total, failed, callback::text",
        )
        # A job that was taken for good is being performed: what tells of its end comes later.
        self.hold_batch = compiled(
            "hold_batch",
            f"UPDATE {{batches}} SET held_until = greatest(held_until, {_IN.format(_NOW, 'hold')})"
            " WHERE id = :id::bigint AND token IS NOT DISTINCT FROM :token::text",
            rows=False,
        )
        # Of jobs that were deleted in SQL, or popped by a process that died, nobody tells a batch.  First the batches
        # are read, then their jobs: a job that ended in between has changed what is pending, and the UPDATE, which
        # checks that on the row as locked, finds nothing.
        self.open_batches = compiled(
            "open_batches",
            "SELECT id, pending FROM {batches} WHERE q_name = :q_name::text AND pending > 0 ORDER BY id LIMIT 1000",
        )
        self.held_batches = compiled(
            "held_batches", f"SELECT id FROM {{batches}} WHERE id = ANY (:ids::bigint[]) AND held_until > {_NOW}"
        )
        # One class of waiting rows a term, each through its index.  What only looks like a batch's number is taken
        # for one: such a row keeps a batch open, and does not end it.
        classes = " UNION ALL ".join(
            f"SELECT headers::text AS headers FROM {{table}} WHERE {kind} AND headers::text LIKE '%\"batch\"%'"
            for kind in (IS_READY, IS_URGENT, IS_DEFERRED)
        )
        self.live_batches = compiled(
            "live_batches",
            "SELECT DISTINCT found.number FROM (SELECT (regexp_matches(headers, '\"batch\": *([0-9]{{1,18}})', 'g'))[1]"
            f"::bigint AS number FROM ({classes}) AS unfinished) AS found WHERE found.number = ANY (:ids::bigint[])",
        )
        self.end_lost = compiled(
            "end_lost",
            "UPDATE {batches} SET pending = 0, failed = failed + pending WHERE id = :id::bigint"
            " AND q_name = :q_name::text AND pending = :pending::int RETURNING pending, total, failed, callback::text",
        )
        self.close_batch = compiled("close_batch", "DELETE FROM {batches} WHERE id = :id::bigint", rows=False)

        # Periodic tasks.  The tick's row is moved forward by one; the others find it moved, and put nothing.  It is
        # moved to now where the expression changes: the row is locked, so the second that comes finds it the same.
        # A tick ahead of the server's clock is not put: its worker read a clock that was put back meanwhile, and the
        # row is set back as well, after which another such worker would put the same tick.
        self.tick = compiled(
            "tick",
            f"""
WITH won AS (
  INSERT INTO {{ticks}} AS last (q_name, name, tick)
  SELECT :q_name::text, :name::text, :tick::timestamptz
  WHERE :tick::timestamptz <= {_IN.format(_NOW, "ahead")}
  ON CONFLICT (q_name, name) DO UPDATE SET tick = excluded.tick WHERE last.tick < excluded.tick
  RETURNING tick
)
INSERT INTO {{table}} ({_PUT_COLUMNS})
SELECT :q_name::text, :data::text::json, :payload::bytea, :serializer::text, {_NOW}, tick,
  coalesce(:expected_at::timestamptz, {_IN.format(_NOW, "expected_in")}), :headers::text::json, :group_key::text,
  :dedup_key::text
FROM won {_CONFLICT} DO NOTHING RETURNING id""",
        )
        self.begin_ticking = compiled(
            "begin_ticking",
            "INSERT INTO {ticks} AS last (q_name, name, tick, cron, tz)"
            " VALUES (:q_name::text, :name::text, :tick::timestamptz, :cron::text, :tz::text)"
            " ON CONFLICT (q_name, name) DO UPDATE SET cron = excluded.cron, tz = excluded.tz,"
            " tick = CASE WHEN last.cron IS NULL THEN last.tick ELSE greatest(last.tick, excluded.tick) END"
            " WHERE last.cron IS DISTINCT FROM excluded.cron OR last.tz IS DISTINCT FROM excluded.tz RETURNING name",
        )
        # Only from the tick that was found ahead: of workers that come together one sets it back.
        self.set_tick_back = compiled(
            "set_tick_back",
            "UPDATE {ticks} SET tick = :now::timestamptz WHERE q_name = :q_name::text AND name = :name::text"
            " AND tick = :tick::timestamptz RETURNING name",
        )
        self.last_tick = compiled(
            "last_tick",
            "SELECT max(tick) AT TIME ZONE 'UTC', max(cron), max(tz), clock_timestamp() AT TIME ZONE 'UTC' FROM {ticks}"
            " WHERE q_name = :q_name::text AND name = :name::text",
        )

        # Rate limits: a token bucket a queue.  The row is locked, and read as locked, before it is changed.
        self.draw = compiled(
            "draw",
            """
WITH bucket AS (
  SELECT q_name, tokens, greatest(extract(epoch FROM clock_timestamp() - refilled_at), 0)::float8 AS elapsed
  FROM {rates} WHERE q_name = :q_name::text FOR UPDATE
), filled AS (
  SELECT q_name, least(:capacity::float8, tokens + elapsed * :rate::float8) AS available FROM bucket
), granted AS (
  SELECT q_name, available, least(:n::int, floor(available))::int AS number FROM filled
)
UPDATE {rates} AS kept SET tokens = available - number, refilled_at = clock_timestamp()
FROM granted WHERE kept.q_name = granted.q_name
RETURNING number, (greatest(1 - (available - number), 0) / :rate::float8)::float8""",
        )
        self.fill = compiled(
            "fill",
            "INSERT INTO {rates} (q_name, tokens, refilled_at)"
            " VALUES (:q_name::text, :capacity::float8, clock_timestamp()) ON CONFLICT DO NOTHING",
            rows=False,
        )
        self.refund = compiled(
            "refund",
            "UPDATE {rates} SET tokens = tokens + :n::int WHERE q_name = :q_name::text",
            rows=False,
        )

        # The sweep: what a crash, or a change by hand, left behind.
        self.sweep_slots = compiled(
            "sweep_slots",
            "DELETE FROM {slots} AS slot WHERE slot.q_name = :q_name::text"
            " AND (SELECT num_nulls(dequeued_at) = 1 FROM {table} WHERE id = slot.job_id AND q_name = :q_name::text)"
            " IS NOT TRUE",
            rows=False,
        )
        self.held_in_vain = compiled(
            "held_in_vain",
            "SELECT slot.key, slot.job_id, job.parked_on FROM {slots} AS slot CROSS JOIN LATERAL ("
            "SELECT parked_on FROM {table} WHERE id = slot.job_id AND q_name = :q_name::text"
            " AND num_nulls(parked_on) = 0 LIMIT 1) AS job"
            " WHERE slot.q_name = :q_name::text",
        )
        # Skips from key to key through the index, however many jobs wait on each.
        self.parked_keys = compiled(
            "parked_keys",
            f"""
WITH RECURSIVE found AS (
  SELECT min(parked_on) AS parked_on FROM {{table}} WHERE q_name = :q_name::text AND parked_on IS NOT NULL
  UNION ALL
  SELECT (SELECT min(parked_on) FROM {{table}} WHERE q_name = :q_name::text AND parked_on > found.parked_on)
  FROM found WHERE found.parked_on IS NOT NULL
)
SELECT parked_on, (SELECT headers::text FROM {{table}} WHERE q_name = :q_name::text AND parked_on = found.parked_on
  ORDER BY {ORDER} LIMIT 1)
FROM found WHERE parked_on IS NOT NULL""",
        )
        self.sweep_results = compiled(
            "sweep_results",
            f"DELETE FROM {{results}} WHERE job_id = ANY (ARRAY(SELECT job_id FROM {{results}}"
            f" WHERE expires_at <= {_NOW} ORDER BY expires_at LIMIT 10000 FOR UPDATE SKIP LOCKED))",
            rows=False,
        )
        self.sweep_dedup = compiled(
            "sweep_dedup",
            f"DELETE FROM {{dedup}} WHERE q_name = :q_name::text AND until <= {_NOW}",
            rows=False,
        )
