--- No expectation and no lease: what a get of a plain queue reads.
CREATE INDEX {concurrently} IF NOT EXISTS {ready_index} ON {table}
  (q_name, coalesce(schedule_at, enqueued_at), id)
  WHERE dequeued_at IS NULL AND leased_until IS NULL AND expected_at IS NULL
--- With an expectation and never scheduled: due as soon as put.
CREATE INDEX {concurrently} IF NOT EXISTS {urgent_index} ON {table}
  (q_name, expected_at, enqueued_at, id)
  WHERE dequeued_at IS NULL AND leased_until IS NULL AND schedule_at IS NULL AND expected_at IS NOT NULL
--- Leased, or scheduled and expected: ordered by when they come out.
CREATE INDEX {concurrently} IF NOT EXISTS {hidden_index} ON {table}
  (q_name, coalesce(leased_until, schedule_at), id)
  WHERE dequeued_at IS NULL
    AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))
