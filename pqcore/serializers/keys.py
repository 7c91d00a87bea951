"""Keys: where they come from, and what is said of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

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
