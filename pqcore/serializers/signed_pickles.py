"""Pickle with a signature: nothing is unpickled that was not written by somebody who has the key."""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from pqcore.errors import ConfigurationError
from pqcore.hookspecs import hookimpl
from pqcore.serializers.keys import counted, find_keys

VARIABLE = "PQCORE_PICKLE_KEYS"
SHORTEST_KEY = 32  # bytes: as long as the digest
PROTOCOL = 5  # of Python 3.8 and later, so that all that pqcore runs on can read it

_SIZE = 32
_PURPOSE = b"pqcore signed-pickle 1\0"  # so that no signature made for something else is one here
_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class SignedPickle:
    """Pickle as bytes, after their HMAC-SHA256: any Python object.

    The signature is checked before anything is unpickled.  It does not say for which
    job it was made: who can write rows can copy one.

    Args:
        keys: The first signs; any is good for reading.  At least 32 bytes each.  Without
            them, those of the environment variable PQCORE_PICKLE_KEYS, divided by commas.

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
        # Begun with the key, and copied for each use: the key itself is not kept where it could be shown.
        self._signers = [hmac.new(key, _PURPOSE, "sha256") for key in found]

    def dumps(self, value: Any) -> bytes:
        pickled = pickle.dumps(value, PROTOCOL)
        return _signature(self._signers[0], pickled) + pickled

    def loads(self, raw: Any) -> Any:
        signature, pickled = raw[:_SIZE], raw[_SIZE:]
        if not any(hmac.compare_digest(_signature(signer, pickled), signature) for signer in self._signers):
            msg = (
                f"it was not signed with {counted(len(self._signers))}: it was altered, or signed with another key "
                f"(add that to {VARIABLE}, or to SignedPickle(keys=[...])); it was not unpickled"
            )
            raise ValueError(msg)
        return pickle.loads(pickled)  # noqa: S301 - written by somebody who has the key

    def __repr__(self) -> str:
        return f"<{self.name} with {counted(len(self._signers))}>"


def _signature(signer: hmac.HMAC, pickled: bytes) -> bytes:
    copied = signer.copy()
    copied.update(pickled)
    return copied.digest()


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Bring `SignedPickle`."""
    register(SignedPickle)
