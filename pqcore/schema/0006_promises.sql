-- needs 5
--- All rows that pq wrote have data, so they satisfy the check. After VALIDATE CONSTRAINT, tools that compare schemas
--- find what they expect. Readers and writers are not blocked meanwhile. A table that was made by hand may have rows
--- without data; then the check stays NOT VALID, for new rows only.
DO $do$ BEGIN
  ALTER TABLE {table} VALIDATE CONSTRAINT {data_check};
EXCEPTION WHEN check_violation THEN NULL;
END $do$
--- What a version requires of older code: see pqcore.schema.
ALTER TABLE {migrations} ADD COLUMN IF NOT EXISTS needs integer
