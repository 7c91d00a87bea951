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
