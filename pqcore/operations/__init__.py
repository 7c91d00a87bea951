"""What a queue does, written once, by subject.

Each operation is a coroutine over an `Engine` and a queue's settings.  It does
no I/O of its own: the engine's session does.  The async face awaits it, the
blocking face steps it (`pqcore.db.runtime.run_sync`).
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

_RARE = frozenset(
    {
        "admin",
        "encodings",
        "expiry",
        "explain",
        "limits",
        "list_jobs",
        "move",
        "paused_tasks",
        "reencode",
        "results",
        "retry",
        "rules",
        "worker_registry",
    }
)
"""Modules that are imported when they are first used: a program that puts and takes jobs needs none of them."""

if not TYPE_CHECKING:  # else any name would be taken for one of ours

    def __getattr__(name: str) -> ModuleType:
        if name in _RARE:
            return importlib.import_module(f"pqcore.operations.{name}")
        msg = f"module 'pqcore.operations' has no attribute {name!r}"
        raise AttributeError(msg)
