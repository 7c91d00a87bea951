-- needs 5
--- A secret token of each batch, which its jobs carry: a role that can only put could guess the number alone. A batch
--- that older code put has no token. While one of its jobs is held, no sweep closes the batch.
ALTER TABLE {batches}
  ADD COLUMN IF NOT EXISTS token      text,
  ADD COLUMN IF NOT EXISTS held_until timestamptz
--- The expression and the time zone of the ticks: when one of them changes, counting begins again.
ALTER TABLE {ticks}
  ADD COLUMN IF NOT EXISTS cron text,
  ADD COLUMN IF NOT EXISTS tz   text
--- The time of the put of the row's job: ids can repeat, so the id alone does not identify one job. NULL in rows that
--- older code wrote.
ALTER TABLE {results}
  ADD COLUMN IF NOT EXISTS put_at timestamptz

--- If the id of an archived job or a dead letter is used again, the old row gets another id. A role that may put rows
--- there, such as existing roles of `create --roles`, needs the privilege to change an id.
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
