"""Errors of commands, and their messages."""

from __future__ import annotations

import click

from pqcore.db.dsn import redact
from pqcore.errors import (
    BackendNotInstalled,
    ConfigurationError,
    ConnectionLost,
    InvalidName,
    InvalidTimeSpec,
    PluginError,
    PQError,
    SerializerNotInstalled,
)

_WRONG = (BackendNotInstalled, ConfigurationError, InvalidName, InvalidTimeSpec, PluginError, SerializerNotInstalled)
_DSN = "pqcore.dsn"
_UNSAID = "pqcore.unsaid"


class CommandFailed(click.ClickException):
    """The command failed: exit code 1."""

    exit_code = 1


class Undecided(click.ClickException):
    """Some measurements allow no conclusion, and nothing failed: exit code 3."""

    exit_code = 3


class UsageError(click.ClickException):
    """The command line, or an object that it names, is wrong: exit code 2."""

    exit_code = 2


def remember(context: click.Context, dsn: str) -> None:
    """Leave a DSN, and the password in it, out of messages."""
    context.meta[_DSN] = dsn


def remember_none(context: click.Context) -> None:
    """Make messages about an unreachable server say that the command named no server."""
    context.meta[_UNSAID] = True


def explained(context: click.Context, error: PQError) -> click.ClickException:
    """Return an error of pqcore as a command shows it: without a traceback, and without a password."""
    text = str(error)
    if dsn := context.meta.get(_DSN):
        text = redact(text, dsn)
    if isinstance(error, ConnectionLost) and context.meta.get(_UNSAID):
        text += "\nNeither --dsn nor PQCORE_DSN is set: the address comes from libpq's variables, or from its defaults."
    return UsageError(text) if isinstance(error, _WRONG) else CommandFailed(text)
