-- Statements of a session: for LISTEN, and for settings.

-- name: ping
-- Check that the server answers.
SELECT 1;

-- name: identify
-- Name the database, and the address of the server that answers; over a Unix socket there is no address. Both are fixed
-- for the session, so the statement is safe at any time.
SELECT current_database()::text, host(inet_server_addr()), inet_server_port(), current_setting('server_version');

-- name: register
-- Lock the channels of a waiter, which the trigger checks (see 0005_notify_who_waits.sql); one row per channel. Putters
-- hold the exclusive lock only within one expression, so the waiter waits for a moment at most. If a pooler has changed
-- the server connection, LISTEN is not in force: then the statement takes no lock, and returns no row. No deadlock is
-- possible, because a putter tries the exclusive lock and does not wait for it.
SELECT pg_advisory_lock_shared(hashtextextended(channel, 7071))::text FROM pg_listening_channels() AS channel
JOIN unnest(:channels::text[]) AS wanted ON wanted = channel;

-- name: unregister
-- Unlock the channels of a waiter. If a lost answer made a waiter count twice, it stays registered, and puts notify in
-- vain.
SELECT pg_advisory_unlock_shared(hashtextextended(channel, 7071)) FROM unnest(:channels::text[]) AS channel;

-- name: session_settings
-- Change settings of this session only; settings that the server does not know are left out. A mild setting is changed
-- only if it is 0 or empty, so that no value of the server, the role or the caller is replaced.
SELECT set_config(name, value, false)
FROM unnest(:names::text[], :values::text[], :mild::bool[]) AS wanted (name, value, mild)
WHERE current_setting(name, true) IS NOT NULL AND (NOT mild OR current_setting(name, true) IN ('0', ''));

-- name: listening
-- This statement only reads. Return one channel that the connection listens to; no row if there is none.
SELECT channel FROM pg_listening_channels() AS channel LIMIT 1;

-- name: notify_always
-- Make all puts of the session notify: the trigger does not see locks of its own session. So a waiter hears of all puts
-- on its connection, even if other tasks put there. A value that the user has set stays.
SELECT set_config('pqcore.notify', 'always', false) WHERE coalesce(current_setting('pqcore.notify', true), '') = '';

-- name: notify_waiters
-- Undo notify_always: puts of this session notify only if a waiter is registered.
SELECT set_config('pqcore.notify', '', false) WHERE current_setting('pqcore.notify', true) = 'always';

-- name: read_only
-- This statement only reads. Return whether transactions cannot write: on a standby, or if a server or role is
-- read-only by default.
SELECT current_setting('transaction_read_only') = 'on';

-- name: notification_usage
-- Return how full the server's notification queue is, from 0 to 1. The call also frees entries that all listeners have
-- read; without the call, these entries stay until a listener reads again. Commits that notify wait for this call only
-- for a moment.
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_notification_queue_usage() ELSE 0 END;

-- name: replan
-- Make the server plan the prepared statements of this session again. A prepared statement keeps the plan for the
-- table's former size, such as a sequential scan for an empty table. DISCARD PLANS is inside a DO block, so that
-- Pgpool-II does not see it: Pgpool-II would forget the session's prepared statements.
DO 'BEGIN EXECUTE ''DISCARD PLANS''; END';

-- name: discard_plans
-- Do as replan does, for a role that may not use plpgsql.
DISCARD PLANS;
