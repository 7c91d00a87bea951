"""The names under which a queue's settings can be given as keywords."""

from __future__ import annotations

import inspect

from pqcore.argument_hints import instead_of_option, nearest
from pqcore.errors import ConfigurationError

OPTIONS = (
    "timeout",
    "poll_interval",
    "retention",
    "serializer",
    "accept",
    "rate",
    "max_size",
    "cursor_kwargs",
    "converters",
    "encode",
    "decode",
    "dumps",
    "loads",
    "logger",
)
"""The settings of `pqcore.settings.QueueSettings`."""
_OWN = ("name", "channel", "table", "engine", "serializer_name")


def check_option(kind: type, option: str) -> None:
    """Raise if queues of a class accept no setting with this name.

    As in pq, a subclass may have settings of its own. A name that resembles one of pqcore's settings is refused,
    because a misspelled setting would have no effect.

    Args:
        kind: The class of the queue.
        option: The name of the setting.

    Raises:
        ConfigurationError: No setting has this name.
    """
    if option in OPTIONS:
        return
    if option.startswith("_") or option in _OWN:
        msg = f"not an option of a queue: {option!r}"
        raise ConfigurationError(msg)
    is_custom = not kind.__module__.startswith("pqcore.")
    owner = next((each for each in kind.__mro__ if option in vars(each)), None)
    if owner is not None:
        own, found = owner.__module__.startswith("pqcore."), vars(owner)[option]
        if own and (inspect.isroutine(found) or isinstance(found, property)):
            msg = f"not an option of a queue: {option!r}; it is a method or a property"
            raise ConfigurationError(msg)
        return
    if not is_custom or nearest(option, OPTIONS) is not None:
        msg = f"not an option of a queue: {option!r}; {instead_of_option(option, OPTIONS)}"
        raise ConfigurationError(msg)
