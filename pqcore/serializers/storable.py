"""Checks that refuse data which could not be decoded again, or would come back changed."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable
from typing import Any

MOST_NESTED = 500
"""Levels of lists and dicts in JSON; readers may fail at more, because Python's own recursion limit is 1,000."""
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def refuse_deep(raw: str) -> None:
    """Refuse JSON text with more than `MOST_NESTED` levels.

    Raises:
        ValueError: The text has more levels.
    """
    if len(raw) <= 2 * MOST_NESTED:
        return
    opened = raw.count("[") + raw.count("{")
    for neighbours in ("}, {", "},{", "], [", "],["):
        if opened <= MOST_NESTED:
            return
        # Two neighbouring lists or dicts are on the same level, so each further neighbour is subtracted.
        opened -= raw.count(neighbours)
    if opened > MOST_NESTED and _is_deep(raw):
        raise too_deep(MOST_NESTED)


def _is_deep(raw: str) -> bool:
    text = raw.encode("utf-8", "surrogatepass")
    brackets = _STRING.sub(b"", text).translate(_AS_LISTS, _OTHERS)
    for _ in range(MOST_NESTED):  # each round removes the innermost level
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def refuse_deep_data(data: object, most: int) -> None:
    """Refuse data with more than ``most`` levels, before a library looks at it.

    Raises:
        ValueError: The data has more levels.
    """
    level: dict[int, object] = {id(data): data}
    for _ in range(most + 1):
        # The keys are the objects' ids, so an object that occurs twice, or contains itself, is checked once per level.
        below: dict[int, object] = {}
        for one in level.values():
            if isinstance(one, dict):
                below.update((id(each), each) for each in one.values())
                below.update((id(each), each) for each in one)
            elif isinstance(one, (list, tuple, set, frozenset, deque)):
                below.update((id(each), each) for each in one)
            elif hasattr(one, "tag") and hasattr(one, "value"):  # a tag of CBOR
                below[id(one.value)] = one.value
        if not below:
            return
        level = below
    raise too_deep(most)


def too_deep(most: int) -> ValueError:
    """Return the error for data with too many levels."""
    return ValueError(
        f"the data is nested more than {most} levels deep, and readers may fail to decode it: give fewer levels"
    )


def refuse_colliding_keys(value: object, encode: Callable[[Any], str | bytes], decode: Callable[[Any], Any]) -> None:
    """Refuse dicts with two keys that become one when encoded, such as ``{1: "a", "1": "b"}`` in JSON.

    Args:
        value: The encoded data.
        encode: A function that encodes data.
        decode: A function that decodes the result.

    Raises:
        ValueError: There is such a dict.
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
            if any(type(key) is not str for key in one):
                _refuse_colliding(one, encode, decode)
        elif isinstance(one, (list, tuple, set, frozenset)):
            left += one
        else:
            left += [getattr(one, name, None) for name in getattr(type(one), "__struct_fields__", ())]
            left += (fields_of(one) or {}).values()


def _refuse_colliding(
    found: dict[Any, Any], encode: Callable[[Any], str | bytes], decode: Callable[[Any], Any]
) -> None:
    known: dict[Any, object] = {}
    for key in found:
        [written] = [key] if type(key) is str else decode(encode({key: None}))
        if written in known:
            msg = f"the keys {known[written]!r} and {key!r} of a dict are both written as {written!r}"
            raise ValueError(f"{msg}, so one of the two values would be lost; rename one of the keys")
        known[written] = key


def fields_of(value: object) -> dict[str, Any] | None:
    """Return the fields of a dataclass; None for any other object."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
