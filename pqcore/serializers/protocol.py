"""What a serializer is."""

from __future__ import annotations

from typing import Any, Protocol


class Serializer(Protocol):
    """Two functions and a name.

    It may have further attributes, which are looked for by name:

    ``stored_as``: What rows are marked with, if not with the name: the format, where
    several serializers read the same.  ``safe``: False if decoding may run code.
    ``authenticates``: True if it reads only what somebody wrote who has a key; its
    queue then reads no plain JSON either, unless told to.  ``valid_json``: True if `dumps`
    always gives one value of JSON, which `put_many` then sends as it is.

    Attributes:
        name: As users write it, in ``pq["apples/msgpack"]``.
        binary: Whether `dumps` returns bytes; otherwise JSON text.
    """

    name: str
    binary: bool

    def dumps(self, value: Any) -> str | bytes:
        """Encode; raises whatever it likes for what it cannot encode."""

    def loads(self, raw: Any) -> Any:
        """Decode what `dumps` returned."""


def stored_name(serializer: Serializer) -> str:
    """What rows are marked with that a serializer writes, and by which it knows those it can read."""
    name: str = getattr(serializer, "stored_as", serializer.name)
    return name


def authenticates(serializer: Serializer | None) -> bool:
    """Whether a serializer reads only what somebody wrote who has a key."""
    return bool(getattr(serializer, "authenticates", False))
