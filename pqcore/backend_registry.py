"""The registry of the backends that plugins bring, and the choice of a backend."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pqcore.argument_hints import kind_of
from pqcore.backend import AsyncBackend, Backend, BackendSpec, Mode, layers
from pqcore.backend_checks import check_spec
from pqcore.db.dsn import POSTGRESQL, scheme_of
from pqcore.errors import BackendNotInstalled, ConfigurationError, PluginError, UnknownBackend
from pqcore.plugin_loader import PluginLoader, check_version, describe_exception, origin_of
from pqcore.versions import too_old

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("pqcore")

BACKENDS = "pqcore.backends"
"""The entry point group of plugins that bring backends."""
PREFERENCE = ("psycopg", "asyncpg", "psycopg2")
"""The order in which backends are tried for a DSN that names no backend; after these, any other backend is tried.
"""
MOST_CLASSES = 1_000
"""The largest number of classes for which the registry caches the backends that accept them."""


class BackendRegistry(PluginLoader):
    """The registry of the backends of all plugins."""

    def __init__(self) -> None:
        super().__init__()
        self._specs: dict[tuple[str, Mode], BackendSpec] = {}
        self._adopters: dict[type, tuple[tuple[BackendSpec, bool], ...]] = {}
        self._passed_over: set[str] = set()  # backends for which a log line was written
        self.manager.hook.pqcore_register_backends.call_historic(kwargs={"register": self._add_backend})

    def backend_names(self) -> list[str]:
        """Return the names of all installed backends, preferred ones first; import nothing."""
        names = {point.name for point in self._points(BACKENDS)} | {name for name, _ in self._specs}
        return sorted(names, key=lambda name: (PREFERENCE.index(name) if name in PREFERENCE else 99, name))

    def backend_specs(self) -> list[BackendSpec]:
        """Return the specs of all installed backends; those that cannot be loaded are in `broken`."""
        for name in self.backend_names():
            with suppress(PluginError):  # listed in `broken`
                self._load(BACKENDS, name)
        order = self.backend_names()
        return sorted(self._specs.values(), key=lambda spec: (order.index(spec.name), spec.mode == "async"))

    def broken_backends(self) -> list[PluginError]:
        """Return, for each backend that was found but cannot be used, the reason."""
        return [error for (group, _), error in self._broken.items() if group == BACKENDS]

    def backend_spec(self, name: str, mode: Mode) -> BackendSpec:
        """Return the backend with this name and mode.

        Raises:
            UnknownBackend: No backend has this name and mode.
            PluginError: The backend's plugin is broken.
        """
        self._load(BACKENDS, name)
        spec = self._specs.get((name, mode))
        if spec is not None:
            return spec
        other: Mode = "async" if mode == "blocking" else "blocking"
        if (name, other) in self._specs:
            face, _ = _faces(other)
            msg = f"backend {name!r} is {other} only: use {face}, or another backend"
            raise UnknownBackend(msg)
        known = ", ".join(self.backend_names()) or "none"
        msg = f"unknown backend {name!r}; installed: {known}"
        raise UnknownBackend(msg)

    def choose(self, mode: Mode, *, name: str | None = None, dsn: str | None = None) -> tuple[BackendSpec, str]:
        """Choose a backend for a DSN, and return the reason for the choice.

        The first of these sources that names a backend decides: ``name``; the DSN's scheme (``postgresql+asyncpg://``);
        the first name in PQCORE_BACKEND with this mode. If none of them names a backend, a backend is chosen whose
        driver is installed and new enough: the first one in `PREFERENCE`, or else any other.

        Raises:
            UnknownBackend: No backend has this name, or no backend of this name has this mode.
            BackendNotInstalled: No backend of this mode has its driver installed, in a version that works.
            ConfigurationError: The DSN's scheme is not one of PostgreSQL.
            PluginError: The plugin of the named backend is broken, or two plugins bring the backend to be chosen.
        """
        scheme = "" if dsn is None else scheme_of(dsn)
        by_scheme = self._named_by_scheme(scheme, mode, strict=name is None)
        if name is not None:
            return self.backend_spec(name, mode), "named by the caller"
        if by_scheme is not None:
            return by_scheme, f"named by the scheme {scheme}://"
        if variable := os.environ.get("PQCORE_BACKEND"):
            return self._named_by_variable(variable, mode), "named by PQCORE_BACKEND"
        known: list[str] = []
        hints = []
        chosen: BackendSpec | None = None
        for each in self.backend_names():
            spec = self._candidate(each, mode, passing=chosen is None)
            if spec is None:
                continue
            known.append(each)
            if chosen is not None:
                continue
            why_not = self.unusable(spec)
            if why_not is None:
                chosen = spec
            else:
                hints.append(f"{each}: {why_not}")
                if not _absent(spec):
                    self._pass_over(each, why_not)
        if chosen is not None:
            return chosen, f"the first installed of {', '.join(known)}"
        msg = f"no {mode} backend has its driver installed; {'; '.join(hints)}"
        raise BackendNotInstalled(msg)

    def unusable(self, spec: BackendSpec) -> str | None:
        """Return why a backend's driver cannot be used, and what to do; None if its class can be imported."""
        if reason := _needs(spec):
            return reason
        try:  # a driver may be installed without the library that it needs
            importlib.import_module(spec.load.partition(":")[0])
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - whatever importing it raises, it is reported
            return f"cannot import {spec.load}: {describe_exception(exc)}: {spec.install}"
        return None

    def _candidate(self, name: str, mode: Mode, *, passing: bool) -> BackendSpec | None:
        """Return the backend of a name for the automatic choice; None if it has another mode, or its plugin is broken.

        Raises:
            PluginError: Two plugins bring the backend, and no preferred backend was found.
        """
        try:
            self._load(BACKENDS, name)
        except PluginError as exc:
            if passing and (BACKENDS, name) in self._rivals:
                raise
            if passing:
                self._pass_over(name, str(exc))
            return None
        return self._specs.get((name, mode))

    def _pass_over(self, name: str, why: str) -> None:
        if name not in self._passed_over:
            self._passed_over.add(name)
            logger.warning("backend %r is skipped, because it cannot be used: %s", name, why)

    def _named_by_scheme(self, scheme: str, mode: Mode, *, strict: bool) -> BackendSpec | None:
        """Return the backend that a URL's scheme names; None if the scheme names no backend.

        Args:
            scheme: The scheme, in lower case.
            mode: The mode, blocking or asynchronous.
            strict: Whether to raise if the scheme names a backend that does not exist.
        """
        kind, _, wanted = scheme.partition("+")
        if scheme == kind and kind in ("", *POSTGRESQL):
            return None
        if strict and wanted in self.backend_names():
            self._load(BACKENDS, wanted)  # if the plugin is broken, `_load` raises the plugin's error
        spelt = {scheme, f"postgresql+{wanted}"} if kind in POSTGRESQL else {scheme}
        named = [
            spec
            for spec in self.backend_specs()
            if not spelt.isdisjoint(spec.schemes) or (kind in POSTGRESQL and wanted == spec.name)
        ]
        for spec in named:
            if spec.mode == mode:
                return spec
        if kind not in POSTGRESQL and not named:
            msg = f"the URL begins with {scheme}://, and pqcore works on PostgreSQL: write postgresql://user@host/database"
            raise ConfigurationError(msg)
        if not strict:
            return None
        names = [spec.name for spec in self.backend_specs() if spec.mode == mode]
        instead = f"write postgresql://, or postgresql+{names[0]}://" if names else "write postgresql://"
        if named:
            this, other = _faces(mode)
            msg = (
                f"{scheme}:// names a driver that only {other} supports: give the URL to {other}; for {this}, {instead}"
            )
            raise UnknownBackend(msg)
        installed = ", ".join(self.backend_names())
        msg = f"no {mode} backend for the URL scheme {scheme}://; installed: {installed}; {instead}"
        raise UnknownBackend(msg)

    def _named_by_variable(self, variable: str, mode: Mode) -> BackendSpec:
        names = [name.strip() for name in variable.split(",") if name.strip()]
        for name in names:
            self._load(BACKENDS, name)
        known = self.backend_names()
        if unknown := [name for name in names if name not in known]:
            raise UnknownBackend(f"PQCORE_BACKEND: unknown backend {unknown[0]!r}; installed: {', '.join(known)}")
        for name in names:
            if (name, mode) in self._specs:
                return self._specs[name, mode]
        this, other = _faces(mode)
        instead = next((spec.name for spec in self.backend_specs() if spec.mode == mode), "psycopg")
        one = "async" if mode == "blocking" else "blocking"
        msg = (
            f"PQCORE_BACKEND={variable}: {', '.join(map(repr, names))} is {one} only: use {other}, give {this} its own"
            f" backend=, or set PQCORE_BACKEND={variable},{instead}: each face takes the first that it supports"
        )
        raise UnknownBackend(msg)

    def backend_for(self, target: object, mode: Mode, name: str | None = None) -> tuple[BackendSpec, bool] | None:
        """Return the backend that accepts an object or the object inside its proxies, and whether the object is a pool.

        Return None if no backend accepts the object.

        Raises:
            UnknownBackend: Only backends of the other mode accept the object.
        """
        wrong = None
        for cls in _classes_of(target):
            for spec, pool in self._adopting(cls):
                if name not in (None, spec.name):
                    continue
                if spec.mode == mode:
                    return spec, pool
                wrong = spec
        if wrong is not None:
            face, _ = _faces(wrong.mode)
            msg = f"a {kind_of(target)} is {wrong.mode}: give it to {face}"
            raise UnknownBackend(msg)
        return None

    def _adopting(self, cls: type) -> tuple[tuple[BackendSpec, bool], ...]:
        """Return the backends that accept objects of a class, and for each backend whether the class is a pool."""
        found = self._adopters.get(cls)
        if found is None:
            names = class_names(cls)
            found = tuple(
                (spec, pool)
                for spec in self.backend_specs()
                for pool, adopted in ((False, spec.connections), (True, spec.pools))
                if not names.isdisjoint(adopted)
            )
            if len(self._adopters) >= MOST_CLASSES:
                self._adopters.clear()
            self._adopters[cls] = found
        return found

    def make(self, spec: BackendSpec, *, prepared: bool) -> Backend | AsyncBackend:
        """Import a backend's class and construct it.

        Raises:
            BackendNotInstalled: The backend's driver cannot be imported, or is too old.
            PluginError: The class does not exist, or cannot be imported for another reason.
        """
        if reason := _needs(spec):
            msg = f"backend {spec.name!r} {reason}"
            raise BackendNotInstalled(msg)
        module, _, attribute = spec.load.partition(":")
        try:
            imported = importlib.import_module(module)
        except ImportError as exc:
            msg = f"backend {spec.name!r}: cannot import {spec.load}: {exc}: {spec.install}"
            raise BackendNotInstalled(msg) from exc
        except KeyboardInterrupt:
            raise
        except BaseException as exc:
            msg = f"backend {spec.name!r}: cannot import {spec.load}: {describe_exception(exc)}"
            raise PluginError(msg) from exc
        try:
            factory: Any = getattr(imported, attribute)
        except AttributeError as exc:
            msg = f"backend {spec.name!r}: {module} has no {attribute}"
            raise PluginError(msg) from exc
        made: Backend | AsyncBackend = factory(prepared=prepared)
        return made

    def _add_backend(self, spec: BackendSpec) -> None:
        if isinstance(spec, BackendSpec):
            check_version(f"backend {spec.name!r}", spec.api)
        check_spec(spec)
        owners = self._points(BACKENDS, spec.name)
        if self._loading is not None and owners and all(each.value != self._loading.value for each in owners):
            brings = f"a backend {spec.name!r}, a name that belongs to {origin_of(owners[0])}"
            raise PluginError(f"{origin_of(self._loading)} registers {brings}: give the backend another name")
        if len({each.value for each in owners}) > 1:  # two plugins bring the backend: `_load` raises the error
            return
        key = (spec.name, spec.mode)
        if key in self._specs and self._specs[key] != spec:
            msg = f"two plugins bring a {spec.mode} backend {spec.name!r}: {self._specs[key].load} and {spec.load}"
            raise PluginError(msg)
        self._specs[key] = spec
        self._adopters.clear()


def class_names(cls: type) -> set[str]:
    """Return the dotted names of a class and its bases."""
    return {f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__}


def _classes_of(target: Any) -> Iterator[type]:
    """Return the classes of an object and of the objects inside its proxies, and the class that a proxy claims."""
    layer = target
    for layer in layers(target):
        yield type(layer)
    if layer.__class__ is not type(layer):
        yield layer.__class__


def importable(module: str) -> bool:
    """Return whether a module of this name can be imported; for a dotted name, the parent packages are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _absent(spec: BackendSpec) -> list[str]:
    return [module for module in spec.requires if not importable(module)]


def _needs(spec: BackendSpec) -> str | None:
    """Return what a backend needs but lacks, and how to install it; None if nothing is missing."""
    lacking = _absent(spec) or too_old(spec.lowest)
    return f"needs {', '.join(lacking)}: {spec.install}" if lacking else None


def _faces(mode: Mode) -> tuple[str, str]:
    """Return the names of the user-facing classes: first for the given mode, then for the other mode."""
    return ("PQ", "AsyncPQ") if mode == "blocking" else ("AsyncPQ", "PQ")
