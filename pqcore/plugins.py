"""The plugin manager: it finds plugins in metadata, loads them by name when needed, and checks them when loaded.

A backend is an entry point in the group ``pqcore.backends``, a serializer in ``pqcore.serializers``, a dialect in
``pqcore.dialects``. The entry point has the name of the backend, serializer or dialect; its value is a module with hook
implementations (`pqcore.hookspecs`). Other plugins are entry points in ``pqcore.plugins``. Built-in plugins are
registered in the same way. Listing reads only metadata, so a broken plugin, or a missing driver, affects only programs
that choose it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pqcore.backend import layers
from pqcore.backend_registry import BackendRegistry
from pqcore.errors import ConfigurationError, PluginError, PQError, UnknownSerializer
from pqcore.plugin_loader import check_version
from pqcore.serializers.protocol import fault_of, is_wrapper
from pqcore.sql.dialect import Dialect

if TYPE_CHECKING:
    from pqcore.serializers.protocol import Serializer

SERIALIZERS = "pqcore.serializers"
"""The entry point group of plugins that bring serializers."""
DIALECTS = "pqcore.dialects"
"""The entry point group of plugins that bring dialects."""
LONGEST_SHOWN = 200
"""The largest number of characters of a name that a message repeats."""


class Plugins(BackendRegistry):
    """The plugin manager, with everything that plugins have registered.

    A process needs only one plugin manager: `plugins`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._serializers: dict[str, Serializer | type[Serializer]] = {}
        self._dialects: dict[str, type[Dialect]] = {Dialect.name: Dialect}
        self.manager.hook.pqcore_register_serializers.call_historic(kwargs={"register": self._add_serializer})
        self.manager.hook.pqcore_register_dialects.call_historic(kwargs={"register": self._add_dialect})

    def _restorer(self) -> Callable[[], None]:
        before = dict(self._specs), dict(self._serializers), dict(self._dialects)

        def restore() -> None:
            self._specs, self._serializers, self._dialects = before
            self._adopters.clear()

        return restore

    # Serializers

    def serializer_names(self) -> list[str]:
        """Return the names of all installed serializers; import nothing."""
        return sorted({point.name for point in self._points(SERIALIZERS)} | set(self._serializers))

    def serializer(self, name: str) -> Serializer:
        """Return the serializer of a name; ``'json+zstd'`` is the wrapper ``zstd`` around ``json``.

        Raises:
            UnknownSerializer: No serializer has this name.
            PluginError: The serializer's plugin is broken, or the serializer cannot be constructed.
            SerializerNotInstalled: The library that the serializer needs cannot be imported.
            ConfigurationError: The serializer needs something else, such as a key.
        """
        registered = self.registered_serializer(name)
        inner, *layers = [name] if registered is not None else name.split("+")
        registered = self.registered_serializer(inner)
        if registered is None:
            raise self._unknown_serializer(inner, name)
        if is_wrapper(registered):
            msg = f"serializer {inner!r} wraps another: write it after the other, as in 'json+{inner}'"
            raise UnknownSerializer(msg)
        made = _made(inner, registered) if isinstance(registered, type) else registered
        for layer in layers:
            wrapper: Any = self.registered_serializer(layer)
            if wrapper is None:
                raise self._unknown_serializer(layer, name)
            if not is_wrapper(wrapper):
                msg = f"serializer {layer!r} is not a wrapper: in {_cut(name)!r}, it can only be the first"
                raise UnknownSerializer(msg)
            made = _made(layer, wrapper, made)
        return made

    def registered_serializer(self, name: str) -> Serializer | type[Serializer] | None:
        """Return the serializer or class that a plugin registered under a name; None if nothing is registered.

        Raises:
            PluginError: The serializer's plugin is broken.
        """
        self._load(SERIALIZERS, name)
        return self._serializers.get(name)

    def serializer_points(self, name: str) -> list[importlib.metadata.EntryPoint]:
        """Return the entry point of a serializer, or none if it was registered by hand.

        If several distributions have such an entry point, raise an error.
        """
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
        """Return the names of all installed dialects; import nothing."""
        return sorted({point.name for point in self._points(DIALECTS)} | set(self._dialects))

    def dialect(self, name: str | None = None) -> type[Dialect]:
        """Return the dialect of a name; without a name, the dialect in PQCORE_DIALECT, or PostgreSQL's.

        Raises:
            ConfigurationError: No dialect has this name.
            PluginError: The dialect's plugin is broken.
        """
        name = name or os.environ.get("PQCORE_DIALECT") or Dialect.name
        self._load(DIALECTS, name)
        if name not in self._dialects:
            msg = f"unknown dialect {name!r}; installed: {', '.join(self.dialect_names())}"
            raise ConfigurationError(msg)
        return self._dialects[name]

    # Functions that plugins call

    def _add_serializer(self, serializer: Serializer | type[Serializer]) -> None:
        if is_wrapper(serializer):
            name = str(getattr(serializer, "layer", ""))
            if not name or "+" in name or "/" in name:
                raise PluginError(f"layer of {serializer!r} is {name!r}; give a name without '+' and '/'")
        elif fault := fault_of(serializer):
            raise PluginError(f"serializer cannot be registered: {fault}")
        else:
            name = serializer.name
        known = self._serializers.setdefault(name, serializer)
        if _class(known) is not _class(serializer):
            msg = f"two plugins bring a serializer {name!r}: {known!r} and {serializer!r}"
            raise PluginError(msg)

    def _add_dialect(self, dialect: type[Dialect]) -> None:
        check_version(f"dialect {dialect.name!r}", dialect.api)
        known = self._dialects.setdefault(dialect.name, dialect)
        if known is not dialect:
            msg = f"two plugins bring a dialect {dialect.name!r}: {known!r} and {dialect!r}"
            raise PluginError(msg)


def _made(name: str, kind: Any, *arguments: object) -> Serializer:
    """Construct a serializer that was registered as a class.

    Raises:
        PluginError: The class cannot be constructed, or is not a serializer.
        PQError: The serializer needs a library or a key.
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
    """Return a name for a message, shortened to its beginning if it is long."""
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."


def _class(serializer: object) -> type:
    return serializer if isinstance(serializer, type) else type(serializer)


plugins = Plugins()
"""The plugin manager of this process."""


def unwrap(target: object) -> object | None:
    """Return the object that a plugin's `pqcore_unwrap` finds inside ``target``; None if no plugin knows it."""
    plugins.load_others()
    found = (plugins.manager.hook.pqcore_unwrap(target=layer) for layer in layers(target))
    return next((each for each in found if each is not None), None)
