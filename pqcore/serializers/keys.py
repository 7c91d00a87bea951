"""Keys: where they come from, what is said of them, and how stored bytes say under which key they are.

Bytes that were encrypted or signed begin with a mark for each key, ``key:0123abcd:``.  So SQL can count the rows of a
key, and needs no key for that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import sha256

from pqcore.errors import ConfigurationError


def find_keys(keys: Sequence[str | bytes] | None, variable: str, who: str, make: str) -> list[bytes]:
    """The keys that a serializer is to use: those given, or those of an environment variable.

    Args:
        keys: Keys, or None.
        variable: The variable's name; there, keys are divided by commas or white space.
        who: Who needs them, for messages, as users write it.
        make: How one is made.

    Raises:
        ConfigurationError: There are none, or they are no list.
    """
    if isinstance(keys, (str, bytes)):
        raise ConfigurationError(f"{who}: keys is a {type(keys).__name__}; give a list of keys, even of one")
    if keys is None:
        keys = [key for key in re.split(r"[,\s]+", os.environ.get(variable, "")) if key]
    if not keys:
        given = f"give {who}(keys=[...]), or set the environment variable {variable}"
        raise ConfigurationError(f"{who} needs a key: {given}; make one with {make}")
    return [_encoded(key, number, who) for number, key in enumerate(keys, 1)]


def _encoded(key: str | bytes, number: int, who: str) -> bytes:
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode("utf-8", "surrogatepass")
    raise ConfigurationError(f"{who}: key {number} is a {type(key).__name__}; give a str or bytes")


def counted(number: int) -> str:
    """How many keys there are, which is all that is ever said of them."""
    return "1 key" if number == 1 else f"{number} keys"


_PURPOSE = b"pqcore key id 1\0"
_MARK = re.compile(rb"key:([0-9a-f]{8}):")
MARK_SIZE = 13
"""Bytes of a mark."""


def key_id(key: bytes) -> str:
    """Return the id of a key: eight hexadecimal digits of a hash, which tell nothing else of the key.

    Args:
        key: The bytes of the key.
    """
    return sha256(_PURPOSE + key).hexdigest()[:8]


def add_marks(ids: Sequence[str], raw: bytes) -> bytes:
    """Return bytes with a mark for each of these keys before them."""
    return b"".join([b"key:%s:" % each.encode() for each in ids]) + raw if ids else raw


def take_mark(raw: bytes) -> tuple[str | None, bytes]:
    """Return the id in the mark that bytes begin with, and what is behind the mark; None without a mark.

    A row that was written in SQL may have text where bytes belong: text has no mark.
    """
    found = None if isinstance(raw, str) else _MARK.match(raw)
    return (None, raw) if found is None else (found[1].decode(), raw[MARK_SIZE:])


def read_marks(raw: bytes) -> tuple[str, ...]:
    """Return the ids in all marks that bytes begin with."""
    ids: list[str] = []
    while True:
        found, raw = take_mark(raw)
        if found is None:
            return tuple(ids)
        ids.append(found)
