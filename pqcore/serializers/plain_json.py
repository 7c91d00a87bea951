"""JSON, by the standard library."""

from __future__ import annotations

import json
import json.encoder
import re
from json.scanner import make_scanner
from typing import Any

from pqcore.serializers.storable import MOST_NESTED, fields_of, refuse_colliding_keys, refuse_deep

_encoder = json.JSONEncoder(allow_nan=False)  # one encoder for all calls, because json.dumps would make one for each
_make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)
"""The C function with which `json.JSONEncoder.iterencode` makes an encoder; a direct call of it is faster. None if
Python has no C accelerator."""
_scan = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed knows it as a class of its own


_find_key = re.compile(r'"(?:-?[0-9][^"]*|true|false|null)":').search
"""Finds a key in JSON text that may have been of another type than a string before it was encoded."""
_find_end_of_key = re.compile(r'":(?<=[0-9el]":)(?:(?<=[0-9]":)|(?<="true":)|(?<="null":)|(?<="false":))').search
"""Finds the end of each such key, and of some other keys, in half the time, because it searches for two characters."""

FEW_KEYS = 4
"""The largest number of keys that `json_encode` looks at one by one."""
_FLAT = frozenset({str, int, float, bool, type(None)})
"""Types of values without keys."""


def json_encode(value: object) -> str:
    """Encode to JSON text; unlike `json.dumps`, refuse values that JSON lacks, and text that cannot be decoded again.

    Raises:
        TypeError: The data has a value or a key that JSON lacks.
        ValueError: The data has NaN or infinity, keys that are equal in JSON, or too many levels.
        RecursionError: The data has too many levels for Python.
    """
    if _make_encoder is None or isinstance(value, str):  # JSONEncoder.encode has a fast path for str
        raw = _encoder.encode(value)
    else:
        escape = json.encoder.encode_basestring_ascii
        # The first argument finds circular references; each call needs a new one, because an error leaves entries in
        # it.
        encode = _make_encoder({}, _encoder.default, escape, None, ": ", ", ", False, False, False)
        raw = "".join(encode(value, 0))
    if type(value) is dict and len(value) <= FEW_KEYS:
        # Checking a few keys takes less time than a regular expression, whose code is usually no longer in the
        # processor's caches after a wait for the server.
        for key, each in value.items():
            if type(key) is not str or type(each) not in _FLAT:
                break
        else:
            return raw
    if len(raw) > 2 * MOST_NESTED or _find_end_of_key(raw) is not None:
        check_json(value, raw)
    return raw


def check_json(value: object, raw: str) -> None:
    """Refuse data if its JSON text lacks a part of the data, or has too many levels for readers.

    Args:
        value: The encoded data.
        raw: The resulting text.

    Raises:
        ValueError: The data is refused.
    """
    refuse_deep(raw)
    if _find_key(raw) is not None:  # such a key may have been an int, a float, a bool or None
        refuse_colliding_keys(value, _encoder.encode, json.loads)


def json_decode(text: str) -> Any:
    """Decode JSON text as `json.loads` does, but faster if no white space surrounds the text, as in stored text."""
    try:
        value, end = _scan(text, 0)
    except (StopIteration, TypeError):
        end = -1
    return value if end == len(text) else json.loads(text)


class Json:
    """JSON, by the standard library."""

    name = "json"
    binary = False
    safe = True
    quick = True

    def dumps(self, value: Any) -> str:
        return json_encode(value)

    def loads(self, raw: Any) -> Any:
        return json_decode(raw)


_finite = json.JSONEncoder(allow_nan=False, default=fields_of, skipkeys=True)


def refuse_not_finite(value: object, raw: bytes) -> None:
    """Refuse NaN and infinity, which a fast encoder has written as ``null``.

    Args:
        value: The encoded data: values that JSON has, dataclasses, and leaves of any type.
        raw: The resulting text; without a ``null``, there is nothing to check.

    Raises:
        ValueError: The data has such a value.
    """
    if b"null" in raw:
        _finite.encode(value)
