"""Periodic tasks: cron expressions with time zones, read by cronsim.

When clocks are set back, a job for a time in the repeated hour runs once. When clocks are set forward, a job for a time
in the skipped hour runs right after this hour. Jobs that run every few minutes follow elapsed time (as in Debian's
cron; see cronsim).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pqcore.errors import ConfigurationError
from pqcore.operations.periodic import Line
from pqcore.tasks.declaring import Call, Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pqcore.operations.activity import Tick
    from pqcore.operations.schedules import FoundTimetable

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
Missed: TypeAlias = Literal["latest", "all", "skip"]

NOTICED = 60.0
"""Seconds after which a tick for which no worker has put a job counts as late: workers look at least once a minute."""
LATE = 30.0
"""Seconds after which a tick for which no worker has put a job counts as missed."""
MOST_MISSED = 1_000
"""The largest number of missed ticks that are caught up; older ticks are dropped."""
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, eq=False)
class Timetable:
    """The ticks of a periodic task or a schedule.

    Attributes:
        name: The name under which ticks are stored, unique in a queue.
        cron: The cron expression: five fields, six fields with seconds first, or a name such as ``@daily``.
        tz: The time zone of the expression, such as ``"Europe/Berlin"``.
        missed: Which missed ticks are put later: the ``"latest"``, ``"all"``, or none (``"skip"``). A tick is missed if
            no worker ran.
    """

    name: str
    cron: str
    tz: str
    missed: Missed

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: The expression or the time zone cannot be read, or ``missed`` has another value.
        """
        if self.missed not in ("latest", "all", "skip"):
            msg = f"missed is {self.missed!r}; choose 'latest', 'all' or 'skip'"
            raise ConfigurationError(msg)
        next(self.ticks_after(datetime.now(ZoneInfo("UTC"))))

    @property
    def line(self) -> Line:
        """Return the values that are stored for the ticks."""
        return Line(self.name, self.cron, self.tz)

    def ticks_after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the ticks after a moment, in UTC and in order.

        Raises:
            ConfigurationError: The expression or the time zone cannot be read.
        """
        return ticks_after(self.cron, self.tz, moment)

    def due(self, last: datetime, now: datetime) -> list[datetime]:
        """Return the ticks to put, after ``last`` and up to ``now``, in order."""
        passed: list[datetime] = []
        for tick in self.ticks_after(last):
            if tick > now:
                break
            passed.append(tick)
            if self.missed != "all" or len(passed) > MOST_MISSED:
                del passed[: -1 if self.missed != "all" else -MOST_MISSED]
        if self.missed == "skip":
            return [tick for tick in passed if now - tick < timedelta(seconds=LATE)]
        return passed

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the next tick after a moment; None if there is none."""
        return next(self.ticks_after(moment), None)


def timetable_of(found: FoundTimetable) -> Timetable:
    """Return the timetable that a schedule's row describes."""
    return Timetable(found.name, found.cron, found.tz, cast("Missed", found.missed))


@dataclass(frozen=True, eq=False)
class Periodic(Timetable):
    """A periodic task that is declared in code; workers put a call of the task at each tick.

    Attributes:
        call: The call to put.
    """

    call: Call

    def __post_init__(self) -> None:
        self.check()
        self.call.stored()  # raises an error for a call that cannot be put at a tick

    @property
    def task(self) -> Task:
        """The task."""
        return self.call.task


def ticks_after(cron: str, tz: str, moment: datetime) -> Iterator[datetime]:
    """Yield the ticks of an expression after a moment, in UTC and in order.

    Args:
        cron: The cron expression.
        tz: The time zone of the expression.
        moment: The moment.

    Raises:
        ConfigurationError: The expression or the time zone cannot be read.
    """
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as exc:
        msg = "periodic tasks need cronsim: pip install 'pqcore[worker]'"
        raise ConfigurationError(msg) from exc
    try:
        zone = ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, TypeError) as exc:
        msg = f"tz is {tz!r}; give a time zone such as 'UTC' or 'Europe/Berlin'"
        raise ConfigurationError(msg) from exc
    try:
        expression = _ALIASES.get(cron, cron)
        every = CronSim(expression, moment.astimezone(zone))
        ticks: Iterator[datetime] = every
        if _is_of_the_clock(fields := expression.split()):
            # cronsim handles clock changes only for five fields, so the seconds are added to its minutes here.
            minutes = CronSim(" ".join(fields[1:]), (moment.astimezone(UTC) - MINUTE).astimezone(zone))
            ticks = _with_seconds(minutes, sorted(every.seconds))
    except (CronSimError, AttributeError) as exc:
        msg = f"cron expression {cron!r}: {exc}; give five fields, as in '*/5 * * * *', or '@daily'"
        raise ConfigurationError(msg) from exc
    return _later_than(moment.astimezone(UTC), ticks)


def latest_tick(cron: str, tz: str, moment: datetime) -> datetime | None:
    """Return the last tick of an expression up to a moment; None if there is none within five years.

    Raises:
        ConfigurationError: The expression or the time zone cannot be read.
    """
    for distance in (
        MINUTE,
        60 * MINUTE,
        timedelta(days=1),
        timedelta(days=32),
        timedelta(days=366),
        timedelta(days=1830),
    ):
        found: datetime | None = None
        for tick in ticks_after(cron, tz, moment - distance):
            if tick > moment:
                break
            found = tick
        if found is not None:
            return found
    return None


def seconds_late(tick: Tick) -> float | None:
    """Return how many seconds a periodic task is late: the time since the earliest tick for which no worker put a job.

    The result is 0 if there is no such tick. The result is None if the expression cannot be read: cronsim is missing,
    or another version wrote the expression. The server's clock decides, because the clock of this machine may be wrong.
    A task is not late if an operator has asked for another job of its last tick. A paused schedule is not late.

    Args:
        tick: The last tick for which a job was put.
    """
    if tick.cron is None or tick.tz is None:
        return None
    try:
        missed = next(ticks_after(tick.cron, tick.tz, tick.noted), None)
    except ConfigurationError:
        return None
    if missed is None or tick.is_asked_for or tick.paused:
        return 0.0
    late: timedelta = tick.read_at - missed
    return max(late.total_seconds(), 0.0)


def refuse_bare(cron: object) -> None:
    """Raise for ``@queue.periodic`` without parentheses, which would declare nothing.

    Raises:
        ConfigurationError: The expression is a function.
    """
    if callable(cron):
        msg = f"the cron expression is a {type(cron).__name__}; write @queue.periodic('0 3 * * *')"
        raise ConfigurationError(msg)


def _is_of_the_clock(fields: Sequence[str]) -> bool:
    """Return whether an expression of six fields (seconds first) names times of day, and not intervals."""
    return len(fields) == 6 and not fields[1].startswith("*") and not fields[2].startswith("*")


def _with_seconds(minutes: Iterable[datetime], seconds: Sequence[int]) -> Iterator[datetime]:
    for minute in minutes:
        for second in seconds:
            yield minute.astimezone(UTC) + timedelta(seconds=second)


def _later_than(moment: datetime, ticks: Iterable[datetime]) -> Iterator[datetime]:
    """Yield ticks in UTC, each later than the one before.

    In the second pass of a repeated hour, cronsim returns times of the first pass; this function skips them.
    """
    for tick in ticks:
        if (instant := tick.astimezone(UTC)) > moment:
            moment = instant
            yield instant


def make_periodic(call: Call, cron: str, tz: str, missed: Any, name: str | None) -> Periodic:
    """Return a periodic task, which has the name of its function unless another name is given."""
    return Periodic(name or call.task.path, cron, tz, missed, call)
