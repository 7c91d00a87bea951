"""The exception with which tests roll a transaction block back."""

from __future__ import annotations


class Undo(Exception):
    """An exception that is raised in a transaction block and suppressed around it, so that the block is rolled back."""
