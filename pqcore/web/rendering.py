"""Templates, and filters that write values in them. The templates escape everything that comes from a job."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

NONE = "\N{EN DASH}"
"""The text for a missing value."""
MOST_SHOWN = 16_384
"""How much of a job's data is shown: characters of JSON, or bytes."""
MOST_TRACEBACK = 32_768
"""How many characters of a traceback are shown: the last ones, where the error is."""
MOST_IN_LIST = 4_096
"""How many characters of a traceback are shown in a list."""
_BYTES = 1_024


def environment() -> Environment:
    """Return the environment of the templates."""
    made = Environment(
        loader=PackageLoader("pqcore.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "age": age,
        "ago": ago,
        "count": count,
        "moment": moment,
        "machine": machine,
        "kind": kind,
        "tail": tail,
        "value": value,
    }
    return made


def link(root: str, page: str, /, **query: object) -> str:
    """Return the path of a page.

    Args:
        root: The path at which the application is mounted.
        page: The name of the page.
        **query: The query; values that are None or empty are left out.
    """
    given = {name: each for name, each in query.items() if each not in (None, "")}
    return f"{root}/{page}" + (f"?{urlencode(given)}" if given else "")


def age(seconds: float | None) -> str:
    """Return a length of time; a dash for None."""
    if seconds is None:
        return NONE
    if not math.isfinite(seconds):
        return "∞"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s" if seconds >= 0.1 else "< 0.1 s"


def count(number: float) -> str:
    """Return a number in groups of three digits."""
    return f"{number:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def value(number: float | None, unit: str) -> str:
    """Return a value of a chart as text, in its unit."""
    if unit == "seconds":
        return age(number)
    return NONE if number is None else count(number)


def moment(time: datetime | None) -> str:
    """Return a time for people, in UTC."""
    return NONE if time is None else f"{time:%Y-%m-%d %H:%M:%S}"


def ago(time: datetime) -> str:
    """Return how long ago a time was, or how far off it is; `static/times.js` keeps the text up to date."""
    seconds = (datetime.now(timezone.utc) - time.replace(tzinfo=time.tzinfo or timezone.utc)).total_seconds()
    size = abs(seconds)
    length = "< 1 min"
    for unit, part in (("y", 31_557_600), ("d", 86_400), ("h", 3_600), ("min", 60)):
        if size >= part:
            length = f"{size // part:.0f} {unit}"
            break
    return f"in {length}" if seconds < 0 else f"{length} ago"


def machine(time: datetime) -> str:
    """Return a time for programs."""
    return time.isoformat()


def kind(error: dict[str, str]) -> str:
    """Return the class of an exception."""
    return error.get("type", "").removeprefix("builtins.")


def tail(text: str, most: int) -> str:
    """Return the last characters of a text."""
    return text if len(text) <= most else f"… {len(text) - most:,} characters are left out …\n{text[-most:]}"


def shown(raw: str | bytes, size: int) -> tuple[str, bool]:
    """Return a job's data as text, and whether the text is cut.

    JSON is indented, if this changes nothing but white space. Bytes that are not text are written in hexadecimal.

    Args:
        raw: The data, or the beginning of it.
        size: The size of all data, in bytes.
    """
    if isinstance(raw, bytes):
        part = raw[:_BYTES]
        return _dumped(part), size > len(part)
    # A cut text ends anywhere, so it is not JSON; it is shown as it is stored.
    whole = len(raw.encode("utf-8", "replace")) >= size
    return (_laid_out(raw) if whole else raw), not whole


def _laid_out(raw: str) -> str:
    try:
        data = json.loads(raw)
        for ascii_only in (True, False):
            for separators in ((",", ":"), (", ", ": ")):
                if json.dumps(data, ensure_ascii=ascii_only, separators=separators) == raw:
                    return json.dumps(data, ensure_ascii=ascii_only, indent=2)
    except (ValueError, RecursionError):
        pass
    return raw


def _dumped(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:06x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def encodable(page: str) -> bytes:
    """Return a page in UTF-8; lone surrogates, which JSON can hold, are written as escapes."""
    return page.encode("utf-8", "backslashreplace")


def laid_out(value: Any) -> str:
    """Return a decoded JSON value as indented text, for people."""
    return json.dumps(value, ensure_ascii=False, indent=2)
