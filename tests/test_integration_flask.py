"""Flask: the extension, `flask pqcore`, Flask-SQLAlchemy's session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from pqcore.errors import ConfigurationError
from pqcore.integrations.flask import PQCore
from pqcore.tasks import PQ
from pqcore.testing.jobs import Jobs


def made(dsn: Any, *extensions: PQCore, **config: Any) -> Flask:
    app = Flask("made")
    app.config.update(PQCORE_DSN=dsn, **config)
    for extension in extensions:
        extension.init_app(app)
    return app


@pytest.fixture
def outside(dsn: str) -> Iterator[PQ]:
    """To look from outside."""
    with PQ(dsn, backend="psycopg") as pq:
        pq.create()
        yield pq


@pytest.mark.parametrize("backend", ["psycopg", "psycopg2"])
def test_flask_request_puts_jobs(dsn: str, outside: PQ, backend: str) -> None:
    pq = PQCore(retention="delete")
    emails = pq["emails"]  # before there is an application

    @emails.task(max_retries=2)
    def send(job_id: int, to: str) -> str:
        return f"to {to} of {current_app.name}"

    app = made(dsn, pq, PQCORE_BACKEND=backend, PQCORE_MAX_CONNECTIONS=2)

    @app.post("/")
    def put() -> str:
        send("ann")
        with emails as cursor:
            cursor.execute("SELECT 1")
            emails.put({"to": "bob"})
        return pq.backend

    assert app.test_client().post("/").text.startswith(f"{backend} ")
    assert app.extensions["pqcore"] is pq
    assert [job.data.get("to") for job in outside["emails"].peek(3)] == [None, "bob"]
    job = emails.get()  # there is only one application
    assert job is not None
    with app.app_context():
        assert emails.perform(job)
    assert emails.get() is not None
    assert outside["emails"].jobs("done") == []  # retention
    with pytest.raises(ConfigurationError, match="has a PQCore already"):
        pq.init_app(app)
    pq.close()


def test_flask_applications_have_separate_databases(dsn: str, outside: PQ, pqcore_server: str) -> None:
    pq = PQCore(table="jobs", schema="apart")
    with pytest.raises(ConfigurationError, match="no application yet"):
        pq["q"].put(1)
    first, second = made(dsn, pq), made(pqcore_server, pq)
    with pytest.raises(ConfigurationError, match="2 applications, and none is current"):
        pq["q"].put(1)
    with first.app_context():
        pq.create()
        pq["q"].put("first")
        assert pq["q"].count() == 1
        with second.app_context():
            assert current_app.config["PQCORE_DSN"] == pqcore_server
            assert pq.engine._given == pqcore_server
            assert not pq.engine._checked  # no statement was sent: this database has no such table
            pq.close()
        assert pq["q"].count() == 1
        pq.close()
    with Flask("other").app_context(), pytest.raises(ConfigurationError, match="'other' has no PQCore"):
        pq["q"].put(1)


@pytest.mark.parametrize("wrong", [None, "", 5])
def test_flask_extension_without_a_dsn_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="PQCORE_DSN"):
        PQCore(made(wrong))
    with pytest.raises(ConfigurationError, match="retention"):
        PQCore(retention="forever")
    with pytest.raises(ConfigurationError, match="max_connections"):
        PQCore(made("postgresql://", PQCORE_MAX_CONNECTIONS=0))


def test_flask_fixtures_work_for_an_applications_tests(pqcore_jobs: Jobs) -> None:
    pq = PQCore()

    @pq["q"].task()
    def name(job_id: int) -> str:
        return current_app.name

    app = made("postgresql://nowhere.invalid/", pq)
    pqcore_jobs.use(pq)

    @app.post("/")
    def put() -> str:
        name()
        return ""

    app.test_client().post("/")
    pqcore_jobs.assert_enqueued(name)
    with app.app_context():
        [ran] = pqcore_jobs.drain(pq["q"])
    assert ran.result == "made"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_flask_put_joins_the_transaction_of_flask_sqlalchemy(dsn: str, outside: PQ, driver: str) -> None:
    with outside["q"] as cursor:
        cursor.execute("CREATE TABLE notes (note text)")
    pq, db = PQCore(), SQLAlchemy()
    app = made(dsn, pq, SQLALCHEMY_DATABASE_URI=f"postgresql+{driver}://" + dsn.partition("://")[2])
    db.init_app(app)

    @app.post("/<int:number>")
    def put(number: int) -> str:
        db.session.execute(text("INSERT INTO notes VALUES ('written')"))
        pq["q"].put(number, connection=db.session)
        pq["q"].put_many([-number], connection=db.session)
        if number == 1:
            raise ValueError
        db.session.commit()
        return ""

    client = app.test_client()
    assert client.post("/1").status_code == 500  # rolled back as the context ends
    assert client.post("/2").status_code == 200
    assert client.post("/1").status_code == 500
    assert [job.data for job in outside["q"].get_many(5)] == [2, -2]
    with app.app_context():
        assert db.session.scalar(text("SELECT count(*) FROM notes")) == 1
        db.session.remove()
        db.engine.dispose()
        pq.close()


# flask pqcore

APP = """
import os
from flask import Flask, current_app, g
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from pqcore.integrations.flask import PQCore

pq = PQCore(table="jobs", schema="odd schema")
db = SQLAlchemy()

@pq["writing"].task(max_retries=0)
def write(job_id, what):
    assert "used" not in g
    g.used = True
    db.session.execute(text("INSERT INTO notes VALUES (:note)"), {"note": f"{what} {current_app.name} {os.getpid()}"})
    db.session.commit()

@pq["writing"].task(max_retries=0)
async def write_later(job_id, what):
    write.task.function(job_id, what)

def create_app():
    app = Flask("shop")
    app.config.from_prefixed_env("SHOP")
    db.init_app(app)
    pq.init_app(app)
    return app
"""


@pytest.fixture
def flask(dsn: str, tmp_path: Path) -> Callable[..., list[str]]:
    (tmp_path / "shop.py").write_text(APP)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "PQCORE_"))}
    environment |= {"SHOP_PQCORE_DSN": json.dumps(dsn), "SHOP_PQCORE_BACKEND": "psycopg2", "PYTHONWARNINGS": "error"}
    environment["SHOP_SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://" + dsn.partition("://")[2]
    environment["PQCORE_DSN"] = "postgresql://nowhere.invalid/"  # the application's counts

    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-m", "flask", "--app", "shop:create_app", "pqcore", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return run


def test_flask_commands_use_the_table_of_the_application(flask: Callable[..., list[str]], dsn: str) -> None:
    assert flask("create") == [f'table "odd schema"."jobs" was made; it has schema version {version()}']
    with PQ(dsn, table="jobs", schema="odd schema") as pq:
        pq["other"].put({"a": 1})
        [line] = flask("stats", "--json")
        assert json.loads(line)["queue"] == "other"
        assert flask("dead", "list", "--queue", "other", "--json") == []
    assert "Usage: flask pqcore put" in flask("put", "--help")[0]
    assert any("--version" in line for line in flask("--help"))


def version() -> int:
    from pqcore.schema import latest

    return latest()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_flask_worker_runs_jobs_in_application_contexts(
    flask: Callable[..., list[str]], dsn: str, processes: str
) -> None:
    with PQ(dsn, table="jobs", schema="odd schema") as pq:
        pq.create()
        with pq["any"] as cursor:
            cursor.execute("CREATE TABLE notes (note text)")
        for function in ("write", "write_later", "write", "write_later"):
            pq["writing"].put({"function": f"shop.{function}", "args": ["by"], "kwargs": {}})
        flask("worker", "--queues", "writing", "--burst", "--processes", processes)
        with pq["any"] as cursor:
            rows = cursor.execute("SELECT note FROM notes").fetchall()
        assert [row[0].split()[:2] for row in rows] == [["by", "shop"]] * 4
        assert pq["writing"].stats() == type(pq["writing"].stats())(0, 0, 0, None)


def test_flask_is_not_imported_by_the_core() -> None:
    code = "import sys, pqcore, pqcore.tasks, pqcore.cli.app; assert 'flask' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
