-- Statements of pqcore.schema that a dialect may replace. They run before the table is known to exist, and without
-- parameters: names in braces stand for literals.

-- name: lock_migrations
-- Lock the table's migrations for the session, unless another session holds the lock; index builds span several
-- transactions. The caller tries repeatedly instead of waiting: CREATE INDEX CONCURRENTLY waits for all running
-- statements, so it would wait for a statement that waits here: a deadlock.
SELECT pg_try_advisory_lock(hashtextextended({key}, 0));

-- name: unlock_migrations
-- Release the lock of lock_migrations.
SELECT pg_advisory_unlock(hashtextextended({key}, 0));

-- name: lock_schema
-- Lock the record of versions until the transaction ends: if two transactions concurrently create an object IF NOT
-- EXISTS, one fails.
SELECT pg_advisory_xact_lock(hashtextextended({key}, 0)) IS NULL;

-- name: partitions
-- This statement only reads. Return the partitions of a table; no row if the table does not exist, or has none.
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_partition_tree(to_regclass({table_name})) AS part
JOIN pg_class AS c ON c.oid = part.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE part.isleaf AND c.relispartition ORDER BY c.relname;
