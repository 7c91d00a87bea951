"""What is refused before it is stored, as it could not be read again, or would come back as something else."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable
from typing import Any

MOST_NESTED = 500
"""Levels of lists and dicts in JSON: a reader may fail at more, as Python's own limit of recursion is 1,000."""
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def refuse_deep(raw: str) -> None:
    """Refuse JSON text that is nested more than `MOST_NESTED` levels deep.

    Raises:
        ValueError: It is.
    """
    if len(raw) <= 2 * MOST_NESTED:
        return
    opened = raw.count("[") + raw.count("{")
    for neighbours in ("}, {", "},{", "], [", "],["):
        if opened <= MOST_NESTED:
            return
        # Of lists and dicts that follow one another, one is on the way to the deepest. What strings add is taken off.
        opened -= raw.count(neighbours)
    if opened > MOST_NESTED and _is_deep(raw):
        raise too_deep(MOST_NESTED)


def _is_deep(raw: str) -> bool:
    text = raw.encode("utf-8", "surrogatepass")
    brackets = _STRING.sub(b"", text).translate(_AS_LISTS, _OTHERS)
    for _ in range(MOST_NESTED):  # each time the innermost level goes
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def refuse_deep_data(data: object, most: int) -> None:
    """Refuse data that are nested more than ``most`` levels deep, before a library looks at them.

    Raises:
        ValueError: They are.
    """
    level: dict[int, object] = {id(data): data}
    for _ in range(most + 1):
        # By identity: what is there twice, or holds itself, is looked at one time in each level.
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
    """Return the error for data that are nested too deeply."""
    return ValueError(f"it is nested more than {most} levels deep, and readers may fail at it: store it flat")


def refuse_colliding_keys(value: object, encode: Callable[[Any], str | bytes], decode: Callable[[Any], Any]) -> None:
    """Refuse dicts of which two keys are one when they are written: ``{1: "a", "1": "b"}`` in JSON.

    Args:
        value: What was encoded.
        encode: Encodes it.
        decode: Decodes what came of it.

    Raises:
        ValueError: There is one.
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
            raise ValueError(f"{msg}: one of the two would be lost")
        known[written] = key


def fields_of(value: object) -> dict[str, Any] | None:
    """Return the fields of a dataclass; None for anything else."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
