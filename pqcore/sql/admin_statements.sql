-- Statements of operators that need no fragments. pqcore.sql.admin_statements composes the others.

-- name: dead_by_queue
-- This statement only reads. Count the dead letters of each queue.
SELECT q_name, count(*) FROM {dead} GROUP BY q_name ORDER BY q_name;

-- name: last_id
-- This statement only reads. Return the last id: a move ends there, so that jobs which are put meanwhile stay.
SELECT max(id) FROM {table};
