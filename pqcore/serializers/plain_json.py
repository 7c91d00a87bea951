"""JSON, by the standard library."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

_encoder = json.JSONEncoder(allow_nan=False)  # one for all: json.dumps would make one a call


def json_encode(value: object) -> str:
    """Encode to JSON text; unlike `json.dumps`, refuse NaN and infinity, which JSON has not."""
    return _encoder.encode(value)


class Json:
    """JSON, by the standard library."""

    name = "json"
    binary = False
    safe = True

    def dumps(self, value: Any) -> str:
        return json_encode(value)

    def loads(self, raw: Any) -> Any:
        return json.loads(raw)


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
