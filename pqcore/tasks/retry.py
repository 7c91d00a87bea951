"""When a failed job is tried again, and what a function may raise to decide that itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from pqcore.errors import ConfigurationError
from pqcore.times import seconds

Delay: TypeAlias = str | float | timedelta | None
"""A time from now: seconds, ``'5m'``, a timedelta; None for at once."""


class Verdict(Exception):
    """What a task raises to say how its job is to end."""


class Snooze(Verdict):
    """Raise it to be run again later; it is not counted as a failure.

    Args:
        delay: In how long.
    """

    def __init__(self, delay: Delay) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = None if delay is None else seconds(delay)


class Discard(Verdict):
    """Raise it to end the job without an effect: it is deleted, and is no dead letter.

    Args:
        reason: For the log, and the result if it is kept.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "discarded")


class Retry(Verdict):
    """Raise it to fail, and be tried again in a time of its own, if retries are left.

    Args:
        delay: In how long.
    """

    def __init__(self, delay: Delay = None) -> None:
        super().__init__(f"to be retried in {delay}")
        self.delay = None if delay is None else seconds(delay)


@dataclass(frozen=True)
class Fixed:
    """Tries again after the same time, each time.

    Attributes:
        delay: Seconds, ``'5m'`` or a timedelta.
    """

    delay: str | float | timedelta = 30.0

    def __post_init__(self) -> None:
        seconds(self.delay)

    def __call__(self, failures: int, error: BaseException) -> float:
        """Seconds until the next attempt."""
        return seconds(self.delay)


@dataclass(frozen=True)
class Exponential:
    """Backs off: ``base * factor ** (failures - 1)``, at most ``longest``, less a random part of it.

    The random part keeps jobs that failed together from coming back together;
    see https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.

    Attributes:
        base: The first pause: seconds, ``'5s'`` or a timedelta.
        factor: What each further one is multiplied with.
        longest: The most.
        jitter: The share of a pause that is random, from 0 to 1.
    """

    base: str | float | timedelta = 1.0
    factor: float = 2.0
    longest: str | float | timedelta = 3600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        seconds(self.base), seconds(self.longest)
        if not self.factor >= 1 or not 0 <= self.jitter <= 1:
            msg = f"factor is {self.factor!r} and jitter {self.jitter!r}; give at least 1, and 0 to 1"
            raise ConfigurationError(msg)

    def __call__(self, failures: int, error: BaseException) -> float:
        """Seconds until the next attempt."""
        longest, pause = seconds(self.longest), seconds(self.base)
        for _ in range(failures - 1):  # not a power: it would overflow
            pause *= self.factor
            if pause >= longest:
                break
        return min(pause, longest) * (1 - self.jitter * random.random())  # noqa: S311 - no secret


RetryPolicy: TypeAlias = Callable[[int, BaseException], Delay]
"""Called with the number of failures so far and the last; gives the pause, or raises `Discard`."""


def policy_to_json(policy: RetryPolicy) -> dict[str, Any]:
    """A policy of a single call, as it travels in the job's headers.

    Raises:
        ConfigurationError: It is neither `Fixed` nor `Exponential`; give others to the task, not to a call.
    """
    if isinstance(policy, Fixed):
        return {"fixed": seconds(policy.delay)}
    if isinstance(policy, Exponential):
        return {"exponential": [seconds(policy.base), policy.factor, seconds(policy.longest), policy.jitter]}
    msg = f"a call's retry policy is {policy!r}; give Fixed or Exponential, and other functions to the task"
    raise ConfigurationError(msg)


def policy_from_json(stored: dict[str, Any]) -> RetryPolicy:
    """The policy that `policy_to_json` stored."""
    if "fixed" in stored:
        return Fixed(stored["fixed"])
    return Exponential(*stored["exponential"])
