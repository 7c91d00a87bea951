"""The ticks of a queue's schedules: the worker reads their rows regularly, and puts the jobs of ticks that are due.

There may be many schedules, so one loop serves all of them: a statement reads all schedules with their last ticks, and
the loop then handles only schedules that are due. Schedules and declared periodic tasks have the same rules of ticks,
such as which worker puts a job (`pqcore.operations.periodic`, `pqcore.worker.ticks`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from pqcore.db.interrupts import is_from_outside
from pqcore.db.runtime import backoff
from pqcore.errors import AccessDenied, ConfigurationError, InvalidData, NotStored, PQError
from pqcore.events import PutEvent
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.periodic import tick_window
from pqcore.operations.schedules import FoundTimetable, ScheduledCall, decoded, find_calls, find_timetables
from pqcore.put_options import RESERVED
from pqcore.tasks.periodic import Timetable, timetable_of
from pqcore.worker.state import QueueState
from pqcore.worker.ticks import due_ticks, put_ticks

logger = logging.getLogger("pqcore.tasks")

LOOK_INTERVAL = 10.0
"""The largest number of seconds between two looks at the schedules; after a notification of a change, the next look
comes immediately."""
RETRY_INTERVAL = 1.0
"""Seconds until the next look if this worker put no job for a tick, because another worker put the job, or because an
open transaction has changed the schedule."""
MOST_DUE = 200
"""The largest number of schedules whose jobs are put between two looks; workers choose them at random."""
FEW = 50
"""The largest number of schedules that the event loop plans itself; a thread plans larger numbers."""


@dataclass(eq=False)
class _Planned:
    """A schedule, and when it is due.

    Attributes:
        found: The schedule, as it was read.
        coming: The time from which a tick may be due; None for never.
    """

    found: FoundTimetable
    coming: datetime | None

    @property
    def timetable(self) -> Timetable:
        """Return the ticks of the schedule."""
        return timetable_of(self.found)


@dataclass
class _Plan:
    """The schedules that one look found.

    Attributes:
        due: The schedules of which a tick is due, or whose stored tick has to be corrected.
        pause: Seconds until a tick of another schedule is due, at most `LOOK_INTERVAL`.
    """

    due: list[_Planned] = field(default_factory=list)
    pause: float = LOOK_INTERVAL


class Schedules:
    """Puts the jobs of the ticks of one queue's schedules.

    Args:
        queue_state: The queue.
    """

    def __init__(self, queue_state: QueueState) -> None:
        self._queue_state = queue_state
        self._planned: dict[str, _Planned] = {}
        # Refused schedules, with their versions: they cannot be read, or a task declared in code has the same name.
        self._refused: dict[str, datetime] = {}

    async def run(self) -> None:
        """Put the jobs of ticks until cancelled."""
        failures = 0
        changed, name = self._queue_state.schedules_changed, self._queue_state.queue.name
        while True:
            changed.clear()
            begun = time.monotonic()
            try:
                pause = await self._look()
                failures = 0
            except AccessDenied as exc:
                logger.warning("%r: cannot put the jobs of schedules: %s", name, exc)
                return
            except PQError as exc:
                failures += 1
                logger.warning("%r: cannot put the jobs of schedules: %s", name, exc)
                pause = backoff(failures)
            left = pause - (time.monotonic() - begun) if not failures else pause
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), max(left, 0.0) + 0.001)

    async def _look(self) -> float:
        """Read the schedules, and put the jobs of some due schedules; return the seconds until the next look."""
        bridge, queue = self._queue_state.bridge, self._queue_state.queue
        found = await bridge.call(find_timetables, queue)
        plan = self._plan(found) if len(found) <= FEW else await asyncio.to_thread(self._plan, found)
        if not plan.due:
            return plan.pause
        random.shuffle(plan.due)  # several workers then begin with different schedules
        some = plan.due[:MOST_DUE]
        calls = await bridge.call(find_calls, queue, [planned.found.name for planned in some])
        numbers = [await self._tick(planned, calls.get(planned.found.name)) for planned in some]
        if any(numbers) and len(plan.due) > len(some):
            return 0.0
        return plan.pause if all(numbers) else min(plan.pause, RETRY_INTERVAL)

    def _plan(self, found: Sequence[FoundTimetable]) -> _Plan:
        """Return which schedules are due. The next tick of a schedule is computed again only if its row has changed."""
        plan, known = _Plan(), self._planned
        self._planned = {}
        self._refused = {each.name: each.version for each in found if self._refused.get(each.name) == each.version}
        declared = {periodic.name for periodic in self._queue_state.queue.periodics}
        for each in found:
            if each.name in self._refused:
                continue
            if each.name in declared:
                self._refuse(each, "a periodic task of this name is declared in code; give the schedule another name")
                continue
            planned = known.get(each.name)
            if planned is None or planned.found.version != each.version or planned.found.last.tick != each.last.tick:
                planned = _Planned(each, each.last.now)
            else:
                planned.found = each
            try:
                self._advance(planned, plan)
            except ConfigurationError as exc:
                self._refuse(each, str(exc))
                continue
            self._planned[each.name] = planned
        return plan

    def _advance(self, planned: _Planned, plan: _Plan) -> None:
        """Add a schedule to the plan.

        Raises:
            ConfigurationError: The expression or the time zone cannot be read here.
        """
        last, timetable = planned.found.last, planned.timetable
        now = last.now
        if last.tick is None or last.line != timetable.line or last.is_ahead():
            plan.due.append(planned)  # `tick_window` decides which ticks to put
            return
        coming = planned.coming
        if coming is not None and coming <= now:
            coming = timetable.next_after(max(last.tick, now))
            if timetable.due(last.tick, now):
                plan.due.append(planned)
            else:
                planned.coming = coming
        if coming is not None:
            plan.pause = min(plan.pause, (coming - now).total_seconds())

    async def _tick(self, planned: _Planned, call: ScheduledCall | ConfigurationError | None) -> int:
        """Put the jobs of a schedule's ticks that are due; return their number.

        Args:
            planned: The schedule.
            call: The job; None if the schedule was removed.
        """
        queue_state, timetable, found = self._queue_state, planned.timetable, planned.found
        queue = queue_state.queue
        if isinstance(call, ConfigurationError):
            self._refuse(found, str(call))
            return 0
        if call is None or call.version != found.version:
            return 0

        async def job() -> StoredPut:
            return call.job()

        def event(stored: StoredPut) -> PutEvent:
            headers = {name: value for name, value in stored.headers.items() if name not in RESERVED}
            data: object = stored
            with suppress(PQError):
                data = decoded(queue, stored)
            return PutEvent(queue.name, data, call.task, headers)

        try:
            last, now = await queue_state.bridge.call(tick_window, queue, timetable.line, None, found.version)
            ticks = await due_ticks(timetable, last, now)
            return await put_ticks(queue_state, found.name, ticks, job, event, found.version)
        except (InvalidData, NotStored) as exc:
            self._refuse(found, str(exc))
            return 0
        except PQError:
            raise
        except Exception as exc:  # a plugin's hook may raise any exception
            if is_from_outside(exc):
                raise
            logger.warning("%r: cannot put the job of %s: %s", queue.name, found.name, exc, exc_info=True)
            return 0

    def _refuse(self, found: FoundTimetable, why: str) -> None:
        """Log why this worker cannot use a schedule, and leave the schedule out until its row is changed."""
        self._refused[found.name] = found.version
        logger.warning("%r: the schedule %s puts no jobs: %s", self._queue_state.queue.name, found.name, why)
