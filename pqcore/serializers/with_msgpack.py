"""MessagePack, by msgpack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.storable import MOST_NESTED, refuse_deep_data


class Msgpack:
    """MessagePack, by msgpack: what JSON has, bytes, and datetimes with a zone, which come back in UTC.

    Args:
        default: Called for what msgpack cannot encode; returns something that it can.

    Raises:
        SerializerNotInstalled: There is no msgpack.
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
        self.loads(raw)  # what could not be read again, as a tuple for a key, is not written
        return raw

    def loads(self, raw: Any) -> Any:
        return self._unpack(raw, timestamp=3, strict_map_key=False)  # 3: as datetimes


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Bring `Msgpack`."""
    register(Msgpack)
