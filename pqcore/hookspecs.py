"""The hooks, all of them.  A plugin implements those that it likes; see docs/plugins.md.

Hooks find things and tell of events.  None is called for each statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable

    from pqcore.backend import BackendSpec
    from pqcore.serializers import Serializer

hookspec = pluggy.HookspecMarker("pqcore")
hookimpl = pluggy.HookimplMarker("pqcore")
"""Marks a function of a plugin as the implementation of a hook."""


@hookspec(historic=True)
def pqcore_register_backends(register: Callable[[BackendSpec], None]) -> None:
    """Call ``register(spec)`` for each backend that the plugin brings.

    Called once a plugin, when it is loaded.  Import no driver here.
    """


@hookspec(historic=True)
def pqcore_register_serializers(register: Callable[[Serializer], None]) -> None:
    """Call ``register(serializer)`` for each serializer that the plugin brings.

    Called once a plugin, when it is loaded.
    """


@hookspec(firstresult=True)
def pqcore_unwrap(target: Any) -> Any:
    """Return the driver's connection inside of ``target``, or None if it is not yours.

    Called for ``put(..., connection=target)`` when no backend knows the type:
    an ORM's session, for instance.  May return another wrapper; it is
    called again until a backend knows the result.  Stops at the first result
    that is not None.
    """
