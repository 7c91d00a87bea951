"""What turns a job's data into what a row holds, and back.

A serializer writes either JSON text, kept in the row's ``data`` column, or bytes,
kept in ``payload``.  The row also says which serializer wrote it, so a queue can
change while rows wait.  A row never chooses what is *run*: one written by
another serializer is read only if the queue accepts that by name.
"""

from __future__ import annotations

import json
import pickle
from typing import Any, Protocol


class Serializer(Protocol):
    """Two functions and a name.

    Attributes:
        name: As users write it, in ``pq["apples/msgpack"]``, and as rows hold it.
        binary: Whether `dumps` returns bytes; otherwise JSON text.
    """

    name: str
    binary: bool

    def dumps(self, value: Any) -> str | bytes:
        """Encode; raises whatever it likes for what it cannot encode."""

    def loads(self, raw: Any) -> Any:
        """Decode what `dumps` returned."""


_encoder = json.JSONEncoder(allow_nan=False)  # one for all: json.dumps would make one a call


def json_encode(value: object) -> str:
    """Encode to JSON text; unlike `json.dumps`, refuse NaN and infinity, which JSON has not."""
    return _encoder.encode(value)


def pickle_dumps(value: object) -> str:
    """Pickle to text that JSON can hold, as pq 1.9.1 does: protocol 0, one character a byte."""
    return pickle.dumps(value, 0).decode("latin-1")


def pickle_loads(text: str) -> Any:
    """Undo `pickle_dumps`.  Runs whatever the pickle says: only for rows that you wrote."""
    return pickle.loads(text.encode("latin-1"))  # noqa: S301 - asked for by name


class Json:
    """JSON, by the standard library."""

    name = "json"
    binary = False

    def dumps(self, value: Any) -> str:
        return json_encode(value)

    def loads(self, raw: Any) -> Any:
        return json.loads(raw)


class Pickle:
    """Pickle within a JSON string: any Python object, for rows that only trusted code can write."""

    name = "pickle"
    binary = False

    def dumps(self, value: Any) -> str:
        return json_encode(pickle_dumps(value))

    def loads(self, raw: Any) -> Any:
        return pickle_loads(json.loads(raw))
