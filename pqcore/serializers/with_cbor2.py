"""CBOR, by the package cbor2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.storable import refuse_deep_data

MOST_NESTED = 300
"""The largest number of levels given to cbor2, which reads 400."""


class Cbor2:
    """CBOR, by cbor2: JSON's values, and bytes, sets, decimals, UUIDs, large integers, datetimes with a time zone.

    Args:
        default: A function that cbor2 calls with its encoder and a value that it cannot encode.
        tag_hook: A function that cbor2 calls for unknown tags.

    Raises:
        SerializerNotInstalled: cbor2 is not installed.
    """

    name = "cbor2"
    binary = True
    safe = True
    quick = True

    def __init__(
        self, *, default: Callable[..., Any] | None = None, tag_hook: Callable[..., Any] | None = None
    ) -> None:
        cbor2 = library("cbor2", serializer=self.name, extra="cbor2")
        self._dumps, self._loads = cbor2.dumps, cbor2.loads
        self._default, self._tag_hook = default, tag_hook
        self.quick = default is None and tag_hook is None

    def dumps(self, value: Any) -> bytes:
        refuse_deep_data(value, MOST_NESTED)  # must come first: too many levels may crash cbor2
        raw: bytes = self._dumps(value, default=self._default)
        self.loads(raw)  # this raises if the data could not be decoded again
        return raw

    def loads(self, raw: Any) -> Any:
        return self._loads(raw, tag_hook=self._tag_hook)


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `Cbor2`."""
    register(Cbor2)
