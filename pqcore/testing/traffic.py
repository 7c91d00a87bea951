"""Counting the messages between a client and the server, from the bytes of the frontend/backend protocol.

This module cannot read an encrypted connection (TLS, GSSAPI), so the traffic of such a connection is not counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields

HEADER = 5  # the bytes of a message's letter, and of the length, which includes itself.
_PLAIN = (3 << 16, (3 << 16) + 2)  # versions of the protocol, which a StartupMessage contains.
_ENCRYPTED = (80877103, 80877104)  # SSLRequest and GSSENCRequest, whose answer is one byte.
_UNASKED = b"ANS"
"""NotificationResponse, NoticeResponse, ParameterStatus: messages that answer no request."""


@dataclass(frozen=True)
class Traffic:
    """The traffic of a connection.

    Attributes:
        round_trips: How often the client sent data after it had received the answer to its earlier data.
        statements: The number of statements that the server answered, with a result or an error.
        commits: The number of transactions that ended without a rollback. A statement outside a transaction block is a
            transaction of its own.
        sent, received: The number of bytes, from the client's view.
    """

    round_trips: int = 0
    statements: int = 0
    commits: int = 0
    sent: int = 0
    received: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))


class _Messages:
    """A splitter of a stream of bytes into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def take(self, size: int) -> bytes | None:
        """Return the next bytes, if enough have arrived."""
        if len(self._bytes) < size:
            return None
        taken = bytes(self._bytes[:size])
        del self._bytes[:size]
        return taken

    def take_request(self) -> int | None:
        """Return the code of a message without a letter; such messages come before the first message with a letter."""
        if len(self._bytes) < 8:
            return None
        message = self.take(int.from_bytes(self._bytes[:4], "big"))
        return None if message is None else int.from_bytes(message[4:8], "big")

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the letter and the body of each whole message."""
        start = 0
        while len(self._bytes) >= start + HEADER:
            end = start + 1 + int.from_bytes(self._bytes[start + 1 : start + HEADER], "big")
            if len(self._bytes) < end:
                break
            yield bytes(self._bytes[start : start + 1]), bytes(self._bytes[start + HEADER : end])
            start = end
        del self._bytes[:start]


class ConnectionTraffic:
    """A counter of the traffic of one connection, used by two threads, one for each direction."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Traffic()
        self._asks = _Messages()
        self._answers = _Messages()
        self._began = False  # whether the client has sent the StartupMessage.
        self._bytes_awaited = 0  # the number of bytes that must still answer SSLRequest and GSSENCRequest.
        self._ready = False  # whether the server is ready for the first statement.
        self._encrypted = False
        self._heard = True  # whether an answer arrived after the client last sent data.
        self._done = 0  # the number of statements since the last transaction ended.
        self._undone = False

    def total(self) -> Traffic:
        """Return the traffic up to now."""
        with self._lock:
            return self._total

    def sent(self, data: bytes) -> None:
        """Count what the client sends, before it is passed on."""
        with self._lock:
            if self._ready:
                self._total += Traffic(sent=len(data))
            if self._encrypted:
                return
            self._asks.feed(data)
            while not self._began and (code := self._asks.take_request()) is not None:
                self._began = code in _PLAIN
                self._bytes_awaited += code in _ENCRYPTED
            if self._began:
                for letter, _ in self._asks:
                    if self._ready and self._heard and letter != b"X":  # Terminate
                        self._total += Traffic(round_trips=1)
                        self._heard = False

    def received(self, data: bytes) -> None:
        """Count what the server sends, before it is passed on."""
        with self._lock:
            if self._ready:
                self._total += Traffic(received=len(data))
            if self._encrypted:
                return
            self._answers.feed(data)
            while self._bytes_awaited and (answer := self._answers.take(1)) is not None:
                self._bytes_awaited -= 1
                self._encrypted = answer != b"N"
            if not self._encrypted:
                for letter, body in self._answers:
                    self._note(letter, body)

    def _note(self, letter: bytes, body: bytes) -> None:
        if letter in _UNASKED:
            return
        self._heard = True
        if letter in (b"C", b"s"):  # CommandComplete; PortalSuspended means that the client wanted no more rows
            self._total += Traffic(statements=1)
            self._done += 1
            self._undone = body.startswith(b"ROLLBACK")
        elif letter == b"E":
            self._total += Traffic(statements=int(self._ready))
            self._undone = True
        elif letter == b"Z":  # ReadyForQuery, with I outside a transaction block
            self._ready = True
            if body == b"I":
                self._total += Traffic(commits=int(self._done > 0 and not self._undone))
                self._done, self._undone = 0, False
