"""JSON of one type, by the package pydantic."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pqcore.serializers.extras import library
from pqcore.serializers.storable import refuse_colliding_keys


class PydanticJson:
    """JSON of a type that pydantic knows: a model, a dataclass, a ``TypedDict``, a union of those.

    Rows are plain JSON, with aliases as keys, and without computed fields. NaN and infinity are refused, unless a model
    writes them as strings. Data that does not fit the type is refused, both by ``put`` and when a row is read; the
    message names the place, but no values.

    Args:
        type: The type of decoded data.

    Raises:
        SerializerNotInstalled: pydantic is not installed.
    """

    name = "pydantic"
    stored_as = "json"
    binary = False
    safe = True

    def __init__(self, type: Any) -> None:  # noqa: A002 - as pydantic names it
        pydantic = library("pydantic", serializer=self.name, extra="pydantic")
        self._type, self._invalid = type, pydantic.ValidationError
        self._adapter = pydantic.TypeAdapter(type)
        self._to_json = library("pydantic_core", serializer=self.name, extra="pydantic").to_json

    def dumps(self, value: Any) -> str:
        value = self._checked(self._adapter.validate_python, value)
        raw: bytes = self._adapter.dump_json(value, by_alias=True, round_trip=True, warnings=False)
        # Decode the data once to check it: pydantic does not check a model object again, even if the object was
        # changed.
        self._checked(self._adapter.validate_json, raw)
        if b"null" in raw or b"NaN" in raw or b"Infinity" in raw:
            plain = self._adapter.dump_python(value, by_alias=True, round_trip=True, warnings=False)
            _refuse_lost_numbers(plain, json.loads(raw, parse_constant=_refuse_constant))
        if b'":' in raw:
            plain = self._adapter.dump_python(value, by_alias=True, round_trip=True, warnings=False)
            refuse_colliding_keys(plain, self._to_json, json.loads)
        return raw.decode()

    def loads(self, raw: Any) -> Any:
        return self._checked(self._adapter.validate_json, raw)

    def _checked(self, validate: Any, value: Any) -> Any:
        try:
            return validate(value)
        except self._invalid as exc:
            problems = exc.errors(include_url=False, include_context=False, include_input=False)
        # The error is raised outside the except clause, so that no traceback contains pydantic's own error, which shows
        # the values.
        told = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the data'}: {each['msg']}" for each in problems)
        raise ValueError(f"the data is not a {getattr(self._type, '__qualname__', self._type)}: {told}")

    def __repr__(self) -> str:
        return f"<{self.name} of {self._type!r}>"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_lost_numbers(value: Any, written: Any) -> None:
    """Refuse NaN and infinity; pydantic writes them as null, unless a model says otherwise."""
    if isinstance(value, float) and written is None:
        _refuse_constant(str(value))
    if isinstance(value, dict) and isinstance(written, dict):
        value, written = value.values(), written.values()
    elif isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or not isinstance(written, list):
        return
    for each, one in zip(value, written, strict=False):  # lengths may differ, because a type may have its own encoding
        _refuse_lost_numbers(each, one)
