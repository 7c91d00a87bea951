"""``pqcore reencode``: it changes keys and serializers; and what ``doctor`` and ``serializers`` report about them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.fernet import Fernet as Cipher

from pqcore import PQ
from pqcore.cli.app import app
from pqcore.operations import encodings
from pqcore.serializers import Fernet, Json, Msgpack, SignedPickle, Wrapper, Zstd, key_id

OLD, NEW = (Cipher.generate_key().decode() for _ in range(2))
OLD_ID, NEW_ID = Fernet(keys=[OLD]).key_ids[0], Fernet(keys=[NEW]).key_ids[0]
MODULE = """
from pqcore import hookimpl
from pqcore.plugins import plugins
from pqcore.serializers import Json


class Own(Json):
    name = "own-of-a-module"


class Plugin:
    @hookimpl
    def pqcore_register_serializers(self, register):
        register(Own())


plugins.register(Plugin())
"""


def call(dsn: str, *arguments: str, keys: str | None = None, backend: str | None = None) -> Result:
    variables = {"PQCORE_DSN": dsn, "PQCORE_FERNET_KEYS": keys, "PQCORE_BACKEND": backend, "PQCORE_PICKLE_KEYS": None}
    done = CliRunner().invoke(app, arguments, env=variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def counts(dsn: str) -> dict[tuple[str, str, str], int]:
    found = map(json.loads, call(dsn, "reencode", "--count", "--json").stdout.splitlines())
    return {(one["place"], one["serializer"], one["key"]): one["number"] for one in found}


def of_doctor(dsn: str, *arguments: str, keys: str | None = None) -> list[dict[str, Any]]:
    found = map(json.loads, call(dsn, "doctor", "--json", *arguments, keys=keys).stdout.splitlines())
    return [one for one in found if one["check"] == "encodings"]


@pytest.fixture
def pq(dsn: str) -> Any:
    with PQ(dsn) as made:
        made.create()
        yield made


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg", "asyncpg"])
def test_reencode_command_changes_keys(pq: PQ, dsn: str, backend: str) -> None:
    pq.queue("cards", serializer=Fernet(Zstd(), keys=[OLD])).put_many(range(5))
    pq.queue("cards", serializer=Fernet(Zstd(), keys=[OLD])).put("later", "1h")
    name = "cards/json+zstd+fernet"
    before = {("ready", "json+zstd+fernet", OLD_ID): 5, ("scheduled", "json+zstd+fernet", OLD_ID): 1}
    assert counts(dsn) == before, "without a key"
    done = call(dsn, "reencode", "--queue", name, keys=NEW, backend=backend)
    assert done.exit_code == 1
    assert OLD_ID in done.output
    assert counts(dsn) == before
    [report] = map(
        json.loads, call(dsn, "reencode", "--queue", name, "--json", keys=f"{NEW},{OLD}").stdout.splitlines()
    )
    assert (report["rewritten"], report["left"], report["failed"]) == (6, [], 0)
    assert counts(dsn) == {(place, kind, NEW_ID): number for (place, kind, _), number in before.items()}
    assert [job.data for job in pq.queue("cards", serializer=Fernet(Zstd(), keys=[NEW])).get_many(5)] == [*range(5)]


def test_reencode_command_changes_the_serializer(pq: PQ, dsn: str) -> None:
    pq["orders"].put_many([{"a": 1}, {"b": [None]}])
    pq["orders/msgpack"].put(b"bytes")
    done = call(dsn, "reencode", "--queue", "orders/msgpack", "--accept", "json")
    assert done.exit_code == 0, done.output
    assert "2 rows were written" in done.output
    assert counts(dsn) == {("ready", "msgpack", ""): 3}
    done = call(dsn, "reencode", "--queue", "orders", "--accept", "msgpack")
    assert done.exit_code == 1, "JSON has no bytes"
    [refused] = [one.id for one in pq["orders/msgpack"].peek(3) if one.serializer == "msgpack"]
    assert f"job {refused}: queue 'orders': json cannot encode a builtins.bytes" in done.output
    assert counts(dsn) == {("ready", "msgpack", ""): 1, ("ready", "json", ""): 2}
    assert [job.data for job in pq["orders/msgpack"].get_many(3)] == [{"a": 1}, {"b": [None]}, b"bytes"]


def test_reencode_command_mentions_queues_not_named(pq: PQ, dsn: str) -> None:
    for name in ("cards", "tokens"):
        pq.queue(name, serializer=Fernet(keys=[OLD])).put(name)
    pq["plain"].put(1)
    done = call(dsn, "reencode", "--queue", "cards/json+fernet", "--json", keys=f"{NEW},{OLD}")
    assert done.exit_code == 1
    [left] = json.loads(done.stdout)["left"]
    assert (left["queue"], left["key"], left["number"]) == ("tokens", OLD_ID, 1)
    named = ("--queue", "cards/json+fernet", "--queue", "tokens/json+fernet")
    assert call(dsn, "reencode", *named, keys=f"{NEW},{OLD}").exit_code == 0


def test_reencode_command_does_not_decrypt_a_queue_by_omission(pq: PQ, dsn: str) -> None:
    pq.queue("cards", serializer=Fernet(keys=[OLD])).put("secret")
    done = call(dsn, "reencode", "--queue", "cards", keys=OLD)
    assert done.exit_code == 1
    assert counts(dsn) == {("ready", "json+fernet", OLD_ID): 1}


def test_reencode_command_names_missing_arguments(pq: PQ, dsn: str) -> None:
    done = call(dsn, "reencode")
    assert done.exit_code == 2
    assert "--queue" in done.output
    assert "no data" in call(dsn, "reencode", "--count").output
    assert call(dsn, "reencode", "--queue", "q/nonsense").exit_code == 2


def test_reencode_command_imports_modules_that_register_serializers(
    pq: PQ, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registers_own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pq["q"].put(1)
    pq.queue("q", serializer=Json()).put(2)
    with pq["q"] as cursor:
        cursor.execute("INSERT INTO queue (q_name, data, serializer) VALUES ('q', '3', 'own-of-a-module')")
    [found] = of_doctor(dsn)
    assert (found["level"], found["details"]["number"]) == ("warning", 1)
    assert "own-of-a-module" in found["message"]
    [found] = of_doctor(dsn, "--import", "registers_own")
    assert found["level"] == "ok"
    done = call(dsn, "reencode", "--queue", "q", "--accept", "own-of-a-module", "--import", "registers_own")
    assert done.exit_code == 0, done.output
    assert counts(dsn) == {("ready", "json", ""): 3}


def test_doctor_warns_of_rows_whose_key_is_missing(pq: PQ, dsn: str) -> None:
    pq.queue("q", serializer=Fernet(keys=[OLD])).put_many([1, 2])
    assert [one["level"] for one in of_doctor(dsn, keys=OLD)] == ["ok"]
    [found] = of_doctor(dsn, keys=NEW)
    assert (found["level"], found["details"]["key"], found["details"]["number"]) == ("warning", OLD_ID, 2)
    assert (OLD_ID in found["message"], NEW_ID in found["message"], "'q'" in found["message"]) == (True, True, True)
    assert OLD not in json.dumps(found)
    [found] = of_doctor(dsn)
    assert found["level"] == "warning", "without keys it cannot be judged"
    assert "PQCORE_FERNET_KEYS" in found["message"]
    with pq["q"] as cursor:
        cursor.execute("UPDATE queue SET payload = substr(payload, 14)")  # a Fernet token as other programs write it
    [found] = of_doctor(dsn, keys=OLD)
    assert (found["level"], found["details"]["key"]) == ("warning", "")
    assert "do not say" in found["message"]
    assert call(dsn, "reencode", "--queue", "q/json+fernet", keys=OLD).exit_code == 0
    assert [one["level"] for one in of_doctor(dsn, keys=OLD)] == ["ok"]


class Layer(Wrapper):
    """Adds a key to the wrapped data, in place of encryption."""

    layer = "layer"
    authenticates = True

    def __init__(self, inner: Any = None, *, keys: list[bytes]) -> None:
        super().__init__(inner)
        self.keys, self.key_ids = keys, [key_id(key) for key in keys]

    def wrap(self, raw: bytes) -> bytes:
        return self.keys[0] + raw

    def unwrap_under(self, raw: bytes, key: str) -> bytes:
        [known] = [each for each in self.keys if key_id(each) == key]
        if not raw.startswith(known):
            raise ValueError("it was altered")
        return raw[len(known) :]


@pytest.mark.parametrize(
    "make",
    [
        lambda *keys: Fernet(keys=keys),
        lambda *keys: Zstd(Fernet(keys=keys)),
        lambda *keys: Fernet(Zstd(Msgpack()), keys=keys),
        lambda *keys: Fernet(SignedPickle(keys=["never changed, and long enough " * 2]), keys=keys),
        lambda *keys: Fernet(SignedPickle(keys=keys), keys=keys),
        lambda *keys: Zstd(Layer(Zstd(), keys=[key.encode() for key in keys])),
        lambda *keys: Layer(Layer(SignedPickle(keys=keys), keys=[b"1" + k.encode() for k in keys]), keys=[b"2"]),
        lambda *keys: SignedPickle(keys=keys),
    ],
)
def test_reencode_command_changes_the_key_of_any_layer(pq: PQ, make: Any) -> None:
    value = {"a": [None, 1.5, "é"]}
    pq.queue("q", serializer=make(OLD)).put(value)
    new = pq.queue("q", serializer=make(NEW, OLD))
    [counted] = pq.encodings()
    done = new.reencode()
    assert (done.rewritten, done.left) == (1, [])
    assert new.reencode().rewritten == 0
    [recounted] = done.after
    assert counted.key != recounted.key
    assert recounted.key
    assert pq.queue("q", serializer=make(NEW)).get().data == value  # type: ignore[union-attr]
    old = make(OLD)
    assert old.rekey(make(OLD).dumps(value)) != make(NEW).dumps(value)


def test_reencode_slices_have_no_gap(pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has more rows than one slice: all are re-encoded, whatever their ids."""
    monkeypatch.setattr(encodings, "SLICE", 7)
    monkeypatch.setattr("pqcore.sql.encoding_statements.SLICE", 7)
    ids = [-(2**60), -1, 0, *range(5, 40), 2**62]
    with pq["q"] as cursor:
        for number in ids:
            cursor.execute("INSERT INTO queue (id, q_name, data, serializer) VALUES (%s, 'q', '1', 'json')", [number])
    done = pq.queue("q", serializer="msgpack", accept=("json",)).reencode(step=3)
    assert (done.rewritten, done.left) == (len(ids), [])
    assert [one.number for one in done.before] == [len(ids)]
