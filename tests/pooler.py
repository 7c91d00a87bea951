"""A pooler in transaction mode whose next step a test can predict."""

from __future__ import annotations

import queue
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

NOBODY = struct.pack("!i", 2**31 - 1)
"""A process id that no process has."""


class Pooler:
    """A pooler in transaction mode: a session of the server's is a client's for the length of a transaction only.

    Each client logs in over a connection of its own, which all then share; and is told of a process
    of the server's that does not exist, as poolers do.

    Args:
        dsn: The DSN of the server, as a URL.
        order: The order in which sessions are lent to clients.
    """

    def __init__(self, dsn: str, order: type[queue.Queue[Any]]) -> None:
        self._target = urlsplit(dsn)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._idle: queue.Queue[socket.socket] = order()
        self._opened: list[socket.socket] = []
        host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        user = self._target.netloc.rpartition("@")[0]
        self.dsn = urlunsplit(self._target._replace(netloc=f"{user}@{host}" if user else host))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self._opened.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError), client:
            while (start := _startup(client))[4:8] in (struct.pack("!i", 80877103), struct.pack("!i", 80877104)):
                client.sendall(b"N")  # no TLS
            if start[4:8] == struct.pack("!i", 80877102):  # a request to cancel
                return
            server = socket.create_connection((self._target.hostname or "", self._target.port or 5432))
            self._opened.append(server)
            server.sendall(start)
            self._relay(client, server)
            while True:
                first = client.recv(65_536)
                if not first or first[:1] == b"X":
                    return
                server = self._idle.get()
                server.sendall(first)
                self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Pass messages on until the server is ready outside of a transaction; then free the session."""
        answer = b""
        while True:
            for readable in select.select([client, server], [], [])[0]:
                data = readable.recv(65_536)
                if not data:
                    self._idle.put(server)
                    raise EOFError
                if readable is client:
                    server.sendall(data)
                    continue
                answer += data
                whole, state = b"", b""
                while len(answer) >= 5 and len(answer) >= (size := 1 + struct.unpack("!i", answer[1:5])[0]):
                    state = answer[5:6] if answer[:1] == b"Z" else b""
                    whole += answer[:5] + NOBODY + answer[9:size] if answer[:1] == b"K" else answer[:size]
                    answer = answer[size:]
                over = state == b"I" and not answer
                if over:
                    self._idle.put(server)  # stored first, so that a client that got the answer finds it
                client.sendall(whole)
                if over:
                    return

    def close(self) -> None:
        for each in (self._socket, *self._opened):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def _startup(client: socket.socket) -> bytes:
    head = client.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        raise EOFError
    return head + client.recv(struct.unpack("!i", head)[0] - 4, socket.MSG_WAITALL)


@contextmanager
def pooler(dsn: str, order: type[queue.Queue[Any]]) -> Iterator[str]:
    made = Pooler(dsn, order)
    try:
        yield made.dsn
    finally:
        made.close()
