"""The roles of a table: each role may do its work, over every driver, and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from pqcore import Dedup, NewJob, tasks
from pqcore.cli.app import app
from pqcore.errors import AccessDenied
from pqcore.sql.identifiers import TableName
from pqcore.tasks import current
from pqcore.worker import Worker


def call(*arguments: str, dsn: str) -> Result:
    done = CliRunner().invoke(app, arguments, env={"PQCORE_DSN": dsn, "PQCORE_BACKEND": None})
    assert done.exit_code == 0, done.output
    return done


class Users:
    """Log in as users who were granted the roles of a table with an awkward name."""

    kinds = ("producer", "consumer", "admin", "nobody")

    def __init__(self, dsn: str, backend: str) -> None:
        self.dsn = dsn
        self.backend = backend
        self.table = f"Röles\"'%s {time.time_ns()}"
        self.names = {kind: f"user_{kind}_{time.time_ns()}" for kind in self.kinds}
        self._open: list[Any] = []

    def make(self) -> None:
        done = call("create", "--roles", "--table", self.table, "--json", dsn=self.dsn)
        self.roles: dict[str, str] = json.loads(done.stdout)["roles"]
        with psycopg.connect(self.dsn) as connection:
            for kind, name in self.names.items():
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
                if kind in self.roles:
                    role, user = sql.Identifier(self.roles[kind]), sql.Identifier(name)
                    connection.execute(sql.SQL("GRANT {} TO {}").format(role, user))

    def remove(self) -> None:
        for pq in self._open:
            pq.close()
        with psycopg.connect(self.dsn) as connection:
            for name in [*self.names.values(), *self.roles.values()]:
                connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))

    def of(self, kind: str) -> str:
        parts = urlsplit(self.dsn)
        return urlunsplit(parts._replace(netloc=f"{self.names[kind]}@{parts.netloc.rpartition('@')[2]}"))

    def pq(self, kind: str) -> tasks.PQ:
        made = tasks.PQ(self.of(kind), table=self.table, backend=self.backend)
        self._open.append(made)
        return made


@pytest.fixture(params=["psycopg2", "psycopg"])
def users(request: pytest.FixtureRequest, dsn: str) -> Iterator[Users]:
    made = Users(dsn, request.param)
    made.make()
    yield made
    made.remove()


def drain(queue: Any) -> None:
    asyncio.run(Worker(queue, burst=True).run())


def fail(job_id: int) -> None:
    raise ZeroDivisionError


def test_admin_role_reencodes_data(users: Users) -> None:
    users.pq("producer")["q"].put_many([1, 2])
    consumer, admin = users.pq("consumer"), users.pq("admin")
    queue = consumer.queue("q", retention="archive")
    queue.get()
    queue.chain(queue.task(max_retries=0)(fail).call(), queue.task()(fail).call())
    drain(queue)
    with pytest.raises(AccessDenied):
        consumer.queue("q", serializer="msgpack", accept=("json",)).reencode()
    done = admin.queue("q", serializer="msgpack", accept=("json",)).reencode()
    assert (done.left, done.failed) == ([], 0)
    assert {one.place for one in done.before} >= {"dead", "archive", "chains"}


def test_producer_role_puts_jobs_and_reads_none(users: Users) -> None:
    queue = users.pq("producer")["q"]
    first = queue.put({"secret": 1}, "1h", "2h", group="g", limits={"a": 2}, headers={"x": 1})
    assert queue.put_many([1, 2], "1h") == [first + 1, first + 2]
    kept = queue.put(3, "1h", dedup="key")
    assert queue.put(4, dedup="key") == kept
    held = queue.put(5, "1h", dedup=Dedup("for a time", "1h"))
    assert queue.put(6, dedup=Dedup("for a time", "1h")) == held
    for until in ("finished", "1h"):
        jobs = [NewJob(7, "1h", dedup=Dedup("of many", until), group="g"), NewJob(8, "1h", headers={"x": 1})]
        of_many, other = queue.put_many(jobs)
        assert queue.put_many(jobs)[0] == of_many != other
    batch = queue.batch(queue.task()(fail).call(), then=queue.task()(fail).call())
    assert len(batch.jobs) == 1
    for forbidden in (
        lambda: queue.get(block=False),
        lambda: queue.lease(block=False),
        queue.peek,
        queue.clear,
        lambda: queue.jobs("ready"),
        lambda: queue.cancel(first),
        lambda: queue.update(first, 1),
        lambda: queue.inspect(first),
        lambda: queue.dead.list(),
        lambda: queue.result(first, timeout=0),
    ):
        with pytest.raises(AccessDenied):
            forbidden()
    with psycopg.connect(users.of("producer"), autocommit=True) as connection:
        for column in ("data", "payload", "headers", "error"):
            statement = sql.SQL("SELECT {} FROM {}").format(sql.Identifier(column), sql.Identifier(users.table))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    assert len(users.pq("consumer")["q"].jobs()) == 12


def test_consumer_role_takes_completes_and_retries_jobs(users: Users) -> None:
    queue = users.pq("consumer")["q"]
    queue.put("got")
    assert queue.get(block=False).data == "got"  # type: ignore[union-attr]
    waits = queue.put("waits")
    assert queue.update(waits, "changed") > 0
    leased = queue.lease(60, block=False)
    assert leased is not None
    queue.extend(leased, 30)
    queue.nack(leased)
    assert queue.move("other") == 1
    assert queue.count() == 0

    @queue.task(keep_result="1h", limit=1)
    def doubled(job_id: int, number: int) -> int:
        return 2 * number

    failing = queue.task()(fail)
    handle = doubled(21)
    failing()
    drain(queue)
    assert handle.result(timeout=5) == 42
    [letter] = queue.dead.list()
    forbidden: Any
    for forbidden in (lambda: queue.dead.retry(letter.id), queue.dead.retry_all):
        with pytest.raises(AccessDenied):
            forbidden()
    with psycopg.connect(users.of("consumer"), autocommit=True) as connection:
        for statement in ("DROP TABLE {}", "TRUNCATE {}", "ALTER TABLE {} ADD COLUMN x int"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(sql.SQL(statement).format(sql.Identifier(users.table)))


def test_roles_of_an_older_version_work_after_the_migration(users: Users) -> None:
    names = TableName(users.table)
    with psycopg.connect(users.dsn) as owner:  # as version 6 had granted it
        for suffix in ("_archive", "_dead"):
            role = sql.Identifier(users.roles["consumer"]).as_string(owner)
            owner.execute(f"REVOKE UPDATE (id) ON {names.related(suffix)} FROM {role}".encode())
        role = sql.Identifier(users.roles["producer"]).as_string(owner)
        columns = "parked_on, leased_until, priority"
        owner.execute(f"REVOKE INSERT ({columns}), SELECT (priority) ON {names} FROM {role}".encode())
        for suffix in (
            "_keys",
            "_rules",
            "_workers",
            "_attempts",
            "_samples",
            "_schedules",
            "_blocked",
            "_dependencies",
        ):
            owner.execute(f"DROP TABLE {names.related(suffix)}".encode())
        owner.execute("DELETE FROM pqcore_migrations WHERE version >= 7")
    call("migrate", "--table", users.table, dsn=users.dsn)
    queue = users.pq("consumer").queue("q", retention="archive")
    handle = queue.task()(fail)()
    drain(queue)
    assert handle.status() == "dead"
    assert [each.outcome for each in queue.attempts(handle)] == ["failed"]
    queue.put(1)
    assert queue.get(block=False) is not None


def test_admin_role_retries_and_purges(users: Users) -> None:
    consumer: Any = users.pq("consumer")["q"]
    consumer.task()(fail)()
    drain(consumer)
    queue = users.pq("admin")["q"]
    assert queue.dead.retry_all() == 1
    assert queue.cancel(queue.jobs()[0].id)
    queue.put(1)
    assert queue.get(block=False) is not None
    assert queue.purge(0) == 1
    queue.clear()


def test_admin_role_sets_rules_and_consumer_role_obeys(users: Users) -> None:
    consumer, admin = users.pq("consumer")["q"], users.pq("admin")["q"]
    consumer.put(1)
    denied: Any
    for denied in (consumer.pause, lambda: consumer.set_limit("x", 1), lambda: users.pq("producer")["q"].pause()):
        with pytest.raises(AccessDenied):
            denied()
    admin.set_limit("x", 1)
    admin.set_limit("x", 2)
    admin.pause()
    assert consumer.get(block=False) is None
    assert [(rule.kind, rule.name) for rule in consumer.rules()] == [("limit", "x"), ("pause", "queue")]
    assert admin.resume()
    assert consumer.get(block=False) is not None


def test_role_without_grants_is_denied_everything(users: Users) -> None:
    queue = users.pq("nobody")["q"]
    for forbidden in (lambda: queue.put(1), lambda: queue.get(block=False), queue.stats):
        with pytest.raises(AccessDenied, match="GRANT"):
            forbidden()


def test_roles_can_be_created_again_and_written_as_sql(users: Users) -> None:
    again = json.loads(call("create", "--roles", "--table", users.table, "--json", dsn=users.dsn).stdout)
    assert (again["roles"], again["changed"]) == (users.roles, False)
    script = call("create", "--roles", "--sql", "--table", users.table, dsn=users.dsn).stdout
    assert "CREATE ROLE" not in script  # they are there
    with psycopg.connect(users.dsn) as connection:
        connection.execute(script)


def test_producer_role_cannot_read_the_jobs_of_others(users: Users) -> None:
    queue = users.pq("consumer")["q"]
    held = queue.put({"secret": "SESAME"}, dedup="key", headers={"x": "SESAME"})
    with psycopg.connect(users.dsn, autocommit=True) as owner:
        owner.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(users.table)))
    names = TableName(users.table)
    conflict = f"INSERT INTO {names} (q_name, data, dedup_key) VALUES ('q', '1', 'key')"
    target = "ON CONFLICT (q_name, dedup_key) WHERE dedup_key IS NOT NULL AND dequeued_at IS NULL"
    refused = [
        f"INSERT INTO {names} (q_name, data) VALUES ('q', '1') RETURNING data",
        f"{conflict} {target} DO UPDATE SET data = excluded.data",
        f"COPY {names} TO STDOUT",
        f"COPY {names} (data) TO STDOUT",
        f"SELECT {names} FROM {names}",
        f"SELECT FROM {names} WHERE data::text LIKE '%S%'",
        f"SELECT FROM {names} FOR UPDATE",
        f"UPDATE {names} SET q_name = 'mine'",
        f"UPDATE {names} SET attempts = 0",
        f"DELETE FROM {names}",
        f"INSERT INTO {names} (q_name, data, attempts) VALUES ('q', '1', 5)",
        f"INSERT INTO {names} (q_name, data, id) VALUES ('q', '1', 1000)",
        f"BEGIN; LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE",
        f"SELECT setval(pg_get_serial_sequence($q${names}$q$, 'id'), 1)",
        f"CREATE INDEX ON {names} ((data::text))",
        *(f"SELECT FROM {names.related(each)}" for each in ("_dead", "_archive", "_results", "_slots", "_rates")),
        f"SELECT callback FROM {names.related('_batches')}",
        f"SELECT token FROM {names.related('_batches')}",
        f"SELECT FROM {names.related('_batches')} WHERE token LIKE 'a%'",
        f"UPDATE {names.related('_batches')} SET token = ''",
        f"INSERT INTO {names.related('_batches')} (q_name, total, pending) VALUES ('q', 1, 1) RETURNING token",
        f"INSERT INTO {names.related('_batches')} (id, q_name, total, pending) VALUES (7, 'q', 1, 1)",
    ]
    with psycopg.connect(users.of("producer"), autocommit=True) as connection:
        for statement in refused:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
            connection.rollback()
        with pytest.raises(psycopg.errors.UniqueViolation) as found:
            connection.execute(conflict.encode())
        assert "SESAME" not in str(found.value)
        columns = connection.execute("SELECT attname FROM pg_stats WHERE tablename = %s", [users.table]).fetchall()
        assert not {("data",), ("payload",), ("headers",), ("error",)} & set(columns)
    assert queue.inspect(held).headers == {"x": "SESAME"}


def test_producer_role_cannot_end_the_batch_of_another(users: Users) -> None:
    queue = users.pq("consumer")["q"]
    told: list[dict[str, int]] = []

    @queue.task()
    def part(job_id: int) -> None: ...

    @queue.task()
    def after(job_id: int) -> None:
        told.append(current().previous)

    batch = queue.batch(part.call(_schedule_at="1h"), part.call(_schedule_at="1h"), then=after.call())
    names = TableName(users.table)
    call = json.dumps({**part.call().data(), "args": []})
    link = {"queue": "q", "serializer": "json", "data": call, "payload": None}
    forged: list[dict[str, Any]] = [
        {"batch": batch.id},
        {"batch": batch.id, "batch_token": ""},
        {"batch": batch.id, "batch_token": "0" * 32},
        {"batch": batch.id, "batch_token": None},
        {"then": [{**link, "headers": {"batch": batch.id}}]},
    ]
    table = str(names).replace("%", "%%")
    insert = f"INSERT INTO {table} (q_name, data, serializer, headers) VALUES ('q', %s, 'json', %s)"
    with psycopg.connect(users.of("producer"), autocommit=True) as connection:
        assert connection.execute(f"SELECT id FROM {names.related('_batches')}".encode()).fetchall() == [(batch.id,)]
        for secret in (f"SELECT token FROM {names.related('_batches')}", f"SELECT headers FROM {names}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(secret.encode())
        for headers in forged * 2:
            connection.execute(
                insert.encode(),
                [call, json.dumps(headers)],
            )
    drain(queue)
    assert (told, queue.stats().scheduled) == ([], 2)
    with psycopg.connect(users.dsn) as owner:
        owner.execute(f"UPDATE {names} SET schedule_at = now()".encode())
    drain(queue)
    assert told == [{"batch": batch.id, "total": 2, "failed": 0}]


def test_producer_role_cannot_exceed_a_limit_that_a_rule_sets(users: Users) -> None:
    queue = users.pq("consumer")["q"]
    with psycopg.connect(users.dsn, autocommit=True) as owner:
        rules = TableName(users.table).related("_rules")
        owner.execute(
            f"INSERT INTO {rules} (q_name, kind, name, number) VALUES ('q', 'limit', 'limit:api', 2)".encode()
        )
    queue.put_many(range(8), limits={"api": 9})
    running = queue.lease_many(8, 60)
    assert [job.data for job in running] == [0, 1]
    insert = f"INSERT INTO {TableName(users.table)} (q_name, data, headers) VALUES ('q', '\"forged\"', %s)"
    with psycopg.connect(users.of("producer"), autocommit=True) as connection:
        for number in (2**31 - 1, 1, 5):
            statement = insert.replace("%", "%%").replace("%%s)", "%s)")
            connection.execute(statement.encode(), [json.dumps({"gate": {"limits": {"api": number}}})])
    done = []
    while running:
        assert queue.lease(60, block=False) is None
        done.append(running.pop(0))
        queue.ack(done[-1])
        running += queue.lease_many(8, 60, block=False)
        assert len(running) <= 2
    assert sorted(job.data for job in done if job.data != "forged") == list(range(8))
    assert (len(done), queue.stats().parked) == (11, 0)


@pytest.mark.parametrize("kind", ["consumer", "admin"])
def test_roles_cannot_become_the_owner(users: Users, kind: str) -> None:
    names = TableName(users.table)
    statements = [
        f"ALTER TABLE {names} DISABLE TRIGGER ALL",
        f"ALTER TABLE {names} OWNER TO current_user",
        f"TRUNCATE {names}",
        f"CREATE TRIGGER t BEFORE INSERT ON {names} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        f"CREATE RULE r AS ON INSERT TO {names} DO NOTHING",
        f"CREATE POLICY p ON {names}",
        f"INSERT INTO {names.qualified('pqcore_migrations')} VALUES ('x', 1)",
        f"DELETE FROM {names.qualified('pqcore_migrations')}",
        f"DROP FUNCTION {names.substitutions()['notify']}()",
        "CREATE ROLE another",
    ]
    with psycopg.connect(users.of(kind), autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        connection.execute(f"GRANT SELECT ON {names} TO public".encode())  # the server only warns
    with psycopg.connect(users.of("nobody")) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"SELECT FROM {names}".encode())
    with psycopg.connect(users.dsn) as connection:
        [definers] = connection.execute("SELECT count(*) FROM pg_proc WHERE prosecdef").fetchone() or [None]
        assert definers == 0  # no function of pqcore's is SECURITY DEFINER


def test_roles_are_not_shared_by_tables_of_one_name(users: Users) -> None:
    def create(*options: str, dsn: str = users.dsn) -> Result:
        return CliRunner().invoke(app, ["create", "--table", users.table, *options], env={"PQCORE_DSN": dsn})

    done = create("--roles", "--schema", "other")
    assert done.exit_code != 0
    assert "exists, and has rights to table" in done.stderr
    assert "--role-prefix" in done.stderr
    elsewhere, prefix = f"elsewhere_{time.time_ns()}", f"other_{time.time_ns()}"
    with psycopg.connect(users.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {elsewhere}")
        done = create("--roles", dsn=urlunsplit(urlsplit(users.dsn)._replace(path=f"/{elsewhere}")))
        connection.execute(f"DROP DATABASE {elsewhere} WITH (FORCE)")
        assert done.exit_code != 0
        assert "exists, and has rights in database" in done.stderr
        assert create("--role-prefix", "x").exit_code == 2
        for _ in range(2):
            done = create("--roles", "--schema", "other", "--role-prefix", prefix)
            assert done.exit_code == 0, done.output
        script = create("--roles", "--schema", "other", "--role-prefix", prefix, "--sql").stdout
        assert script.count('GRANT USAGE ON SEQUENCE other."') == 2  # whatever the search path is
        for kind in ("producer", "consumer", "admin"):
            connection.execute(f"DROP OWNED BY {prefix}_{kind}; DROP ROLE {prefix}_{kind}")


def test_roles_command_reports_a_user_who_may_not_create_roles(users: Users) -> None:
    done = CliRunner().invoke(app, ["create", "--roles", "--table", users.table], env={"PQCORE_DSN": users.of("admin")})
    assert done.exit_code != 0
    assert "does not own table" in done.stderr
