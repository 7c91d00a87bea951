-- Statements of a session: what it listens to, and its settings.

-- name: ping
-- Ask whether the server answers.
SELECT 1;

-- name: register
-- Lock the channels of a waiter, which the trigger looks for (see 0005_notify_who_waits.sql); one row per channel.
-- Putters hold the exclusive lock within an expression only, so the waiter waits for a moment at most. Gives no row,
-- and takes no lock, where LISTEN is not in force: a pooler gave us another server's connection.
-- No deadlock is possible: a putter tries the exclusive lock, and does not wait for it.
SELECT pg_advisory_lock_shared(hashtextextended(channel, 7071))::text FROM pg_listening_channels() AS channel
JOIN unnest(:channels::text[]) AS wanted ON wanted = channel;

-- name: unregister
-- Unlock the channels of a waiter. A waiter that was counted twice, because an answer got lost, stays registered:
-- then puts notify in vain.
SELECT pg_advisory_unlock_shared(hashtextextended(channel, 7071)) FROM unnest(:channels::text[]) AS channel;

-- name: session_settings
-- Set settings of this session alone; those that the server does not know are left out. A mild setting is set only
-- where it is 0 or empty: no value of the server's, the role's or the caller's is replaced.
SELECT set_config(name, value, false)
FROM unnest(:names::text[], :values::text[], :mild::bool[]) AS wanted (name, value, mild)
WHERE current_setting(name, true) IS NOT NULL AND (NOT mild OR current_setting(name, true) IN ('0', ''));

-- name: listening
-- Reads only. Give one channel that the connection listens to; no row if there is none.
SELECT channel FROM pg_listening_channels() AS channel LIMIT 1;

-- name: notify_always
-- Have the session's puts notify always: the trigger does not see locks of its own session, so a waiter on the
-- connection that others put on hears of all puts on it. A value that the user has set stays.
SELECT set_config('pqcore.notify', 'always', false) WHERE coalesce(current_setting('pqcore.notify', true), '') = '';

-- name: notify_waiters
-- Undo notify_always: puts of this session notify only where a waiter is registered.
SELECT set_config('pqcore.notify', '', false) WHERE current_setting('pqcore.notify', true) = 'always';

-- name: read_only
-- Reads only. Ask whether transactions cannot write: on a standby, or where a server or role is read-only by default.
SELECT current_setting('transaction_read_only') = 'on';

-- name: notification_usage
-- Ask how full the server's queue of notifications is, from 0 to 1. The question also frees what all listeners have
-- read, which otherwise waits until a listener reads on. Commits that notify wait for it for a moment only.
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_notification_queue_usage() ELSE 0 END;

-- name: replan
-- Have prepared statements planned again: each keeps the plan for the table as it was, a scan if it was empty.
DISCARD PLANS;
