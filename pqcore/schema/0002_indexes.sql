--- Without an expectation or a lease: the rows that a get of a plain queue reads.
CREATE INDEX {concurrently} IF NOT EXISTS {ready_index} ON {table}
  (q_name, coalesce(schedule_at, enqueued_at), id)
  WHERE dequeued_at IS NULL AND leased_until IS NULL AND expected_at IS NULL
--- With an expectation and never scheduled: due from the put on.
CREATE INDEX {concurrently} IF NOT EXISTS {urgent_index} ON {table}
  (q_name, expected_at, enqueued_at, id)
  WHERE dequeued_at IS NULL AND leased_until IS NULL AND schedule_at IS NULL AND expected_at IS NOT NULL
--- Leased, or scheduled and expected: ordered by the time when they come out.
CREATE INDEX {concurrently} IF NOT EXISTS {hidden_index} ON {table}
  (q_name, coalesce(leased_until, schedule_at), id)
  WHERE dequeued_at IS NULL
    AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))
--- A dedup key belongs to one unfinished job; ON CONFLICT of a put uses this index.
CREATE UNIQUE INDEX {concurrently} IF NOT EXISTS {dedup_index} ON {table}
  (q_name, dedup_key)
  WHERE dedup_key IS NOT NULL AND dequeued_at IS NULL
--- The first job of a FIFO group.
CREATE INDEX {concurrently} IF NOT EXISTS {group_index} ON {table}
  (q_name, group_key, id)
  WHERE group_key IS NOT NULL AND dequeued_at IS NULL
--- Jobs that wait for a place under a limit, or for their turn in a group; in the order of a get.
CREATE INDEX {concurrently} IF NOT EXISTS {parked_index} ON {table}
  (q_name, parked_on, expected_at, coalesce(schedule_at, enqueued_at), id)
  WHERE parked_on IS NOT NULL
