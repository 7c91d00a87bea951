-- Statements of pqcore.schema that a dialect may replace.  They are run before it is known whether there is a table, and
-- without parameters: what stands in braces is a literal.

-- name: lock_migrations
-- Lock the table's migrations for the session, if no other session has them locked: index builds span transactions.
-- It is tried again and again, not waited for: a build waits for all statements that run, such as one that waits here.
SELECT pg_try_advisory_lock(hashtextextended({key}, 0));

-- name: unlock_migrations
-- Undo lock_migrations.
SELECT pg_advisory_unlock(hashtextextended({key}, 0));

-- name: lock_schema
-- Lock the record of versions until the transaction ends: of two transactions that make a thing IF NOT EXISTS, one fails.
SELECT pg_advisory_xact_lock(hashtextextended({key}, 0)) IS NULL;

-- name: partitions
-- Reads only. Give the partitions of a table; no row if there is no such table, or it has none.
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_partition_tree(to_regclass({table_name})) AS part
JOIN pg_class AS c ON c.oid = part.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE part.isleaf AND c.relispartition ORDER BY c.relname;
