"""Refusals: data that could not be read again, and objects that are not serializers."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from pqcore import PQError, hookimpl
from pqcore.plugins import Plugins
from pqcore.serializers import Cbor2, Json, Msgpack, MsgspecJson, MsgspecMsgpack, Orjson, PydanticJson, Wrapper, Zstd
from pqcore.testing.commands import run


class ActiveJob(msgspec.Struct):
    """Has a dict within."""

    found: Any


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("serializer", "most"), [(Cbor2(), 300), (Msgpack(), 500), (MsgspecMsgpack(), 500), (Zstd(Cbor2()), 300)], ids=repr
)
def test_data_nested_deeper_than_readers_read_are_refused(serializer: Any, most: int) -> None:
    assert serializer.loads(serializer.dumps(nested(most))) == nested(most)
    for deep in (nested(most + 1), {"a": ({"b": nested(most)},)}):
        with pytest.raises((ValueError, TypeError), match="levels deep"):
            serializer.dumps(deep)
    held: list[Any] = []
    held += [held, held]
    with pytest.raises((ValueError, RecursionError)):
        serializer.dumps(held)


def test_data_with_keys_that_become_equal_in_json_are_refused() -> None:
    found = {7: 1, "7": 2}
    by_id = {uuid.UUID(int=7): 1, str(uuid.UUID(int=7)): 2}
    writers: list[tuple[Any, Any]] = [
        (Json(), found),
        (MsgspecJson(), found),
        (MsgspecJson(), by_id),
        (MsgspecJson(), {"a": [ActiveJob(found)]}),
        (PydanticJson(dict[int | str, int]), found),
        (PydanticJson(dict[uuid.UUID | str, int]), by_id),
        (Orjson(option=orjson.OPT_NON_STR_KEYS), by_id),
        (Zstd(), found),
    ]
    for serializer, value in writers:
        with pytest.raises(ValueError, match="of a dict are both written as"):
            serializer.dumps(value)
        for key in list(value)[:1] if isinstance(next(iter(value)), (int, uuid.UUID)) else ():
            serializer.dumps({key: value[key]})
    for serializer in (Msgpack(), MsgspecMsgpack(), Cbor2()):
        assert serializer.loads(serializer.dumps(found)) == found


def test_data_with_a_tuple_as_key_are_refused_where_unreadable() -> None:
    with pytest.raises(TypeError):
        Msgpack().dumps({"a": {(1, 2): 3}})
    assert MsgspecMsgpack().loads(MsgspecMsgpack().dumps({(1, 2): 3})) == {(1, 2): 3}


BROKEN = """
from pqcore import hookimpl
from pqcore.serializers import Json, Wrapper

class Fails(Json):
    name = "fails"
    def __init__(self):
        raise KeyError("no secret store")

class Ends(Wrapper):
    layer = "ends"
    def __init__(self, inner=None):
        raise SystemExit("bye")

class Nameless(Json):
    name = None

@hookimpl
def pqcore_register_serializers(register):
    register(Fails)
    register(Ends)
"""
NAMELESS = """
from pqcore import hookimpl

@hookimpl
def pqcore_register_serializers(register):
    register(type("Nameless", (), {"binary": True, "dumps": bytes, "loads": bytes})())
"""


def test_serializer_that_cannot_be_constructed_is_listed_with_the_reason(tmp_path: Path) -> None:
    info = tmp_path / "acme-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 2.5\n")
    points = "[pqcore.serializers]\nfails = acme_broken\nends = acme_broken\nnameless = acme_nameless\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "acme_broken.py").write_text(BROKEN)
    (tmp_path / "acme_nameless.py").write_text(NAMELESS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    for command in ("serializers", "plugins"):
        done = run(command, "--json", variables={"PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        found = {
            each["name"]: each
            for each in map(json.loads, done.stdout.splitlines())
            if each.get("group") != "pqcore.plugins"
        }
        assert "KeyError: 'no secret store'" in found["fails"]["error"]
        assert "SystemExit: bye" in found["ends"]["error"]
        assert "no 'name'" in found["nameless"]["error"]
        assert found["json"]["error"] is None


def test_serializer_of_a_bad_type_is_not_registered() -> None:
    class Plugin:
        def __init__(self, serializer: Any) -> None:
            self.serializer = serializer

    Plugin.pqcore_register_serializers = hookimpl(  # type: ignore[attr-defined]
        lambda self, register: register(self.serializer), specname="pqcore_register_serializers"
    )
    for wrong, told in (
        (object(), "no 'name'"),
        (type("X", (Wrapper,), {}), "layer"),
        (type("Y", (), {}), "no 'name'"),
    ):
        with pytest.raises(PQError, match=told):
            Plugins().register(Plugin(wrong))
    Plugins().register(Plugin(Json))
