"""Serializers that encrypt."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from pqcore.db.interrupts import is_from_outside
from pqcore.errors import ConfigurationError, KeyNotHeld, Unreadable
from pqcore.hookspecs import hookimpl
from pqcore.serializers.extras import library
from pqcore.serializers.keys import counted, find_keys, key_id
from pqcore.serializers.protocol import Serializer, is_quick
from pqcore.serializers.wrapping import Wrapper

VARIABLE = "PQCORE_FERNET_KEYS"
_VERSION, _BLOCK, _LEAST = b"\x80", 16, 1 + 8 + 16 + 32
"""Properties of a token: its first byte, the bytes of a block, and those of the version, time, IV and HMAC."""
_MAKE = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"


class Fernet(Wrapper):
    """Fernet, by cryptography: AES-128-CBC with an HMAC-SHA256.

    The stored bytes are a mark, which names the key, and then a Fernet token.

    A token does not name its job, so anybody who can write rows can copy a token from one job to another.

    Args:
        inner: The serializer whose bytes are encrypted, or its name; JSON by default.
        keys: The keys; the first encrypts, and all can decrypt. By default, the keys in the environment variable
            PQCORE_FERNET_KEYS, separated by commas.

    Raises:
        ConfigurationError: There is no key, or one is not a Fernet key.
        SerializerNotInstalled: cryptography is not installed.
    """

    layer = "fernet"
    quick = True
    safe = True  # decoding is safe, because only the holder of a key can have written the data
    authenticates = True

    def __init__(self, inner: Serializer | str | None = None, *, keys: Sequence[str | bytes] | None = None) -> None:
        super().__init__(inner)
        self.quick = is_quick(self.inner)
        fernet = library("cryptography.fernet", serializer=self.layer, extra="fernet")
        found = find_keys(keys, VARIABLE, "Fernet", _MAKE)
        self._invalid = fernet.InvalidToken
        self._count = len(found)
        each = [_made(fernet.Fernet, key, number) for number, key in enumerate(found, 1)]
        self.key_ids = [key_id(base64.urlsafe_b64decode(key)) for key in found]
        self._fernet = fernet.MultiFernet(each)
        self._by_id = {
            of: fernet.MultiFernet([one for one, known in zip(each, self.key_ids, strict=True) if known == of])
            for of in self.key_ids
        }

    def loads(self, raw: Any) -> Any:
        plain = self._unwrapped(raw)
        try:
            return self.inner.loads(plain if self.inner.binary else plain.decode())
        except BaseException as exc:  # any exception may contain the decrypted data
            if is_from_outside(exc):
                raise
            problem, elsewhere = type(exc).__name__, isinstance(exc, Unreadable)
        # These errors are raised outside the except clause, so that no traceback contains the original error.
        if elsewhere:
            raise KeyNotHeld(f"the data was decrypted, but this program cannot read its {self.inner.name} ({problem})")
        raise ValueError(f"the data was decrypted, but is not valid {self.inner.name} ({problem})")

    def wrap(self, raw: bytes) -> bytes:
        token: bytes = self._fernet.encrypt(raw)
        return token

    def unwrap(self, raw: bytes) -> bytes:
        return self._decrypted(self._fernet, raw, marked=False)

    def unwrap_under(self, raw: bytes, key: str) -> bytes:
        return self._decrypted(self._by_id[key], raw, marked=True)

    def refused_key(self, key: str) -> KeyNotHeld:
        return KeyNotHeld(
            f"it cannot be decrypted with {counted(self._count)}: it was altered, or encrypted with another key, {key} "
            f"(add that to {VARIABLE}, or to Fernet(keys=[...]))"
        )

    def _decrypted(self, fernet: Any, raw: bytes, *, marked: bool) -> bytes:
        try:
            plain: bytes = fernet.decrypt(raw)
        except self._invalid:
            msg = (
                f"it cannot be decrypted with {counted(self._count)}: it was altered, or encrypted with another key "
                f"(add that to {VARIABLE}, or to Fernet(keys=[...]))"
            )
            # If a mark names one of the serializer's keys, the bytes were altered, and no other key can decrypt them.
            raise (KeyNotHeld(msg) if not marked and _is_token(raw) else ValueError(msg)) from None
        return plain

    def __repr__(self) -> str:
        return f"<{self.name} with {counted(self._count)}>"


def _is_token(raw: bytes) -> bool:
    """Return whether bytes have the form of a Fernet token; if so, another key may decrypt them."""
    try:
        token = base64.b64decode(raw, b"-_", validate=True)
    except ValueError:
        return False
    encrypted = len(token) - _LEAST
    return token[:1] == _VERSION and encrypted > 0 and encrypted % _BLOCK == 0


def _made(fernet: Any, key: bytes, number: int) -> Any:
    try:
        return fernet(key)
    except ValueError:  # this error is dropped, because its message or its cause might show the key
        pass
    raise ConfigurationError(f"Fernet: key {number} is not 32 bytes in URL-safe base64; make one with {_MAKE}")


@hookimpl
def pqcore_register_serializers(register: Callable[[Any], None]) -> None:
    """Register `Fernet`."""
    register(Fernet)
