"""The arguments of tools, with their types and their descriptions for the model."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

State: TypeAlias = Literal["leased", "ready", "scheduled", "parked", "done", "dead"]

QueueName: TypeAlias = Annotated[str, Field(description="The queue's name, as list_queues gives it.")]
JobId: TypeAlias = Annotated[int, Field(ge=1, lt=2**63, description="The job's id.")]
JobIds: TypeAlias = Annotated[list[JobId], Field(min_length=1, max_length=1000, description="The ids of jobs.")]
Age: TypeAlias = Annotated[str, Field(description="A time: a number and a unit of s, m, h or d, as in '30s' or '14d'.")]
Time: TypeAlias = Annotated[
    str, Field(description="A time from now, as in '5m', or a time in ISO 8601 (UTC, if it has no zone).")
]
LimitName: TypeAlias = Annotated[str, Field(description="The limit, by the name that jobs were put under.")]
PausedTask: TypeAlias = Annotated[
    str, Field(description="Only calls of this function, by its path, as in 'app.tasks.send'.")
]
PausedLimit: TypeAlias = Annotated[str, Field(description="Only jobs under this limit.")]
PausedGroup: TypeAlias = Annotated[str, Field(description="Only jobs of this group.")]
