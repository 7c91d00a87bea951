"""A web page that shows queues and jobs, live: ``pqcore web``, or mounted in an application; see docs/web.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from pqcore.async_queue import AsyncPQ
    from pqcore.queue import PQ

__all__ = ["web_app"]


def web_app(
    target: PQ | AsyncPQ | str,
    *,
    changes: bool = False,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    interval: float = 2.0,
    **options: Any,
) -> Starlette:
    """Return the page as an application: serve it, or mount it in a Starlette or FastAPI application at any prefix.

    Every visitor sees all jobs of the table: mount the page behind the application's own authentication, or give
    a token.

    Args:
        target: The source of the queues: a `PQ`, whose operations run in threads, an `AsyncPQ`, or a DSN.
        changes: Whether visitors can retry, cancel and purge jobs, and set rules; otherwise the routes for changes do
            not exist.
        token: The token that visitors must give, at least 16 characters; None for no token.
        hosts: The host names, without ports, under which the page answers, so that no other site can reach the page
            under its own name; None for any.
        interval: Seconds between two looks at the table, while a visitor has a page open.
        **options: With a DSN: ``backend``, ``table`` and ``schema``, as for `PQ`.

    Raises:
        ConfigurationError: An argument is wrong, or a library is missing.
    """
    try:
        from pqcore.web.application import application
    except ImportError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "pqcore":
            raise
        raise ConfigurationError(f"the web page needs {exc.name}: pip install 'pqcore[web]'") from exc
    return application(target, changes=changes, token=token, hosts=hosts, interval=interval, options=options)
