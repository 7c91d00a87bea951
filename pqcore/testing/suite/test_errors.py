"""Errors and their messages: one family of errors, whatever the driver raised."""

from __future__ import annotations

import contextlib
import inspect
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from pqcore import PQ, AsyncPQ, errors, hookimpl
from pqcore.backend import BackendSpec, Capability
from pqcore.errors import (
    AccessDenied,
    Closed,
    ConfigurationError,
    ConnectionLost,
    DatabaseError,
    DuplicateJob,
    InvalidData,
    JobFailed,
    OutcomeUnknown,
    PQError,
    StatementCancelled,
    TransactionAborted,
    TransientError,
    UnknownBackend,
)
from pqcore.plugins import plugins
from pqcore.sql.identifiers import quote
from pqcore.testing.connections import Connection
from pqcore.testing.harness import PATIENCE, Harness
from pqcore_backends.embedded_setup import free_port


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Run a transaction of the user, which ends at the latest when a test fails, because others would wait for it."""
    connection.begin()
    try:
        yield
    finally:
        if connection.session.in_transaction():
            connection.rollback()


def other_face(harness: Harness) -> type:
    """Return the class for backends of the other mode."""
    return PQ if harness.mode == "async" else AsyncPQ


def closed_port() -> int:
    """Return a port on which nobody listens."""
    return free_port()


def drivers(harness: Harness) -> tuple[type[BaseException], ...]:
    """Return the exceptions that may be the cause of an error."""
    return harness.opener.errors


def chain(exc: BaseException) -> str:
    """Return everything that a log would contain of an error."""
    return "".join(traceback.format_exception(exc)) + repr(exc)


# The family of errors


def test_error_classes_are_all_pqerrors_with_docstrings(harness: Harness) -> None:
    found = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]
    assert len(found) > 30
    more: dict[type, tuple[Any, ...]] = {DuplicateJob: (7,), JobFailed: ({},)}
    for cls in found:
        assert issubclass(cls, PQError), cls
        assert cls.__dict__.get("__doc__"), cls
        assert str(cls("what went wrong", *more.get(cls, ()))) == "what went wrong"
    with pytest.raises(PQError):
        harness.pq(create=False)["q"].put(1)


# Arguments of the caller


def test_unknown_backend_is_refused(harness: Harness) -> None:
    with pytest.raises(UnknownBackend, match=r"'nonsense'.*installed: ") as caught:
        harness.pq(backend="nonsense", create=False)
    assert harness.spec.name in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)
    assert isinstance(caught.value, ValueError)


def test_backend_of_the_other_mode_is_refused_by_name(harness: Harness) -> None:
    class Elsewhere:
        @hookimpl
        def pqcore_register_backends(self, register: Callable[[BackendSpec], None]) -> None:
            register(
                BackendSpec(
                    name="elsewhere",
                    mode="blocking" if harness.mode == "async" else "async",
                    load="nowhere:Nothing",
                    requires=(),
                    install="",
                    paramstyle="format",
                    capabilities=frozenset(),
                    missing=dict.fromkeys(Capability, "it is not there"),
                )
            )

    plugin = Elsewhere()
    plugins.register(plugin)
    try:
        with pytest.raises(UnknownBackend, match=f"use {other_face(harness).__name__},"):
            harness.pq(backend="elsewhere", create=False)
    finally:
        plugins.manager.unregister(plugin)
        for mode in ("blocking", "async"):
            plugins._specs.pop(("elsewhere", mode), None)


def test_connection_of_the_other_mode_is_refused(harness: Harness) -> None:
    face = "AsyncPQ" if harness.mode == "async" else "PQ"
    with pytest.raises(UnknownBackend, match=f"{harness.mode}: give it to {face}$"):
        other_face(harness)(harness.connect().raw)


@pytest.mark.requires(Capability.POOL)
def test_pool_of_the_other_mode_is_refused(harness: Harness) -> None:
    face = "AsyncPQ" if harness.mode == "async" else "PQ"
    with pytest.raises(UnknownBackend, match=f"{harness.mode}: give it to {face}$"):
        other_face(harness)(pool=harness.pool())


@pytest.mark.parametrize(
    "target", [5, 0, b"dbname=postgres", object(), ["dsn"], {"dbname": "x"}, object, False], ids=repr
)
def test_target_that_is_no_connection_is_refused(harness: Harness, target: Any) -> None:
    kind = type(target).__qualname__
    for options in ({"target": target}, {"pool": target}):
        with pytest.raises(ConfigurationError, match=f"not a DSN, connection or pool.*{kind}"):
            harness.pq(create=False, **options)
        with pytest.raises(ConfigurationError, match=f"not a DSN, connection or pool.*{kind}"):
            harness.pq(create=False, backend=None, **options)


def test_pq_needs_either_a_connection_or_a_pool(harness: Harness) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        harness.pq(harness.dsn, pool=object(), create=False)
    with pytest.raises(ConfigurationError, match="give PQ a DSN, a connection or a pool"):
        harness.pq(None, pool=None, create=False)


# Servers that are missing or refuse the client


def test_unreachable_server_raises_connection_lost(harness: Harness) -> None:
    pq = harness.pq(f"postgresql://user@127.0.0.1:{closed_port()}/db", create=False)
    queue = pq["q"]
    for attempt in (lambda: queue.put(1), queue.get, queue.count, pq.create):
        with pytest.raises(ConnectionLost, match="the server cannot be reached") as caught:
            attempt()
        assert isinstance(caught.value, ConnectionError)
        assert isinstance(caught.value.__cause__, drivers(harness))


@pytest.mark.parametrize("part", ["role", "database"])
def test_missing_role_or_database_raises_an_error_that_names_it(harness: Harness, part: str) -> None:
    parts = urlsplit(harness.dsn)
    name = f"nobody_{harness.schema}"
    if part == "role":
        parts = parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}")
    else:
        parts = parts._replace(path=f"/{name}")
    queue = harness.pq(parts.geturl(), create=False)["q"]
    # A pooler that knows the roles only says that it refuses this one.
    told = rf"{name}|authentication failed|no such user|no password supplied"
    with pytest.raises(DatabaseError, match=told) as caught:
        queue.put(1)
    assert isinstance(caught.value.__cause__, drivers(harness))
    codes = {"role": ["28000", "28P01", "08P01"], "database": ["3D000"]}[part]
    # libpq gives no SQLSTATE for a failed connection attempt.
    sqlstate = caught.value.sqlstate
    assert sqlstate in codes or (sqlstate is None and isinstance(caught.value, ConnectionLost))


@contextmanager
def refusing_server() -> Iterator[int]:
    """Run a server that asks every client for a password, and refuses all; yield its port."""
    fields = {"S": "FATAL", "V": "FATAL", "C": "28P01", "M": 'password authentication failed for user "user"'}
    refusal = b"".join(code.encode() + text.encode() + b"\0" for code, text in fields.items()) + b"\0"

    def receive(client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := client.recv(size - len(data))):
            data += more
        return data

    def serve(client: socket.socket) -> None:
        with client:
            while length := receive(client, 4):
                [code] = struct.unpack("!i", receive(client, struct.unpack("!i", length)[0] - 4)[:4])
                if code in (80877103, 80877104):  # the client asks for encryption
                    client.sendall(b"N")
                    continue
                client.sendall(b"R" + struct.pack("!ii", 8, 3))
                [length] = struct.unpack("!i", receive(client, 5)[1:])
                receive(client, int(length) - 4)
                client.sendall(b"E" + struct.pack("!i", len(refusal) + 4) + refusal)
                return

    def accept() -> None:
        with contextlib.suppress(OSError, struct.error):
            while True:
                serve(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def test_wrong_password_raises_an_error_without_the_password(harness: Harness) -> None:
    password = f"wrong-{harness.schema}"
    with refusing_server() as port:
        pq = harness.pq(f"postgresql://user:{password}@127.0.0.1:{port}/db", create=False)
        with pytest.raises(DatabaseError, match="password authentication failed") as caught:
            pq["q"].put(1)
    assert isinstance(caught.value, (AccessDenied, ConnectionLost))
    assert isinstance(caught.value.__cause__, drivers(harness))
    assert password not in chain(caught.value)


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://user:{}@127.0.0.1:{}/db", "host=127.0.0.1 user=user dbname=db password='{}' port={}"],
    ids=["URL", "keywords"],
)
def test_password_is_not_in_errors_and_reprs(harness: Harness, dsn: str) -> None:
    password = f"secret-{harness.schema}"
    pq = harness.pq(dsn.format(password, closed_port()), create=False)
    queue = pq["q"]
    for attempt in (lambda: queue.put(1), pq.create, lambda: queue.get(timeout=0)):
        with pytest.raises(ConnectionLost) as caught:
            attempt()
        assert password not in chain(caught.value)
    for shown in (pq, queue, pq.backend, queue.table):
        assert password not in f"{shown} {shown!r}"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:{}@127.0.0.1:no-port/db",
        "postgresql://user:100%{}@127.0.0.1:1/db",
        "postgresql://user:{}@[::1/db",
        "host=127.0.0.1 password={} alone",
        "host=127.0.0.1 user=user port=1 no_such_option=1 password={}",
        "host=127.0.0.1 password='{}",
    ],
)
def test_malformed_dsn_raises_an_error_without_the_password(harness: Harness, dsn: str) -> None:
    password = f"secret-{harness.schema}"

    def attempt() -> None:
        harness.pq(dsn.format(password), create=False)["q"].put(1)

    with pytest.raises(PQError) as caught:
        attempt()
    assert password not in f"{caught.value} {caught.value!r}"


@pytest.mark.parametrize("password", ["server", "the", "e", "127.0.0.1"])
def test_password_of_common_words_keeps_the_error_unchanged(harness: Harness, password: str) -> None:
    queue = harness.pq(f"postgresql://{password}:{password}@127.0.0.1:{closed_port()}/db", create=False)["q"]
    with pytest.raises(ConnectionLost) as caught:
        queue.put(1)
    assert isinstance(caught.value.__cause__, drivers(harness))


def test_closed_pq_and_connection_raise_errors(harness: Harness) -> None:
    pq = harness.pq()
    pq.close()
    with pytest.raises(Closed):
        pq["q"].put(1)
    connection = harness.connect()
    pq = harness.pq(connection.raw)
    pq.close()
    with pytest.raises(ConnectionLost, match="closed"):
        pq["q"].put(1)


@pytest.mark.requires(Capability.POOL)
def test_closed_pool_raises_closed(harness: Harness) -> None:
    pq = harness.pq(pool=harness.pool())
    pq["q"].put(1)
    pq.close()
    with pytest.raises(Closed, match="pool is closed"):
        pq["q"].put(1)


# Statements that the server refuses

SQLSTATES: dict[str, type[DatabaseError]] = {
    "22000": InvalidData,
    "22P02": InvalidData,
    "23514": InvalidData,
    "54000": DatabaseError,
    "40001": TransientError,
    "40P01": TransientError,
    "55P03": TransientError,
    "57014": StatementCancelled,
    "42501": AccessDenied,
    "28000": AccessDenied,
    "28P01": AccessDenied,
    "08006": ConnectionLost,
    "53300": ConnectionLost,
    "57P01": OutcomeUnknown,  # the code of a server that ends the connection, possibly after a commit
    "57P03": OutcomeUnknown,
    "53100": DatabaseError,
    "P0001": DatabaseError,
    "XX000": DatabaseError,
}


def test_errors_are_chosen_by_sqlstate(harness: Harness) -> None:
    queue = harness.queue()
    schema = quote(harness.schema)
    attempts = (partial(queue.put, 1), partial(queue.put_many, [1, 2]), partial(queue.put, 1, "1h"))
    for number, (sqlstate, kind) in enumerate(SQLSTATES.items()):
        harness.sql(
            f"CREATE OR REPLACE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" RAISE 'refused by a trigger' USING ERRCODE = '{sqlstate}'; END $$",
            rows=False,
        )
        if number == 0:
            trigger = f"CREATE TRIGGER refuse BEFORE INSERT ON {{table}} EXECUTE FUNCTION {schema}.refuse()"
            harness.sql(trigger, rows=False)
        for attempt in attempts:
            with pytest.raises(DatabaseError, match="refused by a trigger") as caught:
                attempt()
            assert (type(caught.value), caught.value.sqlstate) == (kind, sqlstate)
            assert str(caught.value).startswith("put")
            assert isinstance(caught.value.__cause__, drivers(harness))
    harness.sql("DROP TRIGGER refuse ON {table}", rows=False)
    queue.put(1)
    assert queue.get().data == 1


def test_full_notify_queue_raises_transient_error_that_names_the_cause(harness: Harness) -> None:
    queue = harness.queue()
    schema = quote(harness.schema)
    harness.sql(
        f"CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000'; END $$",
        rows=False,
    )
    harness.sql(f"CREATE TRIGGER refuse BEFORE INSERT ON {{table}} EXECUTE FUNCTION {schema}.refuse()", rows=False)
    for attempt in (partial(queue.put, 1), partial(queue.put_many, [1, 2])):
        with pytest.raises(TransientError, match=r"queue of notifications is full.*[Tt]ry again") as caught:
            attempt()
        assert caught.value.sqlstate == "54000"


def test_statement_timeout_raises_an_error_with_its_sqlstate(harness: Harness) -> None:
    harness.needs_sessions()
    connection, blocker = harness.connect(), harness.connect()
    queue = harness.pq(connection.raw)["q"]
    connection.sql("SET statement_timeout = '50ms'", rows=False)
    with transaction(blocker):
        blocker.sql(f"LOCK TABLE {harness.table} IN ACCESS EXCLUSIVE MODE", rows=False)
        for attempt in (queue.count, lambda: queue.put(1), lambda: queue.get(block=False)):
            with pytest.raises(StatementCancelled, match="statement_timeout") as caught:
                attempt()
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.sqlstate == "57014"
            assert isinstance(caught.value.__cause__, drivers(harness))
    connection.sql("SET statement_timeout = 0", rows=False)
    assert queue.count() == 0


def test_lock_timeout_raises_transient_error(harness: Harness) -> None:
    harness.needs_sessions()
    connection, blocker = harness.connect(), harness.connect()
    queue = harness.pq(connection.raw)["q"]
    job_id = queue.put("old")
    connection.sql("SET lock_timeout = '50ms'", rows=False)
    with transaction(blocker):
        blocker.sql(f"SELECT 1 FROM {harness.table} FOR UPDATE")
        with pytest.raises(TransientError) as caught:
            queue.update(job_id, "new")
        assert caught.value.sqlstate == "55P03"
    queue.update(job_id, "new")
    assert queue.get().data == "new"


def test_deadlock_raises_transient_error(harness: Harness) -> None:
    harness.needs_sessions()
    mine, theirs = harness.connect(), harness.connect()
    mine.sql("SET deadlock_timeout = '10ms'", rows=False)
    theirs.sql("SET deadlock_timeout = '1min'", rows=False)  # so that the deadlock is detected in pqcore's session
    queue, other = harness.pq(mine.raw)["q"], harness.pq(theirs.raw)["q"]
    first, second = queue.put_many([1, 2])
    locked = threading.Event()

    def lock_second() -> None:
        with other:
            other.update(second, "theirs")
            locked.set()
            other.update(first, "theirs")

    def lock_first() -> None:
        with queue:
            queue.update(first, "mine")
            stack.enter_context(harness.thread(lock_second))
            assert locked.wait(PATIENCE)
            harness.eventually(
                lambda: harness.sql(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    f" AND application_name = '{harness.application}'"
                )
            )
            queue.update(second, "mine")

    with contextlib.ExitStack() as stack:
        with pytest.raises(TransientError) as caught:
            lock_first()
        assert caught.value.sqlstate == "40P01"
    assert [job.data for job in queue.get_many(2)] == ["theirs", "theirs"]


def test_serialization_failure_raises_transient_error(harness: Harness) -> None:
    harness.needs_sessions()
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    job_id = queue.put("old")
    connection.sql("SET default_transaction_isolation = 'repeatable read'", rows=False)
    with transaction(connection):
        harness.sql("UPDATE {table} SET data = '\"theirs\"'", rows=False)
        with pytest.raises(TransientError) as caught:
            queue.update(job_id, "mine")
        assert caught.value.sqlstate == "40001"
    assert queue.get().data == "theirs"


def test_role_without_privileges_raises_access_denied(harness: Harness) -> None:
    harness.needs_sessions()
    role = f"{harness.schema}_role"
    connection = harness.connect()
    pq = harness.pq(connection.raw)
    pq["q"].put(1)
    harness.sql(f"CREATE ROLE {role}", rows=False)
    try:
        connection.sql(f"SET ROLE {role}", rows=False)
        for grant in ("", f"GRANT USAGE ON SCHEMA {quote(harness.schema)} TO {role}"):
            if grant:
                harness.sql(grant, rows=False)
            fresh = harness.pq(connection.raw, create=False)
            for queue in (pq["q"], fresh["q"]):
                for attempt in (partial(queue.put, 1), queue.get, queue.count, partial(queue.purge, 0)):
                    with pytest.raises(AccessDenied, match="permission denied") as caught:
                        attempt()
                    assert isinstance(caught.value, PermissionError)
                    assert caught.value.sqlstate == "42501"
        connection.sql("RESET ROLE", rows=False)
        assert pq["q"].get().data == 1
        assert fresh["q"].get(block=False) is None
    finally:
        harness.sql(f"DROP OWNED BY {role}", rows=False)
        harness.sql(f"DROP ROLE {role}", rows=False)


# A failure leaves the connection unchanged


def expect_recovery(pq: Any) -> None:
    """Check that a statement fails and the next works, often enough for a driver to prepare it."""
    queue, broken = pq["q"], pq.queue("q", encode=lambda data: "{")

    def fail() -> None:
        with pytest.raises(InvalidData) as caught:
            broken.put(1)
        assert caught.value.__cause__ is not None

    for number in range(8):
        fail()
        queue.put(number)
        assert queue.get().data == number
    with queue:
        queue.put("before")
        fail()
        queue.put("after")
        with pytest.raises(InvalidData):
            broken.put_many([1, 2])
        assert queue.get().data == "before"
    fail()
    assert queue.get().data == "after"


def test_failed_statement_leaves_the_pqs_connection_usable(harness: Harness) -> None:
    expect_recovery(harness.pq(max_connections=1))


def test_failed_statement_leaves_the_callers_connection_usable(harness: Harness) -> None:
    connection = harness.connect()
    pq = harness.pq(connection.raw)
    expect_recovery(pq)
    with transaction(connection):
        expect_recovery(pq)
        connection.commit()
    assert connection.sql("SELECT 1") == [(1,)]


@pytest.mark.requires(Capability.POOL)
def test_failed_statement_leaves_the_pools_connections_usable(harness: Harness) -> None:
    expect_recovery(harness.pq(pool=harness.pool(1)))


def test_failed_transaction_of_the_caller_raises_transaction_aborted(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    with transaction(connection):
        with pytest.raises(DatabaseError):
            connection.sql("SELECT 1 / 0")
        for attempt in (lambda: queue.put(1), lambda: queue.get(block=False), queue.count):
            with pytest.raises(TransactionAborted, match="roll it back"):
                attempt()
    queue.put(1)
    assert queue.get().data == 1


NOT_IDS: tuple[Any, ...] = ("1", 1.5, None, True, -(2**63) - 1, 2**63, [1])


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda queue, _: queue.put(1, limits=["key"]), id="limits that are a list"),
        pytest.param(lambda queue, _: queue.put(1, limits="key"), id="limits that are text"),
        pytest.param(lambda queue, _: queue.put(1, headers=["name"]), id="headers that are a list"),
        pytest.param(lambda queue, _: queue.put_many([1], limits=["key"]), id="limits of many"),
        pytest.param(lambda queue, _: queue.put_many("text"), id="text as many"),
        pytest.param(lambda queue, _: queue.put_many(b"bytes"), id="bytes as many"),
        pytest.param(lambda queue, _: queue.put_many({"a": 1}), id="a mapping as many"),
        pytest.param(lambda queue, _: queue.put_many(5), id="a number as many"),
        pytest.param(lambda queue, _: queue.ack_many(["job"]), id="text as jobs"),
        pytest.param(lambda queue, _: queue.ack_many(5), id="a number as jobs"),
        pytest.param(lambda queue, _: queue.move(5), id="a number as a queue"),
        pytest.param(lambda queue, _: queue.move("other", ids=5), id="a number as ids"),
        pytest.param(lambda queue, _: queue.move("other", ids=["1"]), id="text among ids"),
        *(
            pytest.param(use, id=f"anything as the id in {method}")
            for method, use in {
                "cancel": lambda queue, value: queue.cancel(value),
                "update": lambda queue, value: queue.update(value, 2),
                "inspect": lambda queue, value: queue.inspect(value),
                "status": lambda queue, value: queue.status(value),
                "explain": lambda queue, value: queue.explain(value),
                "attempts": lambda queue, value: queue.attempts(value),
                "retry": lambda queue, value: queue.retry(value),
                "result": lambda queue, value: queue.result(value, timeout=0),
                "dead.get": lambda queue, value: queue.dead.get(value),
                "dead.retry": lambda queue, value: queue.dead.retry(value),
                "dead.purge": lambda queue, value: queue.dead.purge(value),
            }.items()
        ),
    ],
)
def test_argument_of_another_kind_is_refused_before_anything_is_written(
    harness: Harness, use: Callable[[Any, Any], Any]
) -> None:
    queue = harness.queue()
    job_id = queue.put("kept")
    for value in NOT_IDS:
        with pytest.raises(ConfigurationError):
            use(queue, value)
    assert harness.sql("SELECT id, data::text FROM {table}") == [(int(job_id), '"kept"')]
