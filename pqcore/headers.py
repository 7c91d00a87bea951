"""Reading headers from rows: a row may have been written in plain SQL, and not by `put`.

If a header that pqcore itself reads is not in the form that `put` writes, the header is left out. So an invalid header
cannot make a take fail. A worker makes a dead letter of a job with such a header.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any

from pqcore.sql.identifiers import MAX_KEY, MAX_PRIORITY, MAX_QUEUE_NAME, check_text

LONGEST = 100_000_000_000
"""Seconds, about three thousand years; a later time may exceed what Python's datetime can hold."""
MOST_PLACES = 2**31 - 1
_MOST_ID = 2**63 - 1
_LINK = frozenset({"queue", "serializer", "data", "payload", "headers", "delay"})


def read_headers(text: str | None) -> tuple[dict[str, Any], str]:
    """Return the headers of a row, and the faults of headers that were left out.

    If no header was left out, the text of the faults is empty.

    Args:
        text: The text in the row, which should be JSON.
    """
    if text is None:
        return {}, ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return {}, f"the headers cannot be read: {exc}"
    if not isinstance(found, dict):
        return {}, f"the headers are a {type(found).__name__}, not a JSON object"
    escaped = "\\u" in text
    faults = []
    for name in list(found):
        try:
            if escaped:
                _storable({name: found[name]})
            if (check := _CHECKS.get(name)) is not None:
                check(found[name])
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as exc:
            del found[name]
            faults.append(f"header {name!r}: {exc}")
    return found, "; ".join(faults)


def check_link(link: Any) -> None:
    """Raise unless a value is a valid `StoredPut`.

    Raises:
        TypeError, ValueError, LookupError, ArithmeticError, RecursionError: The value is not a valid `StoredPut`.
    """
    if not isinstance(link, dict) or not link.keys() <= _LINK:
        raise TypeError("the value is not a follow-up")
    check_text(link["queue"], "queue", MAX_QUEUE_NAME)
    check_text(link["serializer"], "serializer")
    data, payload = link["data"], link["payload"]
    if (data is None) == (payload is None) or not isinstance(payload if data is None else data, str):
        raise TypeError("the value must have either data or payload")
    if payload is not None:
        base64.b64decode(payload)
    else:
        json.loads(data, parse_constant=_refuse_constant)
    if link.get("delay") is not None:
        _check_seconds(link["delay"])
    if not isinstance(link["headers"], dict):
        raise TypeError("the headers of the follow-up are not a JSON object")
    for name, value in link["headers"].items():
        if (check := _CHECKS.get(name)) is not None:
            check(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _storable(value: Any) -> None:
    if "\0" in (text := json.dumps(value, ensure_ascii=False)) or "\\u0000" in text:
        raise ValueError("the value contains a NUL, which PostgreSQL's text cannot hold")
    text.encode()


def _check_seconds(value: Any) -> None:
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= LONGEST:
        raise ValueError(f"the value is not a number of seconds up to {LONGEST:,}")


def _check_limits(gate: Any) -> None:
    if not isinstance(gate, dict) or not isinstance(limits := gate.get("limits", {}), dict):
        raise TypeError("the value is not a JSON object")
    for key, places in limits.items():
        check_text(key, "limit", MAX_KEY)
        if type(places) is not int or not 1 <= places <= MOST_PLACES:
            raise ValueError(f"the number of a limit is not a whole number from 1 to {MOST_PLACES}")
    if "group" in gate:
        check_text(gate["group"], "group", MAX_KEY)
    if "share" in gate:
        check_text(gate["share"], "tenant", MAX_KEY)
    if type(priority := gate.get("priority", 0)) is not int or abs(priority) > MAX_PRIORITY:
        raise ValueError("the priority is not a whole number")


def _check_run(run: Any) -> None:
    if not isinstance(run, dict):
        raise TypeError("the value is not a JSON object")
    if run.get("timeout") is not None:
        _check_seconds(run["timeout"])
    if run.get("deadline") is not None and not math.isfinite(run["deadline"]):
        raise ValueError("the deadline is not a time")


def _check_batch(batch: Any) -> None:
    if type(batch) is not int or not 0 <= batch <= _MOST_ID:
        raise ValueError("the value is not the number of a batch")


def _check_token(token: Any) -> None:
    check_text(token, "batch_token", MAX_KEY)


def _check_chain(links: Any) -> None:
    if not isinstance(links, list):
        raise TypeError("the value is not a list")
    for link in links:
        check_link(link)


_CHECKS: dict[str, Callable[[Any], None]] = {
    "gate": _check_limits,
    "run": _check_run,
    "keep": _check_seconds,
    "batch": _check_batch,
    "batch_token": _check_token,
    "then": _check_chain,
}
