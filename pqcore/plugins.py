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
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pluggy

from pqcore import hookspecs
from pqcore.backend import PLUGIN_API, AsyncBackend, Backend, BackendSpec, Capability, Mode, layers
from pqcore.dialect import Dialect
from pqcore.errors import (
    BackendNotInstalled,
    ConfigurationError,
    PluginError,
    PQError,
    UnknownBackend,
    UnknownSerializer,
)
from pqcore.serializers.protocol import fault_of
from pqcore.serializers.wrapping import Wrapper

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pqcore.serializers import Serializer

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
        self._lock = threading.RLock()
        self._others_loaded = False
        self.manager.hook.pqcore_register_backends.call_historic(kwargs={"register": self._add_backend})
        self.manager.hook.pqcore_register_serializers.call_historic(kwargs={"register": self._add_serializer})
        self.manager.hook.pqcore_register_dialects.call_historic(kwargs={"register": self._add_dialect})

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
            try:
                check_api(plugin, name)
                self.manager.register(plugin, name)
                self.manager.check_pending()
            except Exception as exc:
                if self.manager.is_registered(plugin):
                    self.manager.unregister(plugin)
                if isinstance(exc, PluginError):
                    raise
                raise PluginError(f"plugin {name or plugin!r}: {exc}") from exc

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
            face = "AsyncPQ" if other == "async" else "PQ"
            msg = f"backend {name!r} is {other} only: use {face}, or another backend"
            raise UnknownBackend(msg)
        known = ", ".join(self.backend_names()) or "none"
        msg = f"unknown backend {name!r}; installed: {known}"
        raise UnknownBackend(msg)

    def choose(self, mode: Mode, *, name: str | None = None, dsn: str | None = None) -> tuple[BackendSpec, str]:
        """Choose a backend for a DSN, and say why.

        In this order: ``name``; the DSN's scheme (``postgresql+asyncpg://``);
        the environment variable PQCORE_BACKEND; the first of `PREFERENCE`, and then
        of all others, whose driver is installed.
        """
        if name is not None:
            return self.backend_spec(name, mode), "named by the caller"
        scheme = dsn.partition("://")[0] if dsn and "://" in dsn else ""
        if "+" in scheme:
            wanted = scheme.partition("+")[2]
            for spec in self._candidates(mode, first=wanted):
                if scheme in spec.schemes or wanted == spec.name:
                    return spec, f"named by the scheme {scheme}://"
            msg = f"no {mode} backend for the URL scheme {scheme}://; installed: {', '.join(self.backend_names())}"
            raise UnknownBackend(msg)
        if variable := os.environ.get("PQCORE_BACKEND"):
            return self.backend_spec(variable, mode), "named by PQCORE_BACKEND"
        specs = list(self._candidates(mode))
        for spec in specs:
            if _importable(spec):
                return spec, f"the first installed of {', '.join(spec.name for spec in specs)}"
        hints = "; ".join(f"{spec.name}: {spec.install}" for spec in specs)
        msg = f"no {mode} backend has its driver installed; {hints}"
        raise BackendNotInstalled(msg)

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
            face = "AsyncPQ" if wrong.mode == "async" else "PQ"
            msg = f"a {type(target).__module__}.{type(target).__qualname__} is {wrong.mode}: give it to {face}"
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
            BackendNotInstalled: Its driver cannot be imported.
        """
        if absent := _absent(spec):
            msg = f"backend {spec.name!r} needs {', '.join(absent)}: {spec.install}"
            raise BackendNotInstalled(msg)
        module, _, attribute = spec.load.partition(":")
        try:
            imported = importlib.import_module(module)
        except ImportError as exc:
            msg = f"backend {spec.name!r}: cannot import {spec.load}: {exc}: {spec.install}"
            raise BackendNotInstalled(msg) from exc
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

    def heard(self, *hooks: str) -> bool:
        """Whether any plugin implements one of the hooks; asked for each put, so it is to be quick."""
        found = self.manager.heard.get(hooks)
        if found is None:
            self.load_others()
            found = any(getattr(self.manager.hook, hook).get_hookimpls() for hook in hooks)
            self.manager.heard[hooks] = found
        return found

    # What plugins call, and how they are loaded

    def _add_backend(self, spec: BackendSpec) -> None:
        _check_version(f"backend {spec.name!r}", spec.api)
        unexplained = [cap.name for cap in Capability if cap not in spec.capabilities and cap not in spec.missing]
        if unexplained:
            msg = f"backend {spec.name!r} lacks {', '.join(unexplained)} and gives no reason (BackendSpec.missing)"
            raise PluginError(msg)
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

    def _candidates(self, mode: Mode, first: str | None = None) -> Iterable[BackendSpec]:
        names = self.backend_names()
        if first in names:
            names.insert(0, first)
        for name in dict.fromkeys(names):
            with suppress(PluginError):  # kept in `broken`
                self._load(BACKENDS, name)
            if (name, mode) in self._specs:
                yield self._specs[name, mode]

    def _load(self, group: str, name: str) -> None:
        with self._lock:
            if (group, name) in self._broken:
                raise self._broken[group, name]
            if (group, name) in self._loaded:
                return
            self._loaded.add((group, name))
            points = self._points(group, name)
            if len({point.value for point in points}) > 1:
                owners = ", ".join(f"{p.value} of {p.dist.name if p.dist else 'unknown'}" for p in points)
                self._fail(group, name, PluginError(f"two plugins bring {name!r} in {group}: {owners}"))
            for point in points[:1]:
                try:
                    plugin = point.load()
                except Exception as exc:  # noqa: BLE001 - whatever importing it raises, it is reported
                    error = PluginError(f"plugin {name!r} ({point.value}) cannot be imported: {exc}")
                    error.__cause__ = exc
                    self._fail(group, name, error)
                if not self.manager.is_registered(plugin):
                    try:
                        self.register(plugin, point.value)
                    except PluginError as exc:
                        self._fail(group, name, exc)

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


def is_wrapper(serializer: object) -> bool:
    """Whether what was registered is a class of serializers that wrap others."""
    return isinstance(serializer, type) and issubclass(serializer, Wrapper)


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


def _importable(spec: BackendSpec) -> bool:
    if _absent(spec):
        return False
    try:  # a driver may be there and lack its library
        importlib.import_module(spec.load.partition(":")[0])
    except ImportError:
        return False
    return True


def importable(module: str) -> bool:
    """Whether there is a module of this name; of a dotted one, the packages that it is in are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package
        return False


def _absent(spec: BackendSpec) -> list[str]:
    return [module for module in spec.requires if not importable(module)]


plugins = Plugins()
"""The plugins of this process."""


def unwrap(target: object) -> object:
    """What a plugin's `pqcore_unwrap` finds inside of ``target``.

    Raises:
        ConfigurationError: No plugin knows it.
    """
    plugins.load_others()
    found = (plugins.manager.hook.pqcore_unwrap(target=layer) for layer in layers(target))
    inner = next((each for each in found if each is not None), None)
    if inner is None:
        kind = f"{type(target).__module__}.{type(target).__qualname__}"
        msg = f"not a connection that any installed backend or plugin knows: a {kind}"
        raise ConfigurationError(msg)
    result: object = inner
    return result
