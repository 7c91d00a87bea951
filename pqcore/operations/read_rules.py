"""Reading the rules that consumers obey: pauses of the queue and of tasks, and weights of shares."""

from __future__ import annotations

import math
import time

from pqcore.current_rules import KEPT, CurrentRules
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.settings import QueueSettings

_TASK = "task:"


async def current_rules(engine: Engine, queue: QueueSettings) -> CurrentRules:
    """Return the rules that consumers obey, from the cache of the queue object or from the database."""
    if time.monotonic() < queue.rule_cache.expires_at:
        return queue.rule_cache.rules
    return await read_current_rules(engine, queue)


async def read_current_rules(engine: Engine, queue: QueueSettings) -> CurrentRules:
    """Read the rules that consumers obey, and cache them."""

    async def work(s: Session) -> CurrentRules:
        began, changes = time.monotonic(), queue.rule_cache.changes
        query = s.sql.rules.current_rules
        rows = await s.execute(query, query.bind({"q_name": queue.name}))
        age, paused_until = 0.0, None
        tasks, weights = {}, {}
        for kind, name, number, remaining in rows:
            ends = math.inf if remaining is None else began + remaining
            if kind == "age":
                age = number
            elif kind == "weight":
                weights[name] = number
            elif name == "queue":
                paused_until = ends
            else:
                tasks[name.removeprefix(_TASK)] = ends
        found = CurrentRules(paused_until, tasks, weights)
        # Above READ COMMITTED, the rules are as old as the transaction's snapshot, whose age is `age`.
        expires_at = began - age + min(KEPT, queue.poll_interval / 2)
        if queue.rule_cache.rules.paused_tasks.keys() - tasks.keys():
            queue.lanes.hurry()  # another program may have made the lanes on which jobs of a resumed task wait
        queue.lanes.weights = weights
        queue.rule_cache.keep(found, expires_at, changes=changes, now=began, in_transaction=s.in_transaction())
        return found

    return await engine.run(work, protect=False)
