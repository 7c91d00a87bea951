"""The operations of queues, each written once, in one module for each subject.

Each operation is a coroutine over an `Engine` and a queue's settings. An operation does no I/O itself: the engine's
session does. The async face awaits the coroutine, and the blocking face steps it (`pqcore.db.runtime.run_sync`).
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

_RARE = frozenset(
    {
        "admin",
        "attempts",
        "dependencies",
        "encodings",
        "expiry",
        "explain",
        "limits",
        "list_jobs",
        "move",
        "parent_results",
        "parents",
        "paused_tasks",
        "reencode",
        "results",
        "retry",
        "rules",
        "schedules",
        "worker_registry",
    }
)
"""Modules that are imported on first use, because a program that puts and takes jobs needs none of them."""

if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any attribute of this module

    def __getattr__(name: str) -> ModuleType:
        if name in _RARE:
            return importlib.import_module(f"pqcore.operations.{name}")
        msg = f"module 'pqcore.operations' has no attribute {name!r}"
        raise AttributeError(msg)
