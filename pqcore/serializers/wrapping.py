"""Serializers around other serializers: ``'json+zstd+fernet'``, from the inside out."""

from __future__ import annotations

from typing import Any, ClassVar

from pqcore.errors import ConfigurationError
from pqcore.serializers.plain_json import Json
from pqcore.serializers.protocol import Serializer, authenticates, stored_name


class Wrapper:
    """Does something to the bytes that another serializer writes.

    Subclasses have a `layer` and implement `wrap` and `unwrap`.  One that is registered by name
    is constructed with the inner serializer alone.

    Args:
        inner: The serializer that is wrapped, or its name; JSON by default.

    Raises:
        ConfigurationError: ``inner`` is a class, or of a name that cannot be used.
        SerializerNotInstalled: A library is missing.

    Attributes:
        layer: What is added to the inner one's name.
        inner: The serializer that is wrapped.
    """

    layer: ClassVar[str]
    binary = True
    safe: bool | None = None
    authenticates = False

    def __init__(self, inner: Serializer | str | None = None) -> None:
        self.inner: Serializer = _found(inner)
        self.name = f"{self.inner.name}+{self.layer}"
        self.stored_as = f"{stored_name(self.inner)}+{self.layer}"
        self.safe = self.safe or getattr(self.inner, "safe", None)
        self.authenticates = self.authenticates or authenticates(self.inner)

    def dumps(self, value: Any) -> bytes:
        raw = self.inner.dumps(value)
        return self.wrap(raw.encode() if isinstance(raw, str) else raw)

    def loads(self, raw: Any) -> Any:
        inner = self.unwrap(raw)
        return self.inner.loads(inner if self.inner.binary else inner.decode())

    def wrap(self, raw: bytes) -> bytes:
        """What is stored for these bytes."""
        raise NotImplementedError

    def unwrap(self, raw: bytes) -> bytes:
        """Undo `wrap`; raises whatever it likes for what `wrap` did not return."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _found(inner: Serializer | str | None) -> Serializer:
    if isinstance(inner, str):
        from pqcore.plugins import plugins  # which imports this

        return plugins.serializer(inner)
    if isinstance(inner, type):
        raise ConfigurationError(f"the inner serializer is the class {inner.__qualname__}; give an instance")
    return Json() if inner is None else inner
