"""pqcore in a Django project: ``INSTALLED_APPS += ["pqcore.integrations.django"]``; see docs/integrations/django.md.

from pqcore.integrations.django import queue

with transaction.atomic():
    order.save()
    queue("orders").put({"order": order.pk})  # committed with the order, or rolled back with it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from pqcore.integrations.django.queues import DjangoPQ, DjangoQueue, pqs, queue
except ModuleNotFoundError as exc:
    if exc.name != "django":
        raise
    raise ImportError("pqcore.integrations.django needs Django: pip install 'pqcore[django]'") from exc

if TYPE_CHECKING:
    pq: DjangoPQ

__all__ = ["DjangoPQ", "DjangoQueue", "pq", "pqs", "queue"]


def __getattr__(name: str) -> Any:
    if name == "pq":  # made on first use, because the import may precede Django's settings
        return pqs["default"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
