"""The figures of a table for metrics: its queues, and how late its periodic tasks are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pqcore.db.engine import Engine
from pqcore.errors import AccessDenied
from pqcore.operations.activity import list_ticks
from pqcore.operations.admin import QueueFigures, count_queues
from pqcore.tasks.periodic import seconds_late


@dataclass(frozen=True)
class TableFigures:
    """The figures of a table.

    Attributes:
        queues: The figures of each queue, by its name.
        late: For each periodic task, by the names of its queue and of the task, the seconds since its earliest tick
            that no worker has put; 0 if there is none.
    """

    queues: Mapping[str, QueueFigures] = field(default_factory=dict)
    late: Mapping[tuple[str, str], float] = field(default_factory=dict)


async def read_table_figures(engine: Engine) -> TableFigures:
    """Return the figures of a table.

    Periodic tasks whose expressions this process cannot read are left out. If the role may not read the ticks, all
    periodic tasks are left out.
    """
    queues = await count_queues(engine)
    late = {}
    with suppress(AccessDenied):
        ticks = await list_ticks(engine, with_jobs=False)
        late = {(tick.queue, tick.name): age for tick in ticks if (age := seconds_late(tick)) is not None}
    return TableFigures(queues, late)
