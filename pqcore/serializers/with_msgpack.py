"""MessagePack, by the package msgpack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.storable import MOST_NESTED, refuse_deep_data


class Msgpack:
    """MessagePack, by msgpack: JSON's values, bytes, and datetimes with a time zone, which come back in UTC.

    Args:
        default: A function that msgpack calls for a value that it cannot encode; it returns one that msgpack can.

    Raises:
        SerializerNotInstalled: msgpack is not installed.
    """

    name = "msgpack"
    binary = True
    safe = True
    quick = True

    def __init__(self, *, default: Callable[[Any], Any] | None = None) -> None:
        msgpack = library("msgpack", serializer=self.name, extra="msgpack")
        self._pack, self._unpack, self._default = msgpack.packb, msgpack.unpackb, default
        self.quick = default is None

    def dumps(self, value: Any) -> bytes:
        raw: bytes = self._pack(value, default=self._default, datetime=True)
        if len(raw) > MOST_NESTED:
            refuse_deep_data(value, MOST_NESTED)
        self.loads(raw)  # this raises if the data could not be decoded again, as with a tuple as a key
        return raw

    def loads(self, raw: Any) -> Any:
        return self._unpack(raw, timestamp=3, strict_map_key=False)  # 3 means datetimes


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `Msgpack`."""
    register(Msgpack)
