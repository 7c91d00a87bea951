"""The protocol of serializers."""

from __future__ import annotations

from typing import Any, Protocol


class Serializer(Protocol):
    """An object that encodes and decodes data, with a name.

    A serializer may also have these optional attributes:

    ``stored_as``: The name that marks the serializer's rows, if it differs from ``name``; serializers that read the
    same format share this name. ``safe``: False if decoding may run code. ``authenticates``: True if the serializer
    reads only data from holders of a key; the queue then refuses plain JSON, unless ``accept`` allows it.
    ``valid_json``: True if `dumps` always returns one JSON value, which `put_many` then sends unchanged. ``key_ids``:
    The ids of the serializer's keys; `dumps` uses the first key, and its output must begin with a mark of that key
    (`Wrapper` adds the mark itself). ``rekey``: A function that takes stored data, and returns the same data under the
    first key. ``quick``: True if the serializer handles some kilobytes as fast as JSON; a worker then calls the
    serializer in the event loop, and otherwise in threads. A subclass does not inherit ``quick``, and must set it.

    Attributes:
        name: The name that users write, as in ``pq["apples/msgpack"]``.
        binary: Whether `dumps` returns bytes; otherwise JSON text.
    """

    name: str
    binary: bool

    def dumps(self, value: Any) -> str | bytes:
        """Encode data; raise any exception for data that cannot be encoded."""

    def loads(self, raw: Any) -> Any:
        """Decode what `dumps` returned."""


LONGEST_NAME = 200
"""The largest number of characters of a serializer's name, which marks each of its rows."""


def fault_of(serializer: object, *, writes: bool = True) -> str:
    """Return why an object is not a serializer, and what to do about it; return an empty text if it is a serializer.

    Args:
        serializer: The object given as a serializer: an instance, or a class that is registered for later construction.
        writes: Whether it must also encode data.
    """
    kind = serializer if isinstance(serializer, type) else type(serializer)
    what = f"the class {kind.__qualname__}" if kind is serializer else f"a {kind.__qualname__}"
    for name in ("name", "stored_as"):
        value = getattr(serializer, name, None if name == "name" else "-")
        if value is None:
            return f"{what} has no {name!r}; give it a name, a str"
        if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_NAME or not _is_plain(value):
            shown = repr(value)
            shown = shown if len(shown) <= LONGEST_NAME else f"{shown[:LONGEST_NAME]}..."
            return f"{what} has the {name} {shown}; give a str of 1 to {LONGEST_NAME} printable characters"
    if writes and not hasattr(serializer, "binary"):
        return f"{what} has no 'binary'; set it to True if dumps returns bytes, to False if dumps returns JSON text"
    for name in ("dumps", "loads") if writes else ("loads",):
        if not callable(getattr(serializer, name, None)):
            return f"{what} has no method {name!r}; write one that {'encodes' if name == 'dumps' else 'decodes'} data"
    return ""


def is_wrapper(serializer: object) -> bool:
    """Return whether an object is a class of serializers that wrap others: a subclass of `Wrapper`."""
    return isinstance(serializer, type) and bool(getattr(serializer, "wraps_another", False))


def _is_plain(name: str) -> bool:
    return name.isprintable() and name == name.strip()


def stored_name(serializer: Serializer) -> str:
    """Return the name that marks a serializer's rows; by this name, a queue finds the serializer that reads a row."""
    name: str = getattr(serializer, "stored_as", serializer.name)
    return name


def written_under(serializer: object) -> tuple[str, ...]:
    """Return the ids of the keys with which a serializer writes, the outermost first; empty if it has no keys."""
    own: tuple[str, ...] = tuple(getattr(serializer, "key_ids", ()))[:1]
    inner = getattr(serializer, "inner", None)
    return own if inner is None else own + written_under(inner)


def held_keys(serializer: object) -> frozenset[str]:
    """Return the ids of all keys that a serializer can read with."""
    inner = getattr(serializer, "inner", None)
    held = frozenset(getattr(serializer, "key_ids", ()))
    return held if inner is None else held | held_keys(inner)


def is_quick(serializer: Serializer | None) -> bool:
    """Return whether a serializer's own class declares that it is as fast as JSON."""
    return bool(vars(type(serializer)).get("quick", False)) and bool(getattr(serializer, "quick", False))


def authenticates(serializer: Serializer | None) -> bool:
    """Return whether a serializer reads only data from holders of a key."""
    return bool(getattr(serializer, "authenticates", False))
