"""JSON and MessagePack by msgspec, for any data or for one type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.plain_json import refuse_not_finite
from pqcore.serializers.storable import MOST_NESTED, refuse_colliding_keys, refuse_deep, refuse_deep_data


class _Msgspec:
    name = "msgspec"
    safe = True
    _format = "json"

    def __init__(
        self,
        type: Any = Any,  # noqa: A002 - as msgspec names it
        *,
        strict: bool = True,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self._msgspec = library("msgspec", serializer=self.name, extra="msgspec")
        codec = library(f"msgspec.{self._format}", serializer=self.name, extra="msgspec")
        self._type, self._enc_hook = type, enc_hook
        self.quick = type is Any and enc_hook is None and dec_hook is None
        self._encode = codec.Encoder(enc_hook=enc_hook).encode
        self._decode = codec.Decoder(type, strict=strict, dec_hook=dec_hook).decode

    def _encoded(self, value: Any) -> bytes:
        raw: bytes = self._encode(value)
        if self._type is not Any:
            self._decode(raw)  # raises if the data does not fit the type: msgspec checks types only when it decodes
        return raw

    def loads(self, raw: Any) -> Any:
        return self._decode(raw)

    def __repr__(self) -> str:
        return f"<{self.name}>" if self._type is Any else f"<{self.name} of {self._type!r}>"


class MsgspecJson(_Msgspec):
    """JSON, by msgspec, for JSON's values or for one type.

    Rows are plain JSON. As with `Json`, NaN and infinity are refused.

    Args:
        type: The type of decoded data: a ``msgspec.Struct``, a dataclass, a ``TypedDict``, a union of those, or any
            type that msgspec knows. Data that does not fit is refused, both by ``put`` and when a row is read. Without
            a type, any data is accepted.
        strict: False to convert between types, such as ``"1"`` for an int.
        enc_hook: A function that is called for a value that msgspec cannot encode.
        dec_hook: A function that is called with a type that msgspec does not know, and the value.

    Raises:
        SerializerNotInstalled: msgspec is not installed.
    """

    stored_as = "json"
    binary = False
    quick = True

    def dumps(self, value: Any) -> str:
        raw = self._encoded(value)
        if b"null" in raw:
            refuse_not_finite(self._msgspec.to_builtins(value, enc_hook=self._enc_hook), raw)
        if b'":' in raw:
            refuse_colliding_keys(value, self._encode, self._msgspec.json.decode)
        text: str = raw.decode()
        refuse_deep(text)
        return text


class MsgspecMsgpack(_Msgspec):
    """MessagePack, by msgspec, for JSON's values, bytes and datetimes, or for one type.

    Rows have the format of `Msgpack`.

    Args:
        type: See `MsgspecJson`.
        strict: See `MsgspecJson`.
        enc_hook: See `MsgspecJson`.
        dec_hook: See `MsgspecJson`.

    Raises:
        SerializerNotInstalled: msgspec is not installed.
    """

    name = "msgspec-msgpack"
    stored_as = "msgpack"
    binary = True
    quick = True
    _format = "msgpack"

    def dumps(self, value: Any) -> bytes:
        raw = self._encoded(value)
        if len(raw) > MOST_NESTED:
            refuse_deep_data(value, MOST_NESTED)
        if self._type is Any:
            self._decode(raw)  # this raises if the data could not be decoded again, as with a list as a key
        return raw


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `MsgspecJson` and `MsgspecMsgpack`."""
    register(MsgspecJson)
    register(MsgspecMsgpack)
