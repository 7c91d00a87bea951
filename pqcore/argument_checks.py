"""Checks of arguments that several methods take; each check raises its error before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any

from pqcore.errors import ConfigurationError
from pqcore.job import BaseJob

IDS = range(-(2**63), 2**63)
"""The numbers of PostgreSQL's bigint: a dead letter that made way for a new job has a negative id."""


def check_job_id(job_id: object) -> int:
    """Return the id of a job as an int.

    Raises:
        ConfigurationError: The value is not a number that a job can have.
    """
    try:
        number = None if isinstance(job_id, bool) else index(job_id)  # type: ignore[arg-type]  # it may be anything
    except TypeError:
        number = None
    if number is None or number not in IDS:
        msg = f"the id of a job is {job_id!r}; give the number that put returned"
        raise ConfigurationError(msg)
    return number


def check_job_ids(ids: object) -> list[int]:
    """Return the ids of jobs as ints, in the given order and without duplicates.

    Raises:
        ConfigurationError: The value is not an iterable of numbers that jobs can have.
    """
    if not isinstance(ids, Iterable):
        msg = f"the ids of jobs are {ids!r}; give a list of the numbers that put returned"
        raise ConfigurationError(msg)
    return list(dict.fromkeys(map(check_job_id, ids)))


def check_items(items: Any) -> None:
    """Raise unless the value is an iterable of jobs' data.

    Raises:
        ConfigurationError: The value is not iterable, or is text, bytes or a mapping, which are the data of one job.
    """
    if isinstance(items, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(items, Iterable):
        msg = f"put_many takes the data of several jobs, and was given {items!r}; give a list, or use put for one job"
        raise ConfigurationError(msg)


def check_mapping(value: object, name: str, advice: str) -> None:
    """Raise unless an argument is a mapping.

    Args:
        value: The argument.
        name: The name of the argument.
        advice: What to give instead.

    Raises:
        ConfigurationError: The argument is not a mapping.
    """
    if not isinstance(value, Mapping):
        msg = f"{name} is {value!r}; give {advice}"
        raise ConfigurationError(msg)


def check_limits(limits: object) -> dict[str, Any]:
    """Return limits by key, as a new dict.

    Raises:
        ConfigurationError: The value is not a mapping.
    """
    check_mapping(limits, "limits", "a dict of keys and numbers of jobs, as in {'customer-7': 2}")
    return dict(limits)  # type: ignore[call-overload,no-any-return]


def check_jobs(jobs: object) -> list[Any]:
    """Return jobs as a list.

    Raises:
        ConfigurationError: The value is not an iterable of jobs.
    """
    found = list(jobs) if isinstance(jobs, Iterable) else [jobs]
    for job in found:
        if not isinstance(job, BaseJob):
            msg = f"ack_many takes jobs that lease returned, and was given {job!r}"
            raise ConfigurationError(msg)
    return found
