"""Times that users write, reduced to two kinds of value, and the UTC times of a job.

A point in time becomes an aware datetime. A distance from now stays a timedelta, because the *server* adds it to its
own clock: one clock decides which jobs are due, even if a client's clock is wrong.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias, cast

from pqcore.errors import ConfigurationError, InvalidTimeSpec

TimeSpec: TypeAlias = str | timedelta | datetime | None
"""``'5m'`` (s, m, h, d), a timedelta, a datetime (naive means UTC), or None."""

_INFINITIES = (datetime.min, datetime.max)  # noqa: DTZ901 - compared with naive ones
_SPEC = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_RATE_UNITS = {
    **dict.fromkeys(("s", "sec", "second"), "1s"),
    **dict.fromkeys(("m", "min", "minute"), "1m"),
    **dict.fromkeys(("h", "hour"), "1h"),
    **dict.fromkeys(("d", "day"), "1d"),
}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_FURTHEST = timedelta(days=366 * 1_000)  # the server's clock plus or minus this value is still a valid datetime
_MOST_SECONDS = _FURTHEST.total_seconds()


class UtcDatetime(datetime):
    """An aware datetime in UTC that also compares with naive datetimes, as if they were in UTC.

    pq gives naive datetimes, so existing code may compare a job's times with ``datetime.utcnow()``, or subtract them.
    """

    @classmethod
    def of(cls, naive: datetime | None) -> UtcDatetime | None:
        """Return the moment of a naive UTC datetime, as the server gives it."""
        if naive is None:
            return None
        return cls(
            naive.year, naive.month, naive.day, naive.hour, naive.minute, naive.second, naive.microsecond, timezone.utc
        )

    def __eq__(self, other: object) -> bool:
        return super().__eq__(_as_utc(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: Any) -> bool:
        return super().__lt__(_as_utc(other))

    def __le__(self, other: Any) -> bool:
        return super().__le__(_as_utc(other))

    def __gt__(self, other: Any) -> bool:
        return super().__gt__(_as_utc(other))

    def __ge__(self, other: Any) -> bool:
        return super().__ge__(_as_utc(other))

    def __sub__(self, other: Any) -> Any:
        return super().__sub__(_as_utc(other))

    def __rsub__(self, other: datetime) -> timedelta:
        return cast(datetime, _as_utc(other)) - datetime.fromisoformat(self.isoformat())

    __hash__ = datetime.__hash__


def timestamp_text(moment: datetime | None) -> str:
    """Return a moment in UTC for the `repr` of a job: ISO 8601 in double quotes, or ``None``."""
    return "None" if moment is None else f'"{moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}"'


def parse(spec: TimeSpec) -> datetime | timedelta | None:
    """Read a time as users write it.

    Args:
        spec: ``'30s'``, ``'0.5s'``, ``'5m'``, ``'2h'`` or ``'1d'``; a timedelta from now
            (negative for the past); a datetime, where naive means UTC; None.

    Returns:
        An aware datetime in UTC, a timedelta for the server to add to its clock, or None.

    Raises:
        InvalidTimeSpec: (a ValueError) The value has another form, or is out of range.
    """
    if spec is None:
        return None
    if isinstance(spec, datetime):
        return _aware(spec)
    if isinstance(spec, str):
        match = _SPEC.fullmatch(spec)
        if match is None:
            msg = f"not a time: {spec!r}; write a number and a unit, as in '30s', '5m', '2h' or '1d'"
            raise InvalidTimeSpec(msg)
        try:
            return _near(timedelta(**{_UNITS[match[2]]: float(match[1])}))
        except (OverflowError, ValueError) as exc:
            msg = f"not a time: {spec[:40]!r} is too far away"
            raise InvalidTimeSpec(msg) from exc
    if isinstance(spec, timedelta):
        return _near(spec)
    msg = f"not a time: {spec!r}; give '5m', a timedelta or a datetime, not {type(spec).__name__}"
    raise InvalidTimeSpec(msg)


def typed(text: str | None) -> datetime | timedelta | None:
    """Read a time that a user typed: a distance from now, or a point in time.

    Args:
        text: ``'5m'``, as `parse` takes it; ISO 8601, where no zone means UTC; None.

    Raises:
        InvalidTimeSpec: (a ValueError) The text has another form, or is out of range.
    """
    if text is None or _SPEC.fullmatch(text):
        return parse(text)
    try:
        return parse(datetime.fromisoformat(text.replace("Z", "+00:00") if text.endswith("Z") else text))
    except ValueError:
        msg = f"{text!r} is not a time: write a number and a unit, as in '5m', or ISO 8601, as in '2030-01-31T12:00Z'"
        raise InvalidTimeSpec(msg) from None


def seconds(spec: str | float | timedelta) -> float:
    """Read a duration: a number of seconds, ``'5m'`` or a timedelta.

    Raises:
        InvalidTimeSpec: (a ValueError) The value has another form, or is negative.
    """
    if isinstance(spec, (int, float)):
        value = float("nan") if isinstance(spec, bool) else float(spec)
    else:
        parsed = parse(spec)
        if not isinstance(parsed, timedelta):
            msg = f"not a duration: {spec!r}; give seconds, '5m' or a timedelta"
            raise InvalidTimeSpec(msg)
        value = parsed.total_seconds()
    if not 0 <= value <= _MOST_SECONDS:  # this comparison also refuses NaN
        msg = f"not a duration: {spec!r} is negative or too long"
        raise InvalidTimeSpec(msg)
    return value


def parse_rate(spec: str | tuple[int, Any], what: str = "rate") -> tuple[int, float]:
    """Read a rate: a number of jobs, and the seconds in which this number of jobs may begin.

    Args:
        spec: ``"10/s"``, ``"600/min"``, ``"5/h"``, ``"100/5m"``; or a number and a duration as `seconds` takes it:
            ``(100, "5m")``.
        what: The name of the rate, for the message.

    Raises:
        ConfigurationError: The rate cannot be read, the number is not a whole number of at least 1, or the time is 0.
    """
    number: Any
    number, time = spec if isinstance(spec, tuple) and len(spec) == 2 else (spec, None)
    if isinstance(spec, str):
        number, _, time = spec.partition("/")
        number = int(number) if number.isascii() and number.isdecimal() and len(number) < 12 else number
        time = _RATE_UNITS.get(time.strip(), time.strip())
    try:
        length = 0.0 if time is None else seconds(time)
    except InvalidTimeSpec:
        length = 0.0
    if not isinstance(number, int) or isinstance(number, bool) or number < 1 or length <= 0:
        msg = f"{what} is {spec!r}; give a number of jobs and a time, as in '10/s', '600/min' or '100/5m'"
        raise ConfigurationError(msg)
    return number, length


def _near(distance: timedelta) -> timedelta:
    if abs(distance) > _FURTHEST:
        msg = f"not a time: {distance!r} is too far away; at most {_FURTHEST.days} days"
        raise InvalidTimeSpec(msg)
    return distance


def _aware(moment: datetime) -> datetime:
    if moment.replace(tzinfo=None) in _INFINITIES:
        msg = f"not a time: {moment!r} means infinity to some drivers; give a nearer time"
        raise InvalidTimeSpec(msg)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError as exc:
        msg = f"not a time: {moment!r} is outside the range of UTC; give a nearer time"
        raise InvalidTimeSpec(msg) from exc


def _as_utc(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=timezone.utc)
    return value
