"""What an examination found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        check: What was looked at; the same word in every version.
        level: ``ok``; ``warning``: it works, and could be better, or nobody could look; ``problem``: it does
            not work as it should.
        message: What is the case.
        advice: What to do; empty if nothing.
        details: The figures, for programs.
    """

    check: str
    level: Level
    message: str
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
