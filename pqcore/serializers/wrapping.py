"""Serializers around other serializers, such as ``'json+zstd+fernet'``, from the innermost to the outermost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pqcore.errors import ConfigurationError, KeyNotHeld
from pqcore.plugins import plugins
from pqcore.serializers.keys import add_marks, counted, take_mark
from pqcore.serializers.plain_json import Json
from pqcore.serializers.protocol import Serializer, authenticates, fault_of, stored_name, written_under


class Wrapper:
    """A serializer that transforms the bytes which another serializer writes.

    Subclasses define a `layer`, and implement `wrap` and `unwrap`. A wrapper that is registered by name is constructed
    with only the inner serializer.

    A wrapper with keys sets `key_ids` when it is constructed. Stored data then begins with a mark of the first key,
    which `wrap` and `unwrap` do not see. `PQ.encodings` counts rows by this mark.

    Args:
        inner: The inner serializer, or its name; JSON by default.

    Raises:
        ConfigurationError: ``inner`` is not a serializer, or names one that cannot be used.
        SerializerNotInstalled: A library is missing.

    Attributes:
        layer: The text that is added to the inner serializer's name.
        inner: The inner serializer.
        key_ids: The ids of the wrapper's keys (`pqcore.serializers.key_id`); the first key writes.
    """

    layer: ClassVar[str]
    wraps_another: ClassVar[bool] = True  # see `is_wrapper`
    binary = True
    safe: bool | None = None
    authenticates = False
    key_ids: Sequence[str] = ()
    _inner_keys = 0

    def __init__(self, inner: Serializer | str | None = None) -> None:
        self.inner: Serializer = _found(inner)
        self.name = f"{self.inner.name}+{self.layer}"
        self.stored_as = f"{stored_name(self.inner)}+{self.layer}"
        self.safe = self.safe or getattr(self.inner, "safe", None)
        self.authenticates = self.authenticates or authenticates(self.inner)
        self._inner_keys = len(written_under(self.inner))

    def dumps(self, value: Any) -> bytes:
        raw = self.inner.dumps(value)
        return self._wrapped(raw.encode() if isinstance(raw, str) else raw)

    def loads(self, raw: Any) -> Any:
        inner = self._unwrapped(raw)
        return self.inner.loads(inner if self.inner.binary else inner.decode())

    def rekey(self, raw: bytes) -> bytes:
        """Return the same data, encrypted or signed with the first key of each layer; do not decode the inner data.

        Args:
            raw: The result of `dumps`, under any key.
        """
        inner = self._unwrapped(raw)
        if self._inner_keys:
            keyed: Any = self.inner
            inner = keyed.rekey(inner)
        return self._wrapped(inner)

    def unwrap_under(self, raw: bytes, key: str) -> bytes:
        """Undo `wrap` for bytes whose mark names one of the wrapper's keys.

        A wrapper that tries all its keys need not override this.

        Args:
            raw: The result of `wrap`.
            key: The id of the key.
        """
        return self.unwrap(raw)

    def refused_key(self, key: str) -> KeyNotHeld:
        """Return the error for bytes whose mark names a key that the wrapper does not have."""
        return KeyNotHeld(f"it was altered, or written with another key, {key}, than the {counted(len(self.key_ids))}")

    def _wrapped(self, raw: bytes) -> bytes:
        marks = list(self.key_ids[:1])
        # the marks of all layers come before the outermost data, where SQL can read them
        for _ in range(self._inner_keys):
            mark, raw = take_mark(raw)
            marks += [] if mark is None else [mark]
        return add_marks(marks, self.wrap(raw))

    def _unwrapped(self, raw: bytes) -> bytes:
        own = None
        if self.key_ids:
            own, raw = take_mark(raw)
        marks = []
        for _ in range(self._inner_keys):
            mark, raw = take_mark(raw)
            marks += [] if mark is None else [mark]
        if own is None:  # the bytes have no mark, because an older version of pqcore, or another program, wrote them
            return add_marks(marks, self.unwrap(raw))
        if own not in self.key_ids:
            raise self.refused_key(own)
        return add_marks(marks, self.unwrap_under(raw, own))

    def wrap(self, raw: bytes) -> bytes:
        """Return the bytes to store for these bytes."""
        raise NotImplementedError

    def unwrap(self, raw: bytes) -> bytes:
        """Undo `wrap`; raise any exception for bytes that `wrap` did not return."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _found(inner: Serializer | str | None) -> Serializer:
    if isinstance(inner, str):
        return plugins.serializer(inner)
    if isinstance(inner, type):
        raise ConfigurationError(f"the inner serializer is the class {inner.__qualname__}; give an instance")
    if inner is None:
        return Json()
    if fault := fault_of(inner):
        raise ConfigurationError(f"the inner serializer cannot be used: {fault}")
    return inner
