-- needs 5
--- Jobs that wait for admission, in the order of a get, which needs no admission.
CREATE INDEX {concurrently} IF NOT EXISTS {waiting_index} ON {table}
  (q_name, priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id)
  WHERE parked_on IS NOT NULL
