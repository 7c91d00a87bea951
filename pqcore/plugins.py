"""Plugins: found from metadata, loaded by name when needed, checked when loaded.

A backend is one entry point in the group ``pqcore.backends``, a serializer one
in ``pqcore.serializers``, a dialect one in ``pqcore.dialects``; its name is that of
what it brings, its value a module with hook implementations (`pqcore.hookspecs`).  Plugins that bring
neither are entry points in ``pqcore.plugins``.  The built-in
ones are registered in the same way.  Listing reads metadata alone, so a plugin
that is broken, or whose driver is missing, troubles only those who choose it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pluggy

from pqcore import hookspecs
from pqcore.argument_hints import kind_of
from pqcore.backend import PLUGIN_API, AsyncBackend, Backend, BackendSpec, Mode, layers
from pqcore.backend_checks import check_spec
from pqcore.db.dsn import POSTGRESQL, scheme_of
from pqcore.errors import (
    BackendNotInstalled,
    ConfigurationError,
    PluginError,
    PQError,
    UnknownBackend,
    UnknownSerializer,
)
from pqcore.serializers.protocol import fault_of, is_wrapper
from pqcore.sql.dialect import Dialect
from pqcore.versions import too_old

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pqcore.serializers.protocol import Serializer

BACKENDS = "pqcore.backends"
SERIALIZERS = "pqcore.serializers"
DIALECTS = "pqcore.dialects"
PLUGINS = "pqcore.plugins"
PREFERENCE = ("psycopg", "asyncpg", "psycopg2")
"""For a DSN with no backend named: the first of these that is installed, then any other."""


MOST_CLASSES = 1_000
"""Classes of which is remembered which backends adopt them, at most."""
LONGEST_SHOWN = 200
"""Characters of a name that a message repeats, at most."""


_UNINSTALL = "uninstall one of the two, or name another"

logger = logging.getLogger("pqcore")


class _Manager(pluggy.PluginManager):
    """pluggy's, and what of it is remembered until a plugin comes or goes."""

    def __init__(self, project: str) -> None:
        super().__init__(project)
        self.heard: dict[tuple[str, ...], bool] = {}

    def register(self, plugin: object, name: str | None = None) -> str | None:
        self.check_hooks(plugin, name)
        try:
            return super().register(plugin, name)
        finally:
            self.heard.clear()

    def unregister(self, plugin: object | None = None, name: str | None = None) -> Any:
        try:
            return super().unregister(plugin, name)
        finally:
            self.heard.clear()

    def check_hooks(self, plugin: object, name: str | None = None) -> None:
        """See that all implementations of hooks in a plugin can run.

        Raises:
            PluginError: One is a wrapper, a generator, or otherwise would never run; or its order is never kept to.
        """
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                continue
            hook = options["specname"] or attribute
            if fault := _fault(hook, options, getattr(plugin, attribute)):
                raise PluginError(f"plugin {name or plugin!r}: {hook} {fault}")


def _fault(hook: str, options: pluggy.HookimplOpts, function: object) -> str:
    """Why an implementation of a hook would never run, and what to write; empty if it runs."""
    registers, around = hook.startswith("pqcore_register_"), hook.startswith("pqcore_around_")
    if hook == "pqcore_unwrap":  # which pluggy calls
        return ""
    for option in ("wrapper", "hookwrapper"):
        if options[option]:
            return f"is marked {option}=True, and would never run; {_instead(registers=registers, around=around)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return f"is a generator, and would never run; {_instead(registers=registers, around=around)}"
    if (registers or around) and inspect.iscoroutinefunction(function):
        return "is a coroutine function, and would never run; write it with def"
    for option in ("tryfirst", "trylast"):
        if registers and options[option]:  # type: ignore[literal-required]
            return f"is marked {option}=True, which has no effect: it is called when the plugin is loaded; leave it out"
    return ""


def _instead(*, registers: bool, around: bool) -> str:
    if registers:
        return "write a function that calls register"
    if around:
        return "return a context manager: write @hookimpl above @contextmanager, and yield once"
    return (
        "write a function that returns; for what has to run before and after, return a context manager from"
        " pqcore_around_put or pqcore_around_run"
    )


class Plugins:
    """The plugin manager, and what plugins have registered.

    One is enough for a process: `plugins`.
    """

    def __init__(self) -> None:
        self.manager = _Manager("pqcore")
        self.manager.add_hookspecs(hookspecs)
        self._broken: dict[tuple[str, str], PluginError] = {}
        self._specs: dict[tuple[str, Mode], BackendSpec] = {}
        self._adopters: dict[type, tuple[tuple[BackendSpec, bool], ...]] = {}
        self._serializers: dict[str, Serializer | type[Serializer]] = {}
        self._dialects: dict[str, type[Dialect]] = {Dialect.name: Dialect}
        self._loaded: set[tuple[str, str]] = set()
        self._found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        self._rivals: set[tuple[str, str]] = set()  # of which two plugins bring one
        self._loading: importlib.metadata.EntryPoint | None = None
        self._passed_over: set[str] = set()  # backends of which it was logged
        self._lock = threading.RLock()
        self._others_loaded = False
        self.manager.hook.pqcore_register_backends.call_historic(kwargs={"register": self._add_backend})
        self.manager.hook.pqcore_register_serializers.call_historic(kwargs={"register": self._add_serializer})
        self.manager.hook.pqcore_register_dialects.call_historic(kwargs={"register": self._add_dialect})

    def fault(self, group: str, name: str) -> PluginError | None:
        """Load the plugin of an entry point; why it cannot be used, or None if it can."""
        try:
            self._load(group, name)
        except PluginError as exc:
            return exc
        return None

    @property
    def broken(self) -> dict[str, PluginError]:
        """Why each plugin that was found and cannot be used cannot be used, by the entry point's name."""
        return {name: error for (_, name), error in self._broken.items()}

    def register(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin by hand: a module or object with hook implementations.

        Raises:
            PluginError: It was written for another version of the plugin API, implements a
                hook that does not exist, or in a way that never runs (as a wrapper of pluggy's), or brings
                something under a name that is taken.
        """
        with self._lock:
            before = dict(self._specs), dict(self._serializers), dict(self._dialects)
            try:
                check_api(plugin, name)
                self.manager.register(plugin, name)
                self.manager.check_pending()
            except BaseException as exc:
                if self.manager.is_registered(plugin):
                    self.manager.unregister(plugin)
                self._specs, self._serializers, self._dialects = before
                self._adopters.clear()
                if isinstance(exc, (PluginError, KeyboardInterrupt)):
                    raise
                raise PluginError(f"plugin {name or plugin!r}: {_told(exc)}") from exc

    # Backends

    def backend_names(self) -> list[str]:
        """The names of all installed backends, preferred ones first; imports nothing."""
        names = {point.name for point in self._points(BACKENDS)} | {name for name, _ in self._specs}
        return sorted(names, key=lambda name: (PREFERENCE.index(name) if name in PREFERENCE else 99, name))

    def backend_specs(self) -> list[BackendSpec]:
        """What all installed backends declare; those that cannot be loaded are in `broken`."""
        for name in self.backend_names():
            with suppress(PluginError):  # kept in `broken`
                self._load(BACKENDS, name)
        order = self.backend_names()
        return sorted(self._specs.values(), key=lambda spec: (order.index(spec.name), spec.mode == "async"))

    def broken_backends(self) -> list[PluginError]:
        """Why each backend that was found and cannot be used cannot be used."""
        return [error for (group, _), error in self._broken.items() if group == BACKENDS]

    def backend_spec(self, name: str, mode: Mode) -> BackendSpec:
        """The backend of this name and kind.

        Raises:
            UnknownBackend: There is none.
            PluginError: Its plugin is broken.
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
        """Choose a backend for a DSN, and say why.

        In this order: ``name``; the DSN's scheme (``postgresql+asyncpg://``);
        the environment variable PQCORE_BACKEND, of whose names the first counts that has this mode; the first of
        `PREFERENCE`, and then of all others, whose driver is installed, and new enough.

        Raises:
            UnknownBackend: There is none of the name, or none of this mode.
            BackendNotInstalled: No backend of this mode has its driver installed, in a version that works.
            ConfigurationError: The scheme is not one of PostgreSQL's.
            PluginError: The plugin of the backend that is named is broken; or two bring one that would be chosen.
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
        """Why a backend cannot be used, for want of its driver, and what to do; None if its class can be imported."""
        if reason := _needs(spec):
            return reason
        try:  # a driver may be there and lack its library
            importlib.import_module(spec.load.partition(":")[0])
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # noqa: BLE001 - whatever importing it raises, it is reported
            return f"cannot import {spec.load}: {_told(exc)}: {spec.install}"
        return None

    def _candidate(self, name: str, mode: Mode, *, passing: bool) -> BackendSpec | None:
        """The backend of a name for the automatic choice; None if it has another mode, or its plugin is broken.

        Raises:
            PluginError: Two plugins bring it, and none that is preferred to it was found.
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
            logger.warning("the backend %r is passed over, as it cannot be used: %s", name, why)

    def _named_by_scheme(self, scheme: str, mode: Mode, *, strict: bool) -> BackendSpec | None:
        """The backend that a URL's scheme names; None if it names none.

        Args:
            scheme: In small letters.
            mode: The mode.
            strict: Whether the scheme has to name a backend that there is, if it names one.
        """
        kind, _, wanted = scheme.partition("+")
        if scheme == kind and kind in ("", *POSTGRESQL):
            return None
        if strict and wanted in self.backend_names():
            self._load(BACKENDS, wanted)  # which raises its error, if it is broken
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
            msg = f"{scheme}:// names a driver that only {other} has: give it to {other}; for {this}, {instead}"
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
            f" backend=, or set PQCORE_BACKEND={variable},{instead}: each face takes the first that has it"
        )
        raise UnknownBackend(msg)

    def backend_for(self, target: object, mode: Mode, name: str | None = None) -> tuple[BackendSpec, bool] | None:
        """The backend that adopts an object, or what proxies around it hold, and whether as a pool; None if none does.

        Raises:
            UnknownBackend: Only backends of the other mode adopt it.
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
        """The backends that adopt objects of a class, and whether as pools."""
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
            BackendNotInstalled: Its driver cannot be imported, or is too old.
            PluginError: Its class is not there, or cannot be imported for another reason.
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
            msg = f"backend {spec.name!r}: cannot import {spec.load}: {_told(exc)}"
            raise PluginError(msg) from exc
        try:
            factory: Any = getattr(imported, attribute)
        except AttributeError as exc:
            msg = f"backend {spec.name!r}: {module} has no {attribute}"
            raise PluginError(msg) from exc
        made: Backend | AsyncBackend = factory(prepared=prepared)
        return made

    # Serializers

    def serializer_names(self) -> list[str]:
        """The names of all installed serializers; imports nothing."""
        return sorted({point.name for point in self._points(SERIALIZERS)} | set(self._serializers))

    def serializer(self, name: str) -> Serializer:
        """The serializer of this name; ``'json+zstd'`` is the wrapper ``zstd`` around ``json``.

        Raises:
            UnknownSerializer: There is none.
            PluginError: Its plugin is broken, or it cannot be constructed.
            SerializerNotInstalled: The library that it needs cannot be imported.
            ConfigurationError: It needs something else: a key.
        """
        registered = self.registered_serializer(name)
        inner, *layers = [name] if registered is not None else name.split("+")
        registered = self.registered_serializer(inner)
        if registered is None:
            raise self._unknown_serializer(inner, name)
        if is_wrapper(registered):
            msg = f"serializer {inner!r} wraps another: write it after that, as in 'json+{inner}'"
            raise UnknownSerializer(msg)
        made = _made(inner, registered) if isinstance(registered, type) else registered
        for layer in layers:
            wrapper: Any = self.registered_serializer(layer)
            if wrapper is None:
                raise self._unknown_serializer(layer, name)
            if not is_wrapper(wrapper):
                msg = f"serializer {layer!r} wraps no other: in {_cut(name)!r}, it can only be the first"
                raise UnknownSerializer(msg)
            made = _made(layer, wrapper, made)
        return made

    def registered_serializer(self, name: str) -> Serializer | type[Serializer] | None:
        """What a plugin has registered under a name: a serializer, or a class; None if nothing was.

        Raises:
            PluginError: Its plugin is broken.
        """
        self._load(SERIALIZERS, name)
        return self._serializers.get(name)

    def serializer_points(self, name: str) -> list[importlib.metadata.EntryPoint]:
        """The entry points of a serializer: one, or none if it was registered by hand; more are an error."""
        return self._points(SERIALIZERS, name)

    def _unknown_serializer(self, part: str, name: str) -> UnknownSerializer:
        within = "" if part == name else f" in {_cut(name)!r}"
        known = ", ".join(self.serializer_names())
        return UnknownSerializer(
            f"unknown serializer {_cut(part)!r}{within}; installed: {known} "
            r"(a slash in a queue's own name is written '\/')"
        )

    # Dialects

    def dialect_names(self) -> list[str]:
        """The names of all installed dialects; imports nothing."""
        return sorted({point.name for point in self._points(DIALECTS)} | set(self._dialects))

    def dialect(self, name: str | None = None) -> type[Dialect]:
        """The dialect of this name; without one, of that in PQCORE_DIALECT, or PostgreSQL's own.

        Raises:
            ConfigurationError: There is none.
            PluginError: Its plugin is broken.
        """
        name = name or os.environ.get("PQCORE_DIALECT") or Dialect.name
        self._load(DIALECTS, name)
        if name not in self._dialects:
            msg = f"unknown dialect {name!r}; installed: {', '.join(self.dialect_names())}"
            raise ConfigurationError(msg)
        return self._dialects[name]

    # Other hooks

    def load_others(self) -> None:
        """Load the plugins of the group ``pqcore.plugins``; those that cannot be loaded are in `broken`."""
        if self._others_loaded:
            return
        for name in sorted({point.name for point in self._points(PLUGINS)}):
            with suppress(PluginError):  # kept in `broken`
                self._load(PLUGINS, name)
        self._others_loaded = True

    def has_impl(self, *hooks: str) -> bool:
        """Whether any plugin implements one of the hooks; asked for each put, so it is to be quick."""
        found = self.manager.heard.get(hooks)
        if found is None:
            self.load_others()
            found = any(getattr(self.manager.hook, hook).get_hookimpls() for hook in hooks)
            self.manager.heard[hooks] = found
        return found

    # What plugins call, and how they are loaded

    def _add_backend(self, spec: BackendSpec) -> None:
        if isinstance(spec, BackendSpec):
            _check_version(f"backend {spec.name!r}", spec.api)
        check_spec(spec)
        owners = self._points(BACKENDS, spec.name)
        if self._loading is not None and owners and all(each.value != self._loading.value for each in owners):
            brings = f"a backend {spec.name!r}, which is what {_origin(owners[0])} brings"
            raise PluginError(f"{_origin(self._loading)} registers {brings}: give it another name")
        if len({each.value for each in owners}) > 1:  # nobody knows which is meant; `_load` says so
            return
        key = (spec.name, spec.mode)
        if key in self._specs and self._specs[key] != spec:
            msg = f"two plugins bring a {spec.mode} backend {spec.name!r}: {self._specs[key].load} and {spec.load}"
            raise PluginError(msg)
        self._specs[key] = spec
        self._adopters.clear()

    def _add_serializer(self, serializer: Serializer | type[Serializer]) -> None:
        if is_wrapper(serializer):
            name = str(getattr(serializer, "layer", ""))
            if not name or "+" in name or "/" in name:
                raise PluginError(f"wrapper {serializer!r} has the layer {name!r}; give a name without '+' and '/'")
        elif fault := fault_of(serializer):
            raise PluginError(f"serializer cannot be registered: {fault}")
        else:
            name = serializer.name
        known = self._serializers.setdefault(name, serializer)
        if _class(known) is not _class(serializer):
            msg = f"two plugins bring a serializer {name!r}: {known!r} and {serializer!r}"
            raise PluginError(msg)

    def _add_dialect(self, dialect: type[Dialect]) -> None:
        _check_version(f"dialect {dialect.name!r}", dialect.api)
        known = self._dialects.setdefault(dialect.name, dialect)
        if known is not dialect:
            msg = f"two plugins bring a dialect {dialect.name!r}: {known!r} and {dialect!r}"
            raise PluginError(msg)

    def _load(self, group: str, name: str) -> None:
        with self._lock:
            if (group, name) in self._broken:
                raise self._broken[group, name]
            if (group, name) in self._loaded:
                return
            points = self._points(group, name)
            if len({point.value for point in points}) > 1:
                self._rivals.add((group, name))
                owners = " and ".join(_origin(point) for point in points)
                self._fail(group, name, PluginError(f"two plugins bring {name!r} in {group}, {owners}: {_UNINSTALL}"))
            for point in points[:1]:
                try:
                    plugin = point.load()
                except KeyboardInterrupt:
                    raise
                except BaseException as exc:  # noqa: BLE001 - whatever importing it raises, it is reported
                    error = PluginError(f"plugin {name!r} ({_origin(point)}) cannot be imported: {_told(exc)}")
                    error.__cause__ = exc
                    self._fail(group, name, error)
                if not self.manager.is_registered(plugin):
                    before, self._loading = self._loading, point
                    try:
                        self.register(plugin, point.value)
                    except PluginError as exc:
                        self._fail(group, name, _blamed(exc, name, point))
                    finally:
                        self._loading = before
            self._loaded.add((group, name))

    def _points(self, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        if group not in self._found:  # looking through all distributions takes milliseconds
            points = importlib.metadata.entry_points(group=group)
            # The same distribution can be listed twice, from an editable install and its build folder.
            self._found[group] = list({(point.name, point.value): point for point in points}.values())
        return [point for point in self._found[group] if name in (None, point.name)]

    def _fail(self, group: str, name: str, error: PluginError) -> None:
        self._broken[group, name] = error
        raise error


def check_api(plugin: object, name: str | None = None) -> None:
    """See that a plugin was written for this version of the plugin API.

    Args:
        plugin: A module or object; its attribute ``pqcore_plugin_api`` says which. Without it, it is 1.
        name: What to call it.

    Raises:
        PluginError: It was written for another.
    """
    _check_version(f"plugin {name or plugin!r}", getattr(plugin, "pqcore_plugin_api", 1))


def _check_version(what: str, api: object) -> None:
    if not isinstance(api, int) or isinstance(api, bool):
        raise PluginError(f"{what} says that it was made for plugin API {api!r}: that is to be a number, {PLUGIN_API}")
    if api == PLUGIN_API:
        return
    newer = "upgrade pqcore, or install an older version of the plugin"
    older = "upgrade the plugin, or install an older pqcore"
    todo = newer if api > PLUGIN_API else older
    raise PluginError(f"{what} was made for plugin API {api}; this pqcore has {PLUGIN_API}: {todo}")


def _made(name: str, kind: Any, *arguments: object) -> Serializer:
    """Construct a serializer that was registered as a class.

    Raises:
        PluginError: It cannot be constructed, or is no serializer.
        PQError: It needs a library, or a key.
    """
    try:
        made: Serializer = kind(*arguments)
    except PQError:
        raise
    except (Exception, SystemExit) as exc:
        raise PluginError(f"serializer {_cut(name)!r} cannot be constructed: {type(exc).__name__}: {exc}") from exc
    if fault := fault_of(made):
        raise PluginError(f"serializer {_cut(name)!r} cannot be used: {fault}")
    return made


def _cut(name: str) -> str:
    """A name for a message: its beginning, if it is long."""
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."


def class_names(cls: type) -> set[str]:
    """The dotted names of a class and of its bases."""
    return {f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__}


def _classes_of(target: Any) -> Iterator[type]:
    """The class of an object, those of what proxies around it hold, and the one that a proxy gives itself out for."""
    layer = target
    for layer in layers(target):
        yield type(layer)
    if layer.__class__ is not type(layer):
        yield layer.__class__


def _class(serializer: object) -> type:
    return serializer if isinstance(serializer, type) else type(serializer)


def importable(module: str) -> bool:
    """Whether there is a module of this name; of a dotted one, the packages that it is in are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package
        return False


def _absent(spec: BackendSpec) -> list[str]:
    return [module for module in spec.requires if not importable(module)]


def _needs(spec: BackendSpec) -> str | None:
    """What a backend lacks of what it has to have installed, and how to get it; None if nothing."""
    lacking = _absent(spec) or too_old(spec.lowest)
    return f"needs {', '.join(lacking)}: {spec.install}" if lacking else None


def _faces(mode: Mode) -> tuple[str, str]:
    """The class of users for a mode, and the other."""
    return ("PQ", "AsyncPQ") if mode == "blocking" else ("AsyncPQ", "PQ")


def _origin(point: importlib.metadata.EntryPoint) -> str:
    """Where a plugin is from: ``acme.plugin of acme-backend 1.0``."""
    return f"{point.value} of {f'{point.dist.name} {point.dist.version}' if point.dist else 'an unknown distribution'}"


def _blamed(error: PluginError, name: str, point: importlib.metadata.EntryPoint) -> PluginError:
    """An error that names the plugin that it is about."""
    if point.value in str(error):
        return error
    blamed = PluginError(f"plugin {name!r} ({_origin(point)}): {error}")
    blamed.__cause__ = error.__cause__
    return blamed


def _told(exc: BaseException) -> str:
    """What a message says of an exception: its text, with its class where that says more."""
    return str(exc) if isinstance(exc, ImportError) else f"{type(exc).__name__}: {exc}".removesuffix(": ")


plugins = Plugins()
"""The plugins of this process."""


def unwrap(target: object) -> object | None:
    """What a plugin's `pqcore_unwrap` finds inside of ``target``; None if no plugin knows it."""
    plugins.load_others()
    found = (plugins.manager.hook.pqcore_unwrap(target=layer) for layer in layers(target))
    return next((each for each in found if each is not None), None)
