"""A proxy between a driver and the server, which can go silent, as a network does, and recover.

The proxy listens on loopback, with two threads for each connection. A *stalled* connection stays open, but passes
nothing on: data that is sent is read and dropped. A *slow* connection passes everything on, late and in small pieces. A
*delayed* connection passes everything on late, as a longer network path does.

The proxy counts what it passes on: see `pqcore.testing.traffic`.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

from pqcore.db.dsn import address_of, with_address
from pqcore.testing.traffic import ConnectionTraffic, Traffic

CHUNK = 65_536


class _Delay:
    """A delay for what one side of a connection sends: each piece leaves a fixed time after it arrived.

    The pieces keep their distance: a piece that arrived 2 ms after another piece leaves 2 ms after that piece.
    """

    def __init__(self, sink: socket.socket) -> None:
        self._sink = sink
        self._pieces: SimpleQueue[tuple[float, bytes] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._pass, name="proxy-delay", daemon=True)
        self._thread.start()

    def send(self, data: bytes, delay: float) -> None:
        """Pass on a piece of data, after a delay in seconds."""
        self._pieces.put((time.monotonic() + delay, data))

    def finish(self) -> None:
        """Return after everything has been passed on."""
        self._pieces.put(None)
        self._thread.join()

    def _pass(self) -> None:
        with suppress(OSError):
            while (piece := self._pieces.get()) is not None:
                due, data = piece
                if (left := due - time.monotonic()) > 0:
                    time.sleep(left)
                self._sink.sendall(data)


class _Link:
    """A client's connection, and the connection to the server."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: Proxy) -> None:
        self._ends = (client, server)
        self._proxy = proxy
        self.traffic = ConnectionTraffic()
        # Without this option, a message in two pieces would wait 40 ms for an acknowledgement (Nagle's algorithm).
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stalled = threading.Event()
        self._unanswered = self._torn = False
        self._counting = threading.Lock()
        self._passing = 2
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass, args=(source, sink), name="proxy-link", daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        sent = source is self._ends[0]
        note = self.traffic.sent if sent else self.traffic.received
        late: _Delay | None = None
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if self._stalled.is_set():
                    continue
                note(data)
                if sent:
                    cut = self._proxy._due(data)
                    if cut is not None and not cut.answered:
                        break
                    self._unanswered = cut is not None
                    self._torn = cut is not None and cut.torn
                elif self._unanswered:
                    if self._torn:
                        sink.sendall(data[: len(data) // 2])
                    break
                delay = self._proxy._delay
                if delay and late is None:
                    late = _Delay(sink)
                if late is None:
                    self._send(sink, data)
                else:
                    late.send(data, delay)
        if late is not None:
            late.finish()
        if not self._stalled.is_set():
            self.cut()
        with self._counting:
            self._passing -= 1
            over = self._passing == 0
        if over:
            self._proxy._forget(self)

    def _send(self, sink: socket.socket, data: bytes) -> None:
        while (pace := self._proxy._pace) is not None and data:
            time.sleep(pace.delay)
            sink.sendall(data[: pace.piece])
            data = data[pace.piece :]
        sink.sendall(data)

    def stall(self) -> None:
        self._stalled.set()

    def cut(self) -> None:
        for end in self._ends:
            with suppress(OSError):  # the socket is not connected any more
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        for end in self._ends:
            end.close()


@dataclass(frozen=True)
class _Cut:
    find: Callable[[bytes], object]
    answered: bool
    torn: bool


def _matcher(marker: str) -> Callable[[bytes], object]:
    """Return a function that finds a text in data; see `Proxy.cut_at`."""
    as_it_is, lower = re.escape(marker.encode()), re.escape(marker.lower().encode())
    return re.compile(as_it_is + rb"|(?<![a-z_])" + lower + rb"(?![a-z_])").search


@dataclass(frozen=True)
class _Pace:
    delay: float
    piece: int


class Proxy:
    """A proxy that passes connections on to a server.

    Args:
        dsn: The server's DSN, a URL with a host and a port.

    Attributes:
        dsn: The proxy's DSN.
    """

    def __init__(self, dsn: str) -> None:
        self._server = address_of(dsn)
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._silent = False
        self._cut: _Cut | None = None
        self._pace: _Pace | None = None
        self._delay = 0.0
        self._over = Traffic()  # the traffic of connections that have ended
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = self._listening.getsockname()[1]
        self.dsn = with_address(dsn, "127.0.0.1", port)
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                with self._lock:
                    try:
                        server = socket.create_connection(self._server)
                    except OSError:  # the server is down, so the client finds the connection closed
                        client.close()
                        continue
                    link = _Link(client, server, self)
                    if self._silent:
                        link.stall()
                    self._links.append(link)

    def stall(self, *, new: bool = False, last: bool = False) -> int:
        """Stop passing on the data of the present connections; return the number of these connections.

        Args:
            new: Whether to stall new connections, too, until `resume`: the proxy accepts them, and passes nothing on.
            last: Whether to stall only the connection that was made last.
        """
        with self._lock:
            self._silent = new
            stalled = self._links[-1:] if last else self._links
            for link in stalled:
                link.stall()
            return len(stalled)

    def silence_new(self) -> None:
        """Pass nothing on over new connections, until `resume`."""
        with self._lock:
            self._silent = True

    def resume(self) -> None:
        """Pass on the data of new connections again.

        Stalled connections stay as they are, because their other side is gone.
        """
        with self._lock:
            self._silent = False

    def slow(self, delay: float, piece: int = CHUNK) -> None:
        """Pass everything on slowly, over all connections, until `quick`.

        Args:
            delay: Seconds for each piece, one way.
            piece: The number of bytes that are passed on together.
        """
        self._pace = _Pace(delay, piece)

    def quick(self) -> None:
        """Pass everything on immediately again."""
        self._pace = None

    def delay(self, round_trip: float) -> None:
        """Delay everything, as over a longer network path: the pace stays, and only the arrival is later.

        Args:
            round_trip: Seconds for the way there and back; each way takes half of it. 0 ends the delay.
        """
        self._delay = round_trip / 2

    def traffic(self) -> Traffic:
        """Return the traffic of all connections since the proxy started.

        The traffic between two calls is the difference of their results. Data that a connection sends before the server
        is ready for its first statement is not counted.
        """
        with self._lock:
            return sum((link.traffic.total() for link in self._links), self._over)

    def point(self, dsn: str) -> None:
        """Pass new connections on to another server.

        Args:
            dsn: The DSN of that server.
        """
        with self._lock:
            self._server = address_of(dsn)

    def cut_at(self, marker: str, *, answered: bool, torn: bool = False) -> None:
        """Cut the next connection over which a certain text is sent; see `marker`.

        Args:
            marker: The text, as part of a statement or a parameter; an empty text matches all data. The proxy also
                finds the text in lower case, because some drivers send "commit", but not as part of a longer word.
            answered: Whether the server receives the data, and its answer is dropped; otherwise the server receives
                nothing.
            torn: Whether half of the answer is passed on.
        """
        with self._lock:
            self._cut = _Cut(_matcher(marker), answered, torn)

    def _forget(self, link: _Link) -> None:
        with self._lock:
            if link in self._links:
                self._links.remove(link)
                self._over += link.traffic.total()
        link.close()

    def _due(self, data: bytes) -> _Cut | None:
        """Return what to do with a connection that sends this data."""
        with self._lock:
            cut = self._cut
            if cut is None or cut.find(data) is None:
                return None
            self._cut = None
            return cut

    def cut(self) -> None:
        """End the present connections."""
        with self._lock:
            for link in self._links:
                link.cut()

    def close(self) -> None:
        """End everything."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for link in self._links:
                link.close()
