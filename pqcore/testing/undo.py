"""The exception with which tests have a transaction block rolled back."""

from __future__ import annotations


class Undo(Exception):
    """Raised in a transaction block, and suppressed around it: the block is rolled back."""
