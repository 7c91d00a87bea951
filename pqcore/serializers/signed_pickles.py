"""Signed pickles: only data from holders of the key is unpickled."""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from pqcore.errors import ConfigurationError, KeyNotHeld
from pqcore.hookspecs import hookimpl
from pqcore.serializers.keys import add_marks, counted, find_keys, key_id, take_mark

VARIABLE = "PQCORE_PICKLE_KEYS"
SHORTEST_KEY = 32
"""The smallest number of bytes of a key: the length of the digest."""
PROTOCOL = 5
"""The protocol of pickles, which every Python version that pqcore supports can read."""

_SIZE = 32
_PURPOSE = b"pqcore signed-pickle 1\0"
"""The beginning of what is signed, so that a signature made with the same key for another purpose is invalid here."""
_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class SignedPickle:
    """Pickle as bytes, after a mark of the key and an HMAC-SHA256; it stores any Python object.

    The signature is checked before anything is unpickled. The signature does not name the job, so anybody who can write
    rows can copy a signed pickle from one job to another.

    Args:
        keys: The keys; the first signs, and all can verify. Each key has at least 32 bytes. By default, the keys in the
            environment variable PQCORE_PICKLE_KEYS, separated by commas.

    Raises:
        ConfigurationError: There is no key, or one is too short.
    """

    name = "signed-pickle"
    binary = True
    safe = True
    authenticates = True

    def __init__(self, *, keys: Sequence[str | bytes] | None = None) -> None:
        found = find_keys(keys, VARIABLE, "SignedPickle", _MAKE)
        for number, key in enumerate(found, 1):
            if len(key) < SHORTEST_KEY:
                msg = f"SignedPickle: key {number} has {len(key)} bytes; give {SHORTEST_KEY} or more, from {_MAKE}"
                raise ConfigurationError(msg)
        # Each HMAC object has read its key, and is copied for each use, so the serializer does not keep the key.
        self._signers = [hmac.new(key, _PURPOSE, "sha256") for key in found]
        self.key_ids = [key_id(key) for key in found]

    def dumps(self, value: Any) -> bytes:
        return self._signed(pickle.dumps(value, PROTOCOL))

    def loads(self, raw: Any) -> Any:
        return pickle.loads(self._verified(raw))  # noqa: S301 - written by somebody who has the key

    def rekey(self, raw: bytes) -> bytes:
        """Return the same pickle, signed with the first key, without unpickling it.

        Args:
            raw: The result of `dumps`, with any key.
        """
        return self._signed(self._verified(raw))

    def _signed(self, pickled: bytes) -> bytes:
        return add_marks(self.key_ids[:1], _signature(self._signers[0], pickled) + pickled)

    def _verified(self, raw: Any) -> bytes:
        mark, rest = take_mark(raw)
        signature, pickled = rest[:_SIZE], rest[_SIZE:]
        signers = [signer for signer, of in zip(self._signers, self.key_ids, strict=True) if mark in (None, of)]
        if not any(hmac.compare_digest(_signature(signer, pickled), signature) for signer in signers):
            msg = (
                f"it was not signed with {counted(len(self._signers))}: it was altered, or signed with another key"
                f"{'' if mark is None or signers else f', {mark}'} "
                f"(add that to {VARIABLE}, or to SignedPickle(keys=[...])); it was not unpickled"
            )
            # If the mark names one of the serializer's keys, or the bytes are too short, the bytes were altered.
            # Otherwise, another key may have signed them.
            elsewhere = not signers or (mark is None and len(rest) > _SIZE)
            raise KeyNotHeld(msg) if elsewhere else ValueError(msg)
        return bytes(pickled)

    def __repr__(self) -> str:
        return f"<{self.name} with {counted(len(self._signers))}>"


def _signature(signer: hmac.HMAC, pickled: bytes) -> bytes:
    copied = signer.copy()
    copied.update(pickled)
    return copied.digest()


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `SignedPickle`."""
    register(SignedPickle)
