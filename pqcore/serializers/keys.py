"""Keys: where serializers get them, how messages mention them, and the marks that name the keys of stored bytes.

Bytes that were encrypted or signed begin with a mark for each key, ``key:0123abcd:``. So a statement can count the rows
of a key, and needs no key itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import sha256

from pqcore.errors import ConfigurationError


def find_keys(keys: Sequence[str | bytes] | None, variable: str, who: str, make: str) -> list[bytes]:
    """Return the keys that a serializer uses: those given, or those of an environment variable.

    Args:
        keys: Keys, or None.
        variable: The variable's name; its keys are separated by commas or white space.
        who: The serializer's name for messages, as users write it.
        make: A function that makes a key.

    Raises:
        ConfigurationError: There are no keys, or the value is not a list.
    """
    if isinstance(keys, (str, bytes)):
        raise ConfigurationError(f"{who}: keys is a {type(keys).__name__}; give a list of keys, even for one key")
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
    """Return how many keys there are, as text; messages never say more about keys."""
    return "1 key" if number == 1 else f"{number} keys"


_PURPOSE = b"pqcore key id 1\0"
_MARK = re.compile(rb"key:([0-9a-f]{8}):")
MARK_SIZE = 13
"""The number of bytes of a mark."""


def key_id(key: bytes) -> str:
    """Return the id of a key: eight hexadecimal digits of a hash, which reveal nothing else about the key.

    Args:
        key: The bytes of the key.
    """
    return sha256(_PURPOSE + key).hexdigest()[:8]


def add_marks(ids: Sequence[str], raw: bytes) -> bytes:
    """Put a mark for each of these keys in front of bytes."""
    return b"".join([b"key:%s:" % each.encode() for each in ids]) + raw if ids else raw


def take_mark(raw: bytes) -> tuple[str | None, bytes]:
    """Return the id in the mark at the beginning of bytes, and the bytes after it; None if there is no mark.

    A row written in SQL may have text in place of bytes; text has no mark.
    """
    found = None if isinstance(raw, str) else _MARK.match(raw)
    return (None, raw) if found is None else (found[1].decode(), raw[MARK_SIZE:])


def read_marks(raw: bytes) -> tuple[str, ...]:
    """Return the ids in all marks at the beginning of bytes."""
    ids: list[str] = []
    while True:
        found, raw = take_mark(raw)
        if found is None:
            return tuple(ids)
        ids.append(found)
