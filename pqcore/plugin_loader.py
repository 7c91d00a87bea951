"""The loader of plugins: it finds them in metadata, loads them by name when needed, and checks them when loaded."""

from __future__ import annotations

import importlib.metadata
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pluggy

from pqcore import hookspecs
from pqcore.backend import PLUGIN_API
from pqcore.errors import PluginError

PLUGINS = "pqcore.plugins"
"""The entry point group of plugins that bring no backend, serializer or dialect."""
_UNINSTALL = "uninstall one of the two, or choose another name"


class HookManager(pluggy.PluginManager):
    """pluggy's plugin manager, with a cache that is valid until a plugin is added or removed."""

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
        """Check that all hook implementations of a plugin can run.

        Raises:
            PluginError: An implementation is a wrapper or generator, could never run for another reason, or asks for an
                order that is ignored.
        """
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                continue
            hook = options["specname"] or attribute
            if fault := _fault(hook, options, getattr(plugin, attribute)):
                raise PluginError(f"plugin {name or plugin!r}: {hook} {fault}")


def _fault(hook: str, options: pluggy.HookimplOpts, function: object) -> str:
    """Return why a hook implementation would never run, and what to write; empty if it runs."""
    registers, around = hook.startswith("pqcore_register_"), hook.startswith("pqcore_around_")
    if hook == "pqcore_unwrap":  # the hook that pluggy itself calls
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
        "write a function that returns; to run code before and after, return a context manager from"
        " pqcore_around_put or pqcore_around_run"
    )


class PluginLoader:
    """The plugin manager, with the plugins that were found and loaded."""

    def __init__(self) -> None:
        self.manager = HookManager("pqcore")
        self.manager.add_hookspecs(hookspecs)
        self._broken: dict[tuple[str, str], PluginError] = {}
        self._loaded: set[tuple[str, str]] = set()
        self._found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        self._rivals: set[tuple[str, str]] = set()  # names that two plugins bring
        self._loading: importlib.metadata.EntryPoint | None = None
        self._lock = threading.RLock()
        self._others_loaded = False

    def fault(self, group: str, name: str) -> PluginError | None:
        """Load the plugin of an entry point; return why it cannot be used, or None if it can."""
        try:
            self._load(group, name)
        except PluginError as exc:
            return exc
        return None

    @property
    def broken(self) -> dict[str, PluginError]:
        """Return, for each plugin that was found but cannot be used, the reason, by the entry point's name."""
        return {name: error for (_, name), error in self._broken.items()}

    def register(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin by hand: a module or object with hook implementations.

        Raises:
            PluginError: The plugin was written for another version of the plugin API, implements an unknown hook or one
                that never runs (a wrapper of pluggy), or uses a name that is taken.
        """
        with self._lock:
            restore = self._restorer()
            try:
                check_api(plugin, name)
                self.manager.register(plugin, name)
                self.manager.check_pending()
            except BaseException as exc:
                if self.manager.is_registered(plugin):
                    self.manager.unregister(plugin)
                restore()
                if isinstance(exc, (PluginError, KeyboardInterrupt)):
                    raise
                raise PluginError(f"plugin {name or plugin!r}: {describe_exception(exc)}") from exc

    def _restorer(self) -> Callable[[], None]:
        """Return a function that undoes all later registrations."""
        raise NotImplementedError

    def load_others(self) -> None:
        """Load the plugins of the group ``pqcore.plugins``; plugins that cannot be loaded are in `broken`."""
        if self._others_loaded:
            return
        for name in sorted({point.name for point in self._points(PLUGINS)}):
            with suppress(PluginError):  # listed in `broken`
                self._load(PLUGINS, name)
        self._others_loaded = True

    def has_impl(self, *hooks: str) -> bool:
        """Return whether any plugin implements one of the hooks; each put calls this, so it must be fast."""
        found = self.manager.heard.get(hooks)
        if found is None:
            self.load_others()
            found = any(getattr(self.manager.hook, hook).get_hookimpls() for hook in hooks)
            self.manager.heard[hooks] = found
        return found

    def _load(self, group: str, name: str) -> None:
        with self._lock:
            if (group, name) in self._broken:
                raise self._broken[group, name]
            if (group, name) in self._loaded:
                return
            points = self._points(group, name)
            if len({point.value for point in points}) > 1:
                self._rivals.add((group, name))
                owners = " and ".join(origin_of(point) for point in points)
                self._fail(group, name, PluginError(f"two plugins bring {name!r} in {group}: {owners}; {_UNINSTALL}"))
            for point in points[:1]:
                try:
                    plugin = point.load()
                except KeyboardInterrupt:
                    raise
                except BaseException as exc:  # noqa: BLE001 - whatever importing it raises, it is reported
                    error = PluginError(
                        f"plugin {name!r} ({origin_of(point)}) cannot be imported: {describe_exception(exc)}"
                    )
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
        if group not in self._found:  # searching all distributions takes milliseconds
            points = importlib.metadata.entry_points(group=group)
            # The same distribution can be listed twice: from an editable install, and from its build folder.
            self._found[group] = list({(point.name, point.value): point for point in points}.values())
        return [point for point in self._found[group] if name in (None, point.name)]

    def _fail(self, group: str, name: str, error: PluginError) -> None:
        self._broken[group, name] = error
        raise error


def check_api(plugin: object, name: str | None = None) -> None:
    """Check that a plugin was written for this version of the plugin API.

    Args:
        plugin: A module or object; its attribute ``pqcore_plugin_api`` is the version. Without the attribute, the
            version is 1.
        name: The plugin's name, for the message.

    Raises:
        PluginError: The plugin was written for another version.
    """
    check_version(f"plugin {name or plugin!r}", getattr(plugin, "pqcore_plugin_api", 1))


def check_version(what: str, api: object) -> None:
    """Check that a plugin or backend was written for this version of the plugin API.

    Args:
        what: Its name, for the message.
        api: The version that the plugin or backend declares.

    Raises:
        PluginError: The plugin or backend was written for another version.
    """
    if not isinstance(api, int) or isinstance(api, bool):
        raise PluginError(f"{what} has the plugin API version {api!r}; give a number, {PLUGIN_API}")
    if api == PLUGIN_API:
        return
    newer = "upgrade pqcore, or install an older version of the plugin"
    older = "upgrade the plugin, or install an older pqcore"
    todo = newer if api > PLUGIN_API else older
    raise PluginError(f"{what} was made for plugin API {api}; this pqcore has {PLUGIN_API}: {todo}")


def origin_of(point: importlib.metadata.EntryPoint) -> str:
    """Return the origin of a plugin: ``acme.plugin of acme-backend 1.0``."""
    return f"{point.value} of {f'{point.dist.name} {point.dist.version}' if point.dist else 'an unknown distribution'}"


def _blamed(error: PluginError, name: str, point: importlib.metadata.EntryPoint) -> PluginError:
    """Return the error with the plugin's name in its message."""
    if point.value in str(error):
        return error
    blamed = PluginError(f"plugin {name!r} ({origin_of(point)}): {error}")
    blamed.__cause__ = error.__cause__
    return blamed


def describe_exception(exc: BaseException) -> str:
    """Return an exception's text for a message; add the exception's class, unless it is an ImportError."""
    return str(exc) if isinstance(exc, ImportError) else f"{type(exc).__name__}: {exc}".removesuffix(": ")
