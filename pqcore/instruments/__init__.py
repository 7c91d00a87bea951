"""Metrics, traces, errors and logs: plugins for OpenTelemetry, Prometheus, Sentry and structured logging.

An instrument is imported only on request, by `instrument` or by its module; without instruments there is no cost. See
docs/instruments.md.
"""

from __future__ import annotations

import importlib.metadata
import threading
from typing import Any

from pqcore.errors import ConfigurationError, PluginError
from pqcore.plugins import plugins

GROUP = "pqcore.instruments"
"""The entry point group of instruments; each entry point names an object that makes the instrument when called without
arguments."""

_lock = threading.Lock()
_options: dict[str, dict[str, Any]] = {}


def instrument(name: str, /, **options: Any) -> object:
    """Make an instrument and register it, once in each process; it observes workers that start later, and all puts.

    A second call with the same name returns the existing instrument.

    Args:
        name: ``opentelemetry``, ``prometheus``, ``sentry``, ``logging``, or the name of another entry point.
        **options: Options of the instrument's class.

    Returns:
        The instrument.

    Raises:
        PluginError: No instrument has this name, or it cannot be imported.
        ConfigurationError: The instrument is registered with other options.
    """
    with _lock:
        known: object = plugins.manager.get_plugin(name)
        if known is not None:
            if options and options != _options.get(name):
                msg = f"instrument {name!r} is registered already, with other options: {_options.get(name) or 'none'}"
                raise ConfigurationError(msg)
            return known
        made: object = _factory(name)(**options)
        plugins.register(made, name)
        _options[name] = options
        return made


def instrument_names() -> list[str]:
    """Return the names of all installed instruments; import nothing."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def _factory(name: str) -> Any:
    points = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if not points:
        msg = f"unknown instrument {name!r}; installed: {', '.join(instrument_names()) or 'none'}"
        raise PluginError(msg)
    try:
        return points[0].load()
    except ImportError as exc:
        msg = f"instrument {name!r} cannot be imported: {exc}; is it installed? pip install 'pqcore[{name}]'"
        raise PluginError(msg) from exc
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise PluginError(f"instrument {name!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
