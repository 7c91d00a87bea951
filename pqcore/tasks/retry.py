"""Retry policies, and the exceptions with which a function decides how its job continues."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from pqcore.errors import ConfigurationError
from pqcore.times import seconds

Delay: TypeAlias = str | float | timedelta | None
"""A time from now: seconds, ``'5m'``, a timedelta; None for immediately."""


class Verdict(Exception):
    """An exception with which a task says how its job ends."""


class Snooze(Verdict):
    """An exception that makes the job run again later, without counting a failure.

    Args:
        delay: The time until the job runs again.
    """

    def __init__(self, delay: Delay) -> None:
        super().__init__(f"snoozed for {delay}")
        self.delay = None if delay is None else seconds(delay)


class Discard(Verdict):
    """An exception that ends the job: the job is deleted, and does not become a dead letter.

    Args:
        reason: The reason for the log, and for the result if it is kept.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "discarded")


class Retry(Verdict):
    """An exception that counts as a failure, and sets the time of the next retry, if retries are left.

    Args:
        delay: The time until the retry.
    """

    def __init__(self, delay: Delay = None) -> None:
        super().__init__("retry later" if delay is None else f"retry in {delay}")
        self.delay = None if delay is None else seconds(delay)


@dataclass(frozen=True)
class Fixed:
    """A retry policy with a fixed pause.

    Attributes:
        delay: Seconds, ``'5m'`` or a timedelta.
    """

    delay: str | float | timedelta = 30.0

    def __post_init__(self) -> None:
        seconds(self.delay)

    def __call__(self, failures: int, error: BaseException) -> float:
        """Return the seconds until the next attempt."""
        return seconds(self.delay)


@dataclass(frozen=True)
class Exponential:
    """A retry policy with growing pauses: ``base * factor ** (failures - 1)``, up to ``longest``, minus a random part.

    The random part spreads the retries of jobs that failed together; see
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.

    Attributes:
        base: The first pause: seconds, ``'5s'`` or a timedelta.
        factor: The factor by which each pause is longer than the last.
        longest: The longest pause.
        jitter: The share of a pause that is random, from 0 to 1.
    """

    base: str | float | timedelta = 1.0
    factor: float = 2.0
    longest: str | float | timedelta = 3600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        seconds(self.base), seconds(self.longest)
        if not self.factor >= 1 or not 0 <= self.jitter <= 1:
            msg = (
                f"factor is {self.factor!r} and jitter is {self.jitter!r}; give a factor of at least 1, and a jitter"
                " from 0 to 1"
            )
            raise ConfigurationError(msg)

    def __call__(self, failures: int, error: BaseException) -> float:
        """Return the seconds until the next attempt."""
        longest, pause = seconds(self.longest), seconds(self.base)
        for _ in range(failures - 1):  # not a power, which could overflow
            pause *= self.factor
            if pause >= longest:
                break
        return min(pause, longest) * (1 - self.jitter * random.random())  # noqa: S311 - no secret


RetryPolicy: TypeAlias = Callable[[int, BaseException], Delay]
"""A function of the number of failures and the last exception; it returns the pause, or raises `Discard`."""


def policy_to_json(policy: RetryPolicy) -> dict[str, Any]:
    """Return the policy of a single call, in the form for the job's headers.

    Raises:
        ConfigurationError: The policy is neither `Fixed` nor `Exponential`; give other policies to the task, not to a
            call.
    """
    if isinstance(policy, Fixed):
        return {"fixed": seconds(policy.delay)}
    if isinstance(policy, Exponential):
        return {"exponential": [seconds(policy.base), policy.factor, seconds(policy.longest), policy.jitter]}
    msg = f"a call's retry policy is {policy!r}; give Fixed or Exponential, and other functions to the task"
    raise ConfigurationError(msg)


def policy_from_json(stored: dict[str, Any]) -> RetryPolicy:
    """Return the policy that `policy_to_json` stored."""
    if "fixed" in stored:
        return Fixed(stored["fixed"])
    return Exponential(*stored["exponential"])
