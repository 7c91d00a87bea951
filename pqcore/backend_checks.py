"""Checks of a `BackendSpec` when a plugin registers it, because a mistake would otherwise show far from its cause."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from pqcore.backend import BackendSpec, Capability, Mode
from pqcore.errors import PluginError
from pqcore.sql.statement import Paramstyle

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LOAD = re.compile(rf"{_DOTTED.pattern}:{_DOTTED.pattern}")
_SCHEME = re.compile(r"[a-z][a-z0-9_+.-]*")


def check_spec(spec: Any) -> None:
    """Check that a declaration has all that a `BackendSpec` must have.

    Args:
        spec: The object that a plugin registered as a backend.

    Raises:
        PluginError: The object is not a `BackendSpec`, or one of its fields is wrong. The message names the field, and
            says what to give.
    """
    if not isinstance(spec, BackendSpec):
        raise PluginError(f"a plugin registers a {type(spec).__qualname__} as a backend; register a BackendSpec")
    if not _matches(_NAME, spec.name):
        raise PluginError(
            f"backend {spec.name!r}: name is {spec.name!r}; give letters, digits and _ . -, as in 'asyncpg'"
        )
    for field, allowed in (("mode", get_args(Mode)), ("paramstyle", get_args(Paramstyle))):
        if getattr(spec, field) not in allowed:
            raise _wrong(spec, field, " or ".join(map(repr, allowed)))
    if not _matches(_LOAD, spec.load):
        raise _wrong(spec, "load", "where the class is, as in 'package.module:Class'")
    if spec.bare_loop != "" and not _matches(_LOAD, spec.bare_loop):
        raise _wrong(spec, "bare_loop", "where its class is, as in 'package.module:Class'")
    if not isinstance(spec.install, str) or (spec.requires and not spec.install):
        raise _wrong(spec, "install", "how to get the driver, as in 'pip install pqcore-acme'")
    for field, pattern, example in (
        ("requires", _DOTTED, "('asyncpg',)"),
        ("connections", _DOTTED, "('asyncpg.connection.Connection',)"),
        ("pools", _DOTTED, "('asyncpg.pool.Pool',)"),
        ("schemes", _SCHEME, "('postgresql+asyncpg',), in small letters"),
    ):
        values = getattr(spec, field)
        if (
            not isinstance(values, Collection)
            or isinstance(values, str)
            or not all(_matches(pattern, v) for v in values)
        ):
            raise _wrong(spec, field, f"a tuple of names, as in {example}")
    _check_capabilities(spec)
    lowest = spec.lowest.items() if isinstance(spec.lowest, Mapping) else [(None, None)]
    if not all(_matches(_NAME, name) and re.match(r"\d", str(version)) for name, version in lowest):
        raise _wrong(spec, "lowest", "versions of distributions, as in {'asyncpg': '0.29'}")


def _check_capabilities(spec: BackendSpec) -> None:
    if not isinstance(spec.capabilities, Collection) or not all(isinstance(c, Capability) for c in spec.capabilities):
        raise _wrong(spec, "capabilities", "a frozenset of Capability, as in frozenset({Capability.LISTEN})")
    if not isinstance(spec.missing, Mapping) or not all(isinstance(each, Capability) for each in spec.missing):
        raise _wrong(spec, "missing", "a reason for each, as in {Capability.POOL: 'acme has no pools'}")
    adopted = spec.missing_on_adopted
    if not isinstance(adopted, Mapping) or not all(
        each is Capability.LISTEN and each in spec.capabilities and why for each, why in adopted.items()
    ):
        wanted = "a reason for LISTEN, if the backend has it, as in {Capability.LISTEN: 'acme has no way to hear'}"
        raise _wrong(spec, "missing_on_adopted", wanted)
    unexplained = [cap.name for cap in Capability if cap not in spec.capabilities and not spec.missing.get(cap)]
    if unexplained:
        msg = f"backend {spec.name!r} lacks {', '.join(unexplained)} and gives no reason (BackendSpec.missing)"
        raise PluginError(msg)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _wrong(spec: BackendSpec, field: str, wanted: str) -> PluginError:
    return PluginError(f"backend {spec.name!r}: {field} is {getattr(spec, field)!r}; give {wanted}")
