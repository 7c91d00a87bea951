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
    always gives one value of JSON, which `put_many` then sends as it is.  ``key_ids``: The ids of
    the keys that it holds, the first of which writes; then `dumps` begins with a mark of that key
    (`Wrapper` does so by itself).  ``rekey``: Called with what was stored; returns the same data
    under the first key.  ``quick``: True if some kilobytes are read and written as fast as JSON; a worker
    then calls it in its event loop, and else in threads.  A subclass states ``quick`` again.

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


LONGEST_NAME = 200
"""Characters of a serializer's name, at most: each row is marked with it."""


def fault_of(serializer: object, *, writes: bool = True) -> str:
    """Return why something is no serializer, and what to do; empty if it is one.

    Args:
        serializer: What was given for a serializer: an object, or a class that is registered to be constructed later.
        writes: Whether it has to encode data, too.
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
    """Return whether something is a class of serializers that wrap others: a subclass of `Wrapper`."""
    return isinstance(serializer, type) and bool(getattr(serializer, "wraps_another", False))


def _is_plain(name: str) -> bool:
    return name.isprintable() and name == name.strip()


def stored_name(serializer: Serializer) -> str:
    """What rows are marked with that a serializer writes, and by which it knows those it can read."""
    name: str = getattr(serializer, "stored_as", serializer.name)
    return name


def written_under(serializer: object) -> tuple[str, ...]:
    """Return the ids of the keys that a serializer writes under, the outermost first; empty if it has no keys."""
    own: tuple[str, ...] = tuple(getattr(serializer, "key_ids", ()))[:1]
    inner = getattr(serializer, "inner", None)
    return own if inner is None else own + written_under(inner)


def held_keys(serializer: object) -> frozenset[str]:
    """Return the ids of all keys that a serializer can read with."""
    inner = getattr(serializer, "inner", None)
    held = frozenset(getattr(serializer, "key_ids", ()))
    return held if inner is None else held | held_keys(inner)


def is_quick(serializer: Serializer | None) -> bool:
    """Return whether a serializer's own class says that it takes no longer than JSON."""
    return bool(vars(type(serializer)).get("quick", False)) and bool(getattr(serializer, "quick", False))


def authenticates(serializer: Serializer | None) -> bool:
    """Whether a serializer reads only what somebody wrote who has a key."""
    return bool(getattr(serializer, "authenticates", False))
