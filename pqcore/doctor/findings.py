"""The findings of `pqcore doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """A finding about one subject.

    Attributes:
        check: The name of the check, which is the same in every version.
        level: ``ok``. ``warning``: it works but could be better, or it could not be checked. ``problem``: it does not
            work as it should.
        message: A description of the finding.
        advice: The action to take; empty if none is needed.
        details: The numbers, for programs.
    """

    check: str
    level: Level
    message: str
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
