"""Serializers convert a job's data into the form that a row holds, and back.

A serializer writes either JSON text, kept in the row's ``data`` column, or bytes, kept in ``payload``. The row also
names its serializer, so a queue's serializer can change while rows wait. A row never chooses which code *runs*: a row
of another serializer is read only if the queue accepts that serializer by name.

Serializers that need a library are imported on first use, and import the library when they are constructed. `Wrapper`
is imported on first use, too; it finds other serializers by name (`pqcore.plugins`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pqcore.serializers.keys import key_id
from pqcore.serializers.pickles import Pickle, pickle_dumps, pickle_loads
from pqcore.serializers.plain_json import Json, json_decode, json_encode
from pqcore.serializers.protocol import (
    Serializer,
    authenticates,
    fault_of,
    held_keys,
    is_quick,
    stored_name,
    written_under,
)

if TYPE_CHECKING:
    from pqcore.serializers.compression import Zstd
    from pqcore.serializers.encryption import Fernet
    from pqcore.serializers.signed_pickles import SignedPickle
    from pqcore.serializers.with_cbor2 import Cbor2
    from pqcore.serializers.with_msgpack import Msgpack
    from pqcore.serializers.with_msgspec import MsgspecJson, MsgspecMsgpack
    from pqcore.serializers.with_orjson import Orjson
    from pqcore.serializers.with_pydantic import PydanticJson
    from pqcore.serializers.wrapping import Wrapper

__all__ = [
    "Cbor2",
    "Fernet",
    "Json",
    "Msgpack",
    "MsgspecJson",
    "MsgspecMsgpack",
    "Orjson",
    "Pickle",
    "PydanticJson",
    "Serializer",
    "SignedPickle",
    "Wrapper",
    "Zstd",
    "authenticates",
    "fault_of",
    "held_keys",
    "is_quick",
    "json_decode",
    "json_encode",
    "key_id",
    "pickle_dumps",
    "pickle_loads",
    "stored_name",
    "written_under",
]

_LATER = {
    "Cbor2": "with_cbor2",
    "Fernet": "encryption",
    "Msgpack": "with_msgpack",
    "MsgspecJson": "with_msgspec",
    "MsgspecMsgpack": "with_msgspec",
    "Orjson": "with_orjson",
    "PydanticJson": "with_pydantic",
    "SignedPickle": "signed_pickles",
    "Wrapper": "wrapping",
    "Zstd": "compression",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
