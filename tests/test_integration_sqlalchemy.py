"""SQLAlchemy and Alembic: a PQ from an engine, pqcore's tables in a MetaData and in migrations."""

from __future__ import annotations

import asyncio
import io
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pqcore import PQ
from pqcore.errors import ConfigurationError, SchemaOutdated, SchemaTooNew
from pqcore.integrations.sqlalchemy import include_in, leave_out, pq_for_engine
from pqcore.schema.metadata import declared_tables
from pqcore.sql.identifiers import TableName

ODD_PASSWORD = "p@ss w'o\\rd%/&+ü"


def url(dsn: str, driver: str) -> str:
    return f"postgresql+{driver}://" + dsn.partition("://")[2]


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def engine(dsn: str) -> Iterator[sqlalchemy.Engine]:
    made = sqlalchemy.create_engine(url(dsn, "psycopg"), poolclass=sqlalchemy.NullPool)
    yield made
    made.dispose()


# A PQ from an engine


@pytest.fixture
def role(dsn: str) -> Iterator[str]:
    """A role with a password, so that a test can check that the password was sent."""
    name = "with_password"
    execute(dsn, f"DROP ROLE IF EXISTS {name}", f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'any'")
    yield name
    execute(dsn, f"REASSIGN OWNED BY {name} TO CURRENT_USER", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_pq_for_engine_takes_the_engines_driver_user_and_arguments(dsn: str, role: str, driver: str) -> None:
    target = sqlalchemy.make_url(url(dsn, driver)).set(username=role, password=ODD_PASSWORD)
    engine = sqlalchemy.create_engine(target, connect_args={"application_name": "from the engine"})
    with pq_for_engine(engine) as pq:
        assert pq.backend.startswith(f"{driver} ")
        pq.create()
        with pq["q"] as cursor:
            cursor.execute("SELECT current_user, current_setting('application_name')")
            assert cursor.fetchone() == (role, "from the engine")
            assert getattr(cursor.connection.info, "password", None) == ODD_PASSWORD
        with Session(engine) as session:
            pq["q"].put_many([1, 2], connection=session)
            session.commit()
        assert [job.data for job in pq["q"].get_many(3)] == [1, 2]
    engine.dispose()


@pytest.mark.parametrize(
    ("driver", "arguments"),
    [
        ("psycopg", {"application_name": "from the engine"}),
        ("asyncpg", {"server_settings": {"application_name": "from the engine"}, "ssl": False}),
    ],
)
def test_async_pq_for_engine_takes_the_engines_driver_user_and_arguments(
    dsn: str, role: str, driver: str, arguments: dict[str, Any]
) -> None:
    async def scenario() -> None:
        target = sqlalchemy.make_url(url(dsn, driver)).set(username=role, password=ODD_PASSWORD)
        engine = create_async_engine(target, connect_args=arguments)
        async with pq_for_engine(engine) as pq:
            assert pq.backend.startswith(f"{driver} ")
            await pq.create()
            async with pq["q"] as cursor:
                query = "SELECT current_user, current_setting('application_name')"
                row: Any
                if driver == "asyncpg":
                    row = await cursor.fetchrow(query)
                    assert cursor._params.password == ODD_PASSWORD
                else:
                    await cursor.execute(query)
                    row = await cursor.fetchone()
                    assert cursor.connection.info.password == ODD_PASSWORD
                assert tuple(row) == (role, "from the engine")
            async with AsyncSession(engine) as session:
                await pq["q"].put_many([1, 2], connection=session)
                await session.commit()
            assert [job.data for job in await pq["q"].get_many(3)] == [1, 2]
        await engine.dispose()

    asyncio.run(scenario())


def test_pq_for_engine_calls_do_connect_handlers(dsn: str, role: str) -> None:
    """The handler sets a token as the password, as for some cloud databases."""
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))

    @event.listens_for(engine, "do_connect")
    def token(dialect: Any, record: Any, positional: list[Any], named: dict[str, Any]) -> None:
        named.update(user=role, password="token")

    with pq_for_engine(engine) as pq, engine.connect() as connection:
        pq.create()
        with pq["q"] as cursor:
            assert (cursor.connection.info.user, cursor.connection.info.password) == (role, "token")
        assert connection.scalar(sqlalchemy.text("SELECT current_user")) == role  # as before
    engine.dispose()


def test_pq_for_engine_takes_options_of_pq_and_keeps_prepared(dsn: str) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), connect_args={"prepare_threshold": None})
    with pq_for_engine(engine, table="jobs", retention="delete") as pq:
        assert not pq.engine._prepared
        assert (str(pq["q"].table), pq["q"].retention) == ('"jobs"', "delete")
    with pq_for_engine(engine, prepared=True) as pq:
        assert pq.engine._prepared


def test_sqlalchemy_session_ack_joins_its_transaction(engine: sqlalchemy.Engine) -> None:
    with pq_for_engine(engine) as pq:
        pq.create()
        pq["q"].put("data")
        job = pq["q"].lease(60)
        assert job is not None
        with Session(engine) as session:
            pq["q"].ack(job, connection=session)
            session.rollback()
            assert pq["q"].stats().leased == 1
            pq["q"].ack(job, connection=session)
            session.commit()
        assert pq["q"].stats().leased == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda dsn: sqlalchemy.create_engine("sqlite://"), "sqlite"),
        (lambda dsn: sqlalchemy.create_engine(url(dsn, "pg8000")), "pg8000"),
        (lambda dsn: sqlalchemy.create_engine(url(dsn, "psycopg"), creator=lambda: psycopg.connect(dsn)), "creator"),
        (lambda dsn: sqlalchemy.create_engine(url(dsn, "psycopg"), connect_args={"colour": "red"}), "colour"),
        (lambda dsn: sqlalchemy.create_engine(url(dsn, "psycopg2"), connect_args={"colour": "red"}), "colour"),
        (
            lambda dsn: create_async_engine(
                url(dsn, "asyncpg"), connect_args={"ssl": ssl.create_default_context(), "password": "secret"}
            ),
            r"ssl \(a SSLContext\)",
        ),
        (
            lambda dsn: create_async_engine(url(dsn, "asyncpg"), connect_args={"async_creator_fn": asyncpg.connect}),
            "creator",
        ),
        (
            lambda dsn: create_async_engine(url(dsn, "asyncpg"), connect_args={"dsn": "postgresql://u:secret@h/d"}),
            r"dsn \(a str\)",
        ),
    ],
    ids=["sqlite", "pg8000", "creator", "psycopg", "psycopg2", "asyncpg", "async creator", "dsn"],
)
def test_pq_for_engine_refuses_arguments_that_it_cannot_pass_on(
    dsn: str, made: Callable[[str], Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        pq_for_engine(made(dsn))
    assert "secret" not in str(caught.value)


# In a MetaData


def differences(engine: sqlalchemy.Engine, metadata: sqlalchemy.MetaData, **options: Any) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True, "include_schemas": True, **options}
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


@pytest.mark.parametrize(
    "names", [TableName("queue"), TableName("Jobs", "odd schema"), TableName("j" * 60)], ids=["plain", "schema", "long"]
)
def test_sqlalchemy_metadata_equals_the_tables_of_create(dsn: str, engine: sqlalchemy.Engine, names: TableName) -> None:
    with PQ(dsn, table=names.table, schema=names.schema) as pq:
        pq.create()
    metadata = sqlalchemy.MetaData()
    table = include_in(metadata, names.table, names.schema)
    assert differences(engine, metadata) == []
    # Check that a difference is found:
    table.append_column(sqlalchemy.Column("more", sqlalchemy.Text))
    metadata.remove(metadata.tables[declared_key(names, 1)])
    assert [each[0] for each in differences(engine, metadata)].count("add_column") == 1
    assert "remove_table" in [each[0] for each in differences(engine, metadata)]


def declared_key(names: TableName, number: int) -> str:
    name = declared_tables(names)[number].name
    return name if names.schema is None else f"{names.schema}.{name}"


def catalogue(dsn: str, schema: str) -> dict[str, Any]:
    """Return all objects in a schema."""
    queries = {
        "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default, ordinal_position"
        " FROM information_schema.columns WHERE table_schema = %(schema)s ORDER BY 1, 6",
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = %(schema)s ORDER BY 1",
        "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = %(schema)s::regnamespace AND contype <> 'n' ORDER BY 1, 2",
        "triggers": "SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid"
        " WHERE relnamespace = %(schema)s::regnamespace AND NOT tgisinternal ORDER BY 1",
        "functions": "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace"
        " ORDER BY proname",
        "options": "SELECT relname, reloptions FROM pg_class WHERE relnamespace = %(schema)s::regnamespace ORDER BY 1",
    }
    with psycopg.connect(dsn) as connection:
        found: dict[str, Any] = {}
        for name, query in queries.items():
            quoted = query.replace("%(schema)s::", "quote_ident(%(schema)s)::")
            found[name] = connection.execute(quoted, {"schema": schema}).fetchall()
        if found["columns"]:
            found["record"] = connection.execute("SELECT table_name, version FROM pqcore_migrations").fetchall()
        return found


@pytest.mark.parametrize("named", [False, True], ids=["plain", "with a naming convention"])
def test_sqlalchemy_create_all_and_drop_all_equal_create_and_drop(dsn: str, named: bool) -> None:
    convention = {
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
    with PQ(dsn) as pq:
        pq.create()
    expected = catalogue(dsn, "public")
    metadata = sqlalchemy.MetaData(naming_convention=convention if named else None)
    include_in(metadata)
    engine = sqlalchemy.create_engine(url(dsn, "psycopg2"), poolclass=sqlalchemy.NullPool)
    for _ in range(2):
        metadata.drop_all(engine)
        assert not any(catalogue(dsn, "public").values())
        metadata.create_all(engine)
        assert catalogue(dsn, "public") == expected
        metadata.create_all(engine)
    with pq_for_engine(engine) as pq:
        pq["q"].put(1)
        assert pq["q"].count() == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_sqlalchemy_create_all_works_on_an_async_engine(dsn: str, driver: str) -> None:
    async def scenario() -> None:
        metadata = sqlalchemy.MetaData(schema="elsewhere")
        include_in(metadata, schema="made by it")
        engine = create_async_engine(url(dsn, driver), poolclass=sqlalchemy.NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with pq_for_engine(engine, schema="made by it") as pq:
            await pq["q"].put(1)
            assert await pq["q"].count() == 1
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)
        await engine.dispose()

    asyncio.run(scenario())
    assert not any(catalogue(dsn, "made by it").values())


def test_sqlalchemy_metadata_remakes_a_dropped_table(dsn: str, engine: sqlalchemy.Engine) -> None:
    metadata = sqlalchemy.MetaData()
    include_in(metadata)
    metadata.create_all(engine)
    whole = catalogue(dsn, "public")
    execute(dsn, "DROP TABLE queue")
    metadata.create_all(engine)
    assert catalogue(dsn, "public") == whole


def test_sqlalchemy_metadata_holds_several_queue_tables_and_others(dsn: str, engine: sqlalchemy.Engine) -> None:
    metadata = sqlalchemy.MetaData()
    sqlalchemy.Table("person", metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
    include_in(metadata)
    others = include_in(metadata, "others")
    metadata.create_all(engine)
    assert differences(engine, metadata) == []
    with pq_for_engine(engine, table="others") as pq, engine.connect() as connection:
        pq["q"].put({"a": 1})
        assert connection.execute(sqlalchemy.select(others.c.q_name, others.c.data)).all() == [("q", {"a": 1})]
    metadata.drop_all(engine, tables=[others])  # the record still has the other table's version
    with pq_for_engine(engine) as pq:
        assert pq["q"].count() == 0
    with pytest.raises(ConfigurationError, match="has a table 'queue' already"):
        include_in(metadata)


def test_alembic_can_ignore_the_queue_tables(dsn: str, engine: sqlalchemy.Engine) -> None:
    with PQ(dsn) as pq, PQ(dsn, table="jobs", schema="apart") as other:
        pq.create()
        other.create()
    execute(dsn, "CREATE TABLE person (id integer)", "CREATE TABLE hidden (id integer)")
    metadata = sqlalchemy.MetaData()
    mine = leave_out(also=leave_out("jobs", "apart", also=lambda name, kind, parents: name != "hidden"))
    found = differences(engine, metadata, include_name=mine)
    assert [(change[0], change[1].name) for change in found] == [("remove_table", "person")]


# In migrations

ENV = """
import sqlalchemy
from alembic import context

metadata = sqlalchemy.MetaData()
url = context.config.get_main_option("sqlalchemy.url")
if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()
else:
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
        context.configure(connection=connection, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()
"""
REVISION = """
from alembic import op
from pqcore.integrations.alembic import downgrade_queue, upgrade_queue

revision, down_revision = {revision!r}, {down!r}

def upgrade():
    {upgrade}

def downgrade():
    {downgrade}
"""
PERSON = 'op.execute("CREATE TABLE person (id integer)")'


@pytest.fixture
def alembic(dsn: str, tmp_path: Path) -> Callable[..., Config]:
    def made(*revisions: tuple[str, str], driver: str = "psycopg") -> Config:
        (tmp_path / "versions").mkdir()
        (tmp_path / "env.py").write_text(ENV)
        for number, (upgrade, downgrade) in enumerate(revisions):
            text = REVISION.format(
                revision=f"r{number}", down=f"r{number - 1}" if number else None, upgrade=upgrade, downgrade=downgrade
            )
            (tmp_path / "versions" / f"r{number}.py").write_text(text)
        config = Config()
        config.set_main_option("script_location", str(tmp_path))
        config.set_main_option("path_separator", "os")
        config.set_main_option("sqlalchemy.url", url(dsn, driver))
        return config

    return made


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_alembic_migration_creates_and_drops_the_queue(dsn: str, alembic: Callable[..., Config], driver: str) -> None:
    config = alembic(("upgrade_queue()", "downgrade_queue()"), (PERSON, "pass"), driver=driver)
    with PQ(dsn) as pq:
        pq.create()
        expected = catalogue(dsn, "public")
        execute(dsn, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        command.upgrade(config, "r0")
        execute(dsn, "DROP TABLE alembic_version")
        assert catalogue(dsn, "public") == expected
        pq["q"].put(1)
        command.stamp(config, "r0")
        command.downgrade(config, "base")
        execute(dsn, "DROP TABLE alembic_version")
        assert not any(catalogue(dsn, "public").values())


def test_alembic_migration_that_fails_leaves_nothing(dsn: str, alembic: Callable[..., Config]) -> None:
    config = alembic((f"upgrade_queue(); {PERSON}; {PERSON}", "pass"))
    with pytest.raises(sqlalchemy.exc.ProgrammingError, match="already exists"):
        command.upgrade(config, "head")
    assert not any(catalogue(dsn, "public").values())


def test_alembic_migration_written_as_sql_is_equivalent(dsn: str, alembic: Callable[..., Config]) -> None:
    config = alembic(
        (
            'upgrade_queue("odd:name\'s", "its\\\\schema"); upgrade_queue()',
            'downgrade_queue("odd:name\'s", "its\\\\schema")',
        )
    )
    with PQ(dsn) as pq:
        pq.create()
    expected = catalogue(dsn, "public")
    execute(dsn, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")

    def written(direction: Callable[..., None], revision: str) -> str:
        config.output_buffer = io.StringIO()
        direction(config, revision, sql=True)
        return config.output_buffer.getvalue()

    up = written(command.upgrade, "head")
    execute(dsn, up)
    with PQ(dsn) as pq, PQ(dsn, table="odd:name's", schema="its\\schema") as odd:
        pq.create()  # does nothing, because the table is complete
        odd["q"].put(1)
        assert (odd["q"].count(), pq["q"].count()) == (1, 0)
    execute(dsn, "DROP TABLE alembic_version")
    assert catalogue(dsn, "public") == expected
    execute(dsn, "CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('r0')")
    execute(dsn, written(command.downgrade, "r0:base"))
    with psycopg.connect(dsn) as connection:
        left = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'its\\schema'::regnamespace")
        assert {row[0] for row in left} <= {"pqcore_migrations", "pqcore_migrations_pkey"}


def test_alembic_migration_of_a_table_in_use_does_not_block_it(dsn: str, alembic: Callable[..., Config]) -> None:
    """In an autocommit block: the table of pq has rows, so indexes are built concurrently."""
    execute(
        dsn,
        "CREATE TABLE queue (id bigserial PRIMARY KEY, enqueued_at timestamptz NOT NULL DEFAULT current_timestamp,"
        " dequeued_at timestamptz, expected_at timestamptz, schedule_at timestamptz,"
        " q_name text NOT NULL CHECK (length(q_name) > 0), data json NOT NULL)",
        "INSERT INTO queue (q_name, data) VALUES ('q', '1')",
    )
    with PQ(dsn) as pq:
        with pytest.raises(SchemaOutdated):
            pq["q"].count()
        block = "with op.get_context().autocommit_block():\n        upgrade_queue()"
        config = alembic((block, "pass"))
        statements: list[str] = []

        @event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
        def seen(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
            statements.append(statement)

        try:
            command.upgrade(config, "head")
        finally:
            event.remove(sqlalchemy.Engine, "before_cursor_execute", seen)
        assert sum("INDEX CONCURRENTLY" in statement for statement in statements) == 7
        job = pq["q"].get()
        assert job is not None
        assert job.data == 1


def test_sqlalchemy_schema_errors_are_pqerrors(dsn: str, alembic: Callable[..., Config]) -> None:
    with PQ(dsn) as pq:
        pq.create()
    execute(dsn, "INSERT INTO pqcore_migrations VALUES ('queue', 99)")
    with pytest.raises(SchemaTooNew):
        command.upgrade(alembic(("upgrade_queue()", "pass")), "head")


def test_sqlalchemy_and_alembic_are_not_imported_by_the_core() -> None:
    code = (
        "import sys, pqcore, pqcore.tasks, pqcore.async_queue; assert not {'sqlalchemy', 'alembic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None  # so that its import fails
import sqlalchemy
from pqcore.integrations.sqlalchemy import include_in, pq_for_engine
include_in(sqlalchemy.MetaData())
with pq_for_engine(sqlalchemy.create_engine(sys.argv[1])) as pq:
    pq.create()
    print(pq["a"].put(1))
"""


def test_integration_needs_no_greenlet_for_blocking_engines(dsn: str) -> None:
    command = [sys.executable, "-c", WITHOUT_GREENLET, url(dsn, "psycopg")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "1\n"
