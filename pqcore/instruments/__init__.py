"""Metrics, traces, errors and logs: plugins for OpenTelemetry, Prometheus, Sentry and structured logging.

None is imported unless asked for, by `instrument` or by its module; none registered costs nothing.
See docs/instruments.md.
"""

from __future__ import annotations

import importlib.metadata
import threading
from typing import Any

from pqcore.errors import ConfigurationError, PluginError
from pqcore.plugins import plugins

GROUP = "pqcore.instruments"
"""The group of entry points: names, and what makes the instrument, which can be called without arguments."""

_lock = threading.Lock()
_options: dict[str, dict[str, Any]] = {}


def instrument(name: str, /, **options: Any) -> object:
    """Make an instrument and register it, once a process; it hears of workers that start later, and of all puts.

    Called again for the same name, it gives the instrument that there is.

    Args:
        name: ``opentelemetry``, ``prometheus``, ``sentry``, ``logging``, or another's entry point.
        **options: As its class takes them.

    Returns:
        The instrument.

    Raises:
        PluginError: There is none of the name, or it cannot be imported.
        ConfigurationError: It is registered with other options than these.
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
    """The names of all installed instruments; imports nothing."""
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
