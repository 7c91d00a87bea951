"""JSON, by the standard library."""

from __future__ import annotations

import json
import json.encoder
import re
from json.scanner import make_scanner
from typing import Any

from pqcore.serializers.storable import MOST_NESTED, fields_of, refuse_colliding_keys, refuse_deep

_encoder = json.JSONEncoder(allow_nan=False)  # one for all: json.dumps would make one a call
_make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)
"""Makes what `json.JSONEncoder.iterencode` encodes with, without the functions that it defines in each call; None where
Python has no accelerator in C."""
_scan = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed knows it as a class of its own


_find_key = re.compile(r'"(?:-?[0-9][^"]*|true|false|null)":').search
"""Finds a key that may stand for one that is no string."""
_find_end_of_key = re.compile(r'":(?<=[0-9el]":)(?:(?<=[0-9]":)|(?<="true":)|(?<="null":)|(?<="false":))').search
"""Finds at least the end of each such key, in half the time: the search is for two characters."""


def json_encode(value: object) -> str:
    """Encode to JSON text; unlike `json.dumps`, refuse what JSON has not, and what could not be read again.

    Raises:
        TypeError: It has a value or a key that JSON has not.
        ValueError: It has NaN or infinity, keys that are the same in JSON, or is nested too deeply.
        RecursionError: It is nested too deeply for Python.
    """
    if _make_encoder is None or isinstance(value, str):  # for text the encoder has a way of its own
        raw = _encoder.encode(value)
    else:
        escape = json.encoder.encode_basestring_ascii
        # The first finds circles: one for each call, as an error leaves entries in it.
        encode = _make_encoder({}, _encoder.default, escape, None, ": ", ", ", False, False, False)
        raw = "".join(encode(value, 0))
    if len(raw) > 2 * MOST_NESTED or _find_end_of_key(raw) is not None:
        check_json(value, raw)
    return raw


def check_json(value: object, raw: str) -> None:
    """Refuse data of which JSON text loses a part, or which readers may fail at.

    Args:
        value: What was encoded.
        raw: What came of it.

    Raises:
        ValueError: It is such data.
    """
    refuse_deep(raw)
    if _find_key(raw) is not None:  # only such a key may stand for one that is no string
        refuse_colliding_keys(value, _encoder.encode, json.loads)


def json_decode(text: str) -> Any:
    """Decode JSON text as `json.loads` does, which first looks for blanks around it: what we store has none."""
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
    """Refuse what a fast encoder has made a ``null`` of: NaN and infinity.

    Args:
        value: What was encoded: what JSON has, dataclasses, and leaves of any type.
        raw: What came of it; without a ``null``, there is nothing to look for.

    Raises:
        ValueError: There is one.
    """
    if b"null" in raw:
        _finite.encode(value)
