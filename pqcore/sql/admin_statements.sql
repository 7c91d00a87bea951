-- Statements of operators that are run as they are written here.  pqcore.sql.admin_statements has those that are composed.

-- name: dead_by_queue
-- Reads only. Count the dead letters of each queue.
SELECT q_name, count(*) FROM {dead} GROUP BY q_name ORDER BY q_name;

-- name: last_id
-- Reads only. Give the last id: a move ends there, so that jobs which are put meanwhile stay.
SELECT max(id) FROM {table};
