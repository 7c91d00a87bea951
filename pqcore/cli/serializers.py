"""The command ``pqcore serializers``, which lists serializers."""

from __future__ import annotations

from typing import Any

import click

from pqcore.cli.options import json_option
from pqcore.cli.output import emit, table
from pqcore.errors import PQError
from pqcore.plugins import plugins
from pqcore.serializers import stored_name
from pqcore.serializers.protocol import is_wrapper


@click.command()
@json_option
def serializers(*, as_json: bool) -> None:
    """List the serializers, and say why some cannot be used."""
    found = [_described(name) for name in plugins.serializer_names()]
    if as_json:
        for each in found:
            emit(each)
        return
    table(
        ("name", "stored as", "kind", "safe", "from", "problem"),
        (
            (
                each["name"],
                each["stored_as"],
                _kind(each),
                _safe(each),
                " ".join(each[key] for key in ("distribution", "version") if each[key]),
                each["error"],
            )
            for each in found
        ),
    )


def _described(name: str) -> dict[str, Any]:
    points = plugins.serializer_points(name)
    origin = points[0].dist if points else None
    described: dict[str, Any] = {
        "name": name,
        "stored_as": None,
        "binary": None,
        "wraps": None,
        "safe": None,
        "distribution": None if origin is None else origin.name,
        "version": None if origin is None else origin.version,
        "entry_point": points[0].value if points else None,
        "error": None,
    }
    try:
        registered: Any = plugins.registered_serializer(name)
        if registered is None:
            described["error"] = f"its plugin, {described['entry_point']}, brings no serializer {name!r}"
            return described
        wraps = is_wrapper(registered)
        described.update(
            stored_as=f"+{name}" if wraps else stored_name(registered),
            binary=bool(registered.binary),
            wraps=wraps,
            safe=getattr(registered, "safe", None),
        )
        plugins.serializer(f"json+{name}" if wraps else name)
    except PQError as exc:
        described["error"] = str(exc)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - a broken plugin must not affect other plugins
        described["error"] = f"{type(exc).__name__}: {exc}"
    return described


def _kind(described: dict[str, Any]) -> str | None:
    if described["binary"] is None:
        return None
    if described["wraps"]:
        return "wrapper"
    return "binary" if described["binary"] else "text"


def _safe(described: dict[str, Any]) -> str | None:
    if described["safe"] is None:
        return "as wrapped" if described["wraps"] else None
    return "yes" if described["safe"] else "no"


COMMANDS = (serializers,)
