"""CBOR, by cbor2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.storable import refuse_deep_data

MOST_NESTED = 300
"""Levels of what cbor2 is given: it reads 400."""


class Cbor2:
    """CBOR, by cbor2: what JSON has, and bytes, sets, decimals, UUIDs, large integers, datetimes with a zone.

    Args:
        default: Called by cbor2 with its encoder and what it cannot encode.
        tag_hook: Called by cbor2 for tags that it does not know.

    Raises:
        SerializerNotInstalled: There is no cbor2.
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
        refuse_deep_data(value, MOST_NESTED)  # before cbor2 looks at it, which may end the process
        raw: bytes = self._dumps(value, default=self._default)
        self.loads(raw)  # what could not be read again is not written
        return raw

    def loads(self, raw: Any) -> Any:
        return self._loads(raw, tag_hook=self._tag_hook)


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Bring `Cbor2`."""
    register(Cbor2)
