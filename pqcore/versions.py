"""Checks whether the installed versions of distributions are as new as a backend needs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from functools import lru_cache

_VERSION = re.compile(r"v?(?:\d+!)?(\d+(?:\.\d+)*)[._-]?(a|b|c|rc|alpha|beta|pre|preview|dev)?", re.IGNORECASE)


def too_old(lowest: Mapping[str, str]) -> list[str]:
    """Return a description of each installed distribution that is too old: "psycopg 3.2 or newer, 3.1.18 is installed".

    Args:
        lowest: The lowest version of each distribution that works. Distributions that are not installed are left out.
    """
    return [
        f"{name} {wanted} or newer, {found} is installed"
        for name, wanted in lowest.items()
        if (found := _installed(name)) is not None and _older(found, wanted)
    ]


@lru_cache
def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _older(version: str, than: str) -> bool:
    """Return whether a version comes before another, as PEP 440 orders releases; False if either cannot be compared."""
    found, wanted = _VERSION.match(version), _VERSION.match(than)
    return found is not None and wanted is not None and _key(found) < _key(wanted)


def _key(match: re.Match[str]) -> tuple[tuple[int, ...], bool]:
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and numbers[-1] == 0:  # 3.2.0 equals 3.2
        numbers.pop()
    return tuple(numbers), match[2] is None  # 3.2rc1 comes before 3.2
