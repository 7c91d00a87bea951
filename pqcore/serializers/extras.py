"""Libraries that are extras: imported when a serializer that needs one is constructed."""

from __future__ import annotations

import importlib
from typing import Any

from pqcore.errors import SerializerNotInstalled


def library(module: str, *, serializer: str, extra: str) -> Any:
    """Import a module.

    Args:
        module: Its name.
        serializer: Who needs it.
        extra: The extra of pqcore's that brings it.

    Raises:
        SerializerNotInstalled: It is not there, or cannot be imported.
    """
    install = f"pip install 'pqcore[{extra}]'"
    try:
        return importlib.import_module(module)
    except Exception as exc:  # an extension module may raise anything
        top = module.partition(".")[0]
        if isinstance(exc, ModuleNotFoundError) and exc.name == top:
            msg = f"serializer {serializer!r} needs {top}: {install}"
        else:
            msg = f"serializer {serializer!r}: cannot import {module}: {exc}: {install}"
        raise SerializerNotInstalled(msg) from exc
