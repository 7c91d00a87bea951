"""TLS: the certificate settings of a DSN hold over every driver."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode, urlsplit, urlunsplit

import pytest
import trustme

from pqcore import PQ, AsyncPQ
from pqcore.errors import ConnectionLost, PQError

SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
"""What a client asks first: https://www.postgresql.org/docs/current/protocol-message-formats.html."""
SECRET = "s3cr3t"


class Front:
    """A proxy that speaks TLS for a server without TLS, and passes everything on in plain text.

    Args:
        dsn: The server's.
        context: Certificates.
    """

    def __init__(self, dsn: str, context: ssl.SSLContext) -> None:
        self._parts = urlsplit(dsn)
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def dsn(self, **said: object) -> str:
        port = self._listening.getsockname()[1]
        return urlunsplit(self._parts._replace(netloc=f"postgres:{SECRET}@localhost:{port}", query=urlencode(said)))

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=[self._listening.accept()[0]], daemon=True).start()

    def _serve(self, bare: socket.socket) -> None:
        with suppress(OSError), bare:  # a refused handshake is an OSError
            if bare.recv(8) != SSL_REQUEST:
                return
            bare.sendall(b"S")
            client = self._context.wrap_socket(bare, server_side=True)
            with client, socket.create_connection((self._parts.hostname, self._parts.port)) as server:
                back = threading.Thread(target=self._pass_on, args=[server, client], daemon=True)
                back.start()
                self._pass_on(client, server)
                back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Papers:
    """Certificates in files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self._folder = folder
        self.root = self._write("root.pem", self.authority.cert_pem)
        self.strangers = self._write("strangers.pem", trustme.CA().cert_pem)
        client = self.authority.issue_cert("client@example.org")
        self.client = self._write("client.pem", client.cert_chain_pems[0])
        self.key = self._write("client.key", client.private_key_pem)

    def _write(self, name: str, pem: trustme.Blob) -> str:
        path = self._folder / name
        pem.write_to_path(path)
        path.chmod(0o600)
        return str(path)

    @contextmanager
    def front(self, dsn: str, name: str = "localhost", *, asks: bool = False) -> Iterator[Front]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(name).configure_cert(context)
        if asks:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        made = Front(dsn, context)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


def blocking(backend: str) -> Callable[[str], int]:
    def put(dsn: str) -> int:
        with PQ(dsn, backend=backend) as pq:
            pq.create()
            return pq["q"].put(1)

    return put


def awaited(backend: str) -> Callable[[str], int]:
    def put(dsn: str) -> int:
        async def work() -> int:
            async with AsyncPQ(dsn, backend=backend) as pq:
                await pq.create()
                return await pq["q"].put(1)

        return asyncio.run(work())

    return put


each_driver = pytest.mark.parametrize(
    "put",
    [
        pytest.param(blocking("psycopg2"), id="psycopg2"),
        pytest.param(blocking("psycopg"), id="psycopg"),
        pytest.param(awaited("psycopg"), id="psycopg-async"),
        pytest.param(awaited("asyncpg"), id="asyncpg"),
    ],
)
Put = Callable[[str], int]


def refused(put: Put, dsn: str) -> str:
    with pytest.raises(PQError) as caught:
        put(dsn)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in str(chain) + repr(chain)
        chain = chain.__cause__ or chain.__context__
    return str(caught.value)


@each_driver
def test_tls_server_with_the_right_certificate_is_accepted(dsn: str, papers: Papers, put: Put) -> None:
    with papers.front(dsn) as front:
        assert put(front.dsn(sslmode="verify-full", sslrootcert=papers.root)) == 1
        assert put(front.dsn(sslmode="require")) == 2


@each_driver
def test_tls_certificate_of_another_authority_is_refused(dsn: str, papers: Papers, put: Put) -> None:
    with papers.front(dsn) as front:
        for mode in ("verify-ca", "verify-full"):
            assert "certificate" in refused(put, front.dsn(sslmode=mode, sslrootcert=papers.strangers))


@each_driver
def test_tls_certificate_of_another_host_is_refused_by_verify_full(dsn: str, papers: Papers, put: Put) -> None:
    with papers.front(dsn, "elsewhere.example.org") as front:
        refused(put, front.dsn(sslmode="verify-full", sslrootcert=papers.root))
        assert put(front.dsn(sslmode="verify-ca", sslrootcert=papers.root)) == 1


@each_driver
def test_tls_client_certificate_is_sent(dsn: str, papers: Papers, put: Put) -> None:
    with papers.front(dsn, asks=True) as front:
        said = {"sslmode": "verify-full", "sslrootcert": papers.root}
        assert put(front.dsn(**said, sslcert=papers.client, sslkey=papers.key)) == 1
        refused(put, front.dsn(**said))


@each_driver
def test_tls_requirement_refuses_a_server_without_tls(dsn: str, put: Put) -> None:
    with pytest.raises(ConnectionLost, match="SSL"):
        put(f"{dsn}?sslmode=require")
