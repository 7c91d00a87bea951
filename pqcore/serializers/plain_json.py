"""JSON, by the standard library."""

from __future__ import annotations

import dataclasses
import json
from json.scanner import make_scanner
from typing import Any

_encoder = json.JSONEncoder(allow_nan=False)  # one for all: json.dumps would make one a call
_scan = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed knows it as a class of its own


def json_encode(value: object) -> str:
    """Encode to JSON text; unlike `json.dumps`, refuse NaN and infinity, which JSON has not."""
    return _encoder.encode(value)


def json_decode(text: str) -> Any:
    """Decode JSON text as `json.loads` does, which first looks for blanks around it: what we store has none."""
    try:
        value, end = _scan(text, 0)
    except (StopIteration, TypeError):
        end = -1
    return value if end == len(text) else json.loads(text)


class Json:
    """JSON, by the standard library."""

    name = "json"
    binary = False
    safe = True

    def dumps(self, value: Any) -> str:
        return json_encode(value)

    def loads(self, raw: Any) -> Any:
        return json_decode(raw)


def _fields(value: object) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


_finite = json.JSONEncoder(allow_nan=False, default=_fields, skipkeys=True)


def refuse_not_finite(value: object, raw: bytes) -> None:
    """Refuse what a fast encoder has made a ``null`` of: NaN and infinity.

    Args:
        value: What was encoded: what JSON has, dataclasses, and leaves of any type.
        raw: What came of it; without a ``null``, there is nothing to look for.

    Raises:
        ValueError: There is one.
    """
    if b"null" in raw:
        _finite.encode(value)
