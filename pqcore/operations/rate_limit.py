"""Rate limits: one token bucket for each queue, stored in the database and shared by all workers.

Tokens are added at the rate, up to the size of the bucket; each leased job costs one token. See
https://en.wikipedia.org/wiki/Token_bucket.
"""

from __future__ import annotations

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.settings import QueueSettings


async def draw(engine: Engine, queue: QueueSettings, n: int) -> tuple[int, float]:
    """Draw up to ``n`` tokens; return how many were drawn, and the seconds until the next token."""
    capacity, rate = queue.bucket
    values = {"q_name": queue.name, "n": n, "capacity": capacity, "rate": rate}

    async def work(s: Session) -> tuple[int, float]:
        query, fill = s.sql.tasks.take_tokens, s.sql.tasks.create_bucket
        rows = await s.execute(query, query.bind(values))
        if not rows:  # the queue has no bucket yet, because no token was drawn before
            await s.execute(fill, fill.bind(values))
            rows = await s.execute(query, query.bind(values))
        if not rows:
            return 0, 0.0
        [[granted, pause]] = rows
        return int(granted), float(pause)

    return await engine.run(work)


async def refund(engine: Engine, queue: QueueSettings, n: int) -> None:
    """Return unused tokens to the bucket."""
    if n > 0:
        await engine.execute("tasks.return_tokens", {"q_name": queue.name, "n": n})
