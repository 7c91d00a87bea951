"""Pickle as text."""

from __future__ import annotations

import json
import pickle
from typing import Any

from pqcore.serializers.plain_json import json_encode


def pickle_dumps(value: object) -> str:
    """Pickle to text that JSON can hold, as pq 1.9.1 does: protocol 0, one character for each byte."""
    return pickle.dumps(value, 0).decode("latin-1")


def pickle_loads(text: str) -> Any:
    """Unpickle text from `pickle_dumps`; use it only for your own rows, because it runs any code in the pickle."""
    return pickle.loads(text.encode("latin-1"))  # noqa: S301 - asked for by name


class Pickle:
    """Pickle in a JSON string: it stores any Python object, for rows that only trusted code can write."""

    name = "pickle"
    binary = False
    safe = False

    def dumps(self, value: Any) -> str:
        return json_encode(pickle_dumps(value))

    def loads(self, raw: Any) -> Any:
        return pickle_loads(json.loads(raw))
