"""JSON, by the package orjson."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.plain_json import refuse_not_finite
from pqcore.serializers.storable import refuse_colliding_keys


class Orjson:
    """JSON, by orjson; also for dataclasses, datetimes, UUIDs and enums, which come back as JSON values.

    Rows are plain JSON. As with `Json`, NaN and infinity are refused.

    Args:
        default: A function that orjson calls for a value that it cannot encode; it returns one that orjson can.
        option: orjson's options, such as ``orjson.OPT_NON_STR_KEYS``.

    Raises:
        SerializerNotInstalled: orjson is not installed.
    """

    name = "orjson"
    stored_as = "json"
    binary = False
    safe = True
    quick: bool = True

    def __init__(self, *, default: Callable[[Any], Any] | None = None, option: int = 0) -> None:
        orjson = library("orjson", serializer=self.name, extra="orjson")
        self._dumps, self._loads = orjson.dumps, orjson.loads
        self._default, self._option, self._non_str_keys = default, option, orjson.OPT_NON_STR_KEYS
        self.quick = default is None

    def dumps(self, value: Any) -> str:
        raw: bytes = self._dumps(value, self._default, self._option)
        refuse_not_finite(value, raw)
        if self._option & self._non_str_keys:
            refuse_colliding_keys(value, lambda part: self._dumps(part, self._default, self._option), self._loads)
        return raw.decode()

    def loads(self, raw: Any) -> Any:
        return self._loads(raw)


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `Orjson`."""
    register(Orjson)
