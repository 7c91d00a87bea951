-- needs 5
--- A secret of each batch, which its jobs carry: the number alone can be guessed by a role that only puts.
--- A batch of older code has none. While one of its jobs is held, no sweep closes the batch.
ALTER TABLE {batches}
  ADD COLUMN IF NOT EXISTS token      text,
  ADD COLUMN IF NOT EXISTS held_until timestamptz
--- What the ticks are of: when the expression or the time zone changes, counting begins again.
ALTER TABLE {ticks}
  ADD COLUMN IF NOT EXISTS cron text,
  ADD COLUMN IF NOT EXISTS tz   text
--- When the job was put that the row is of: ids can come again, so the id alone does not name one job.
--- NULL where older code wrote the row.
ALTER TABLE {results}
  ADD COLUMN IF NOT EXISTS put_at timestamptz

--- An archived job, or a dead letter, whose id comes again gets another: a role that may put rows there, as those of
--- `create --roles` that exist, needs the right to change an id.
DO $do$ DECLARE missing record; BEGIN
  FOR missing IN
    SELECT place.name, role.oid::regrole AS role
    FROM (VALUES ($name${archive}$name$), ($name${dead}$name$)) AS place (name)
    JOIN pg_class AS c ON c.oid = to_regclass(place.name) CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    JOIN pg_roles AS role ON role.oid = granted.grantee
    WHERE granted.privilege_type = 'INSERT' AND NOT has_column_privilege(role.oid, c.oid, 'id', 'UPDATE')
  LOOP
    EXECUTE 'GRANT UPDATE (id) ON ' || missing.name || ' TO ' || missing.role;
  END LOOP;
END $do$
