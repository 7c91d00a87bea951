"""Optional libraries, which are imported when a serializer that needs one is constructed."""

from __future__ import annotations

import importlib
from typing import Any

from pqcore.errors import SerializerNotInstalled


def library(module: str, *, serializer: str, extra: str) -> Any:
    """Import a module.

    Args:
        module: The module's name.
        serializer: The name of the serializer that needs it.
        extra: The extra of pqcore that installs it.

    Raises:
        SerializerNotInstalled: The module is not installed, or cannot be imported.
    """
    install = f"pip install 'pqcore[{extra}]'"
    try:
        return importlib.import_module(module)
    except Exception as exc:  # the import of an extension module may raise any exception
        top = module.partition(".")[0]
        if isinstance(exc, ModuleNotFoundError) and exc.name == top:
            msg = f"serializer {serializer!r} needs {top}: {install}"
        else:
            msg = f"serializer {serializer!r}: cannot import {module}: {exc}: {install}"
        raise SerializerNotInstalled(msg) from exc
